"""A glidein in simulation: its way to Warm, its engine, and the lanes that share it."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from simpy import Interrupt, Process, Resource

from glide.config import Entry
from glide.factory import snapshot
from glide.glidein.settings import SPREAD
from glide.simulate.sweep import Carrier, SimulatedSweep
from glide.simulate.trace import Device
from glide.simulate.world import DIGEST, TEMPLATE, Steps, World
from glide.vocabulary import JobStatus, State

if TYPE_CHECKING:
    from glide.simulate.cluster import Node


class SimulatedGlidein:
    """An outer job, with as many lives as it has nodes."""

    def __init__(
        self, world: World, sweep: SimulatedSweep, entry: Entry, cluster: int, proc: int,
        over: Callable[[SimulatedGlidein, Node], None],
    ):  # fmt: skip
        self.world = world
        self.sweep = sweep
        self.settings = entry
        self.entry = entry.name
        self.job = f"{cluster}.{proc}"
        self.cluster, self.proc = cluster, proc
        self.over = over
        self.status = JobStatus.IDLE
        self.since: float = world.now
        self.lives = 0
        self.node: Node | None = None
        self.state = State.BLANK
        self.outcome = ""  # the last state that its server told the job
        self.warm_since: float = 0.0
        self.warm_seconds: float = 0.0
        self.start_seconds: float = 0.0
        self.served = 0
        self.pace = 0.0  # seconds per record, as it has told: 0 before its first engine call is over
        self.busy: set[int] = set()  # lanes with a job
        self.used: float = 0.0  # when the last job ended
        self.processes: list[Process] = []
        self.told: tuple[Any, list[snapshot.Lane]] = (None, [])
        self.chance = world.chance(f"{entry.name} {self.job}")
        self.retires: float = 0.0
        self.host = ""
        self.call: tuple[Carrier, float] | None = None  # what its engine computes, and since when

    # ---- as the factory sees it ------------------------------------------------------------------

    @property
    def glide_id(self) -> str:
        return f"{self.entry}-{self.job}" + (f"r{self.lives - 1}" if self.lives > 1 else "")

    def seen(self) -> snapshot.Glidein:
        """As its job's ad tells."""
        warm = self.warm_seconds if self.status != JobStatus.RUNNING or self.state != State.WARM else self._warm()
        return snapshot.Glidein(
            self.cluster, self.proc, self.entry, DIGEST, self.status, self.lives, self.world.now - self.since,
            state=self.outcome, host=self.host, warm_seconds=warm, served=self.served,
            model=TEMPLATE.model,
        )  # fmt: skip

    def lanes(self) -> list[snapshot.Lane]:
        """As the collector has them."""
        if not self.node or self.state == State.BLANK:
            return []
        seen = (self.lives, self.state, bool(self.served), tuple(self.busy))
        if self.told[0] != seen:  # few of thousands have changed since the last look
            self.told = seen, [
                snapshot.Lane(
                    self.glide_id, self.entry, DIGEST, TEMPLATE.model, self.state, lane in self.busy,
                    record_seconds=self.pace, start_seconds=self.start_seconds, name=f"slot{lane + 1}@{self.glide_id}",
                    retires=self.world.epoch + self.retires, served=self.served,
                )
                for lane in range(self.settings.lanes)
            ]  # fmt: skip
        return self.told[1]

    # ---- its life --------------------------------------------------------------------------------

    def start(self, node: Node) -> None:
        """Begin a life on a node."""
        self.node, self.status, self.since = node, JobStatus.RUNNING, self.world.now
        self.host = node.name
        self.lives += 1
        self.served, self.pace, self.state, self.outcome, self.warm_seconds = 0, 0.0, State.BLANK, "", 0.0
        self.retires = self.since + self.settings.lifetime * self.chance.uniform(1 - SPREAD, 1 + SPREAD)
        self.engine = Resource(self.world.env)
        self.processes = [self.world.env.process(self._become_warm(node))]

    def lose(self) -> None:
        """The node is gone, and all that was there; the job waits for another."""
        self._stop()
        self.status, self.since, self.node = JobStatus.IDLE, self.world.now, None

    def end(self) -> None:
        """Go in peace: nobody needs it, or it is removed."""
        node = self.node
        assert node
        self._stop()
        self.status, self.since = JobStatus.COMPLETED, self.world.now
        self.over(self, node)

    def _stop(self) -> None:
        now, spent = self.world.now, self.world.record.spent
        if self.state == State.WARM:
            self.warm_seconds = self._warm()
            self.sweep.lanes_gone(self.settings.lanes, self.pace)
            self.world.record.warm.append((now, -1))
            spent["warm"] += self.warm_seconds
        else:
            spent["unborn"] += now - self.since
        self.state = State.BLANK
        for process in self.processes:
            if process.is_alive and process is not self.world.env.active_process:
                process.interrupt()
        self.busy.clear()

    def close(self) -> None:
        """The simulation is over."""
        if self.status != JobStatus.RUNNING:
            return
        if self.state != State.WARM:
            self.world.record.spent["starting"] += self.world.now - self.since
            return
        self.world.record.spent["warm"] += self._warm()
        if self.call and self.node and self.world.trace.workload.results == "streamed":
            (carrier, began), pace = self.call, self.world.device(self.node.device).record_seconds
            self._served(min(carrier.records, int((self.world.now - began) / pace)), began, pace, self.node)

    def _warm(self) -> float:
        return self.world.now - self.warm_since

    def _become_warm(self, node: Node) -> Steps:
        world, device = self.world, self.world.device(node.device)
        keep = world.trace.workload.keep
        try:
            yield world.env.timeout(world.trace.costs.glidein)
            began = world.now
            if keep != "nothing":
                self._enter(State.FETCHING)
                yield from self._fetch(node)
            if keep == "state":
                self._enter(State.LOADING)
                yield world.env.timeout(device.load_seconds)
        except Interrupt:
            return
        self.start_seconds = world.now - began
        world.record.spent["starting"] += world.now - self.since
        world.record.warm.append((world.now, 1))
        self.warm_since = self.used = world.now
        self._enter(State.WARM)
        self.outcome = State.WARM
        self.sweep.lanes_came(self.settings.lanes)
        self.processes = [world.env.process(self._lane(lane, node)) for lane in range(self.settings.lanes)]

    def _enter(self, state: str) -> None:
        self.state = state
        self.world.changed += 1

    def _fetch(self, node: Node) -> Steps:
        """Have the files on the node, where they stay unless nothing is kept."""
        world, files, device = self.world, self.world.trace.files, self.world.device(node.device)
        if node.files:
            return
        yield world.env.timeout(device.fetch_seconds)
        if files and world.seats:
            seat = world.seats.get(1)
            try:
                yield seat
                yield world.env.timeout(files.megabytes / world.rate)
            finally:
                if seat.triggered:
                    world.seats.put(1)
                else:
                    seat.cancel()
        if world.trace.workload.keep != "nothing":
            node.files = True
            if files and files.peers and world.seats:
                world.seats.put(1)

    # ---- its lanes -------------------------------------------------------------------------------

    def _lane(self, lane: int, node: Node) -> Steps:
        """Take job after job, until there is none for too long or this has lived long enough."""
        env = self.world.env
        claimed = False
        while True:
            if env.now >= self.retires:
                break
            get = self.sweep.queue.get()
            claimed = claimed and get.triggered
            try:
                if not get.triggered:
                    yield get | env.timeout(min(self.settings.idle_seconds, self.retires - env.now))
            except Interrupt:
                self.sweep.give_back(get)
                return
            if not get.triggered:
                get.cancel()
                if not self.busy and env.now - self.used >= self.settings.idle_seconds:
                    break
                continue
            carrier = cast(Carrier, get.value)
            self.busy.add(lane)
            self.sweep.taken(carrier)
            try:
                if not claimed:
                    yield env.timeout(self.world.trace.costs.match)
                yield from self._run(carrier, node)
            except Interrupt:
                return self.sweep.lost(carrier)
            claimed = True
            self.busy.discard(lane)
            self.used = env.now
            self.sweep.finished(carrier)
        if not self.busy and self.status == JobStatus.RUNNING:
            self.end()

    def _run(self, carrier: Carrier, node: Node) -> Steps:
        """A job's start at the access point, its turn at the engine, and what its records take there."""
        world, device, env = self.world, self.world.device(node.device), self.world.env
        with self.sweep.access_point.request() as turn:
            yield turn
            yield env.timeout(world.trace.costs.start)
        yield env.timeout(world.trace.costs.turnover)
        with self.engine.request() as turn:
            yield turn
            began = env.now
            try:
                yield from self._load_again(device, node)
            except Interrupt:
                world.record.spent["lost"] += env.now - began
                raise
            world.record.spent["loading"] += env.now - began
            began = env.now
            self.call = carrier, began
            try:
                first = 0 if self.pace else min(world.trace.workload.batch, carrier.records)
                if first:
                    yield env.timeout(first * device.record_seconds)
                    self.pace = device.record_seconds
                    self.sweep.lanes_measured(self.settings.lanes, self.pace)
                yield env.timeout((carrier.records - first) * device.record_seconds)
            except Interrupt:
                self._interrupted(carrier, env.now - began, device.record_seconds, node)
                raise
            finally:
                self.call = None
            self._served(carrier.records, began, device.record_seconds, node)

    def _load_again(self, device: Device, node: Node) -> Steps:
        """What a job does first where the state is not kept."""
        keep = self.world.trace.workload.keep
        if keep == "nothing":
            yield from self._fetch(node)
        if keep != "state":
            yield self.world.env.timeout(device.load_seconds)

    def _interrupted(self, carrier: Carrier, seconds: float, pace: float, node: Node) -> None:
        """What had come out before is kept where results are streamed; what was in the engine goes with it."""
        workload = self.world.trace.workload
        begun = min(carrier.records, ceil(seconds / pace / workload.batch) * workload.batch)
        saved = 0
        if workload.results == "streamed":
            saved = int(max(0.0, seconds - self.world.trace.costs.stream) / pace)
        self._served(saved, self.world.now - seconds, pace, node)
        carrier.records -= saved
        self.world.record.lost_in_flight += begun - saved
        self.world.record.spent["lost"] += seconds - saved * pace

    def _served(self, records: int, began: float, pace: float, node: Node) -> None:
        record, streamed = self.world.record, self.world.trace.workload.results == "streamed"
        if records:
            self.served += records
            end = began + records * pace
            record.served.append((began if streamed else end, end, records))
            record.spent["serving"] += records * pace
            record.by_device[node.device] += records
            self.sweep.have += records
