"""glide status: entries, glideins, lanes, runs, and why what waits is waiting."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live

from glide.cli.options import AsJson, print_json
from glide.condor import connect
from glide.report import factory
from glide.report.status import document, look, tables

WATCH_SECONDS = 2.0


def status(
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until interrupted.")] = False,
) -> None:
    """Entries, glideins, lanes by model, runs with pace and rest, and why jobs wait. Example: glide status --watch"""
    connect()
    if as_json:
        return print_json(document(*look()))
    console = Console(markup=False)  # what users wrote is none
    if not watch:
        return console.print(*_shown(document(*look())), sep="\n")
    with (
        Live(Group(*_shown(document(*look()))), auto_refresh=False, console=Console(markup=False)) as live,
        suppress(KeyboardInterrupt),
    ):
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(Group(*_shown(document(*look()))), refresh=True)


def _shown(told: dict[str, Any]) -> list[Any]:
    return [*(factory.tables(told["sites"]) if told["sites"] else ()), *tables(told)]
