"""The objects that all parts of a simulation share: the clock, the trace, the site and the log."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import simpy

from glide.config import SiteFile
from glide.simulate.trace import Device, Trace
from glide.template import Template

Steps = Generator[simpy.Event, Any, None]  # a simulated process, as a generator of the events for which it waits
USER = "simulated"
TEMPLATE = Template("simulated", "noop")
DIGEST = TEMPLATE.digest


@dataclass
class SimulationLog:
    """A log of the events of a simulation. Times are in seconds from the beginning of the simulation.

    Attributes:
        served: for each computation, a tuple (start, end, number of results). Lost results are not counted.
        warm: for each change of the number of warm glideins, the time and the change: 1 if a glidein became warm, and
            -1 if a warm glidein ended or lost its node.
        spent: seconds that glideins spent, by kind. `starting` is the time until a glidein was warm, or until the end
            of the simulation. `never_warm` is the time of glideins that stopped before they were warm. `warm` is the
            time for which glideins were warm, and includes `loading`, `serving` and `lost`.
        by_device: number of records that were computed, by kind of GPU.
        jobs: number of submitted invocation jobs.
        evictions: number of evictions of glideins.
        losses: number of lost invocation jobs.
        lost_in_flight: number of records that were begun on a node and done again on another node, because the first
            node was lost.
        glideins: number of submitted glideins.
        first_warm: time when the first glidein was warm; None if no glidein was warm.
    """

    served: list[tuple[float, float, int]] = field(default_factory=list)
    warm: list[tuple[float, int]] = field(default_factory=list)
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_device: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    evictions: int = 0
    losses: int = 0
    lost_in_flight: int = 0
    glideins: int = 0
    first_warm: float | None = None


class World:
    """The clock, the trace and the site of a simulation.

    Attributes:
        epoch: Unix time at which the simulation begins.
        changed: how many changes have happened until now. Only changes that a factory can observe are counted.
        fetch_slots: number of free slots for fetches; None if fetches do not share bandwidth. Each running fetch
            occupies one slot. The origin provides some slots, and each peer with the files provides one slot.
        fetch_rate: rate of each fetch in MB/s.
    """

    def __init__(self, trace: Trace, site: SiteFile):
        self.env = simpy.Environment()
        self.trace = trace
        self.site = site
        self.epoch = trace.epoch
        self.log = SimulationLog()
        self.changed = 0
        self.fetch_slots, self.fetch_rate = None, 0.0
        if files := trace.files:
            count = ceil(files.origin / files.node)  # number of nodes that the origin can serve together
            self.fetch_slots = simpy.Container(self.env, init=count)
            self.fetch_rate = min(files.node, files.origin / count)

    @property
    def now(self) -> float:
        return float(self.env.now)

    def device(self, name: str) -> Device:
        return self.trace.devices[name]

    def random_for(self, name: str) -> random.Random:
        """Return a generator of random numbers. The generator depends only on the trace's seed and on `name`."""
        return random.Random(f"{self.trace.seed} {name}")
