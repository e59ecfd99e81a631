"""The fake pool: HTCondor's behaviour as a driver sees it, in memory and in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from glide.condor.event_log import Event
from glide.condor.fake.ad import load_functions
from glide.condor.fake.clock import FakeClock
from glide.condor.fake.directory import FakeDirectory
from glide.condor.fake.glidein import FakeGlidein, FakeLane
from glide.condor.fake.queue import FakeQueue
from glide.condor.fake.schedd import FakeSchedd
from glide.condor.ports import PoolHandle
from glide.protocol.request import VERSION, Request
from glide.vocabulary import State


def echo(request: Request, seconds: float) -> dict[str, Any]:
    """Return the result that the engine noop computes for a request: the prompt is the generated text."""
    text = request.prompt if isinstance(request.prompt, str) else ""
    return {"text": text, "tokens": 0, "error": None, "seconds": round(seconds, 6), "finish_reason": "stop"}


class FakeEventLog:
    """A reader of the fake access point's event log. This class implements the port JobEvents.

    Like EventLog, it returns only events that are written after the reader was created.
    """

    def __init__(self, schedd: FakeSchedd):
        self.schedd = schedd
        self.readable = True
        self._read = len(schedd.events)

    def new_events(self) -> list[Event]:
        if not self.readable:
            return []
        events = self.schedd.events[self._read :]
        self._read += len(events)
        return events


class FakePool:
    """A pool without HTCondor, for tests. Its time passes only while somebody calls `clock.sleep`.

        pool = FakePool()
        pool.add_lane("fake-1.0", template.digest, record_seconds=0.1)
        pool.clock.call_later(5.0, lambda: pool.kill("fake-1.0"))
        Driver(work, run, pool.handle()).run()

    Args:
        match_seconds: seconds from a submission, or from the moment when a lane becomes free, until jobs are matched.
            On an embedded pool, it is 1.0 s after a submission, and 0 to 1 s after a lane has become free.
        start_seconds: time that the access point needs to start a job. It starts one job after the other.
        seed: with a seed, the order in which free lanes get jobs is random, but the same in each run. None: the lane
            that was added first gets the first job.
        hosts: names of the pool's own execution points, which are not glideins.
        answer: a function that returns the fields of a record's result, from the request and its number of seconds. The
            default is `echo`. A function can also return a result with an error, or an invalid result.
        user: name of the account that submits jobs.
        job_folders: the folder in which each job gets its own folder; None: the jobs are spooled.

    Attributes:
        queue, directory, clock: the implementations of the ports JobQueue, SlotDirectory and Clock.
        schedd: the part of the pool behind `queue`. `schedd.queue` is a dict from a job's number to the job.
        glideins: the glideins by GlideId, also the dead ones.
    """

    def __init__(
        self, match_seconds: float = 1.0, start_seconds: float = 0.06, seed: int | None = None,
        hosts: Iterable[str] = (), answer: Callable[[Request, float], dict[str, Any]] = echo, user: str = "user@fake",
        job_folders: Path | None = None,
    ):  # fmt: skip
        load_functions()
        choice = None if seed is None else random.Random(seed)
        self.answer = answer
        self.job_folders = job_folders
        self.clock = FakeClock()
        self.directory = FakeDirectory(self.clock, hosts)
        self.schedd = FakeSchedd(self.clock, self.directory, match_seconds, start_seconds, choice)
        self.queue = FakeQueue(self.schedd, user)
        self.glideins: dict[str, FakeGlidein] = {}

    def handle(self) -> PoolHandle:
        """Return a handle with a new reader of the event log, for one driver."""
        return PoolHandle(self.queue, self.directory, FakeEventLog(self.schedd), self.clock, self.job_folders)

    # ---- glideins ----------------------------------------------------------------------------------

    def add_lane(
        self, glide_id: str, template: str, *, name: str = "", state: str = State.WARM,
        warm_after: float | None = None, record_seconds: float | Callable[[Request], float] = 0.05, batch: int = 1,
        host: str = "", model: str = "noop", protocol: int = VERSION,
    ) -> FakeLane:  # fmt: skip
        """Add a lane. If the glidein exists already, the lane shares its engine: then only `name` and `host` count.

        Args:
            glide_id: GlideId, such as "fake-1.0". The part after the last "-" must be CLUSTER.PROC.
            template: digest of the template that the lane offers.
            name: the lane's name; empty for "slotN@GLIDE_ID".
            state: the model server's state.
            warm_after: number of seconds after which the state becomes Warm; None: the state does not change.
            record_seconds: time that the engine needs for a record, in seconds, or a function that returns this time.
            batch: number of records that the engine receives together.
            host: name of the node; empty for "host-GLIDE_ID".
            protocol: version of the requests that the glidein serves.
        """
        glidein = self.glideins.get(glide_id)
        if glidein is None or not glidein.alive:
            seconds = record_seconds if callable(record_seconds) else lambda request: record_seconds
            glidein = self.glideins[glide_id] = FakeGlidein(
                self.clock, glide_id, template, state, batch, seconds, self.answer,
                changed=lambda: self.schedd.wake(self.schedd.match_seconds),
            )  # fmt: skip
            if warm_after is not None:
                self.clock.call_later(warm_after, lambda: self.set_state(glide_id, State.WARM))
        slot = f"slot{len(glidein.lanes) + 1}@{glide_id}"
        lane = FakeLane(glidein, name or slot, host or f"host-{glide_id}", model, protocol)
        self.directory.known.append(lane)
        return lane

    def set_state(self, glide_id: str, state: str, failure: str = "") -> None:
        """Change the state of a glidein's model server. The collector has the new state a second later.

        Args:
            failure: why the template cannot be loaded, if the state is Failed.
        """
        if self.glideins[glide_id].alive:
            self.glideins[glide_id].set_state(state, failure)

    def kill(self, glide_id: str) -> None:
        """Kill a glidein without warning, as if its node had lost power.

        The event log shows the loss immediately. The queue shows the jobs as running for LOST_SECONDS. The lanes' ads
        stay in the collector until they are expunged, or until they are AD_SECONDS old.
        """
        for lane in self._end(glide_id):
            if lane.job:
                self.schedd.disconnect(lane.job)

    def stop(self, glide_id: str) -> None:
        """Stop a glidein with a warning, as HTCondor does when it evicts the outer job.

        The jobs are idle again immediately. The startd removes its ads itself.
        """
        for lane in self._end(glide_id):
            lane.listed = False
            if lane.job:
                self.schedd.requeue(lane.job)

    def _end(self, glide_id: str) -> list[FakeLane]:
        glidein = self.glideins[glide_id]
        for lane in glidein.lanes:
            lane.catch_up()
        glidein.die()
        return glidein.lanes

    # ---- faults ------------------------------------------------------------------------------------

    def hold(self, job: str, reason: str) -> None:
        """Hold a job. `job` is its number, CLUSTER.PROC."""
        self.schedd.hold(self.schedd.queue[job], reason)

    def refuse(self, reason: str) -> None:
        """Refuse all later submissions with CondorRefused. If `reason` is empty, accept submissions again."""
        self.queue.refusal = reason

    def fail_calls(self, seconds: float, queue: bool = True, directory: bool = True) -> None:
        """Let all calls of the access point, of the collector, or of both raise CondorError for a number of seconds.

        Jobs and lanes continue meanwhile, as they do when only the network fails.
        """
        until = self.clock.monotonic() + seconds
        self.queue.down_until = until if queue else self.queue.down_until
        self.directory.down_until = until if directory else self.directory.down_until

    def lose_events(self, lost: bool = True) -> None:
        """Do not write events to the event log from now on. With False, write events again."""
        self.schedd.lose_events = lost

    def restart_collector(self) -> None:
        """Restart the collector: its age is 0, and it has no ads until the lanes send their next ads."""
        self.directory.restart()
