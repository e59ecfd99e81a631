"""Receive the results of a driver's jobs. The jobs may be running, completed, held, or on a lost node."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from glide.condor.event_log import LOST, Event
from glide.errors import CondorRefused
from glide.invoke.answers import OutputContent
from glide.invoke.jobs import InvocationJob, RunJobs
from glide.invoke.part import Part
from glide.protocol.names import printable
from glide.sweep.audit import Audit
from glide.sweep.lanes import SILENT_SECONDS, Lanes
from glide.sweep.work import Work
from glide.vocabulary import JobStatus

PEEK_SECONDS = 2.0  # seconds between two reads of a running job's output; a read costs the access point at least 5 ms
PEEK_BUDGET = 0.25  # maximum time that one cycle spends on reads of running jobs' output, in seconds
# Minimum time between two gathers, in seconds. One gather of many jobs costs the access point little more than a gather
# of one job. So the driver waits until it can gather several jobs together.
GATHER_SECONDS = 1.0
# The driver counts how often it finds held jobs. A new result resets the count to 0. If the count is at most this
# number, the driver sends the records of the held jobs again. If the count is larger, the run fails.
MOST_HOLDS = 5
_log = logging.getLogger("glide")


class ResultIntake:
    """Store the results of jobs. Remove a job from the queue if the job has ended or must not continue.

    The records of one job are called a part. A part has a name, which the job's ad contains.

    Attributes:
        starts: number of starts of each job, by job number.
        keys: for each part, a dict from the ids of its records to the keys of these records (Work.key).
        unfinished: number of each part's records that had no result when the part's output was last read.
        outdated: names of the parts whose jobs have to be removed, because a request in the part has changed.
        finished: names of the parts whose jobs have completed, but are not gathered yet.
        attempts: for each record id, the number of lost jobs that had the record.
        evictions: number of jobs that were lost.
        lost_in_flight: number of records that a node had begun, but whose results were lost with the node. A node
            reports once a second how many records it has begun. So this attribute does not count the records that
            the node began after its last report.
        disconnected: Unix time when a job lost its node, by job number.
        peeked: for each part, the time when its job's output was last read (monotonic seconds).
        holds: number of times in a row that the driver found held jobs. After a new result, this count starts again.
        done_at_last_hold: number of results at the time when the driver last found held jobs.
    """

    def __init__(self, work: Work[Any], jobs: RunJobs, lanes: Lanes):
        self.work = work
        self.jobs = jobs
        self.lanes = lanes
        self.audit = Audit()
        self.starts: dict[str, int] = {}
        self.keys: dict[str, dict[str, Any]] = {}
        self.unfinished: dict[str, int] = {}
        self.outdated: set[str] = set()
        self.finished: set[str] = set()
        self.attempts: Counter[str] = Counter()
        self.evictions = self.lost_in_flight = 0
        self.disconnected: dict[str, float] = {}
        self.peeked: dict[str, float] = {}
        self.last_gather = 0.0
        self.holds = self.done_at_last_hold = 0

    def note_lost_nodes(self, events: Iterable[Event]) -> None:
        """Remember the jobs that have lost their node, according to these new events of the event log.

        The event log can be faster than the queue. So a job is remembered even if the queue does not yet show the start
        of the job.
        """
        self.disconnected |= {event.job: event.at for event in reversed(list(events)) if event.kind in LOST}

    @property
    def too_many_holds(self) -> bool:
        """Whether held jobs were found more than MOST_HOLDS times in a row without a new result."""
        return self.holds > MOST_HOLDS

    def queue(self) -> list[InvocationJob]:
        """Return the run's jobs in the queue. Remember the ids of each job's records."""
        queue = self.jobs.queue()
        for job in queue:
            self.starts[job.id] = job.starts
            if job.part not in self.keys:
                self.keys[job.part] = {record: self.work.key(record) for record in self.jobs.record_ids([job])}
                self.unfinished[job.part] = len(self._missing(job.part))
                if None in self.keys[job.part].values():
                    self.outdated.add(job.part)
        return queue

    def note_submitted(self, parts: Sequence[Part]) -> None:
        """Remember the ids of the records in new jobs, so that the method `queue` need not read their input files."""
        self.keys |= {part.name: {record: self.work.key(record) for record in part.ids} for part in parts}
        self.unfinished |= {part.name: len(part.ids) for part in parts}

    def count_in_flight(self, parts: Collection[str]) -> int:
        """Return the number of records that are in jobs now and have no result. Forget the records of all other jobs.

        The records of one job are called a part. Two kinds of jobs count:

        - A job in the queue that has not completed. Its part is in `parts`.
        - A completed job whose results are not gathered yet. Its part is in the attribute `finished`.

        Args:
            parts: names of parts.
        """
        self.keys = {part: keys for part, keys in self.keys.items() if part in parts or part in self.finished}
        self.unfinished = {part: self.unfinished[part] for part in self.keys}
        return sum(self.unfinished.values())

    def in_flight(self) -> set[Any]:
        """Return the keys of the records that were in jobs at the last call of `count_in_flight`."""
        return set().union(*(keys.values() for keys in self.keys.values()))

    def gather_finished(self, queue: list[InvocationJob], at_once: bool = False) -> list[InvocationJob]:
        """Store the results of the completed jobs, and remove these jobs from the queue. Return the other jobs.

        Args:
            at_once: whether to gather even if the last gather was less than GATHER_SECONDS ago.
        """
        finished = [job for job in queue if job.status == JobStatus.COMPLETED]
        others = [job for job in queue if job.status != JobStatus.COMPLETED]
        if at_once or not others or time.monotonic() - self.last_gather > GATHER_SECONDS:
            received: list[tuple[InvocationJob, OutputContent]] = []

            def store(received_now: Sequence[tuple[InvocationJob, OutputContent]]) -> None:
                self._store(received_now)
                received.extend(received_now)

            self.jobs.gather(finished, self.keys, store)
            self.work.history.write_ended(finished, "gathered")
            self.last_gather = time.monotonic()
            self._count_unanswered(received)
            finished = []
        self.finished = {job.part for job in finished}
        return others

    def peek(self, queue: list[InvocationJob]) -> list[InvocationJob]:
        """Store the results that running jobs have streamed. Begin with the output that was read longest ago.

        Returns:
            The queue without the removed jobs. A job is removed if its output is too long for the job's records.
        """
        now = time.monotonic()
        running = {job.part: job for job in queue if job.status == JobStatus.RUNNING}
        self.peeked = {part: self.peeked.get(part, now) for part in running}
        too_long: list[tuple[InvocationJob, OutputContent]] = []
        for part in sorted(running, key=lambda part: self.peeked[part]):
            # PEEK_BUDGET keeps a cycle short if there are many jobs, or if the access point is busy.
            if now - self.peeked[part] < PEEK_SECONDS or time.monotonic() - now > PEEK_BUDGET:
                break
            answers = self.jobs.peek(running[part], self.keys[part])
            self._store([(running[part], answers)])
            self.peeked[part] = now
            too_long += [(running[part], answers)] if answers.too_long else []
        queue = self._remove(queue, too_long, "its output is longer than its records allow")
        self._count_unanswered(too_long)
        return queue

    def _missing(self, part: str) -> set[str]:
        """Return the ids of the records in a part that have no result."""
        done = self.work.done
        return {record for record, key in self.keys[part].items() if key is None or done.get(key) is None}

    def _store(self, received: Sequence[tuple[InvocationJob, OutputContent]]) -> None:
        """Store the results that the outputs of jobs contain."""
        self.work.store(
            (self.keys[job.part][record], result)
            for job, answers in received
            for record, result in answers.results.items()
        )
        for job, answers in received:
            self.unfinished[job.part] = len(self.keys[job.part]) - len(answers.results)

    def _remove(
        self, queue: list[InvocationJob], bad: list[tuple[InvocationJob, OutputContent]], reason: str
    ) -> list[InvocationJob]:
        """Remove the jobs in `bad`, whose results are already stored. Return the other jobs.

        The driver later sends the unfinished records of the removed jobs again.
        """
        self.jobs.remove([job for job, _ in bad], reason)
        self.work.history.write_ended([job for job, _ in bad], "removed")
        gone = {job.id for job, _ in bad}
        return [job for job in queue if job.id not in gone]

    def _log_rejected(self, job: InvocationJob, answers: OutputContent) -> set[str]:
        """Log a job's invalid output lines, and return the ids of the job's records that have no result.

        If a record has no result, the job's glidein gets no jobs for a while. If no other glidein is warm, the job's
        glidein still gets jobs.
        """
        lane = job.lane or job.last_lane
        missing = self._missing(job.part)
        self.audit.log_rejected(self.lanes.describe(lane), job.id, answers)
        if missing and not self.lanes.is_only_warm_glidein(lane):
            self.lanes.avoid(lane)
        return missing

    def _count_unanswered(self, ended: Sequence[tuple[InvocationJob, OutputContent]]) -> None:
        """Log the invalid output lines of ended jobs. For each record, count the jobs that ended without its result.

        When a record's count reaches MOST_UNANSWERED, store an error as the record's result.
        """
        for job, answers in ended:
            missing = self._log_rejected(job, answers)
            lane = self.lanes.describe(job.lane or job.last_lane)
            failed = self.audit.count_unanswered(missing, lane, answers.reason)
            self.work.store((self.keys[job.part][result["custom_id"]], result) for result in failed)

    def remove_outdated(self, queue: list[InvocationJob]) -> list[InvocationJob]:
        """If a job of an earlier driver contains a changed request, remove the job. Return the remaining jobs.

        Before a job is removed, the job's results for unchanged requests are stored.
        """
        outdated = [job for job in queue if job.part in self.outdated]
        self._store([(job, self.jobs.peek(job, self.keys[job.part])) for job in outdated])
        self.jobs.remove(outdated, "its requests have changed")
        self.work.history.write_ended(outdated, "removed")
        self.outdated.clear()
        return [job for job in queue if job not in outdated]

    def remove_held(self, queue: list[InvocationJob]) -> list[InvocationJob]:
        """Remove held jobs, so that the records in these jobs are sent again. Return the remaining jobs.

        Raises:
            CondorRefused: held jobs were found more than MOST_HOLDS times in a row without a new result.
        """
        held = [job for job in queue if job.status == JobStatus.HELD]
        if not held:
            return queue
        # If the run got new results after the driver last found a held job, `holds` starts again from zero.
        if len(self.work.done) > self.done_at_last_hold:
            self.holds, self.done_at_last_hold = 0, len(self.work.done)
        self.holds += 1
        if self.holds > MOST_HOLDS:
            raise CondorRefused(f"HTCondor holds jobs repeatedly; reason for job {held[0].id}: {held[0].hold_reason}")
        received = [(job, self.jobs.peek(job, self.keys[job.part])) for job in held]
        self._store(received)
        queue = self._remove(queue, received, "held; its records are sent again")
        for job, answers in received:
            lane, why = self.lanes.describe(job.lane or job.last_lane), printable(job.hold_reason)
            _log.warning("job %s on %s was held: %s; its records are sent again", job.id, lane, why)
            self._log_rejected(job, answers)
        return queue

    def remove_lost(self, queue: list[InvocationJob]) -> list[InvocationJob]:
        """Store the results that lost jobs have streamed, remove these jobs, and return the remaining jobs.

        A job is lost if its node is dead. The driver sends the unfinished records of lost jobs again in a new job.
        HTCondor itself runs a lost job again only after 15 s, when the shadow has asked the dead node three times.
        """
        gone = self.lanes.vanished() & {job.lane for job in queue}
        if gone and self.lanes.collector.age() < SILENT_SECONDS:  # the collector has restarted and lost all ads
            self.lanes.reset_timeouts()
            gone = set()
        lost = [job for job in queue if job.id in self.disconnected or job.lane in gone]
        for job in lost:
            answers = self.jobs.peek(job, self.keys[job.part])
            self._store([(job, answers)])
            saved = len(answers.results)
            self.evictions += 1
            self.lost_in_flight += max(0, answers.begun - saved)
            at = self.disconnected.get(job.id, time.time())
            self.work.history.write_ended([job], "lost", at=at, begun=answers.begun, saved=saved)
            self.attempts.update(self._missing(job.part))
            self.audit.log_rejected(self.lanes.describe(job.lane), job.id, answers)
            self.lanes.avoid(job.lane)
        self.jobs.remove(lost, "its node is gone; its unfinished records are sent again")
        lost_ids = {job.id for job in lost}
        return [job for job in queue if job.id not in lost_ids]
