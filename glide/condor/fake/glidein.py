"""The glideins of the fake pool. A glidein has an engine, and lanes that share this engine."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from glide.condor import bindings
from glide.condor.fake.ad import expression
from glide.condor.fake.clock import FakeClock
from glide.condor.fake.job import FakeJob, FakeRun
from glide.protocol.request import Request
from glide.protocol.result import result_line
from glide.vocabulary import IDENTITY, Exit, Job, Machine, State

ADVERTISE_SECONDS = 1.0  # a glidein's cron job prints a new state, and a second later the collector has the new ad
UPDATE_SECONDS = 15.0  # seconds between two ads of a lane if nothing changes (UPDATE_INTERVAL of glideins)
# A lane accepts jobs for its template when it is warm. A job with GlideEarly may start before, and then waits.
START = (
    f"TARGET.{Job.TEMPLATE} =?= {Machine.TEMPLATE} && TARGET.{Job.ENTRY} =?= undefined"
    f' && ({Machine.STATE} =?= "{State.WARM}" || (TARGET.{Job.EARLY} =?= true'
    f' && stringListMember({Machine.STATE}, "{",".join(State.EARLY)}")))'
)


class FakeGlidein:
    """A glidein: one engine that serves one record after the other, and lanes that share this engine.

    Args:
        record_seconds: time that the engine needs for a record, in seconds.
        batch: number of records that the engine receives together. It is also advertised.
        answer: a function that returns the result's fields except `custom_id`, `glidein` and `attempts`.
        changed: a function that is called when a lane has sent a new ad.
    """

    def __init__(
        self, clock: FakeClock, glide_id: str, template: str, state: str, batch: int,
        record_seconds: Callable[[Request], float], answer: Callable[[Request, float], dict[str, Any]],
        changed: Callable[[], object],
    ):  # fmt: skip
        self.clock, self.glide_id, self.template, self.batch = clock, glide_id, template, batch
        self.record_seconds, self.answer, self.changed = record_seconds, answer, changed
        self.state, self.failure, self.since = state, "", clock.time()
        self.lanes: list[FakeLane] = []
        self.runs: list[FakeRun] = []  # the jobs on the lanes; the oldest is first
        self.alive = True
        self.served, self.average, self.busy_seconds = 0, 0.0, 0.0
        self._call: deque[tuple[FakeRun, Request]] = deque()  # the records that the engine has received
        self._busy = False

    def set_state(self, state: str, failure: str = "") -> None:
        """Change the state of the model server. A server that fails ends its jobs, so that other lanes run them."""
        self.state, self.failure, self.since = state, failure, self.clock.time()
        self.advertise_soon()
        for run in self._active() if state == State.FAILED else ():
            run.end(Exit.SERVER_LOST)
        self._work()

    def serve(self, job: FakeJob, ended: Callable[[FakeRun, int], None]) -> FakeRun:
        """Begin to serve a job that has started on a lane. If the model is not loaded yet, the job waits."""
        run = FakeRun(self.clock, job, ended)
        self.runs.append(run)
        self._work()
        return run

    def die(self) -> None:
        self.alive = False
        for run in self._active():
            run.stop()

    def advertise_soon(self) -> None:
        for lane in self.lanes:
            self.clock.call_later(ADVERTISE_SECONDS, lane.advertise)

    def _active(self) -> list[FakeRun]:
        self.runs = [run for run in self.runs if run.active]
        return self.runs

    def _work(self) -> None:
        """Give the engine its next records. The oldest job comes first, so that one job after the other ends."""
        if self._busy or not self.alive or self.state != State.WARM:
            return
        for run in self._active() if not self._call else ():
            while run.waiting and len(self._call) < self.batch:
                self._call.append((run, run.pop_first()))
        if self._call:
            self._busy = True
            seconds = self.record_seconds(self._call[0][1])
            self.clock.call_later(seconds, lambda: self._finish(seconds))

    def _finish(self, seconds: float) -> None:
        self._busy = False
        if not self.alive:
            return
        run, request = self._call.popleft()
        before = self.average
        self.average = 0.8 * before + 0.2 * seconds if self.served else seconds
        self.served += 1
        self.busy_seconds += seconds
        if abs(self.average - before) > 0.25 * before:  # a server reports such a change at once, and small ones later
            self.advertise_soon()
        if run.active:
            fields = json.dumps(self.answer(request, seconds))
            run.add(result_line(fields, request.custom_id, self.glide_id, request.attempts + run.attempts))
        self._work()


class FakeLane:
    """A lane and its ad in the collector.

    Attributes:
        ad: the ad as the collector has it. It may be older than the lane's state.
        listed: whether the collector has the ad.
        heard: Unix time when the lane sent its last ad.
        claimed: whether the access point has claimed the lane.
        kept_until: time until which the access point keeps the claim without a job (monotonic seconds).
        reserved: whether a job is about to start on the lane.
        job: the job on the lane.
    """

    def __init__(self, glidein: FakeGlidein, name: str, host: str, model: str, protocol: int):
        self.glidein, self.name = glidein, name
        self.claimed = self.reserved = False
        self.kept_until = 0.0
        self.job: FakeJob | None = None
        self.ad = bindings.classad2.ClassAd({
            "Name": name, "Machine": host, "SlotID": len(glidein.lanes) + 1, Machine.ID: glidein.glide_id,
            Machine.ENTRY: glidein.glide_id.rpartition("-")[0], Machine.TEMPLATE: glidein.template,
            Machine.MODEL: model, Machine.PROTOCOL: protocol, Machine.BATCH: glidein.batch,
            "DaemonStartTime": int(glidein.clock.time()), "AuthenticatedIdentity": f"{IDENTITY}fake@fake",
        })  # fmt: skip
        self.ad["Requirements"] = expression(START)
        glidein.lanes.append(self)
        self.advertise()

    def advertise(self) -> None:
        """Send an ad, if the glidein is alive. This also lists a lane again whose ad was removed."""
        if self.glidein.alive:
            self.listed, self.heard = True, self.glidein.clock.time()
            self._refresh()
            self.glidein.changed()

    def set_claimed(self, claimed: bool) -> None:
        self.claimed = claimed
        self.advertise()

    @property
    def looks_free(self) -> bool:
        """Whether a job may be matched to this lane. Of a dead lane, the access point knows only the last ad."""
        if not self.glidein.alive:
            return not self.reserved and self.ad["State"] == "Unclaimed"
        return not self.reserved and self.job is None

    def catch_up(self) -> None:
        """Send the ad that the lane has last sent at its regular times, if the glidein is alive."""
        missed = (self.glidein.clock.time() - self.heard) // UPDATE_SECONDS
        if missed and self.glidein.alive:
            self.listed, self.heard = True, self.heard + missed * UPDATE_SECONDS
            self._refresh()

    def _refresh(self) -> None:
        glidein = self.glidein
        self.ad["LastHeardFrom"] = int(self.heard)
        self.ad["State"] = "Claimed" if self.claimed else "Unclaimed"
        self.ad[Machine.STATE], self.ad[Machine.STATE_SINCE] = glidein.state, int(glidein.since)
        self.ad[Machine.FAILURE], self.ad[Machine.SERVED] = glidein.failure, glidein.served
        self.ad[Machine.RECORD_SECONDS], self.ad[Machine.BUSY_SECONDS] = glidein.average, glidein.busy_seconds
