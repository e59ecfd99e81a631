"""The simulated driver. The real function `decide` makes its decisions; this module carries them out."""

from __future__ import annotations

from itertools import count
from typing import Any

from simpy import Event, Resource, Store

from glide.factory.snapshot import Demand
from glide.invoke.pack import stream_seconds
from glide.simulate.world import DIGEST, TEMPLATE, USER, Steps, World
from glide.sweep.decide import decide_and_act
from glide.sweep.driver import pause
from glide.sweep.view import (
    Action,
    Gather,
    GlideinView,
    JobView,
    Memory,
    Peek,
    RemoveJobs,
    SubmitJobs,
    SubmitTwin,
    TakeBack,
    View,
)
from glide.vocabulary import JobStatus


class SimulatedJob(JobView):
    """An invocation job. While the engine computes it, `began` is the time when the engine has begun.

    Attributes:
        changed: event that is triggered when the job has to compute fewer records than before.
        engine_seconds: seconds that the engine needs per record.
        other: the job with the same records; None if there is none.
        shared: number of records that both jobs have.
    """

    __slots__ = ("began", "changed", "engine_seconds", "other", "shared")

    def __init__(self, name: str, records: int, now: float):
        super().__init__(name, name, JobStatus.IDLE, records, records, since=now)
        self.began: float | None = None
        self.changed: Event | None = None
        self.engine_seconds = 0.0
        self.other: SimulatedJob | None = None
        self.shared = 0

    def computed(self, now: float) -> int:
        """Return the number of records that the engine has computed."""
        return 0 if self.began is None else min(self.records, int((now - self.began) / self.engine_seconds + 1e-6))

    def sent(self, now: float, batch: int) -> int:
        """Return the number of records that the engine has begun, in batches of `batch` records."""
        if self.began is None:
            return 0
        return min(self.records, (int((now - self.began) / self.engine_seconds / batch) + 1) * batch)

    def keep(self, records: int) -> None:
        """Let the job compute only `records` records."""
        self.records = records
        if self.changed is not None and not self.changed.triggered:
            self.changed.succeed()


class SimulatedSweep:
    """The queue of a sweep, and the driver's view of it.

    Attributes:
        queue: idle jobs.
        view: what the driver observes. Lanes and jobs change it as the simulated time passes.
        done: number of records that have a result.
        access_point: the resource that a job needs at its start, because the access point starts one job at a time.
        woken: event that wakes the driver.
    """

    def __init__(self, world: World):
        self.world = world
        self.workload = world.trace.workload
        self.queue = Store(world.env)
        self.lost: set[str] = set()
        self.glideins: dict[str, GlideinView] = {}
        self.view = View(
            glideins=self.glideins, pending=self.workload.records, unfinished=self.workload.records,
            most_glideins=self.workload.glideins, fixed=self.workload.fixed, batch=self.workload.batch, lost=self.lost,
        )  # fmt: skip
        self.memory = Memory()
        self.done = 0
        self.access_point = Resource(world.env)
        self.numbers = count(1)
        self.woken = world.env.event()

    @property
    def is_finished(self) -> bool:
        return self.done >= self.workload.records

    @property
    def running(self) -> int:
        """The number of jobs that have a lane."""
        return len(self.view.jobs) - len(self.queue.items)

    @property
    def demand_state(self) -> tuple[bool, int]:
        """Return whether jobs wait, and how many glideins the sweep can use. The factory's plan depends on both."""
        return bool(self.queue.items), min(len(self.view.jobs), self.workload.glideins)

    def demand(self) -> tuple[Demand, ...]:
        """Return the demand as the factory observes it in the queue."""
        if not self.view.jobs:
            return ()
        return (
            Demand(
                DIGEST, TEMPLATE.model, "run", USER, len(self.queue.items), self.running,
                self.workload.glideins, TEMPLATE, self.workload.records - self.done,
            ),
        )  # fmt: skip

    def run(self) -> Steps:
        """Run cycles until all records are done. Between two cycles, wait as the real driver does."""
        env = self.world.env
        while not self.is_finished:
            cycle = (len(self.view.jobs) + self.view.lanes) * self.world.trace.costs.look
            if cycle:
                yield env.timeout(cycle)
            self.view.cycle = cycle + pause(cycle, True)
            self.view.stream = self.world.trace.costs.stream * stream_seconds(len(self.glideins))
            self._cycle()
            began, self.woken = env.now, env.event()
            yield self.woken | env.timeout(pause(cycle, True))
            yield env.timeout(max(0.0, began + pause(cycle, False) - env.now))
        yield env.timeout(self.world.trace.costs.gather)

    def _cycle(self) -> None:
        self.view.done, self.view.unfinished = self.done, self.workload.records - self.done
        decide_and_act(self.memory, self.view, self.world.now, self._act)

    def _act(self, action: Action) -> None:
        now = self.world.now
        if isinstance(action, Gather):
            for job in action.jobs:
                del self.view.jobs[job.part]
        elif isinstance(action, Peek):
            for job in action.jobs:
                assert isinstance(job, SimulatedJob)
                job.read, job.begun = now, job.sent(now, self.workload.batch)
                job.unanswered = job.records - job.computed(now)
        elif isinstance(action, RemoveJobs):
            gone = set(action.jobs)
            self.queue.items[:] = [job for job in self.queue.items if job not in gone]
            for job in action.jobs:
                self._remove(job)
        elif isinstance(action, SubmitJobs):
            for size in action.sizes:
                self._put(SimulatedJob(str(next(self.numbers)), size, now))
            self.view.pending -= sum(action.sizes)
        elif isinstance(action, TakeBack):
            for job, keep in action.keep:
                job.asked, job.asked_at = keep, now
                self.world.env.process(self._take_back(job, keep))
        elif isinstance(action, SubmitTwin):
            assert isinstance(action.job, SimulatedJob)
            twin = SimulatedJob(str(next(self.numbers)), action.job.unanswered, now)
            twin.other, action.job.other = action.job, twin
            twin.shared = action.job.shared = twin.records
            twin.twin, action.job.twin = action.job.part, twin.part
            self._put(twin)

    def _put(self, job: SimulatedJob) -> None:
        self.view.jobs[job.part] = job
        self.queue.put(job)
        self.world.log.jobs += 1
        self.world.changed += 1

    def _remove(self, job: JobView) -> None:
        """Remove a job. Its records without a result become pending, except if another job has the same records."""
        assert isinstance(job, SimulatedJob)
        del self.view.jobs[job.part]
        self.lost.discard(job.id)
        unanswered = job.unanswered
        # If another job has the same records, it has computed them. A lane may already have got an idle job.
        job.keep(job.records - job.shared if job.shared else 0)
        if job.other is None:
            self.view.pending += unanswered
        else:
            job.other.other = None
        self.world.changed += 1

    def _take_back(self, job: JobView, keep: int) -> Steps:
        """Let the job's server take note of the driver's request, when the server next sends results."""
        assert isinstance(job, SimulatedJob)
        yield self.world.env.timeout(self.view.stream)
        kept = max(keep, job.sent(self.world.now, self.workload.batch))
        if job.status != JobStatus.RUNNING or job.id in self.lost:
            return
        job.asked = min(kept, job.records)
        if kept < job.records:
            given = job.records - kept
            self.view.pending += given
            job.unanswered -= min(given, job.unanswered)
            job.keep(kept)
            self._wake()

    # ---- called by lanes -------------------------------------------------------------------------

    def add_glidein(self, glide_id: str, lanes: int) -> GlideinView:
        """Show the driver a glidein whose lanes can get jobs. The template may be loading."""
        self.glideins[glide_id] = view = GlideinView(lanes, lanes, False)
        self._wake()
        return view

    def became_warm(self, glide_id: str) -> None:
        """Note that a glidein has loaded the template."""
        self.glideins[glide_id].warm, self.glideins[glide_id].since = True, self.world.now
        if self.world.log.first_warm is None:
            self.world.log.first_warm = self.world.now
        self._wake()

    def remove_glidein(self, glide_id: str) -> None:
        """Note that a glidein has ended or has been lost."""
        self.glideins.pop(glide_id, None)

    def job_started(self, job: SimulatedJob, glide_id: str) -> None:
        """Count a job as running, because a lane has got it."""
        job.status, job.glidein, job.lane = JobStatus.RUNNING, glide_id, glide_id
        job.since = job.read = self.world.now
        if glide_id in self.glideins:
            self.glideins[glide_id].free -= 1

    def return_job(self, get: Any) -> None:
        """End a lost lane's request for a job. If the lane has already got a job, put this job back."""
        if get.triggered:
            self.queue.put(get.value)
        else:
            get.cancel()

    def job_finished(self, job: SimulatedJob) -> None:
        """Mark a job as completed. Wake the driver."""
        if job.glidein in self.glideins and not self.glideins[job.glidein].retired:
            self.glideins[job.glidein].free += 1
        job.status, job.unanswered = JobStatus.COMPLETED, 0
        if job.other is not None and job.part in self.view.jobs:
            job.other.unanswered = 0
        self._wake()

    def job_lost(self, job: SimulatedJob) -> None:
        """Count a job as lost, because its lane was lost. The driver learns of it a little later."""
        if job.part in self.view.jobs:
            self.world.log.losses += 1
            self.world.env.process(self._report_loss(job))

    def _report_loss(self, job: SimulatedJob) -> Steps:
        yield self.world.env.timeout(self.world.trace.costs.loss)
        job.unanswered = job.records
        self.lost.add(job.id)
        self._wake()

    def _wake(self) -> None:
        if not self.woken.triggered:
            self.woken.succeed()
