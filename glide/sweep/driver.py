"""The driver of a run. It submits invocation jobs, and stores results until every record has a result."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from glide.condor import AccessPoint, Collector, EventLog, home
from glide.condor.bounded import isolated
from glide.condor.event_log import ENDED, LOST
from glide.errors import CondorError, CondorRefused
from glide.factory.journal import refusals
from glide.invoke.jobs import InvocationJob, RunJobs
from glide.invoke.pack import Wave, eviction_rate, pack
from glide.invoke.part import Part
from glide.protocol.ads import LaneAd
from glide.sweep.intake import ResultIntake
from glide.sweep.lanes import Lanes, record_seconds
from glide.sweep.outage import Outage, is_temporary
from glide.sweep.work import Work
from glide.vocabulary import JobStatus

POLL_SECONDS = 0.25  # seconds between two queries of schedd and collector; a query is costly: both daemons fork
# Seconds between queries of schedd and collector after a lane became warm. If a job ends, the next query is earlier.
CALM_SECONDS = 1.0
EVENT_SECONDS = 0.05  # seconds between two reads of the event log; a read costs almost nothing
# A run gives up after this number of seconds in two cases: HTCondor refuses the run's jobs, or has never answered. If
# HTCondor answered before and does not answer now, the run waits without a limit. The access point may be rebooting.
PATIENCE_SECONDS = 30.0
# If a job is idle for this number of seconds while a warm lane is free, the driver asks HTCondor for a new match.
STUCK_SECONDS = 5.0

# As soon as the files of new jobs have this number of records in total, these jobs are submitted. A smaller number
# would cause more submissions.
GROUP_RECORDS = 16384

_log = logging.getLogger("glide")


@dataclass
class Progress:
    """The progress of a run, for a user who watches the run.

    Attributes:
        total, done, errors: number of records, number of results, and number of results with an error.
        lanes: number of lanes for each state of the model server.
        running, idle: number of running and of idle invocation jobs.
        wave: text that explains how many records each job of the last wave has; empty before the first wave.
        problem: why the run makes no progress; empty if the run makes progress.
    """

    total: int
    done: int
    errors: int = 0
    lanes: dict[str, int] = field(default_factory=dict)
    running: int = 0
    idle: int = 0
    wave: str = ""
    problem: str = ""


class Driver:
    """Compute the results of a run's records on the configured pool.

    The job queue and the results on disk hold the whole state of a sweep. So a new driver can continue after a crash.

    Args:
        condor_answered: whether HTCondor has answered before. If so, the driver waits for HTCondor without a limit.

    Attributes:
        well: time when HTCondor last answered, or when the driver began to wait for an answer (monotonic seconds).
        reconsidered: time of the last call of `RunJobs.reconsider` (monotonic seconds).
        lanes_full: True if records are pending, but the lanes have enough jobs. Then the driver submits no job.
        first_warm: time when a warm lane was first observed (monotonic seconds); None if no lane has been warm.
        folder_cleaned: True if this driver has already removed the old files of earlier drivers from the run's folder.
    """

    def __init__(self, work: Work[Any], jobs: RunJobs, condor_answered: bool = False):
        self.work = work
        self.jobs = jobs
        self.lanes = Lanes(work.template)
        self.events = EventLog()
        self.intake = ResultIntake(work, jobs, self.lanes)
        self.outage = Outage(jobs.run.name, lambda: isolated(self._probe))
        self.started = self.well = time.monotonic()
        self.reconsidered = 0.0
        self.wave = Wave((), "")
        self.lanes_full = False
        self.first_warm: float | None = None
        self.progress = Progress(work.total, len(work.done))
        self.condor_answered = condor_answered
        self.folder_cleaned = False

    def run(self, watch: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
        """Compute all results and return the summary. Wait while HTCondor does not answer, or while a disk is full.

        Args:
            watch: a function that is called with the progress after each cycle.

        Raises:
            TemplateError, CondorError, CondorRefused: as `step`.
        """
        while (summary := self.step(watch)) is None:
            self.wait()
        return summary

    def step(self, watch: Callable[[Progress], None]) -> dict[str, Any] | None:
        """Run one cycle. If every record has a result, return the summary; otherwise, return None.

        Raises:
            TemplateError: too many glideins have failed to load the template, so the run gives up.
            CondorError: HTCondor does not answer at the start.
            CondorRefused: HTCondor refuses jobs, or holds jobs repeatedly.
        """
        if self.work.wait_for_work():
            self.well = time.monotonic()  # the time limit for an answer from HTCondor begins after this wait
        try:
            self.progress = self._cycle()
            self.condor_answered, self.well = True, time.monotonic()
            self.outage.end()
            watch(self.progress)
        except (CondorError, OSError) as error:
            late = time.monotonic() - self.well > PATIENCE_SECONDS
            if isinstance(error, CondorRefused) or not self.condor_answered:
                if late or self.intake.too_many_holds or isinstance(error, OSError):
                    raise
            elif not is_temporary(error):
                raise
            else:
                self._wait_out(error, watch)
        return self._finish_run() if self.work.finished else None

    def limit_glideins(self, most: int) -> None:
        """Set the number of glideins that may run for this run at the same time. It applies to new jobs."""
        self.work.glideins = most
        self.jobs.run = replace(self.jobs.run, max_glideins=most)

    def _wait_out(self, error: Exception, watch: Callable[[Progress], None]) -> None:
        """Pause after a temporary error. The pause ends when HTCondor answers, or when the run is finished."""
        watch(replace(self.progress, problem=f"paused: {error}"))
        self.outage.wait(error, lambda: self.work.finished)
        self.lanes.reset_timeouts()

    def _probe(self) -> None:
        """Raise an error if the schedd or the collector does not answer."""
        at = self.jobs.access_point
        AccessPoint(at.name, at.collector).time()  # locate the schedd again, because a restart changes its address
        Collector().age()

    def _finish_run(self) -> dict[str, Any]:
        """Remove the run's remaining jobs and their files, and return the summary."""
        summary = self._summary()
        try:
            if self.outage.since is None:
                queue = self.jobs.queue()
                self.jobs.remove(queue, "all results are here")  # remaining jobs would only compute results again
                self.work.history.write_ended(queue, "removed")
                self.jobs.remove_other_files(())
        except (CondorError, OSError) as error:
            _log.warning("jobs of %s may remain in the queue: %s", self.jobs.run.name, error)
        return summary

    def wait(self, share: float = 1.0) -> None:
        """Wait between cycles. If a node is lost or a record is added, return. If a job ends, shorten the wait.

        Args:
            share: the part of the usual time that this wait takes. It is below 1 if several drivers take turns.
        """
        started = time.monotonic()
        calm = self.events.readable and self.first_warm is not None
        budget = share * (CALM_SECONDS if calm else POLL_SECONDS)
        while time.monotonic() - started < budget:
            if self.lanes_full:  # the lanes have enough jobs, so a new record does not end this wait
                time.sleep(EVENT_SECONDS)
            elif self.work.new_work.wait(EVENT_SECONDS):
                self.work.new_work.clear()
                return
            events = self.events.new_events()
            self.intake.note_lost_nodes(events)
            if any(event.kind in LOST for event in events):
                return
            if any(event.kind in ENDED for event in events):
                budget = share * POLL_SECONDS

    def cancel(self, reason: str) -> None:
        """Gather the completed jobs of this run, and remove the other jobs.

        Args:
            reason: why the jobs are removed, as text for HTCondor's job history.
        """
        queue = self.intake.gather_finished(self.intake.queue(), at_once=True)
        self.jobs.remove(queue, reason)
        self.work.history.write_ended(queue, "removed")
        self.jobs.remove_other_files(())

    def stop(self, reason: str) -> bool:
        """Cancel the run and return True. If HTCondor does not answer, leave the jobs in the queue and return False."""
        try:
            if self.outage.since is not None:
                raise CondorError(self.outage.reason)
            self.cancel(reason)
            return True
        except (CondorError, OSError) as error:
            _log.warning(
                "jobs of %s may remain in the queue: %s; `glide sweep resume`, or the next session, finds them",
                self.jobs.run.name, error,
            )  # fmt: skip
            return False

    def _cycle(self) -> Progress:
        """Query queue and collector, and store new results. Remove useless jobs, such as held jobs. Submit new jobs."""
        queue = self.intake.queue()
        if not self.folder_cleaned:
            self.jobs.remove_other_files({job.part for job in queue})
            self.folder_cleaned = True
        self.work.history.write_queue(queue)
        queue = self.intake.remove_outdated(queue)
        queue = self.intake.remove_held(self.intake.gather_finished(queue))
        lanes = self.lanes.observe(self.jobs.version)
        self.work.history.write_lanes(lanes)
        queue = self.intake.remove_lost(queue)
        queue = self.intake.peek(queue)
        self._reconsider_stuck(queue, lanes)
        self.lanes_full = False
        if len(self.work.done) < self.work.total:
            self._submit_wave(queue, lanes)
        self.work.history.write_counts(
            done=len(self.work.done), errors=self.work.errors, tokens=self.work.tokens,
            recomputed=self.work.recomputed, lost_in_flight=self.intake.lost_in_flight,
        )  # fmt: skip
        states = Counter(lane.state for lane in lanes)
        return Progress(
            total=self.work.total, done=len(self.work.done), errors=self.work.errors,
            lanes=dict(sorted(states.items())),
            running=sum(job.status == JobStatus.RUNNING for job in queue),
            idle=sum(job.status == JobStatus.IDLE for job in queue), wave=self.wave.reason,
            problem=self.lanes.problem or ("" if self.lanes.is_warm else "; ".join(refusals(home()))),
        )  # fmt: skip

    def _reconsider_stuck(self, queue: list[InvocationJob], lanes: list[LaneAd]) -> None:
        """If jobs stay idle although a warm lane is free, ask the access point to match the jobs again."""
        free = any(lane.is_warm and lane.claim == "Unclaimed" for lane in lanes)
        stuck = [each for each in queue if each.status == JobStatus.IDLE and each.status_seconds > STUCK_SECONDS]
        if free and time.monotonic() - self.reconsidered > STUCK_SECONDS:
            self.jobs.reconsider(stuck)
            self.reconsidered = time.monotonic()

    # ---- the next wave ---------------------------------------------------------------------------

    def _submit_wave(self, queue: list[InvocationJob], lanes: list[LaneAd]) -> None:
        """If the lanes need more jobs, submit jobs with pending records."""
        unfinished = self.work.total - len(self.work.done)
        pending = unfinished - self.intake.count_in_flight({job.part for job in queue})
        warm = [lane for lane in lanes if lane.is_warm]
        if warm and self.first_warm is None:
            self.first_warm = time.monotonic()
        expected = len(warm) or 2 * self.work.glideins
        batch = self.work.batch or max((lane.batch for lane in warm), default=1)
        losses = eviction_rate(self.intake.evictions, expected, time.monotonic() - (self.first_warm or self.started))
        wave = pack(
            pending, expected, len(queue), record_seconds(warm), batch, self.work.pack, losses, unfinished=unfinished
        )
        self.lanes_full = pending > 0 and not wave.sizes
        if wave.sizes:
            self.wave = wave
            self.work.note_wave(wave.sizes, wave.reason)
            records = self._with_attempts(self.work.pending(self.intake.in_flight()))
            last = sum(wave.sizes) >= pending and self.work.all_known  # whether this is the run's last wave
            for parts in self._written(wave.sizes, records):
                pending -= sum(len(part.ids) for part in parts)
                self.jobs.submit(parts, list(self.lanes.avoided), max(0, pending), last)
                self.intake.note_submitted(parts)

    def _written(self, sizes: Sequence[int], records: Iterator[dict[str, Any]]) -> Iterator[list[Part]]:
        """Write the input files of new jobs. Yield groups of parts. One part becomes one job.

        As soon as a group has enough records, it is yielded. So lanes can start while further files are written.

        Args:
            sizes: number of records for each job. There may be fewer records, for example because a session's caller
                has just cancelled calls.
        """
        parts: list[Part] = []
        try:
            for size in sizes:
                parts.append(self.jobs.write(islice(records, size)))
                if not parts[-1].ids:
                    self.jobs.discard([parts.pop()])
                if sum(len(part.ids) for part in parts) >= GROUP_RECORDS:
                    group, parts = parts, []
                    yield group
        except BaseException:
            self.jobs.discard(parts)
            raise
        if parts:
            yield parts

    def _with_attempts(self, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the requests. If a request was in jobs that were lost, its `attempts` is the number of these jobs."""
        for record in records:
            lost = self.intake.attempts.get(record["custom_id"])
            yield {**record, "attempts": lost} if lost else record

    def _summary(self) -> dict[str, Any]:
        now, finished = time.time(), time.monotonic()
        return {
            "makespan_s": round(finished - self.started, 3),
            "warm_makespan_s": round(finished - (self.first_warm or finished), 3),
            "jobs": len(self.intake.starts),
            "evictions": self.intake.evictions + sum(max(0, starts - 1) for starts in self.intake.starts.values()),
            "recomputed": self.work.recomputed,
            "lost_in_flight": self.intake.lost_in_flight,
            "resumed": self.work.resumed,
            "tokens": self.work.tokens,
            **self.intake.audit.summary,
            "glideins": [
                {
                    "id": glide_id, "records": self.work.by_glidein.get(glide_id, 0),
                    "fetch_s": ad.fetch_seconds or 0.0, "import_s": ad.import_seconds or 0.0,
                    "load_s": ad.load_seconds or 0.0,
                    "busy_s": ad.busy_seconds or 0.0,
                    "warm_s": 0.0 if ad.state_since is None else round(now - ad.state_since, 3),
                    **({} if ad.batching is None else {"batching": ad.batching}),
                    **({} if ad.prefix_hits is None else {"prefix_hits": ad.prefix_hits}),
                }
                for glide_id, ad in sorted(self.lanes.glideins.items())
            ],
        }  # fmt: skip
