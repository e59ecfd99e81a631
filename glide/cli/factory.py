"""glide factory: the daemon that turns idle GPUs into warm lanes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from glide.cli.options import AsJson, Sites, print_json
from glide.condor import connect, home
from glide.condor.access_point import quoted
from glide.config import SiteFile, load
from glide.errors import CondorError, InputError
from glide.factory import plan as policy
from glide.factory.apply import Hands
from glide.factory.daemon import Factory, close, drained, folder, known_sites, reopen
from glide.factory.users import serve_users
from glide.report import factory as report
from glide.ssh import access_point_at
from glide.vocabulary import Job

app = typer.Typer(
    help="The glidein factory. Example: glide factory run -c site_configs/local.yaml", no_args_is_help=True
)


@app.command()
def run(
    config: Sites,
    once: Annotated[bool, typer.Option("--once", help="One cycle, then leave.")] = False,
    drain: Annotated[bool, typer.Option("--drain", help="When stopped, take the glideins down.")] = False,
    while_used: Annotated[bool, typer.Option("--while-used", help="Stop when no sweep or session uses it.")] = False,
) -> None:
    """Keep the wanted glideins up until SIGTERM; SIGHUP reads the files again.

    Example: glide factory run -c site_configs/local.yaml
    """
    sites = _sites(config)  # a mistake in a file is said first, pool or not
    connect()
    if while_used:
        serve_users(sites)
    Factory(config, drain).run(once)


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
    """Entries: glideins, limits, breakers, downtimes, failures. Example: glide factory status --json"""
    sites = _sites(known_sites())
    connect()
    told = [report.document(site, Hands(site, folder(site)).look()) for site in sites]
    if as_json:
        print_json({"sites": told})
        return
    Console(markup=False).print(*report.tables(told), sep="\n")


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
        if unseen := [*snapshot.failed, *filter(None, [snapshot.blind.get(entry)])]:
            raise CondorError(f"{entry} is closed; its glideins are still there: {unseen[0]}")
        actions = policy.drain(snapshot, site, "drained by an admin", [entry])
        if refused := hands.apply(actions, snapshot):
            raise CondorError("; ".join(refused))
        print(f"{entry} is closed; {sum(action.count for action in actions)} glideins are going down")


@app.command()
def logs(entry: str, last: Annotated[int, typer.Option(help="Lines of each glidein.")] = 10) -> None:
    """The last words of an entry's glideins, dead ones included. Example: glide factory logs local"""
    _fetch_logs(entry)
    outputs = [path for path in (home() / "factory").glob("*/*/*/*.out") if path.parent.parent.name == entry]
    if not outputs:
        raise InputError(f"no glidein of an entry {entry!r} has run from {home()}")
    for path in sorted(outputs, key=_modified):
        print("\n".join([f"== {entry}-{path.stem}", *report.words(path, last)]))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a running factory tidies up
        return 0.0


def _fetch_logs(entry: str) -> None:
    """What glideins have said that run behind a login host is there."""
    for site in _sites(known_sites()):
        for each in site.entries:
            if each.name == entry and each.ssh:
                access_point_at(each.ssh).retrieve(f"{Job.ENTRY} == {quoted(entry)}")


def _sites(config: list[Path]) -> list[SiteFile]:
    return [load(path, SiteFile) for path in config]
