"""The driver of a run. It observes the pool, decides, and acts, until every record has a result.

The function `decide` in glide.sweep.decide makes all decisions. This module carries them out, and waits.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from glide.condor import home
from glide.condor.bounded import isolated
from glide.condor.event_log import ENDED, LOST
from glide.condor.ports import PoolHandle
from glide.errors import CondorError, CondorRefused
from glide.factory.journal import refusals
from glide.invoke.jobs import RunJobs, RunSpec
from glide.invoke.pack import stream_seconds
from glide.sweep.act import Actor
from glide.sweep.decide import MOST_HOLDS, decide_and_act
from glide.sweep.intake import ResultIntake
from glide.sweep.lanes import Lanes
from glide.sweep.outage import Outage, is_temporary
from glide.sweep.view import Gather, Memory, SubmitJobs, View
from glide.sweep.work import Work
from glide.vocabulary import JobStatus

POLL_SECONDS = 0.25  # seconds between two queries of schedd and collector; a query is costly: both daemons fork
# Seconds between queries of schedd and collector after a lane became warm. If a job ends, the next query is earlier.
CALM_SECONDS = 1.0
# The driver may spend this share of its time on cycles. With many jobs and lanes, a cycle takes long, and costs the
# access point as much. Then the driver waits longer between two cycles.
BUSY_SHARE = 0.2
MOST_PAUSE = 10.0  # maximum number of seconds between two cycles; a cycle may be long for a reason that soon ends
EVENT_SECONDS = 0.05  # seconds between two reads of the event log; a read costs almost nothing
# A run gives up after this number of seconds in two cases: HTCondor refuses the run's jobs, or has never answered. If
# HTCondor answered before and does not answer now, the run waits without a limit. The access point may be rebooting.
PATIENCE_SECONDS = 30.0

_log = logging.getLogger("glide")


def pause(cycle: float, calm: bool) -> float:
    """Return the seconds between two cycles of the driver.

    Args:
        cycle: seconds that the last cycle took.
        calm: whether a job's end is reported by the event log, so that the driver need not look for it often.
    """
    return max(CALM_SECONDS if calm else POLL_SECONDS, min(cycle * (1 / BUSY_SHARE - 1), MOST_PAUSE))


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
    """Compute the results of a run's records on a pool.

    The job queue and the results on disk hold the whole state of a sweep. So a new driver can continue after a crash.

    Args:
        condor_answered: whether HTCondor has answered before. If so, the driver waits for HTCondor without a limit.

    Attributes:
        memory: what the decisions need to know of earlier cycles.
        failing_since: time of the first failure after the last successful cycle (monotonic seconds); None if there is
            no such failure.
        lanes_full: True if records are pending, but the lanes have enough jobs. Then the driver submits no job.
        cycle: seconds that the last cycle took.
    """

    def __init__(self, work: Work[Any], run: RunSpec, pool: PoolHandle, condor_answered: bool = False):
        self.work = work
        self.pool = pool
        self.clock = pool.clock
        self.jobs = RunJobs(run, pool.queue, pool.job_folders)
        self.lanes = Lanes(work.template, pool.directory, pool.clock)
        self.intake = ResultIntake(work, self.jobs, self.lanes, pool.clock)
        self.outage = Outage(run.name, lambda: isolated(self._probe), pool.clock)
        self.started = self.clock.monotonic()
        self.failing_since: float | None = None
        self.memory = Memory(self.started)
        self.actor = Actor(work, self.jobs, self.lanes, self.intake, pool.clock)
        self.lanes_full = False
        self.cycle = 0.0
        self.progress = Progress(work.total, len(work.done))
        self.condor_answered = condor_answered

    @property
    def first_warm(self) -> float | None:
        """The time when a warm lane was first observed (monotonic seconds); None if no lane has been warm."""
        return self.memory.first_warm

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
            self.failing_since = None
        try:
            self.progress = self._cycle()
            self.condor_answered, self.failing_since = True, None
            self.outage.end()
            watch(self.progress)
        except (CondorError, OSError) as error:
            self.failing_since = self.clock.monotonic() if self.failing_since is None else self.failing_since
            late = self.clock.monotonic() - self.failing_since > PATIENCE_SECONDS
            if isinstance(error, CondorRefused) or not self.condor_answered:
                if late or self.memory.holds >= MOST_HOLDS or isinstance(error, OSError):
                    raise
            elif not is_temporary(error):
                raise
            else:
                self._wait_out(error, watch)
        return self._finish_run() if self.work.finished else None

    @property
    def has_spare_lane(self) -> bool:
        """Whether a glidein has several lanes, so that a standing job leaves a lane for other jobs."""
        lanes = self.actor.observed_lanes
        return len(lanes) > len({lane.glide_id for lane in lanes})

    def limit_glideins(self, most: int) -> None:
        """Set the number of glideins that may run for this run at the same time. It applies to new jobs."""
        self.work.glideins = most
        self.jobs.run = replace(self.jobs.run, max_glideins=most)

    def _wait_out(self, error: Exception, watch: Callable[[Progress], None]) -> None:
        """Pause after a temporary error. The pause ends when HTCondor answers, or when the run is finished."""
        watch(replace(self.progress, problem=f"paused: {error}"))
        self.outage.wait(error, lambda: self.work.finished)
        self.failing_since = None
        self.lanes.reset_timeouts()

    def _probe(self) -> None:
        """Raise an error if the schedd or the collector does not answer."""
        for query in (self.pool.queue.time, self.pool.directory.age):
            try:
                query()
            except CondorError:  # after a failed query, a client looks up the daemon's address again
                query()

    def _finish_run(self) -> dict[str, Any]:
        """Remove the run's remaining jobs and their files, and return the summary."""
        summary = self._summary()
        try:
            if self.outage.since is None:
                queue = self.jobs.queue()
                self.jobs.remove(queue, "all results are here")  # remaining jobs would only compute results again
                self.work.history.write_ended(queue, "removed")
                self.jobs.files.remove_others(())
        except (CondorError, OSError) as error:
            _log.warning("jobs of %s may remain in the queue: %s", self.jobs.run.name, error)
        return summary

    def wait(self, share: float = 1.0) -> None:
        """Wait between cycles. If a node is lost or a record is added, return. If a job ends, shorten the wait.

        Args:
            share: the part of the usual time that this wait takes. It is below 1 if several drivers take turns.
        """
        started = self.clock.monotonic()
        calm = self.pool.events.readable and self.first_warm is not None
        budget = share * pause(self.cycle, calm)
        while self.clock.monotonic() - started < budget:
            if self.work.new_work.is_set() and not self.lanes_full:
                self.work.new_work.clear()
                return
            # If the lanes have enough jobs, a new record does not end this wait.
            self.clock.sleep(EVENT_SECONDS, None if self.lanes_full else self.work.new_work)
            events = self.pool.events.new_events()
            lost = {event.job: event.at for event in reversed(events) if event.kind in LOST}
            self.intake.disconnected |= lost  # the event log may be faster than the queue, so keep unknown jobs, too
            if lost:
                return
            if any(event.kind in ENDED for event in events):
                budget = min(budget, share * pause(self.cycle, False))

    def cancel(self, reason: str) -> None:
        """Gather the completed jobs of this run, and remove the other jobs.

        Args:
            reason: why the jobs are removed, as text for HTCondor's job history.
        """
        view = self.actor.observe(self.memory)
        finished = [job for job in view.jobs.values() if job.status == JobStatus.COMPLETED]
        self.actor.act(Gather(tuple(finished)), view, self.memory)
        self.intake.remove(list(self.actor.queue.values()), reason)  # also stores what these jobs have streamed
        self.jobs.files.remove_others(())

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
        """Observe the pool. Then decide and act, until no decision changes the view any more."""
        began = self.clock.monotonic()
        view = self.actor.observe(self.memory)
        view.cycle = self.cycle + pause(self.cycle, calm=True)
        view.stream = stream_seconds(view.lanes)
        actions = decide_and_act(self.memory, view, began, lambda action: self.actor.act(action, view, self.memory))
        # Records that were added while jobs were submitted may still get a lane at once.
        self.lanes_full = view.pending > 0 and not any(isinstance(action, SubmitJobs) for action in actions)
        self.work.history.write_counts(
            done=len(self.work.done), errors=self.work.errors, tokens=self.work.tokens,
            recomputed=self.work.recomputed, lost_in_flight=self.intake.lost_in_flight,
        )  # fmt: skip
        self.cycle = self.clock.monotonic() - began
        return self._progress(view)

    def _progress(self, view: View) -> Progress:
        states = Counter(lane.state for lane in self.actor.observed_lanes)
        return Progress(
            total=self.work.total, done=len(self.work.done), errors=self.work.errors,
            lanes=dict(sorted(states.items())),
            running=sum(job.status == JobStatus.RUNNING for job in view.jobs.values()),
            idle=sum(job.status == JobStatus.IDLE for job in view.jobs.values()), wave=self.actor.wave,
            problem=self.lanes.problem or ("" if self.lanes.is_warm else "; ".join(refusals(home()))),
        )  # fmt: skip

    def _summary(self) -> dict[str, Any]:
        now, finished = self.clock.time(), self.clock.monotonic()
        return {
            "makespan_s": round(finished - self.started, 3),
            "warm_makespan_s": round(finished - (self.first_warm or finished), 3),
            "jobs": len(self.intake.starts),
            "evictions": self.memory.evictions + sum(max(0, starts - 1) for starts in self.intake.starts.values()),
            "recomputed": self.work.recomputed,
            "lost_in_flight": self.intake.lost_in_flight,
            "twins": self.intake.twins,
            "twin_results": self.intake.twin_results,
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
