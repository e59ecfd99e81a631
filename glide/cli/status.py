"""glide status: entries, glideins, lanes, runs, and why what waits is waiting."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live

from glide.cli.options import AsJson, print_json
from glide.condor import AccessPoint, Collector, connect
from glide.config import SiteFile, load
from glide.factory.apply import Hands
from glide.factory.daemon import drained, folder, is_running, known_sites
from glide.factory.look import take
from glide.report import factory
from glide.report.reasons import View
from glide.report.status import document, tables

WATCH_SECONDS = 2.0


def status(
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until interrupted.")] = False,
) -> None:
    """Entries, glideins, lanes by model, runs with pace and rest, and why jobs wait. Example: glide status --watch"""
    connect()
    if as_json:
        return print_json(_look())
    if not watch:
        return Console().print(*_shown(_look()), sep="\n")
    with Live(Group(*_shown(_look())), auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(Group(*_shown(_look())), refresh=True)


def _look() -> dict[str, Any]:
    sites = [load(path, SiteFile) for path in known_sites()]
    outer = [each for site in sites for each in Hands(site, folder(site)).outer]
    snapshot = take(AccessPoint, Collector(), outer)
    views = [View(site, frozenset(drained(site)), is_running(site)) for site in sites]
    return document(snapshot, views)


def _shown(told: dict[str, Any]) -> list[Any]:
    return [*(factory.tables(told["sites"]) if told["sites"] else ()), *tables(told)]
