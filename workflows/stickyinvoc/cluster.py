"""A cluster whose nodes come and go, because its outer pool prefers other people's jobs to glideins."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from systems import FAST, HALF_SPEED, LANES, SLOW, entries

from glide.bench.factory import NODE_WRAPPER
from glide.bench.rig import Rig, rig
from glide.condor import EmbeddedPool

OTHERS = "executable = /bin/sleep\narguments = 86400\nMy.Important = True\nrequest_memory = 1\nrequest_disk = 1\n"
TYPES = {FAST: 1, SLOW: 2}  # for each class of nodes, the number of its slot type
START_SECONDS = 120.0  # time limit for the start of other people's first jobs, in seconds


def preempting_pool(nodes: int) -> dict[str, str]:
    """Return the HTCondor configuration of the outer pool.

    Half of its nodes are slow. A job with the attribute Important immediately takes a node from a glidein.
    """
    halves = {FAST: ceil(nodes / 2), SLOW: nodes // 2}
    slots = {}
    for node, number in TYPES.items():
        slots |= {
            f"SLOT_TYPE_{number}": "cpus=1", f"SLOT_TYPE_{number}_PARTITIONABLE": "False",
            f"NUM_SLOTS_TYPE_{number}": str(halves[node]),
        }  # fmt: skip
    return slots | {
        "RANK": "TARGET.Important =?= True", "MaxJobRetirementTime": "0", "MachineMaxVacateTime": "0",
        # With this wrapper, a glidein sees only its own processes, as on a separate machine.
        "USER_JOB_WRAPPER": str(NODE_WRAPPER), "MEMORY": str(256 * nodes),
    }  # fmt: skip


class Cluster:
    """The nodes of an outer pool. Other people's jobs occupy some of these nodes.

    Attributes:
        jobs: for each class of nodes, the ids of other people's jobs on these nodes.
    """

    def __init__(self, pool: EmbeddedPool):
        self.pool = pool
        self.jobs: dict[str, list[str]] = {node: [] for node in TYPES}

    def occupy(self, node: str, count: int = 1) -> None:
        """Submit `count` jobs of other people, which nodes of the given class prefer to glideins."""
        file = self.pool.home / "others.sub"
        requirements = f"requirements = TARGET.SlotTypeID == {TYPES[node]} && TARGET.GlideId =?= undefined"
        file.write_text(f"{OTHERS}{requirements}\nqueue {count}\n", "utf-8")
        first, _, last = self.pool.tool("condor_submit", "-terse", str(file)).strip().partition(" - ")
        cluster, _, proc = (last or first).partition(".")
        self.jobs[node] += [f"{cluster}.{number}" for number in range(int(proc) + 1)]

    def release(self, node: str, count: int) -> None:
        """Remove the last `count` jobs of other people from nodes of a class."""
        ended = [self.jobs[node].pop() for _ in range(count)]
        self.pool.tool("condor_rm", *ended)

    def set_occupied(self, nodes: Mapping[str, int]) -> None:
        """Submit and remove other people's jobs, until they occupy the given number of nodes of each class."""
        for node, occupied in nodes.items():
            more = occupied - len(self.jobs[node])
            if more > 0:
                self.occupy(node, more)
            elif more < 0:
                self.release(node, -more)

    def wait_until_running(self) -> None:
        """Wait until all jobs of other people run."""
        deadline = time.monotonic() + START_SECONDS
        wanted = sum(len(jobs) for jobs in self.jobs.values())
        running = ("condor_q", "-allusers", "-constraint", "Important =?= True && JobStatus == 2", "-af", "ClusterId")
        while len(self.pool.tool(*running).split()) < wanted:
            assert time.monotonic() < deadline, f"other people's jobs did not start within {START_SECONDS:.0f} s"
            time.sleep(0.5)


@contextmanager
def cluster(nodes: int, system: str) -> Iterator[tuple[Rig, Cluster]]:
    """Start a new cluster, and a factory whose glideins may use all nodes without jobs of other people."""
    with TemporaryDirectory(prefix="stickyinvoc-") as name:
        places: list[dict[str, Any]] = [
            {**entry, "requirements": f"TARGET.SlotTypeID == {TYPES[entry['name']]}"}
            for entry in entries(Path(name), ceil(nodes / 2), HALF_SPEED)
        ]  # fmt: skip
        limits = {"max_idle": nodes, "submits_per_cycle": nodes, "request": {"memory": 64, "disk": 1}}
        with rig(cores=nodes, outer=preempting_pool(nodes), entries=places, lanes=LANES[system], **limits) as bench:
            yield bench, Cluster(bench.outer)
