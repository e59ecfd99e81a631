"""What the parts of a simulation share: its clock, what it is about, and what is noted."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
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
        safe: when how many results were out of their node's reach.
        lanes: when how many lanes became warm, or fewer.
        spent: glidein-seconds by kind: starting, loading, serving, lost, idle.
        by_device: records by kind of GPU.
    """

    served: list[tuple[float, float, int]] = field(default_factory=list)
    safe: list[tuple[float, int]] = field(default_factory=list)
    warm: list[tuple[float, int, str]] = field(default_factory=list)
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_device: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    evictions: int = 0
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
        self.random = random.Random(trace.seed)
        self.record = Record()
        self.changed = 0
        files = trace.files
        # Who fetches takes a seat, which is a node's full rate; peers that have the files offer one more.
        self.seats = simpy.Container(self.env, init=max(1, round(files.origin / files.node))) if files else None

    @property
    def now(self) -> float:
        return float(self.env.now)

    def device(self, name: str) -> Device:
        return self.trace.devices[name]
