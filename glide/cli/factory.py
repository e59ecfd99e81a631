"""glide factory: run the daemon that submits glideins, inspect it, and close entries."""

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
from glide.factory.act import apply
from glide.factory.home import close, drained, known_sites, reopen, site_folder
from glide.factory.loop import Factory
from glide.factory.site_client import SiteClient
from glide.factory.users import stop_when_unused
from glide.report import factory as report
from glide.ssh import access_point_at
from glide.vocabulary import Job

app = typer.Typer(
    help="Run and inspect the glidein factory. Example: glide factory run -c site_configs/local.yaml",
    no_args_is_help=True,
)


@app.command()
def run(
    config: Sites,
    once: Annotated[bool, typer.Option("--once", help="Run one cycle, then exit.")] = False,
    drain: Annotated[bool, typer.Option("--drain", help="Remove all glideins when stopped.")] = False,
    while_used: Annotated[bool, typer.Option("--while-used", help="Stop when no sweep or session uses it.")] = False,
) -> None:
    """Run the factory until SIGTERM. It submits the glideins that jobs want. SIGHUP makes it read the site files again.

    Example: glide factory run -c site_configs/local.yaml
    """
    sites = _sites(config)  # read files before connect(), so that a mistake is reported even without a pool
    connect()
    if while_used:
        stop_when_unused(sites)
    Factory(config, drain).run(once)


@app.command()
def plan(config: Sites, as_json: AsJson = False) -> None:
    """Print what the factory would do, and why. Example: glide factory plan -c site_configs/local.yaml

    This command changes nothing.
    """
    sites = _sites(config)
    connect()
    actions = [
        action
        for site in sites
        for action in policy.plan(SiteClient(site, site_folder(site)).observe(), site, drained(site))
    ]
    if as_json:
        print_json([action.public() for action in actions])
    for action in () if as_json else actions:
        print(f"{action.action} {action.count or ''} {action.entry} {action.template[:12]}: {action.reason}")
    if not actions and not as_json:
        print("nothing to do")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show each entry's glideins, the limit on their number, and the last failure. Example: glide factory status"""
    sites = _sites(known_sites())
    connect()
    documents = [report.document(site, SiteClient(site, site_folder(site)).observe()) for site in sites]
    if as_json:
        print_json({"sites": documents})
        return
    Console(markup=False).print(*report.tables(documents), sep="\n")


@app.command()
def drain(entry: str, undo: Annotated[bool, typer.Option("--undo", help="Open the entry again.")] = False) -> None:
    """Close an entry and remove its glideins. Example: glide factory drain local"""
    sites = [site for site in _sites(known_sites()) if any(each.name == entry for each in site.entries)]
    if not sites:
        raise InputError(f"no factory whose GLIDE_HOME is {home()} has an entry {entry!r}")
    connect()
    for site in sites:
        if undo:
            reopen(site, entry)
            print(f"{entry} is open")
            continue
        close(site, entry)
        client = SiteClient(site, site_folder(site))
        snapshot = client.observe()
        if unseen := [*snapshot.unavailable_sources, *filter(None, [snapshot.unavailable_entries.get(entry)])]:
            raise CondorError(f"{entry} is closed, but its glideins are not removed: {unseen[0]}")
        actions = policy.drain(snapshot, site, "drained by an admin", [entry])
        if refused := apply(client, actions, snapshot):
            raise CondorError("; ".join(refused))
        print(f"{entry} is closed; {sum(action.count for action in actions)} glideins are being removed")


@app.command()
def logs(entry: str, last: Annotated[int, typer.Option(help="Number of lines of each glidein.")] = 10) -> None:
    """Print the last output of all glideins of an entry, including ended ones. Example: glide factory logs local"""
    _fetch_logs(entry)
    outputs = [path for path in (home() / "factory").glob("*/*/*/*.out") if path.parent.parent.name == entry]
    if not outputs:
        raise InputError(f"GLIDE_HOME is {home()}; this folder has no output of glideins of an entry {entry!r}")
    for path in sorted(outputs, key=_modified):
        print("\n".join([f"== {entry}-{path.stem}", *report.last_lines(path, last)]))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a running factory has just deleted the file
        return 0.0


def _fetch_logs(entry: str) -> None:
    """If an entry has a login host, copy the output of the entry's glideins from that host to this machine."""
    for site in _sites(known_sites()):
        for each in site.entries:
            if each.name == entry and each.ssh:
                access_point_at(each.ssh).retrieve(f"{Job.ENTRY} == {quoted(entry)}")


def _sites(config: list[Path]) -> list[SiteFile]:
    return [load(path, SiteFile) for path in config]
