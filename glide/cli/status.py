"""glide status: entries, glideins, lanes, runs, and why jobs wait."""

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
from glide.report.status import document, observe_pool, tables

WATCH_SECONDS = 2.0


def status(
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until interrupted.")] = False,
) -> None:
    """Show entries, glideins, lanes by model, runs with throughput and ETA, and why jobs wait.

    Example: glide status --watch
    """
    connect()
    if as_json:
        return print_json(document(*observe_pool()))
    console = Console(markup=False)  # rich must not interpret brackets in users' texts as markup
    if not watch:
        return console.print(*_renderables(document(*observe_pool())), sep="\n")
    group = Group(*_renderables(document(*observe_pool())))
    with Live(group, auto_refresh=False, console=Console(markup=False)) as live, suppress(KeyboardInterrupt):
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(Group(*_renderables(document(*observe_pool()))), refresh=True)


def _renderables(status: dict[str, Any]) -> list[Any]:
    return [*(factory.tables(status["sites"]) if status["sites"] else ()), *tables(status)]
