"""Measure a sweep on very many lanes of one machine, and what each lane costs the access point."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from glide.bench.rig import Enough, Rig, rig
from glide.vocabulary import State

LANES = 186
RECORDS = 50_000
RECORD_SECONDS = 0.5
# HTCondor may count on more memory than the machine has, because a noop engine needs little.
SETTINGS = {"MEMORY": str(600 * LANES)}
DAEMONS = ("condor_master", "condor_collector", "condor_negotiator", "condor_schedd")


def lanes(repeat: int, count: int = LANES, records: int = RECORDS) -> dict[str, Any]:
    """Measure the makespan of sweeps on `count` glideins with one lane each, and the CPU time of the access point.

    The pure work is the time that the engines need, divided by the number of lanes. The ideal makespan has two parts:

    - the pure work
    - the CPU time of all processes of HTCondor and all model servers, divided by the number of cores

    This CPU time is far higher than on separate nodes: whenever a job starts or ends, the condor_procd of its glidein
    looks at all processes of the machine, also at those of the other glideins.
    """
    options = {"record_seconds": RECORD_SECONDS}
    with rig(cores=count, settings=SETTINGS, lanes=1, max_idle=count, submits_per_cycle=count) as bench:
        _start_all(bench, options, count)
        runs = [_measure(bench, options, count, records) for _ in range(repeat)]
    pure = records * RECORD_SECONDS / count
    cores = len(os.sched_getaffinity(0))
    ideals = [pure + run["cpu_s"] / cores for run in runs]
    return {
        "lanes": count,
        "pure_work_s": round(pure, 3),
        "over_ideal": round(median(run["makespan_s"] / ideal for run, ideal in zip(runs, ideals, strict=True)), 3),
        "over_pure_work": round(median(run["makespan_s"] / pure for run in runs), 3),
        "access_point_cpu_ms_per_lane_second": round(
            median(1000 * run["access_point_cpu_s"] / count / run["makespan_s"] for run in runs), 4
        ),
        "runs": runs,
    }


def _start_all(bench: Rig, options: dict[str, Any], count: int) -> None:
    """Run a sweep until all glideins are warm, and stop it."""

    def watch(progress: Any) -> None:
        warm = progress.lanes.get(State.WARM, 0)
        print(f"bench: {warm} of {count} lanes are warm", file=sys.stderr)
        if warm >= count:
            raise Enough

    with suppress(Enough):
        bench.sweep(1000 * count, options, watch, glideins=count, pack=10)


def _measure(bench: Rig, options: dict[str, Any], count: int, records: int) -> dict[str, Any]:
    daemons, everything = _cpu_seconds(bench, DAEMONS), _cpu_seconds(bench)
    summary = bench.sweep(records, options, glideins=count)
    return {
        "makespan_s": summary["warm_makespan_s"],
        "access_point_cpu_s": round(_cpu_seconds(bench, DAEMONS) - daemons, 2),
        "cpu_s": round(_cpu_seconds(bench) - everything, 2),
        "jobs": summary["jobs"],
        "recomputed": summary["recomputed"],
    }


def _cpu_seconds(bench: Rig, names: tuple[str, ...] = ()) -> float:
    """Return the CPU time of the pool's processes so far, in seconds. Children that have ended are included.

    Args:
        names: names of the pool's daemons, without those of glideins; empty for all processes of the pool.
    """
    found = [each for name in names for each in bench.pool.daemons(name)] if names else bench.pool.processes()
    ticks = 0
    for process in found:
        with suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime and cstime of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")
