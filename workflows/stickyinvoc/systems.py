"""What the experiments have in common: the paper's three systems, nodes of two classes, and an account of a run.

Create-destroy fetches and loads the model in each task, StickyI/O loads it in each task from the node's disk, and
StickyInvoc has it loaded once per node. All three are glide, which differs in what its nodes keep from job to job.
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
from glide.invoke.carriers import read_lines, read_results
from glide.report.experiment import arguments
from glide.report.sweep import history as histories
from glide.report.sweep.figures import GREEN, ORANGE, RED
from glide.report.sweep.history import History
from glide.report.sweep.timeline import Series, glideins, records_done
from glide.server.engines.noop import PACE_VARIABLE
from glide.sweep.driver import Progress
from glide.sweep.out import history_file
from glide.vocabulary import State

CREATE_DESTROY, STICKY_IO, STICKY_INVOC = "create-destroy", "StickyI/O", "StickyInvoc"
KEEP = {CREATE_DESTROY: "nothing", STICKY_IO: "files", STICKY_INVOC: "state"}
COLOURS = {CREATE_DESTROY: RED, STICKY_IO: ORANGE, STICKY_INVOC: GREEN}
# Where each job loads for itself, two at a time would share what they load; else one job's turnover hides another's.
LANES = {CREATE_DESTROY: 1, STICKY_IO: 1, STICKY_INVOC: 2}

FAST, SLOW = "fast", "slow"
# What makes a node slow: a processor that has no vector instructions but the oldest; or a pace of the noop engine.
OLD_PROCESSOR = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
PACES = {FAST: 1.0, SLOW: 2.0}
HALF_PACE = {PACE_VARIABLE: str(PACES[SLOW])}


def options(what: str | None, minutes: int) -> ArgumentParser:
    """An experiment's command line.

    Args:
        minutes: that it takes on two cores.
    """
    takes = f"About {minutes} minutes on two cores, on HTCondor pools of its own."
    parser = arguments(what or "", "stickyinvoc", takes, repeat=1)
    parser.add_argument("--scale", type=share, default=1.0, help="share of the full size, to try the command")
    return parser


def share(text: str) -> float:
    """Of the full size."""
    if not 0 < (number := float(text)) <= 1:
        raise ValueError
    return number


def say(words: str) -> None:
    """A line of progress."""
    print(f"stickyinvoc: {words}", file=sys.stderr, flush=True)


def entries(folder: Path, each: int, slow: Mapping[str, str], **common: Any) -> list[dict[str, Any]]:
    """Two entries, a class of nodes each, with a cache of their own.

    Args:
        folder: for what they need.
        each: glideins of each.
        slow: environment of the slow nodes.
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
    """A job that has brought its records home, on a class of nodes; whole seconds, as HTCondor tells them."""

    node: str
    started: float
    ended: float
    records: int


@dataclass(frozen=True)
class Run:
    """A sweep that has run.

    Attributes:
        total: how many records it was given.
        sizes: its keys `batch` and `pack`.
        results: those of its records that it has.
        summary: its own; empty if it was ended before it was done.
    """

    system: str
    lanes: int
    total: int
    sizes: Mapping[str, Any]
    history: History
    results: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """From its begin to the last result gathered."""
        return float(self.summary.get("makespan_s", self.history.seconds))

    @property
    def done(self) -> Series:
        """How many records had a result, over time."""
        return records_done(self.history)

    @property
    def tasks(self) -> list[Task]:
        nodes = {lane.name: node_class(lane.glidein) for lane in self.history.lanes}
        ran = [(each.stays[-1], each.records) for each in self.history.carriers if each.end == "gathered"]
        return [
            Task(nodes[stay.lane], stay.executing, stay.ended, records)
            for stay, records in ran if stay.executing is not None and stay.lane in nodes
        ]  # fmt: skip

    def record_seconds(self, node: str) -> float:
        """Of the engine, on a class of nodes."""
        return mean([each["seconds"] for each in self.results if node_class(each["glidein"]) == node] or [0.0])

    def task_seconds(self, node: str) -> float:
        return mean([task.ended - task.started for task in self.tasks if task.node == node] or [0.0])

    def loading_seconds(self, node: str) -> float:
        """What a task spends on all that is not inference."""
        records = mean([task.records for task in self.tasks if task.node == node] or [0])
        return max(0.0, self.task_seconds(node) - records * self.record_seconds(node))

    def told(self) -> dict[str, Any]:
        """What a simulation of it needs, and what it would have to find; seconds since the sweep began."""
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
            load = self.loading_seconds(node) - (fetch if self.system == CREATE_DESTROY else 0.0)
            classes[node] = {
                "record_s": round(self.record_seconds(node), 5), "fetch_s": round(fetch, 3),
                "load_s": round(start - fetch if self.system == STICKY_INVOC else max(0.0, load), 3),
            }  # fmt: skip
        return {
            "system": self.system, "keep": KEEP[self.system], "lanes": self.lanes, **self.sizes,
            "total": self.total, "records": len(self.results), "jobs": len(self.history.carriers),
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
    """Run a sweep as one of the systems does.

    Args:
        watch: may raise Enough, and what there is then is what there is.
        lanes: of each glidein.
        changes: of Rig.sweep.
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


def bring_up(bench: Rig, system: str, model: Mapping[str, Any], nodes: int) -> None:
    """Have that many glideins there, with what the system keeps between tasks, and their pace known."""
    lanes = nodes * LANES[system]

    def watch(progress: Progress) -> None:
        if progress.lanes.get(State.WARM, 0) >= lanes and progress.running >= lanes and progress.done >= lanes:
            raise Enough

    run(bench, system, model, 1000 * nodes, watch, glideins=nodes)


def node_class(glidein: str) -> str:
    """Of a glidein, by its id."""
    return glidein.partition("-")[0]


def noop(record_seconds: float, load_seconds: float) -> dict[str, Any]:
    """A model that takes known time on a fast node."""
    return {
        "name": "noop", "engine": "noop",
        "options": {"record_seconds": record_seconds, "load_seconds": load_seconds},
    }  # fmt: skip
