"""glide simulate: what a sweep would do on a cluster that is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glide.cli.options import AsJson, print_json
from glide.report.times import duration
from glide.simulate import Outcome, read
from glide.simulate import simulate as simulated


def simulate(
    trace: Annotated[Path, typer.Argument(help="Nodes that come and go, what a model costs on them, and a sweep.")],
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Draw records and glideins over time into this PNG.")] = None,
) -> None:
    """Let the factory's plan and the packer run a sweep on a trace. Example: glide simulate cluster.yaml --plot a.png

    Times are simulated ones. What the nodes do is the trace's word; what glide decides is its own code's.
    """
    found: dict[str, Outcome] = {}
    for name, (each, site) in read(trace).items():
        found[name] = simulated(each, site)
        told = f"{name}: {found[name].done:,} records in {duration(found[name].makespan)}"
        left = found[name].records - found[name].done
        told += f", {left:,} are left: {found[name].why or 'the trace has ended'}" if left else ""
        print(f"{told}; simulated in {found[name].took:.1f} s", file=sys.stderr)
    if plot:
        _draw(plot, found)
    if as_json:
        print_json({name: each.document() for name, each in found.items()})
    else:
        Console().print(_table(found))


def _table(found: dict[str, Outcome]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    kinds = list(next(iter(found.values())).spent)
    for column in ("", "makespan", "records/s", "first warm", "jobs", "evictions", *kinds):
        table.add_column(column, justify="right" if column else "left")
    for name, each in found.items():
        table.add_row(
            Text(name), f"{each.makespan:,.0f} s", f"{each.done / each.makespan:,.1f}",
            f"{each.first_warm or 0:,.0f} s", f"{each.jobs:,}", f"{each.evictions:,}",
            *(f"{each.spent[kind]:.0%}" for kind in kinds),
        )  # fmt: skip
    return table


def _draw(file: Path, found: dict[str, Outcome]) -> None:
    from glide.report.simulation import draw  # matplotlib takes its time

    draw(file, {name: (each.times, each.curve, each.warm) for name, each in found.items()})
