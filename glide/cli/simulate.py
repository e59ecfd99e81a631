"""glide simulate: predict how a sweep would run on a described cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glide.cli.options import AsJson, print_json
from glide.errors import InputError
from glide.report.times import duration
from glide.simulate import Outcome, read
from glide.simulate import simulate as simulated


def simulate(
    trace: Annotated[
        Path, typer.Argument(help="A file with nodes that come and go, a model's costs on them, and a sweep.")
    ],
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Draw records and glideins over time into this PNG.")] = None,
) -> None:
    """Simulate a sweep on the nodes of a trace. Example: glide simulate cluster.yaml --plot a.png

    The trace describes when nodes come and go. glide's own code decides which glideins and jobs are submitted, how many
    records a job gets, and which records move to another job. All times are simulated.

    A trace can contain several variants, for example with more GPUs or with more evictions. Then the command simulates
    the sweep once for each variant. Exit code 1: at least one simulated sweep has finished no record.
    """
    if plot and (plot.suffix != ".png" or not plot.parent.is_dir()):
        raise InputError(f"{plot}: name a file that ends with .png, in a folder that exists")
    found: dict[str, Outcome] = {}
    for name, (each, site) in read(trace).items():
        found[name] = simulated(each, site)
        line = f"{name}: {found[name].done:,} records in {duration(found[name].makespan)}"
        left = found[name].records - found[name].done
        line += f", {left:,} are left: {found[name].why}" if left else ""
        print(f"{line}; simulated in {found[name].took:.1f} s", file=sys.stderr)
    if as_json:
        print_json({name: each.document() for name, each in found.items()})
    else:
        Console().print(_table(found))
    if plot:
        _draw(plot, found)
    if not all(each.done for each in found.values()):
        raise typer.Exit(1)


def _table(found: dict[str, Outcome]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    kinds = list(next(iter(found.values())).spent)
    for column in ("", "seconds", "done", "records/s", "jobs", "evictions", *kinds):
        table.add_column(column, justify="right" if column else "left", no_wrap=column in ("", "seconds", "done"))
    for name, each in found.items():
        table.add_row(
            Text(name), f"{each.makespan:,.0f}", f"{each.done / each.records:.0%}", f"{each.done / each.makespan:,.1f}",
            f"{each.jobs:,}", f"{each.evictions:,}", *(f"{share:.0%}" for share in each.shares.values()),
        )  # fmt: skip
    return table


def _draw(file: Path, found: dict[str, Outcome]) -> None:
    from glide.report.simulation import draw  # not at the top, because importing matplotlib is slow

    draw(file, {name: (each.times, each.curve, each.warm) for name, each in found.items()})
