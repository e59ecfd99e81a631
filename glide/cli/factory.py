"""glide factory: the daemon that turns idle GPUs into warm lanes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glide.cli.options import AsJson, Sites, print_json
from glide.condor import AccessPoint, Collector, connect, home
from glide.config import SiteFile, load
from glide.errors import InputError
from glide.factory import plan as policy
from glide.factory.daemon import Factory
from glide.factory.snapshot import take

app = typer.Typer(
    help="The glidein factory. Example: glide factory run -c site_configs/local.yaml", no_args_is_help=True
)


@app.command()
def run(config: Sites, once: Annotated[bool, typer.Option("--once", help="One cycle, then leave.")] = False) -> None:
    """Keep the wanted glideins up until SIGTERM, then drain. Example: glide factory run -c site_configs/local.yaml"""
    site = _site(config)
    connect()
    Factory(site).run(once)


@app.command()
def plan(config: Sites, as_json: AsJson = False) -> None:
    """What the factory would do, and why; changes nothing. Example: glide factory plan -c site_configs/local.yaml"""
    site = _site(config)
    connect()
    actions = policy.plan(take(AccessPoint(), Collector()), site)
    if as_json:
        print_json([action.public() for action in actions])
    for action in () if as_json else actions:
        print(f"{action.action} {action.count or ''} {action.entry} {action.template[:12]}: {action.reason}")
    if not actions and not as_json:
        print("nothing to do")


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


def _site(config: list[Path]) -> SiteFile:
    if len(config) > 1:
        raise InputError("one site file per factory; run a factory for each")
    return load(config[0], SiteFile)
