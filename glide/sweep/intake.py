"""Keep account of the records in a run's jobs, and store the results that the jobs' outputs contain."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from glide.condor.ports import Clock
from glide.invoke.answers import OutputContent
from glide.invoke.jobs import InvocationJob, RunJobs
from glide.invoke.part import PART_BYTES, Part
from glide.protocol.names import printable
from glide.sweep.audit import Audit
from glide.sweep.lanes import Lanes
from glide.sweep.view import HELD, LOST, JobView
from glide.sweep.work import Work
from glide.vocabulary import JobStatus

STORED_TOGETHER = 100  # number of removed jobs whose results are stored in one call; each call flushes files to disk
PEEK_BUDGET = 0.25  # maximum time that one cycle spends on reads of running jobs' output, in seconds
_log = logging.getLogger("glide")


@dataclass(eq=False)
class JobRecords:
    """The records of one job. They are called a part, and the part has a name, which the job's ad contains.

    Attributes:
        keys: the keys of the records (Work.key) by id, in the order of the job's input. The key is None if the request
            has changed since the job was submitted.
        kept: number of records that the job keeps. It has given back the records after them.
        unanswered: number of kept records without a result.
        begun: number of records that the model server has sent to its engine.
        read: time when the job's output was last read (monotonic seconds).
        asked: number of records that the driver has asked the job to keep; None if it has not asked. When the job has
            answered, the value is `kept`.
        asked_at: time when the driver asked (monotonic seconds).
        twin: part of the other job that has or had the same records; empty if there never was one.
        offset: number of bytes of the job's output that have been read.
        full: whether the job's input file has its maximum size.
        outdated: whether one of the job's requests has changed since the job was submitted.
    """

    keys: dict[str, Any]
    kept: int
    unanswered: int
    read: float
    begun: int = 0
    asked: int | None = None
    asked_at: float = 0.0
    twin: str = ""
    offset: int = 0
    full: bool = False
    outdated: bool = False

    @property
    def answered(self) -> int:
        """The number of kept records with a result."""
        return self.kept - self.unanswered


class ResultIntake:
    """The records in the jobs of a driver, and the results that have been read from these jobs.

    Attributes:
        parts: the records of each job, by name of the part.
        in_flight: keys of the records that are in jobs and have no result.
        starts: number of starts of each job, by job number.
        attempts: for each record id, the number of lost jobs that had the record.
        lost_in_flight: number of records that a node had given to its engine, but whose results were lost with the
            node. Some of them may still have waited in the engine. A node reports once in a while how many records it
            has given to the engine. So this attribute does not count the records after its last report.
        twins: number of second jobs that were submitted for records that a slow glidein had begun.
        twin_results: number of results that were ignored because the other of two twins had computed them, too.
        disconnected: Unix time when a job lost its node, by job number.
        overlap: whether a record in flight may be in several jobs. This is true if there are twins, or if an earlier
            driver has taken records back and has submitted them again.
    """

    def __init__(self, work: Work[Any], jobs: RunJobs, lanes: Lanes, clock: Clock):
        self.work = work
        self.jobs = jobs
        self.lanes = lanes
        self.clock = clock
        self.audit = Audit()
        self.parts: dict[str, JobRecords] = {}
        self.in_flight: set[Any] = set()
        self.starts: dict[str, int] = {}
        self.attempts: Counter[str] = Counter()
        self.lost_in_flight = self.twins = self.twin_results = 0
        self.disconnected: dict[str, float] = {}
        self.overlap = False

    # ---- which records are in which jobs ---------------------------------------------------------

    @property
    def pending(self) -> int:
        """The number of records that have no result and are in no job."""
        return self.work.total - len(self.work.done) - len(self.in_flight)

    def view(self, queue: Sequence[InvocationJob]) -> dict[str, JobView]:
        """Return the jobs of the queue as the driver's decisions need them, and forget the parts of all other jobs."""
        now = self.clock.monotonic()
        for part in self.parts.keys() - {job.part for job in queue}:
            self._forget(part)  # a person or HTCondor has removed the job
        views = {}
        for job in queue:
            self.starts[job.id] = job.starts
            if job.part not in self.parts:  # an earlier driver has submitted the job
                self._add(job.part, self.jobs.record_ids(job.part))
                self.parts[job.part].asked = job.keep
            records = self.parts[job.part]
            if job.status != JobStatus.RUNNING or records.read == 0.0:
                records.read = now
            if self.overlap:
                records.unanswered = len(self.missing(job.part))
            views[job.part] = JobView(
                job.id, job.part, job.status, records.kept, records.unanswered, records.begun,
                self.lanes.glidein_of(job.lane), job.lane, now - job.status_seconds, records.read,
                records.asked, records.asked_at, records.outdated, records.twin, job.hold_reason,
                records.full,
            )  # fmt: skip
        return views

    def note_submitted(self, part: Part) -> None:
        """Remember the ids of the records in a new job."""
        self._add(part.name, part.ids)
        self.parts[part.name].full = part.size >= PART_BYTES

    def note_twin(self, part: Part, other: str) -> None:
        """Remember the ids of the records in a new job, which are also in the job of the part `other`."""
        self.note_submitted(part)
        self.parts[part.name].twin, self.parts[other].twin = other, part.name
        self.twins += 1

    def note_asked(self, part: str, keep: int, at: float) -> None:
        """Remember that a job was asked at the time `at` to keep only its first `keep` records."""
        self.parts[part].asked, self.parts[part].asked_at = keep, at

    def _add(self, part: str, ids: Iterable[str]) -> None:
        keys = {record: self.work.key(record) for record in ids}
        new = {key for key in keys.values() if key is not None and self.work.done.get(key) is None}
        self.overlap |= not new.isdisjoint(self.in_flight)
        self.parts[part] = JobRecords(keys, len(keys), len(new), 0.0, outdated=None in keys.values())
        self.in_flight |= new

    def _forget(self, part: str) -> None:
        """Remove a part, because its job has left the queue. Its records without a result become pending."""
        records = self.parts.pop(part)
        self._release(islice(records.keys.values(), records.kept))
        if self.overlap and not self.in_flight:
            self.overlap = False
            for each in self.parts.values():
                each.unanswered = 0

    def _give_back(self, part: str, kept: int) -> None:
        """Remove the records after the first `kept` ones from a part. Those without a result become pending."""
        records = self.parts[part]
        if kept < records.kept:
            given = list(islice(records.keys.values(), kept, records.kept))
            records.kept = kept
            records.unanswered -= self._release(given)

    def _release(self, keys: Iterable[Any]) -> int:
        """Remove keys from the records in flight, except those of other jobs. Return the number of removed keys."""
        if self.overlap:
            others = (islice(each.keys.values(), each.kept) for each in self.parts.values())
            keys = set(keys).difference(*others)
        before = len(self.in_flight)
        self.in_flight.difference_update(keys)
        return before - len(self.in_flight)

    def missing(self, part: str) -> set[str]:
        """Return the ids of the records that a job keeps and that have no result."""
        done, records = self.work.done, self.parts[part]
        kept = islice(records.keys.items(), records.kept)
        return {record for record, key in kept if key is None or done.get(key) is None}

    # ---- results -----------------------------------------------------------------------------------

    def gather(self, jobs: Sequence[InvocationJob]) -> list[str]:
        """Store the results of completed jobs, and remove these jobs from the queue.

        Returns:
            Names of the lanes whose glideins get no jobs for a while.
        """
        received: list[tuple[InvocationJob, OutputContent]] = []

        def store(received_now: Sequence[tuple[InvocationJob, OutputContent]]) -> None:
            self._store(received_now)
            received.extend(received_now)

        self.jobs.gather(jobs, {job.part: self.parts[job.part].keys for job in jobs}, store)
        self.work.history.write_ended(jobs, "gathered")
        avoid = self._count_unanswered(received)
        for job in jobs:
            self._forget(job.part)
        return avoid

    def peek(self, jobs: Sequence[InvocationJob]) -> tuple[list[InvocationJob], list[str]]:
        """Store the results that running jobs have streamed.

        Returns:
            The jobs that were removed, because their output is longer than their records allow. And names of the lanes
            whose glideins get no jobs for a while.
        """
        began = self.clock.monotonic()
        received: list[tuple[InvocationJob, OutputContent]] = []
        for job in jobs:
            received.append((job, self.jobs.peek(job, self.parts[job.part].keys, self.parts[job.part].offset)))
            # PEEK_BUDGET keeps a cycle short if there are many jobs, or if the access point is busy.
            if self.clock.monotonic() - began > PEEK_BUDGET:
                break
        self._store(received)
        for job, answers in received:
            self.parts[job.part].offset = answers.end
        too_long = [(job, answers) for job, answers in received if answers.too_long]
        removed = [job for job, _ in too_long]
        self.jobs.remove(removed, "its output is longer than its records allow")
        self.work.history.write_ended(removed, "removed")
        avoid = self._count_unanswered(too_long)
        for job in removed:
            self._forget(job.part)
        return removed, avoid

    def remove(self, jobs: Sequence[InvocationJob], why: str) -> list[str]:
        """Store what jobs have streamed, and remove the jobs. Their records without a result become pending.

        Args:
            why: one of the reasons in glide.sweep.view.

        Returns:
            Names of the lanes whose glideins get no jobs for a while.
        """
        # A job that was never on a lane has streamed nothing.
        ran = [job for job in jobs if job.status != JobStatus.IDLE or job.last_lane]
        received: list[tuple[InvocationJob, OutputContent]] = []
        for start in range(0, len(ran), STORED_TOGETHER):
            some = [
                (job, self.jobs.peek(job, self.parts[job.part].keys)) for job in ran[start : start + STORED_TOGETHER]
            ]
            self._store(some)
            for _, answers in some:
                answers.results.clear()  # the results of thousands of jobs may need very much memory
            received += some
        self.jobs.remove(jobs, why)
        avoid = []
        for job, answers in received:
            lane = self.lanes.describe(job.lane or job.last_lane)
            if why == LOST:
                saved = self.parts[job.part].answered
                self.lost_in_flight += max(0, answers.begun - saved)
                at = self.disconnected.get(job.id, self.clock.time())
                self.work.history.write_ended([job], "lost", at=at, begun=answers.begun, saved=saved)
                self.attempts.update(self.missing(job.part))
                self.audit.log_rejected(lane, job.id, answers)
                avoid.append(job.lane)
            elif why == HELD:
                _log.warning(
                    "job %s on %s was held: %s; its records are sent again", job.id, lane, printable(job.hold_reason)
                )
                avoid += self._log_rejected(job, answers)
        self.work.history.write_ended(jobs, "removed")
        for job in jobs:
            self._forget(job.part)
        return avoid

    def _store(self, received: Sequence[tuple[InvocationJob, OutputContent]]) -> None:
        """Store the results that the outputs of jobs contain, and note which records the jobs have given back."""
        for is_twin in (False, True):  # few calls, because each call flushes files to disk
            found = [(self.parts[job.part], answers) for job, answers in received]
            results = [
                (records.keys[record], result)
                for records, answers in found if bool(records.twin) == is_twin
                for record, result in answers.results.items()
            ]  # fmt: skip
            again = self.work.store(results, is_twin)
            self.twin_results += again if is_twin else 0
        for job, answers in received:
            records = self.parts[job.part]
            before = len(self.in_flight)
            self.in_flight.difference_update(records.keys[record] for record in answers.results)
            records.unanswered -= before - len(self.in_flight)
            records.begun = max(records.begun, answers.begun, records.answered)
            records.read = self.clock.monotonic()
            # A job may give back only what the driver has asked for. Code on the node may write other numbers.
            if answers.kept is not None and records.asked is not None and answers.kept >= records.asked:
                self._give_back(job.part, answers.kept)
                if answers.asked is not None and answers.asked <= records.asked:
                    records.asked = records.kept  # the job has answered

    def _log_rejected(self, job: InvocationJob, answers: OutputContent) -> list[str]:
        """Log a job's invalid output lines. If its glidein should get no jobs for a while, return its lane.

        A glidein is avoided if its job left records without a result. If no other glidein is warm, it still gets jobs.
        """
        lane = job.lane or job.last_lane
        self.audit.log_rejected(self.lanes.describe(lane), job.id, answers)
        return [lane] if self.missing(job.part) and not self.lanes.has_only_warm_glidein(lane) else []

    def _count_unanswered(self, ended: Sequence[tuple[InvocationJob, OutputContent]]) -> list[str]:
        """Log the invalid output lines of ended jobs. For each record, count the jobs that ended without its result.

        When a record's count reaches MOST_UNANSWERED, store an error as the record's result. Return the lanes whose
        glideins should get no jobs for a while.
        """
        avoid = []
        for job, answers in ended:
            avoid += self._log_rejected(job, answers)
            lane = self.lanes.describe(job.lane or job.last_lane)
            failed = self.audit.count_unanswered(self.missing(job.part), lane, answers.reason)
            keys = self.parts[job.part].keys
            self.work.store((keys[result["custom_id"]], result) for result in failed)
            self.in_flight.difference_update(keys[result["custom_id"]] for result in failed)
        return avoid
