"""A cluster whose nodes come and go: an outer pool that ranks other people's jobs above glideins."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from systems import FAST, HALF_PACE, LANES, SLOW, entries

from glide.bench.factory import NODE
from glide.bench.rig import Rig, rig
from glide.condor import EmbeddedPool

OTHERS = "executable = /bin/sleep\narguments = 86400\nMy.Important = True\nrequest_memory = 1\nrequest_disk = 1\n"
TYPES = {FAST: 1, SLOW: 2}  # of slots: the classes of nodes
START_SECONDS = 120.0  # for other people's first jobs to run


def preempting(nodes: int) -> dict[str, str]:
    """The outer pool's configuration: so many nodes, half of them slow, that important jobs take at once."""
    halves = {FAST: ceil(nodes / 2), SLOW: nodes // 2}
    slots = {}
    for node, number in TYPES.items():
        slots |= {
            f"SLOT_TYPE_{number}": "cpus=1", f"SLOT_TYPE_{number}_PARTITIONABLE": "False",
            f"NUM_SLOTS_TYPE_{number}": str(halves[node]),
        }  # fmt: skip
    return slots | {
        "RANK": "TARGET.Important =?= True", "MaxJobRetirementTime": "0", "MachineMaxVacateTime": "0",
        # A glidein sees its own processes only, as on a machine that it has to itself.
        "USER_JOB_WRAPPER": str(NODE), "MEMORY": str(256 * nodes),
    }  # fmt: skip


class Cluster:
    """Whose nodes other people's jobs take away, and give back."""

    def __init__(self, pool: EmbeddedPool):
        self.pool = pool
        self.jobs: dict[str, list[str]] = {node: [] for node in TYPES}

    def take(self, node: str, count: int = 1) -> None:
        """Submit that many jobs of others, which the nodes of a class prefer to glideins."""
        file = self.pool.home / "others.sub"
        requirements = f"requirements = TARGET.SlotTypeID == {TYPES[node]} && TARGET.GlideId =?= undefined"
        file.write_text(f"{OTHERS}{requirements}\nqueue {count}\n", "utf-8")
        first, _, last = self.pool.tool("condor_submit", "-terse", str(file)).strip().partition(" - ")
        cluster, _, proc = (last or first).partition(".")
        self.jobs[node] += [f"{cluster}.{number}" for number in range(int(proc) + 1)]

    def give(self, node: str, count: int) -> None:
        """End the jobs that came last."""
        ended = [self.jobs[node].pop() for _ in range(count)]
        self.pool.tool("condor_rm", *ended)

    def leave(self, nodes: Mapping[str, int]) -> None:
        """Have others take so many nodes of each class, of which they may have some."""
        for node, taken in nodes.items():
            more = taken - len(self.jobs[node])
            if more > 0:
                self.take(node, more)
            elif more < 0:
                self.give(node, -more)

    def wait(self) -> None:
        """Until all jobs of others run."""
        deadline = time.monotonic() + START_SECONDS
        wanted = sum(len(jobs) for jobs in self.jobs.values())
        running = ("condor_q", "-allusers", "-constraint", "Important =?= True && JobStatus == 2", "-af", "ClusterId")
        while len(self.pool.tool(*running).split()) < wanted:
            assert time.monotonic() < deadline, "other people's jobs do not start"
            time.sleep(0.5)


@contextmanager
def cluster(nodes: int, system: str) -> Iterator[tuple[Rig, Cluster]]:
    """A fresh cluster with a factory that may have all of its nodes, as long as nobody else wants them."""
    with TemporaryDirectory(prefix="stickyinvoc-") as name:
        places: list[dict[str, Any]] = [
            {**entry, "requirements": f"TARGET.SlotTypeID == {TYPES[entry['name']]}"}
            for entry in entries(Path(name), ceil(nodes / 2), HALF_PACE)
        ]  # fmt: skip
        limits = {"max_idle": nodes, "submits_per_cycle": nodes, "request": {"memory": 64, "disk": 1}}
        with rig(cores=nodes, outer=preempting(nodes), entries=places, lanes=LANES[system], **limits) as bench:
            yield bench, Cluster(bench.outer)
