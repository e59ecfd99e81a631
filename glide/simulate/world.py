"""What the parts of a simulation share: its clock, what it is about, and what is noted."""

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

Steps = Generator[simpy.Event, Any, None]  # of a simulated process
USER = "simulated"
TEMPLATE = Template("simulated", "noop")
DIGEST = TEMPLATE.digest


@dataclass
class Record:
    """What has happened. Times are seconds from the beginning.

    Attributes:
        served: from when to when an engine computed how many records that were kept.
        warm: when a glidein became warm (1), or was so no more (-1).
        spent: glidein-seconds by kind: starting, of those that became warm, or may yet; unborn, of those that were lost
            before; warm; and of these: loading, serving, lost.
        by_device: records by kind of GPU.
        jobs, glideins: submitted.
        evictions: of glideins; `losses` are those of their jobs.
        lost_in_flight: records begun on a node that was lost, and done again elsewhere.
        first_warm: when a glidein was first warm.
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
    """A simulation's clock, trace and site; `changed` counts what a factory might want to know."""

    def __init__(self, trace: Trace, site: SiteFile):
        self.env = simpy.Environment()
        self.trace = trace
        self.site = site
        self.epoch = trace.epoch
        self.record = Record()
        self.changed = 0
        # Who fetches takes a seat, which is a node's rate as far as the origin has that; a peer with the files has one.
        self.seats, self.rate = None, 0.0
        if files := trace.files:
            seats = ceil(files.origin / files.node)
            self.seats, self.rate = simpy.Container(self.env, init=seats), min(files.node, files.origin / seats)

    @property
    def now(self) -> float:
        return float(self.env.now)

    def device(self, name: str) -> Device:
        return self.trace.devices[name]

    def chance(self, of: str) -> random.Random:
        """What is random about something, whatever else there is in the trace."""
        return random.Random(f"{self.trace.seed} {of}")
