"""glide factory: the daemon that turns idle GPUs into warm lanes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from glide.cli.options import AsJson, Sites, print_json
from glide.condor import connect, home
from glide.config import Entry, SiteFile, load
from glide.errors import CondorError, InputError
from glide.factory import plan as policy
from glide.factory.apply import Hands
from glide.factory.daemon import Factory, close, drained, folder, known_sites, reopen
from glide.factory.snapshot import Snapshot
from glide.vocabulary import JobStatus

app = typer.Typer(
    help="The glidein factory. Example: glide factory run -c site_configs/local.yaml", no_args_is_help=True
)


@app.command()
def run(
    config: Sites,
    once: Annotated[bool, typer.Option("--once", help="One cycle, then leave.")] = False,
    drain: Annotated[bool, typer.Option("--drain", help="When stopped, take the glideins down.")] = False,
) -> None:
    """Keep the wanted glideins up until SIGTERM; SIGHUP reads the files again.

    Example: glide factory run -c site_configs/local.yaml
    """
    factory = Factory(config, drain)
    connect()
    factory.run(once)


@app.command()
def plan(config: Sites, as_json: AsJson = False) -> None:
    """What the factory would do, and why; changes nothing. Example: glide factory plan -c site_configs/local.yaml"""
    sites = _sites(config)
    connect()
    actions = [
        action for site in sites for action in policy.plan(Hands(site, folder(site)).look(), site, drained(site))
    ]
    if as_json:
        print_json([action.public() for action in actions])
    for action in () if as_json else actions:
        print(f"{action.action} {action.count or ''} {action.entry} {action.template[:12]}: {action.reason}")
    if not actions and not as_json:
        print("nothing to do")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Entries: glideins, limits, breakers, downtimes. Example: glide factory status --json"""
    sites = _sites(known_sites())
    connect()
    seen = [(site, Hands(site, folder(site)).look()) for site in sites]
    entries = [entry_status(entry, site, snapshot) for site, snapshot in seen for entry in site.entries]
    unseen = sorted({failed for _, snapshot in seen for failed in snapshot.failed})
    if as_json:
        print_json({"entries": entries, "unseen": unseen})
        return
    table = Table("site", "entry", "glideins", "ended", "room", "limited by", title_justify="left")
    for entry in entries:
        told = ({name: str(count) for name, count in entry[kind].items()} for kind in ("glideins", "ended"))
        counts = (", ".join(f"{count} {name}" for name, count in each.items()) or "-" for each in told)
        table.add_row(entry["site"], entry["entry"], *counts, str(entry["room"]), entry["limit"])
    Console().print(table, *(f"no view: {failed}" for failed in unseen), sep="\n")


def entry_status(entry: Entry, site: SiteFile, snapshot: Snapshot) -> dict[str, Any]:
    """What an admin asks of an entry, as one JSON object."""
    mine, ended = snapshot.of(entry.name)
    found = policy.room(entry, snapshot, drained(site))
    return {
        "site": site.site, "entry": entry.name,
        "glideins": dict(Counter(JobStatus.NAMES[glidein.status] for glidein in mine)),
        "ended": dict(Counter(glidein.state or "never warm" for glidein in ended)),
        "room": None if snapshot.failed else found.left, "limit": found.limit,
    }  # fmt: skip


@app.command()
def drain(entry: str, undo: Annotated[bool, typer.Option("--undo", help="Open the entry again.")] = False) -> None:
    """Close an entry and take its glideins down. Example: glide factory drain local"""
    sites = [site for site in _sites(known_sites()) if any(each.name == entry for each in site.entries)]
    if not sites:
        raise InputError(f"no factory has run an entry {entry!r} from {home()}")
    connect()
    for site in sites:
        if undo:
            reopen(site, entry)
            print(f"{entry} is open")
            continue
        close(site, entry)
        hands = Hands(site, folder(site))
        snapshot = hands.look()
        if snapshot.failed:
            raise CondorError(f"{entry} is closed; its glideins are still there: {snapshot.failed[0]}")
        actions = policy.drain(snapshot, site, "drained by an admin", [entry])
        hands.apply(actions, snapshot)
        print(f"{entry} is closed; {sum(action.count for action in actions)} glideins are going down")


@app.command()
def logs(entry: str, last: Annotated[int, typer.Option(help="Lines of each glidein.")] = 10) -> None:
    """The last words of an entry's glideins, dead ones included. Example: glide factory logs local"""
    outputs = sorted((home() / "factory").glob(f"*/{entry}/*/*.out"), key=lambda path: path.stat().st_mtime)
    if not outputs:
        raise InputError(f"no glidein of an entry {entry!r} has run from {home()}")
    for path in outputs:
        lines = [*path.read_text(errors="replace").splitlines(), *_errors(path)][-last:]
        print("\n".join([f"== {entry}-{path.stem}", *lines]))


def _errors(path: Path) -> list[str]:
    errors = path.with_suffix(".err")
    return errors.read_text(errors="replace").splitlines() if errors.exists() else []


def _sites(config: list[Path]) -> list[SiteFile]:
    return [load(path, SiteFile) for path in config]
