"""A simulated glidein. It becomes warm, and then runs jobs on lanes that share its engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from simpy import Event, Interrupt, Process, Resource

from glide.config import Entry
from glide.factory import snapshot
from glide.glidein.settings import SPREAD
from glide.simulate.sweep import SimulatedJob, SimulatedSweep
from glide.simulate.trace import Device
from glide.simulate.world import DIGEST, TEMPLATE, Steps, World
from glide.vocabulary import JobStatus, State, glide_id


@dataclass(eq=False)
class SimulatedNode:
    """A node. `files` is True if the node has the model's files."""

    name: str
    entry: str
    device: str
    files: bool = False
    glidein: SimulatedGlidein | None = None


class SimulatedGlidein:
    """A glidein and its outer job. If its node leaves, the glidein waits in the queue, and starts again on a free node.

    Times are in seconds from the beginning of the simulation.

    Args:
        on_end: function that is called with the glidein and its node when the glidein ends by itself or is removed. It
            is not called when the node leaves.

    Attributes:
        starts: number of starts of the glidein on a node.
        reported_state: last state that the model server reported to the outer job; empty before the first report.
        warm_since: time when the glidein became warm.
        warm_seconds: seconds for which the glidein was warm. The value is set when the glidein stops, and is 0 before.
        start_seconds: seconds from the beginning of fetching until the glidein was warm.
        served: number of records served since the last start.
        record_seconds: measured seconds per record; 0 before the first engine call has ended.
        busy: numbers of the lanes that have a job.
        last_used: time when the last job ended.
        current_job: job that the engine computes; None if the engine is idle.
        warmed: event that is triggered when the glidein becomes warm.
        retires: time from which the glidein accepts no further job.
    """

    def __init__(
        self, world: World, sweep: SimulatedSweep, entry: Entry, cluster: int, proc: int,
        on_end: Callable[[SimulatedGlidein, SimulatedNode], None],
    ):  # fmt: skip
        self.world = world
        self.sweep = sweep
        self.settings = entry
        self.entry = entry.name
        self.job = f"{cluster}.{proc}"
        self.cluster, self.proc = cluster, proc
        self.on_end = on_end
        self.status = JobStatus.IDLE
        self.since: float = world.now
        self.starts = 0
        self.node: SimulatedNode | None = None
        self.state = State.BLANK
        self.reported_state = ""
        self.warm_since: float = 0.0
        self.warm_seconds: float = 0.0
        self.start_seconds: float = 0.0
        self.served = 0
        self.record_seconds = 0.0
        self.busy: set[int] = set()
        self.last_used: float = 0.0
        self.processes: list[Process] = []
        self.cached_lanes: tuple[Any, list[snapshot.Lane]] = (None, [])
        self.chance = world.random_for(f"{entry.name} {self.job}")
        self.retires: float = 0.0
        self.host = ""
        self.current_job: SimulatedJob | None = None
        self.warmed: Event = world.env.event()

    # ---- the factory's view of the glidein -------------------------------------------------------

    @property
    def glide_id(self) -> str:
        return glide_id(self.entry, self.job, self.starts)

    def observed(self) -> snapshot.Glidein:
        """Return what the factory reads about the glidein in the ad of the outer job."""
        is_warm = self.status == JobStatus.RUNNING and self.state == State.WARM
        warm = self._seconds_warm() if is_warm else self.warm_seconds
        return snapshot.Glidein(
            self.cluster, self.proc, self.entry, DIGEST, self.status, self.starts, self.world.now - self.since,
            state=self.reported_state, host=self.host, warm_seconds=warm, served=self.served,
            model=TEMPLATE.model,
        )  # fmt: skip

    def observed_lanes(self) -> list[snapshot.Lane]:
        """Return what the factory reads about the glidein's lanes in their ads in the collector."""
        if not self.node or self.state == State.BLANK:
            return []
        current = (self.starts, self.state, bool(self.served), tuple(self.busy))
        if self.cached_lanes[0] != current:  # lanes are cached, because most glideins do not change between two calls
            self.cached_lanes = current, [
                snapshot.Lane(
                    self.glide_id, self.entry, DIGEST, TEMPLATE.model, self.state, lane in self.busy,
                    record_seconds=self.record_seconds, start_seconds=self.start_seconds,
                    name=f"slot{lane + 1}@{self.glide_id}", retires=self.world.epoch + self.retires,
                    served=self.served,
                )
                for lane in range(self.settings.lanes)
            ]  # fmt: skip
        return self.cached_lanes[1]

    # ---- from start to end -----------------------------------------------------------------------

    def start(self, node: SimulatedNode) -> None:
        """Start the glidein on a node."""
        self.node, self.status, self.since = node, JobStatus.RUNNING, self.world.now
        self.host = node.name
        self.starts += 1
        self.served, self.record_seconds, self.warm_seconds = 0, 0.0, 0.0
        self.state, self.reported_state = State.BLANK, ""
        self.retires = self.since + self.settings.lifetime * self.chance.uniform(1 - SPREAD, 1 + SPREAD)
        self.engine = Resource(self.world.env)
        self.warmed = self.world.env.event()
        self.processes = [self.world.env.process(self._become_warm(node))]

    def lose_node(self) -> None:
        """Stop the glidein because its node has left. The glidein then waits for a new node."""
        self._stop()
        self.status, self.since, self.node = JobStatus.IDLE, self.world.now, None

    def end(self) -> None:
        """End the glidein normally, because no job needs it or because the factory removes it."""
        node = self.node
        assert node
        self._stop()
        self.status, self.since = JobStatus.COMPLETED, self.world.now
        self.on_end(self, node)

    def _stop(self) -> None:
        now, spent = self.world.now, self.world.log.spent
        if self.state == State.WARM:
            self.warm_seconds = self._seconds_warm()
            self.world.log.warm.append((now, -1))
            spent["warm"] += self.warm_seconds
        else:
            spent["never_warm"] += now - self.since
        self.sweep.remove_glidein(self.glide_id)
        self.state = State.BLANK
        for process in self.processes:
            if process.is_alive and process is not self.world.env.active_process:
                process.interrupt()
        self.busy.clear()

    def close(self) -> None:
        """At the end of the simulation, log the time that the glidein spent and the records that it streamed."""
        if self.status != JobStatus.RUNNING:
            return
        if self.state != State.WARM:
            self.world.log.spent["starting"] += self.world.now - self.since
            return
        self.world.log.spent["warm"] += self._seconds_warm()
        job = self.current_job
        if job and self.node and self.world.trace.workload.results == "streamed":
            assert job.began is not None
            self._log_served(job.computed(self.world.now), job.began, job.engine_seconds, self.node)

    def _seconds_warm(self) -> float:
        return self.world.now - self.warm_since

    def _become_warm(self, node: SimulatedNode) -> Steps:
        world, device = self.world, self.world.device(node.device)
        keep = world.trace.workload.keep
        try:
            yield world.env.timeout(world.trace.costs.glidein)
            began = world.now
            if keep != "nothing":
                self._enter(State.FETCHING)
                if keep == "state":
                    self._start_lanes(node)  # jobs may start before the model is warm
                yield from self._fetch(node)
            if keep == "state":
                self._enter(State.LOADING)
                yield world.env.timeout(device.load_seconds)
        except Interrupt:
            return
        self.start_seconds = world.now - began
        world.log.spent["starting"] += world.now - self.since
        world.log.warm.append((world.now, 1))
        self.warm_since = self.last_used = world.now
        self._enter(State.WARM)
        self.reported_state = State.WARM
        if keep != "state":
            self._start_lanes(node)
        self.sweep.became_warm(self.glide_id)
        self.warmed.succeed()

    def _start_lanes(self, node: SimulatedNode) -> None:
        self.seen = self.sweep.add_glidein(self.glide_id, self.settings.lanes)
        self.processes += [self.world.env.process(self._run_lane(lane, node)) for lane in range(self.settings.lanes)]

    def _enter(self, state: str) -> None:
        self.state = state
        self.world.changed += 1

    def _fetch(self, node: SimulatedNode) -> Steps:
        """Fetch the files to the node. If the workload's `keep` is `nothing`, the files do not stay there."""
        world, files, device = self.world, self.world.trace.files, self.world.device(node.device)
        if node.files:
            return
        yield world.env.timeout(device.fetch_seconds)
        if files and world.fetch_slots:
            slot = world.fetch_slots.get(1)
            try:
                yield slot
                yield world.env.timeout(files.megabytes / world.fetch_rate)
            finally:
                if slot.triggered:
                    world.fetch_slots.put(1)
                else:
                    slot.cancel()
        if world.trace.workload.keep != "nothing":
            node.files = True
            if files and files.peers and world.fetch_slots:
                world.fetch_slots.put(1)

    # ---- lanes -----------------------------------------------------------------------------------

    def _run_lane(self, lane: int, node: SimulatedNode) -> Steps:
        """Serve jobs on a lane until no job has come for `idle_seconds`, or until the glidein's lifetime is over."""
        env = self.world.env
        claimed = False
        while True:
            if env.now >= self.retires:
                self.seen.retired, self.seen.free = True, 0
                break
            get = self.sweep.queue.get()
            claimed = claimed and get.triggered
            try:
                if not get.triggered:
                    yield get | env.timeout(min(self.settings.idle_seconds, self.retires - env.now))
            except Interrupt:
                self.sweep.return_job(get)
                return
            if not get.triggered:
                get.cancel()
                is_idle = self.state == State.WARM and not self.busy
                if is_idle and env.now - self.last_used >= self.settings.idle_seconds:
                    break
                continue
            job = cast(SimulatedJob, get.value)
            self.busy.add(lane)
            self.sweep.job_started(job, self.glide_id)
            try:
                if not claimed:
                    yield env.timeout(self.world.trace.costs.match)
                yield from self._run_job(job, node)
            except Interrupt:
                return self.sweep.job_lost(job)
            claimed = True
            self.busy.discard(lane)
            self.last_used = env.now
            self.sweep.job_finished(job)
        if not self.busy and self.status == JobStatus.RUNNING:
            self.end()

    def _run_job(self, job: SimulatedJob, node: SimulatedNode) -> Steps:
        """Start a job at the access point, wait for the engine, and compute the job's records."""
        world, device, env = self.world, self.world.device(node.device), self.world.env
        with self.sweep.access_point.request() as turn:
            yield turn
            yield env.timeout(world.trace.costs.start)
        yield env.timeout(world.trace.costs.turnover)
        if self.state != State.WARM:
            yield self.warmed
        with self.engine.request() as turn:
            yield turn
            began = env.now
            try:
                yield from self._load_for_job(device, node)
            except Interrupt:
                world.log.spent["lost"] += env.now - began
                raise
            world.log.spent["loading"] += env.now - began
            job.began, job.engine_seconds = env.now, device.record_seconds
            self.current_job = job
            try:
                yield from self._compute(job)
            except Interrupt:
                self._log_interrupted(job, node)
                raise
            finally:
                self.current_job = None
            self._log_served(job.records, job.began, device.record_seconds, node)

    def _compute(self, job: SimulatedJob) -> Steps:
        """Compute a job's records. The number of these records may become smaller meanwhile."""
        env, began = self.world.env, self.world.now
        while (left := began + job.records * job.engine_seconds - env.now) > 1e-9:
            if not self.record_seconds:  # the engine has been measured when it has computed one batch
                left = min(left, self.world.trace.workload.batch * job.engine_seconds)
            job.changed = env.event()
            yield env.timeout(left) | job.changed
            if not self.record_seconds and not job.changed.triggered:
                self.record_seconds = self.seen.record_seconds = job.engine_seconds

    def _load_for_job(self, device: Device, node: SimulatedNode) -> Steps:
        """Before a job, fetch the files and load the model, if the workload does not keep them between jobs."""
        keep = self.world.trace.workload.keep
        if keep == "nothing":
            yield from self._fetch(node)
        if keep != "state":
            yield self.world.env.timeout(device.load_seconds)

    def _log_interrupted(self, job: SimulatedJob, node: SimulatedNode) -> None:
        """Log a job that was lost while the engine computed the job.

        If results are streamed, most results are already on the access point. Only the results of the last
        `View.stream` seconds are lost. If results are not streamed, all are lost. Lost results are computed again.
        """
        assert job.began is not None
        workload, now = self.world.trace.workload, self.world.now
        begun, saved = job.sent(now, workload.batch), 0
        if workload.results == "streamed":
            saved = job.computed(max(job.began, now - self.sweep.view.stream))
        self._log_served(saved, job.began, job.engine_seconds, node)
        job.records -= saved
        job.unanswered = job.records
        self.world.log.lost_in_flight += begun - saved
        self.world.log.spent["lost"] += now - job.began - saved * job.engine_seconds

    def _log_served(self, records: int, began: float, record_seconds: float, node: SimulatedNode) -> None:
        log, streamed = self.world.log, self.world.trace.workload.results == "streamed"
        if records:
            self.served += records
            end = began + records * record_seconds
            log.served.append((began if streamed else end, end, records))
            log.spent["serving"] += records * record_seconds
            log.by_device[node.device] += records
            self.sweep.done += records
