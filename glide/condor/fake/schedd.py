"""The schedd and the negotiator of the fake pool: how they match, start and end jobs."""

from __future__ import annotations

import random
from typing import Any

from glide.condor.event_log import Event
from glide.condor.fake.ad import expression
from glide.condor.fake.clock import FakeClock
from glide.condor.fake.directory import FakeDirectory
from glide.condor.fake.glidein import FakeLane
from glide.condor.fake.job import FakeJob, FakeRun
from glide.vocabulary import Exit, JobStatus

# If a node dies, its job's shadow asks the startd three times, 5 s apart. Only then is the job idle again.
LOST_SECONDS = 10.0
# The schedd looks for jobs that have become idle again only every SCHEDD_INTERVAL (1 s in an embedded pool).
REQUEUE_SECONDS = 1.0
BOUNCE_SECONDS = 2.0  # seconds until the negotiator again matches a job that could not start on a dead lane
# The schedd treats a job that a lane has refused as matched, until it rebuilds its list of runnable jobs. It rebuilds
# the list after this number of seconds, and earlier when a job is submitted or when a job's priority is set.
REBUILD_SECONDS = 1200.0
PERIODIC_SECONDS = 10.0  # seconds between two evaluations of the periodic expressions (PERIODIC_EXPR_INTERVAL)
# The schedd notifies a shadow of an edit immediately, but at most once in this number of seconds
# (SCHEDD_JOB_QUEUE_NOTIFY_UPDATES).
NOTIFY_SECONDS = 30.0
USER_HOLD = 1  # HTCondor's HoldReasonCode if a person has held the job
EXPRESSION_HOLD = 3  # HTCondor's HoldReasonCode if an expression of the job has held it


class FakeSchedd:
    """The schedd, with the negotiator.

    Args:
        match_seconds: seconds from a submission to the negotiation. It is the same after a lane has become free.
        start_seconds: time that the access point needs to start a job. It starts one job after the other.
        choice: decides which of several equally good lanes gets a job; None for the lane that was added first.

    Attributes:
        queue: the jobs by number.
        events: the event log.
        lose_events: whether events are not written to the event log.
    """

    def __init__(
        self, clock: FakeClock, directory: FakeDirectory, match_seconds: float, start_seconds: float,
        choice: random.Random | None,
    ):  # fmt: skip
        self.clock, self.directory = clock, directory
        self.match_seconds, self.start_seconds, self.choice = match_seconds, start_seconds, choice
        self.queue: dict[str, FakeJob] = {}
        self.events: list[Event] = []
        self.lose_events = False
        self._negotiation: float | None = None  # time of the next negotiation
        self._starts_until = 0.0  # time until which the access point is busy with the start of jobs
        self._evaluates = False  # whether the periodic expressions are evaluated; they are while there are jobs

    @property
    def now(self) -> int:
        """The Unix time of the access point's clock."""
        return int(self.clock.time())

    def add(self, jobs: list[FakeJob]) -> None:
        """Add new jobs to the queue."""
        for job in jobs:
            self.queue[job.id] = job
            self._write(job, "SUBMIT")
        self.rebuild()
        if not self._evaluates:
            self._evaluates = True
            self.clock.call_later(PERIODIC_SECONDS, self._evaluate_periodic)

    def select(self, constraint: str) -> list[FakeJob]:
        """Return the jobs that a constraint selects."""
        condition, now = expression(constraint), self.now
        for job in self.queue.values():
            job.ad["ServerTime"] = now
        return [job for job in self.queue.values() if condition.eval(job.ad) is True]

    def _write(self, job: FakeJob, kind: str) -> None:
        if not self.lose_events:
            self.events.append(Event(kind, job.id, self.now))

    # ---- matches and starts ------------------------------------------------------------------------

    def wake(self, seconds: float) -> None:
        """Negotiate after a number of seconds, or earlier if a negotiation is already due earlier."""
        at = self.clock.monotonic() + seconds
        if self._negotiation is None or at < self._negotiation:
            self._negotiation = at
            self.clock.call_later(seconds, lambda: self._negotiate() if self._negotiation == at else None)

    def rebuild(self) -> None:
        """Rebuild the list of runnable jobs, so that also refused jobs are matched again."""
        for job in self.queue.values():
            job.stuck = False
        self.wake(self.match_seconds)

    def _idle(self) -> list[FakeJob]:
        """Return the jobs that wait for a match: those with the highest priority first, then the oldest ones."""
        idle = [job for job in self.queue.values() if job.status == JobStatus.IDLE and not job.lane and not job.stuck]
        return sorted(idle, key=lambda job: (-job.number("JobPrio"), job.ad["ClusterId"], job.ad["ProcId"]))

    def _negotiate(self) -> None:
        """Match idle jobs and free lanes. The negotiator knows only the ads, so it also matches dead lanes.

        Of the suitable lanes, a job gets one with the highest value of the job's Rank.
        """
        self._negotiation = None
        free = [lane for lane in self.directory.listed() if lane.looks_free]
        if self.choice:
            self.choice.shuffle(free)
        # For each kind of job, the suitable lanes that are still free. The best lane is the last one.
        matches: dict[tuple[Any, ...], list[FakeLane]] = {}
        for job in self._idle() if free else ():
            if job.signature not in matches:
                suitable = [lane for lane in reversed(free) if job.ad.symmetricMatch(lane.ad)]
                matches[job.signature] = sorted(suitable, key=lambda lane: job.rank(lane.ad))
            lanes = matches[job.signature]
            while lanes and lanes[-1].reserved:  # another kind of job has got this lane
                lanes.pop()
            if lanes:
                self._claim(job, lanes.pop())

    def _claim(self, job: FakeJob, lane: FakeLane) -> None:
        """Start a job on a lane as soon as the access point has started all jobs before it."""
        job.lane, lane.reserved = lane, True
        now = self.clock.monotonic()
        self._starts_until = max(now, self._starts_until) + self.start_seconds
        self.clock.call_later(self._starts_until - now, lambda: self._start(job, lane))

    def _start(self, job: FakeJob, lane: FakeLane) -> None:
        lane.reserved = False
        if job.lane is not lane:  # the job was removed or held in the meantime
            self._free(lane, 0)
            return
        job.lane = None
        if not lane.glidein.alive:
            self.wake(BOUNCE_SECONDS)  # the schedd cannot reach the startd, so the job stays idle
            return
        lane.advertise()
        if not job.ad.matches(lane.ad):  # the lane tests START again, because its ad in the collector may be old
            job.stuck = True
            self.clock.call_later(REBUILD_SECONDS, self.rebuild)
            self._free(lane, 0)
            return
        self._run(job, lane)
        lane.set_claimed(True)
        self._write(job, "EXECUTE")
        job.run = lane.glidein.serve(job, self._exit)
        if starts := job.number("NumJobStarts"):
            job.ad["NumJobStarts"] = starts + 1  # the queue learns of the first start only when the job stops
        if not job.is_valid:
            job.run.end(Exit.INPUT)

    def _run(self, job: FakeJob, lane: FakeLane) -> None:
        job.lane, lane.job = lane, job
        job.set_status(JobStatus.RUNNING, self.now)
        job.ad.update({
            "RemoteHost": lane.name, "NumShadowStarts": job.number("NumShadowStarts") + 1,
            "JobCurrentStartDate": self.now, "JobCurrentStartExecutingDate": self.now,
        })  # fmt: skip

    def _free(self, lane: FakeLane, keep: float) -> None:
        """Use a claimed lane that has no job any more.

        The schedd starts the next job on the lane without negotiation. If no idle job matches, the schedd keeps the
        claim for `keep` seconds (keep_claim_idle).
        """
        if not lane.glidein.alive:
            return
        lane.advertise()
        for job in self._idle():
            if job.ad.symmetricMatch(lane.ad):
                self._claim(job, lane)
                return
        lane.kept_until = self.clock.monotonic() + keep
        self.clock.call_later(keep, lambda: self._release(lane))

    def _release(self, lane: FakeLane) -> None:
        is_idle = lane.job is None and not lane.reserved
        if is_idle and lane.claimed and self.clock.monotonic() >= lane.kept_until:
            lane.set_claimed(False)

    # ---- the end of a job --------------------------------------------------------------------------

    def _exit(self, run: FakeRun, code: int) -> None:
        """End a job as the expressions in its ad require: it completes, is held, or is idle again."""
        job = run.job
        job.ad.update({
            "ServerTime": self.now, "ExitBySignal": False, "ExitCode": code,
            "NumJobCompletions": job.number("NumJobCompletions") + 1,
        })  # fmt: skip
        if job.number("OnExitHold"):
            self.hold(job, job.value("OnExitHoldReason", str, "OnExitHold is true"), EXPRESSION_HOLD)
        elif job.value("OnExitRemove", bool, True):
            job.set_status(JobStatus.COMPLETED, self.now)
            job.ad["CompletionDate"] = self.now
            self._leave_lane(job, "JOB_TERMINATED")
            if not job.number("LeaveJobInQueue"):
                del self.queue[job.id]
        else:
            self.requeue(job)

    def hold(self, job: FakeJob, reason: str, code: int = USER_HOLD) -> None:
        """Hold a job. The results that it has streamed stay in its folder."""
        self._leave_lane(job, "")
        job.set_status(JobStatus.HELD, self.now)
        job.ad["HoldReason"], job.ad["HoldReasonCode"] = reason, code
        self._write(job, "JOB_HELD")

    def disconnect(self, job: FakeJob) -> None:
        """Disconnect a job from its dead node. The shadow writes an event immediately, and gives up after LOST_SECONDS.

        Until then, the queue shows the job as running. HTCondor 25.14 writes JOB_RECONNECT_FAILED and not
        JOB_DISCONNECTED, because the jobs' lease is undefined.
        """
        assert job.lane
        job.run = None
        job.ad["NumJobStarts"] = max(1, job.number("NumJobStarts"))
        self._write(job, "JOB_RECONNECT_FAILED")
        self._wait_for_shadow(job, job.lane, "JOB_EVICTED")

    def _wait_for_shadow(self, job: FakeJob, lane: FakeLane, event: str) -> None:
        """End the job's start on a dead lane when the shadow gives up. Then write an event, if `event` is not empty."""

        def end() -> None:
            if job.lane is not lane:  # the job was held in the meantime
                return
            if job.status != JobStatus.REMOVED:
                self.requeue(job, event)
                return
            self.delete(job)
            # The claim of a removed job is used again, as any claim. So another job starts on the dead lane, if its
            # requirements allow that: they are compared with the lane's last ad. Jobs avoid the lane if they name its
            # GlideId. No event reports that this job has no node.
            for other in self._idle():
                if other.ad.symmetricMatch(lane.ad):
                    self._run(other, lane)
                    self._wait_for_shadow(other, lane, "")
                    return

        self.clock.call_later(LOST_SECONDS, end)

    def requeue(self, job: FakeJob, event: str = "JOB_EVICTED") -> None:
        """Make a running job idle again."""
        self._leave_lane(job, event)
        job.set_status(JobStatus.IDLE, self.now)
        self.wake(REQUEUE_SECONDS)

    def delete(self, job: FakeJob) -> None:
        """Remove a job from the queue and from its lane."""
        del self.queue[job.id]
        self._leave_lane(job, "JOB_EVICTED")
        self._write(job, "JOB_ABORTED")

    def _leave_lane(self, job: FakeJob, event: str) -> None:
        """End the present start of a job, if there is one, and use its lane for the next job."""
        lane, run, job.lane, job.run = job.lane, job.run, None, None
        if run:
            run.stop()
            job.ad["NumJobStarts"] = max(1, job.number("NumJobStarts"))
        if lane is None or lane.job is not job:  # the job has no lane, or was only about to start there
            return
        lane.job = None
        job.ad["LastRemoteHost"] = job.ad.pop("RemoteHost")
        if event:
            self._write(job, event)
        self._free(lane, job.number("KeepClaimIdle"))

    def _evaluate_periodic(self) -> None:
        """Evaluate the expressions that HTCondor evaluates from time to time."""
        for job in self.select("true"):
            if job.number("PeriodicRemove"):
                self.delete(job)
            elif job.status in (JobStatus.IDLE, JobStatus.RUNNING) and job.number("PeriodicHold"):
                self.hold(job, job.value("PeriodicHoldReason", str, "PeriodicHold is true"), EXPRESSION_HOLD)
            elif job.status == JobStatus.COMPLETED and not job.number("LeaveJobInQueue"):
                del self.queue[job.id]
        self._evaluates = bool(self.queue)
        if self._evaluates:
            self.clock.call_later(PERIODIC_SECONDS, self._evaluate_periodic)

    def notify(self, job: FakeJob) -> None:
        """Let the job's shadow know that an attribute of the running job was edited.

        The model server reads GlideKeep from the shadow. It can do this only if the job has FileRemaps, because
        HTCondor evaluates FileRemaps when a node looks up the name of a file.
        """
        wait = max(0.0, job.notified + NOTIFY_SECONDS - self.clock.monotonic())
        job.notified = self.clock.monotonic() + wait
        job.keep_is_known = False
        self.clock.call_later(wait, lambda: setattr(job, "keep_is_known", "FileRemaps" in job.ad))
