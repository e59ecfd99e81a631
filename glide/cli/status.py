"""glide status: glideins, lanes, queue, and why what waits is waiting."""

from __future__ import annotations

from rich.console import Console

from glide.cli.options import AsJson, print_json
from glide.condor import AccessPoint, Collector, connect
from glide.factory.look import take
from glide.report.status import document, tables


def status(as_json: AsJson = False) -> None:
    """Glideins by state, warm lanes by model, the queue and why it waits. Example: glide status --json"""
    connect()
    snapshot = take(AccessPoint, Collector())
    if as_json:
        print_json(document(snapshot))
    else:
        Console().print(*tables(snapshot), sep="\n")
