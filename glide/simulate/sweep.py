"""The simulated driver. It submits jobs to the queue. The real function `pack` decides the sizes of the jobs."""

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
class SimulatedJob:
    """An invocation job. `records` is the number of its records that are not done."""

    records: int


class SimulatedSweep:
    """The queue of a sweep, and the records that are in no job yet.

    Attributes:
        queue: idle jobs.
        running: jobs that are on a lane.
        pending: number of records that are in no job.
        done: number of records that have a result.
        access_point: the resource that a job needs at its start, because the access point starts one job at a time.
        lanes: number of warm lanes.
        lane_record_seconds: for each measured value of seconds per record, the number of lanes with this value.
        woken: event that wakes the driver.
    """

    def __init__(self, world: World):
        self.world = world
        self.workload = world.trace.workload
        self.queue = Store(world.env)
        self.running: set[SimulatedJob] = set()
        self.pending = self.workload.records
        self.done = 0
        self.access_point = Resource(world.env)
        self.lanes = 0
        self.lane_record_seconds: Counter[float] = Counter()
        self.woken = world.env.event()

    @property
    def is_finished(self) -> bool:
        return self.done >= self.workload.records

    @property
    def demand_state(self) -> tuple[bool, int]:
        """Return whether jobs wait, and how many glideins the sweep can use. The factory's plan depends on both."""
        waiting = len(self.queue.items)
        return waiting > 0, min(waiting + len(self.running), self.workload.glideins)

    def demand(self) -> tuple[Demand, ...]:
        """Return the demand as the factory observes it in the queue."""
        if not self.queue.items and not self.running:
            return ()
        return (
            Demand(
                DIGEST, TEMPLATE.model, "run", USER, len(self.queue.items), len(self.running),
                self.workload.glideins, TEMPLATE, self.workload.records - self.done,
            ),
        )  # fmt: skip

    def run(self) -> Steps:
        """Submit waves of jobs until all records are done. Between two waves, wait for an event or CALM_SECONDS."""
        env = self.world.env
        while not self.is_finished:
            self._submit_wave()
            self.woken = env.event()
            yield self.woken | env.timeout(CALM_SECONDS)
            ads = len(self.queue.items) + len(self.running) + self.lanes
            yield env.timeout(POLL_SECONDS + ads * self.world.trace.costs.look)
        yield env.timeout(self.world.trace.costs.gather)

    def _submit_wave(self) -> None:
        if not self.pending:
            return
        log = self.world.log
        expected = self.lanes or 2 * self.workload.glideins
        seconds = self.world.now - (log.first_warm or 0.0)
        losses = eviction_rate(log.losses, expected, seconds)
        queued = len(self.queue.items) + len(self.running)
        wave = pack(
            self.pending, expected, queued, list(self.lane_record_seconds.elements()), self.workload.batch,
            self.workload.fixed, losses, unfinished=self.workload.records - self.done,
        )  # fmt: skip
        for size in wave.sizes:
            self.queue.put(SimulatedJob(size))
        self.pending -= sum(wave.sizes)
        log.jobs += len(wave.sizes)
        self.world.changed += bool(wave.sizes)

    # ---- called by lanes -------------------------------------------------------------------------

    def add_lanes(self, lanes: int) -> None:
        """Count the lanes of a glidein that has become warm."""
        self.lanes += lanes
        if self.world.log.first_warm is None:
            self.world.log.first_warm = self.world.now
        self._wake()

    def add_measurement(self, lanes: int, record_seconds: float) -> None:
        """Store the seconds per record for each lane of a glidein, after the glidein's first engine call.

        The lanes share one engine. So a record takes `lanes * record_seconds` seconds on each lane.

        Args:
            lanes: number of lanes of the glidein.
            record_seconds: seconds that the engine needs per record.
        """
        self.lane_record_seconds[record_seconds * lanes] += lanes

    def remove_lanes(self, lanes: int, record_seconds: float) -> None:
        """Remove the lanes of a glidein that is no longer warm.

        Args:
            record_seconds: the glidein's measured seconds per record; 0 if none of its engine calls has ended.
        """
        self.lanes -= lanes
        if record_seconds:
            self.lane_record_seconds[record_seconds * lanes] -= lanes

    def job_started(self, job: SimulatedJob) -> None:
        """Count a job as running, because a lane has got it."""
        self.running.add(job)

    def return_job(self, get: Any) -> None:
        """End a lost lane's request for a job. If the lane has already got a job, put this job back."""
        if get.triggered:
            self.queue.put(get.value)
        else:
            get.cancel()

    def job_finished(self, job: SimulatedJob) -> None:
        """Remove a job from the running jobs, because the job has ended successfully. Wake the driver."""
        self.running.discard(job)
        self._wake()

    def job_lost(self, job: SimulatedJob) -> None:
        """Count a job as lost, because its lane was lost. Send the job's unfinished records again."""
        self.running.discard(job)
        self.world.log.losses += 1
        self.world.env.process(self._send_again(job))

    def _send_again(self, job: SimulatedJob) -> Steps:
        yield self.world.env.timeout(self.world.trace.costs.loss)
        self.pending += job.records
        self._wake()

    def _wake(self) -> None:
        if not self.woken.triggered:
            self.woken.succeed()
