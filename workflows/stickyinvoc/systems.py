"""The common parts of the experiments: the paper's three systems, two classes of nodes, and the data of a run.

Create-destroy fetches and loads the model in each task. StickyI/O loads the model in each task from the node's disk.
StickyInvoc loads the model once per node. All three systems are glide. They differ in what a node keeps after a job.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from glide.bench.rig import Enough, Rig
from glide.protocol.json_lines import read_lines, read_results
from glide.report.experiment import arguments
from glide.report.sweep import history as histories
from glide.report.sweep.figures import GREEN, ORANGE, RED
from glide.report.sweep.history import SweepHistory
from glide.report.sweep.timeline import Series, glideins, records_done
from glide.server.engines.noop import PACE_VARIABLE
from glide.sweep.driver import Progress
from glide.sweep.out import history_file
from glide.vocabulary import State

CREATE_DESTROY, STICKY_IO, STICKY_INVOC = "create-destroy", "StickyI/O", "StickyInvoc"
KEEP = {CREATE_DESTROY: "nothing", STICKY_IO: "files", STICKY_INVOC: "state"}
COLOURS = {CREATE_DESTROY: RED, STICKY_IO: ORANGE, STICKY_INVOC: GREEN}
# Number of lanes of a glidein. With two lanes, one job computes while a second job starts or ends. Where each job must
# load the model, a glidein has one lane, because two jobs at the same time would share one load.
LANES = {CREATE_DESTROY: 1, STICKY_IO: 1, STICKY_INVOC: 2}

FAST, SLOW = "fast", "slow"
# The environment variables that make a node slow. With OLD_PROCESSOR, a real model uses only the oldest vector
# instructions. With HALF_SPEED, the noop engine takes twice the time.
OLD_PROCESSOR = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
TIME_FACTORS = {FAST: 1.0, SLOW: 2.0}
HALF_SPEED = {PACE_VARIABLE: str(TIME_FACTORS[SLOW])}


def options(what: str | None, minutes: int) -> ArgumentParser:
    """Return the parser of an experiment's command line.

    Args:
        what: description of the experiment.
        minutes: minutes that the experiment takes on two cores.
    """
    takes = f"About {minutes} minutes on two cores, on HTCondor pools of its own."
    parser = arguments(what or "", "stickyinvoc", takes, repeat=1)
    parser.add_argument("--scale", type=share, default=1.0, help="fraction of the full size, to try the command")
    return parser


def share(text: str) -> float:
    """Return a fraction of the full size from the command line: above 0, and at most 1."""
    if not 0 < (number := float(text)) <= 1:
        raise ValueError
    return number


def report_progress(text: str) -> None:
    print(f"stickyinvoc: {text}", file=sys.stderr, flush=True)


def entries(folder: Path, each: int, slow: Mapping[str, str], **common: Any) -> list[dict[str, Any]]:
    """Return two entries of a site file, one for each class of nodes.

    Args:
        folder: folder into which the function writes a shell script that is the Python interpreter of the slow nodes.
        each: maximum number of glideins of each entry.
        slow: environment variables of the slow nodes.
        common: further keys of both entries.
    """
    python = folder / "slow-python"
    lines = [f"export {name}={value}" for name, value in slow.items()]
    python.write_text("\n".join(["#!/bin/sh", *lines, f'exec "{sys.executable}" "$@"', ""]), "utf-8")
    python.chmod(0o755)
    return [
        {"name": FAST, "max_glideins": each, **common},
        {"name": SLOW, "max_glideins": each, "python": str(python), **common},
    ]


@dataclass(frozen=True)
class Task:
    """A job whose results were gathered.

    Attributes:
        node: class of the node on which the job ran.
        started, ended: seconds since the sweep began. HTCondor reports whole seconds.
        records: number of the job's records.
    """

    node: str
    started: float
    ended: float
    records: int


@dataclass(frozen=True)
class Run:
    """A sweep that has run.

    Attributes:
        system: name of the paper's system that the sweep imitated.
        lanes: number of lanes of each glidein.
        total: number of the sweep's records.
        sizes: values of the sweep's keys `batch` and `pack`.
        history: the history that the driver has written.
        results: results of the records that are done.
        summary: the sweep's summary; empty if the experiment stopped the sweep.
    """

    system: str
    lanes: int
    total: int
    sizes: Mapping[str, Any]
    history: SweepHistory
    results: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """The seconds from the beginning of the sweep to the last gathered result."""
        return float(self.summary.get("makespan_s", self.history.seconds))

    @property
    def done(self) -> Series:
        """The number of records with a result, over time."""
        return records_done(self.history)

    @property
    def tasks(self) -> list[Task]:
        nodes = {lane.name: node_class(lane.glidein) for lane in self.history.lanes}
        ran = [(each.executions[-1], each.records) for each in self.history.jobs if each.end == "gathered"]
        return [
            Task(nodes[execution.lane], execution.executing, execution.ended, records)
            for execution, records in ran if execution.executing is not None and execution.lane in nodes
        ]  # fmt: skip

    def record_seconds(self, node: str) -> float:
        """Return the engine's average seconds per record on a class of nodes."""
        return mean([each["seconds"] for each in self.results if node_class(each["glidein"]) == node] or [0.0])

    def task_seconds(self, node: str) -> float:
        return mean([task.ended - task.started for task in self.tasks if task.node == node] or [0.0])

    def loading_seconds(self, node: str) -> float:
        """Return the average seconds of a task on a class of nodes, without the inference."""
        records = mean([task.records for task in self.tasks if task.node == node] or [0])
        return max(0.0, self.task_seconds(node) - records * self.record_seconds(node))

    def document(self) -> dict[str, Any]:
        """Return a JSON document: the data that a simulation of this run needs, and the results that it should give.

        Times are in seconds since the sweep began. `fetch_s` is the average of the glideins' first fetches. `load_s` is
        a load from local files; for create-destroy, it includes the fetch of the files in each task.
        """
        found = glideins(self.history)
        nodes = [
            {
                "id": each.id, "class": node_class(each.id), "arrive_s": round(each.start, 2),
                "warm_s": None if each.warm is None else round(each.start + each.warm, 2),
                "leave_s": round(each.ended, 2) if each.end else None,
            }
            for each in found
        ]  # fmt: skip
        classes = {}
        for node in sorted({node_class(each.id) for each in found}):
            own = [each for each in found if node_class(each.id) == node and each.warm is not None]
            fetch = mean([each.seconds(State.FETCHING) for each in own] or [0.0])
            start = mean([each.warm or 0.0 for each in own] or [0.0])
            load = start - fetch if self.system == STICKY_INVOC else self.loading_seconds(node)
            classes[node] = {
                "record_s": round(self.record_seconds(node), 5), "fetch_s": round(fetch, 3), "load_s": round(load, 3),
            }  # fmt: skip
        return {
            "system": self.system, "keep": KEEP[self.system], "lanes": self.lanes, **self.sizes,
            "total": self.total, "records": len(self.results), "jobs": len(self.history.jobs),
            "finished": bool(self.summary), "makespan_s": round(self.seconds, 2), "classes": classes, "nodes": nodes,
            "done": [[round(at, 2), int(count)] for at, count in self.done],
        }  # fmt: skip


def run(
    bench: Rig,
    system: str,
    model: Mapping[str, Any],
    records: int,
    watch: Callable[[Progress], None] = lambda progress: None,
    lanes: int | None = None,
    batch: int | str = "auto",
    pack: int | str = "auto",
    **changes: Any,
) -> Run:
    """Run a sweep with the behaviour of one of the paper's systems.

    Args:
        records: number of records.
        watch: a function that is called with the progress. It may raise Enough to stop the sweep.
        lanes: number of lanes of each glidein; None for the number in LANES.
        changes: further keys of the sweep file, as for Rig.sweep.
    """
    summary: Mapping[str, Any] = {}
    kept = {**model, "keep": KEEP[system]}
    with suppress(Enough):
        summary = bench.sweep(records, {}, watch, model=kept, batch=batch, pack=pack, **changes)
    sweep = bench.results.sweep
    return Run(
        system, lanes or LANES[system], records, {"batch": batch, "pack": pack},
        histories.read(read_lines(history_file(sweep.out))), list(read_results(sweep.out / "plain" / "results.jsonl")),
        summary,
    )  # fmt: skip


def start_glideins(bench: Rig, system: str, model: Mapping[str, Any], nodes: int) -> None:
    """Start a glidein on each node, and run some records until each lane has measured its seconds per record.

    Afterwards the nodes have what the system keeps between tasks.
    """
    lanes = nodes * LANES[system]

    def watch(progress: Progress) -> None:
        if progress.lanes.get(State.WARM, 0) >= lanes and progress.running >= lanes and progress.done >= lanes:
            raise Enough

    run(bench, system, model, 1000 * nodes, watch, glideins=nodes)


def node_class(glidein: str) -> str:
    """Return the class of a glidein's node. It is the name of the glidein's entry, and the GlideId begins with it."""
    return glidein.partition("-")[0]


def noop(record_seconds: float, load_seconds: float) -> dict[str, Any]:
    """Return the `model` of a sweep file with the noop engine, which takes these times on a fast node."""
    return {
        "name": "noop", "engine": "noop",
        "options": {"record_seconds": record_seconds, "load_seconds": load_seconds},
    }  # fmt: skip
