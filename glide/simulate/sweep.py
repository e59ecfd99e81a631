"""The driver in simulation: keeps the queue supplied with jobs that the real packer sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from simpy import Resource, Store

from glide.factory.snapshot import Demand
from glide.invoke.pack import eviction_rate, pack
from glide.simulate.world import DIGEST, TEMPLATE, USER, Steps, World
from glide.sweep.driver import CALM_SECONDS, POLL_SECONDS


@dataclass(eq=False)
class Carrier:
    """A job with so many records."""

    records: int


class SimulatedSweep:
    """A sweep's queue, and what is still to be sent."""

    def __init__(self, world: World):
        self.world = world
        self.workload = world.trace.workload
        self.queue = Store(world.env)  # idle jobs
        self.running: set[Carrier] = set()
        self.unsent = self.workload.records
        self.have = 0
        self.access_point = Resource(world.env)
        self.lanes = 0  # warm ones
        self.paces: Counter[float] = Counter()  # how many of them have told which pace
        self.news = world.env.event()

    @property
    def finished_all(self) -> bool:
        return self.have >= self.workload.records

    @property
    def pressing(self) -> tuple[bool, int]:
        """What of the demand makes a difference to the factory: whether jobs wait, and how many could run at all."""
        waiting = len(self.queue.items)
        return waiting > 0, min(waiting + len(self.running), self.workload.glideins)

    def demand(self) -> tuple[Demand, ...]:
        """As the factory reads it from the queue."""
        if not self.queue.items and not self.running:
            return ()
        return (
            Demand(
                DIGEST, TEMPLATE.model, "run", USER, len(self.queue.items), len(self.running),
                self.workload.glideins, TEMPLATE, self.workload.records - self.have,
            ),
        )  # fmt: skip

    def run(self) -> Steps:
        """Supply waves until all is done; look when something happens, and now and then."""
        env = self.world.env
        while not self.finished_all:
            self._supply()
            self.news = env.event()
            yield self.news | env.timeout(CALM_SECONDS)
            ads = len(self.queue.items) + len(self.running) + self.lanes
            yield env.timeout(POLL_SECONDS + ads * self.world.trace.costs.look)
        yield env.timeout(self.world.trace.costs.gather)

    def _supply(self) -> None:
        if not self.unsent:
            return
        record = self.world.record
        expected = self.lanes or 2 * self.workload.glideins
        seconds = self.world.now - (record.first_warm or 0.0)
        losses = eviction_rate(record.losses, expected, seconds)
        queued = len(self.queue.items) + len(self.running)
        wave = pack(
            self.unsent, expected, queued, list(self.paces.elements()), self.workload.batch, self.workload.fixed,
            losses, undone=self.workload.records - self.have,
        )  # fmt: skip
        for size in wave.sizes:
            self.queue.put(Carrier(size))
        self.unsent -= sum(wave.sizes)
        record.jobs += len(wave.sizes)
        self.world.changed += bool(wave.sizes)

    # ---- told by lanes ---------------------------------------------------------------------------

    def lanes_came(self, lanes: int) -> None:
        """A glidein is warm."""
        self.lanes += lanes
        if self.world.record.first_warm is None:
            self.world.record.first_warm = self.world.now
        self._tell()

    def lanes_measured(self, lanes: int, pace: float) -> None:
        """A glidein's first engine call has told what each takes; its lanes share the engine."""
        self.paces[pace * lanes] += lanes

    def lanes_gone(self, lanes: int, pace: float) -> None:
        """A glidein is warm no more; it had told its pace, if that is not 0."""
        self.lanes -= lanes
        if pace:
            self.paces[pace * lanes] -= lanes

    def taken(self, carrier: Carrier) -> None:
        """A lane has this job now."""
        self.running.add(carrier)

    def give_back(self, get: Any) -> None:
        """A lane that waited for a job is gone; a job that it had just got waits again."""
        if get.triggered:
            self.queue.put(get.value)
        else:
            get.cancel()

    def finished(self, carrier: Carrier) -> None:
        """A job has ended well."""
        self.running.discard(carrier)
        self._tell()

    def lost(self, carrier: Carrier) -> None:
        """A lane is gone, with the job; what it had not done goes out anew."""
        self.running.discard(carrier)
        self.world.record.losses += 1
        self.world.env.process(self._send_again(carrier))

    def _send_again(self, carrier: Carrier) -> Steps:
        yield self.world.env.timeout(self.world.trace.costs.loss)
        self.unsent += carrier.records
        self._tell()

    def _tell(self) -> None:
        if not self.news.triggered:
            self.news.succeed()
