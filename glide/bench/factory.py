"""Measure the factory with very many glideins.

First measure how many seconds the function `plan` takes for a huge pool, which exists only as ads. Then start hundreds
of real glideins on this machine, and measure the start time, memory and CPU time of these glideins.
"""

from __future__ import annotations

import os
import sys
import time
import tracemalloc
from pathlib import Path
from statistics import median
from typing import Any

from glide.bench.rig import Rig, rig
from glide.config import SiteFile
from glide.factory.actions import Submit
from glide.factory.observe import build_snapshot
from glide.factory.plan import plan
from glide.protocol.ads import InvocationAd, LaneAd, OuterAd
from glide.sweep.driver import Progress
from glide.template import Template
from glide.vocabulary import JobStatus, State

CALL = 8  # number of records in an engine call; an engine on a GPU also computes several records in a call
NODE_WRAPPER = Path(__file__).with_name("node.sh")
MEMORY_SHARE = 0.9  # share of the available memory that all glideins together may use
PAUSE = 2.0  # minimum time between two points of the timeline, in seconds


def factory(repeat: int, glideins: tuple[int, int] = (186, 640)) -> dict[str, Any]:
    """Measure the function `plan` for 10,000 glideins and 100,000 jobs. Then measure many glideins in two sweeps.

    The glideins are real, but their nodes are namespaces of this machine, and the engine is noop. Each sweep has one
    job for each lane, and all jobs have the same size. `glide bench batch` measures how glide chooses the size of jobs.

    Args:
        glideins: the number of glideins for each of the two sweeps. If the machine's memory is too small, the second
            sweep gets fewer glideins.
    """
    first, most = glideins
    measured = {"plan": _plan(repeat), str(first): _scale(first)}
    fitting = int(MEMORY_SHARE * _available() / 1e6 / measured[str(first)]["mb_per_glidein"])
    return measured | {str(min(most, fitting)): _scale(min(most, fitting))}


def _scale(glideins: int) -> dict[str, Any]:
    # A glidein requests 64 MB of memory. HTCondor rounds this request up to 128 MB. The pool offers 256 MB for each
    # glidein, which is more. So all glideins fit. The benchmark measures the memory that glideins really use.
    settings = {"USER_JOB_WRAPPER": str(NODE_WRAPPER), "MEMORY": str(256 * glideins)}
    request = {"memory": 64, "disk": 1}
    with rig(
        cores=glideins, settings=settings, request=request, max_idle=glideins, submits_per_cycle=glideins
    ) as bench:
        return _measure(bench, glideins)


def _measure(bench: Rig, glideins: int, records: int = 50_000) -> dict[str, Any]:
    lanes = 2 * glideins
    # The sweep must last until all glideins have started. If many glideins already run, another glidein starts more
    # slowly. So for a sweep with more glideins, the benchmark chooses a longer duration for each record.
    record_seconds = 0.5 * max(1.0, glideins / 186) ** 2
    started, memory, cpu = time.monotonic(), _available(), _cpu_seconds()
    timeline: list[dict[str, float]] = []

    def watch(progress: Progress) -> None:
        point = {
            "s": round(time.monotonic() - started, 1), "lanes": sum(progress.lanes.values()),
            "warm": progress.lanes.get(State.WARM, 0), "records": progress.done,
            "memory_mb": round((memory - _available()) / 1e6), "cpu_s": round(_cpu_seconds() - cpu, 1),
        }  # fmt: skip
        if not timeline or point["s"] - timeline[-1]["s"] > PAUSE or point["warm"] == lanes > timeline[-1]["warm"]:
            timeline.append(point)
            print(f"bench: {point}", file=sys.stderr)

    summary = bench.sweep(
        records, {"record_seconds": CALL * record_seconds, "parallel": CALL}, watch, glideins=glideins, batch=CALL,
        pack=max(1, records // lanes // CALL),
    )  # fmt: skip
    peak = max(timeline, key=lambda point: point["warm"])
    return {
        "glideins": glideins,
        "lanes_warm_at_once": peak["warm"],
        "first_warm_s": next(point["s"] for point in timeline if point["warm"]),
        "all_warm_s": next((point["s"] for point in timeline if point["warm"] == lanes), None),
        "makespan_s": summary["makespan_s"],
        "ideal_s": round(records * record_seconds / glideins, 1),
        "errors": records - sum(each["records"] for each in summary["glideins"]),
        "mb_per_glidein": round(peak["memory_mb"] / glideins, 1),
        "cpu_s_per_glidein": round(peak["cpu_s"] / glideins, 2),
        "timeline": timeline,
    }


def _available() -> float:
    """Return the bytes of memory that are available."""
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))


def _cpu_seconds() -> float:
    """Return the busy seconds of all CPUs together since the machine started."""
    _, user, nice, system, *_ = Path("/proc/stat").read_text("utf-8").split()
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _plan(repeat: int, glideins: int = 10_000, jobs: int = 100_000) -> dict[str, float]:
    """Measure how many seconds it takes to make a plan from ads. Also measure the peak memory of ads and plan."""
    templates = {template.digest: template for template in (Template(f"model-{n}", "noop") for n in range(10))}
    entries = [{"name": f"entry-{number}", "max_glideins": glideins, "max_idle": glideins} for number in range(10)]
    site = SiteFile.model_validate({"site": "bench", "entries": entries})
    seconds = []
    for _ in range(repeat):
        ads = _ads(glideins, jobs, list(templates))
        started = time.monotonic()
        actions = plan(build_snapshot(*ads, templates), site)
        seconds.append(time.monotonic() - started)
        assert any(isinstance(action, Submit) for action in actions)
    tracemalloc.start()
    plan(build_snapshot(*_ads(glideins, jobs, list(templates)), templates), site)
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return {"glideins": glideins, "jobs": jobs, "seconds": round(median(seconds), 3), "mb": round(megabytes)}


def _ads(glideins: int, jobs: int, digests: list[str]) -> tuple[list[OuterAd], list[InvocationAd], list[LaneAd]]:
    """Return the ads of a large pool's queue and lanes.

    Half of the glideins run, and each running glidein has two lanes. All invocation jobs are idle.
    """
    outer_jobs = [
        OuterAd(
            cluster=1, proc=number, entry=f"entry-{number % 10}", template=digests[number % 10],
            status=JobStatus.RUNNING if number % 2 else JobStatus.IDLE, starts=number % 2,
            status_since=1000, server_time=2000, slot=f"slot1@node-{number % 500}",
            state=State.WARM if number % 2 else "", state_since=1500,
        )
        for number in range(glideins)
    ]  # fmt: skip
    invocations = [
        InvocationAd(
            cluster=2 + number % 50, proc=number, status=JobStatus.IDLE, template=digests[number % 10],
            run=f"run-{number % 50}", records=100, wanted=1000,
        )
        for number in range(jobs)
    ]  # fmt: skip
    lanes = [
        LaneAd(
            name=f"slot{slot}@{number}", glide_id=f"entry-{number % 10}-1.{number}", entry=f"entry-{number % 10}",
            template=digests[number % 10], model=f"model-{number % 10}", state=State.WARM,
            claim="Claimed" if slot == 1 else "Unclaimed", record_seconds=0.5,
        )
        for number in range(1, glideins, 2) for slot in (1, 2)
    ]  # fmt: skip
    return outer_jobs, invocations, lanes
