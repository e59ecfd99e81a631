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
    """Run one benchmark on an embedded pool of its own. Example: glide bench overhead --json

    Most benchmarks compare their numbers with a baseline of the same run.

    \b
    batch      sweeps with several batch sizes, over the ideal makespan
    batching   prompts per second of the engine, over plain transformers
    bootstrap  seconds until glideins are warm: files from a source, peers, a cache
    factory    the factory's plan for a huge pool; hundreds of real glideins
    host-loss  seconds until a silent host's records run again; needs root
    lanes      a sweep on very many lanes; the access point's CPU time
    overhead   jobs, records and engine time, over HTCondor and the engine alone
    records    the driver with very many records: memory, rate, time to resume
    recovery   seconds until a killed glidein's records run again
    serve      calls of glide serve, over direct calls of its engine
    serving    records per second of serving programs, over direct requests
    sticky     inferences with a resident model, over jobs that each load it
    tail       records or nodes of different speeds, over the ideal makespan
    """
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark {name!r}; use one of {', '.join(BENCHMARKS)}")
    if count is not None and name != "records":
        raise InputError("--count is only for `glide bench records`; leave it out")
    measured = BENCHMARKS[name](repeat) if count is None else BENCHMARKS[name](repeat, count)
    if as_json:
        print_json(measured)
    for key, value in {} if as_json else measured.items():
        print(f"{key}: {value}")
