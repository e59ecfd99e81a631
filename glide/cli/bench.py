"""glide bench: measure a benchmark and its baseline on this machine, in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from glide.bench import BENCHMARKS
from glide.cli.options import AsJson, print_json
from glide.errors import InputError


def bench(
    name: Annotated[str, typer.Argument(help=", ".join(BENCHMARKS))],
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each measurement; medians are reported.")] = 3,
    count: Annotated[int | None, typer.Option(min=1000, help="Number of records, for the benchmark `records`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run one benchmark on an embedded pool of its own. Example: glide bench overhead --json"""
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark {name!r}; use one of {', '.join(BENCHMARKS)}")
    if count is not None and name != "records":
        raise InputError("--count is only for `glide bench records`; leave it out")
    measured = BENCHMARKS[name](repeat) if count is None else BENCHMARKS[name](repeat, count)
    if as_json:
        print_json(measured)
    for key, value in {} if as_json else measured.items():
        print(f"{key}: {value}")
