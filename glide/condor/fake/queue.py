"""The queue of the fake pool, as a driver uses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from glide.condor.access_point import SUBMIT_SECONDS
from glide.condor.fake.ad import job_ads, values
from glide.condor.fake.job import FakeJob
from glide.condor.fake.schedd import FakeSchedd
from glide.errors import CondorError, CondorRefused
from glide.vocabulary import JobStatus


class FakeQueue:
    """The queue of an access point. This class implements the port JobQueue.

    Attributes:
        refusal: why submissions are refused; empty if they are accepted.
        down_until: time until which the access point does not answer (monotonic seconds). Jobs continue meanwhile.
    """

    def __init__(self, schedd: FakeSchedd, user: str):
        self.schedd = schedd
        self.refusal = ""
        self.down_until = 0.0
        self._user = user
        self._clusters = 0

    @property
    def user(self) -> str:
        self._check("ping")
        return self._user

    def submit(
        self, description: str, macros: Mapping[str, str] = {}, items: Sequence[Mapping[str, str]] = (),
        spool: bool = False, seconds: float = SUBMIT_SECONDS,
    ) -> int:  # fmt: skip
        self._check("submit")
        cluster = self._clusters + 1
        try:
            if self.refusal:
                raise CondorError(self.refusal)
            ads = list(job_ads(description, macros, items, cluster))
        except CondorError as error:
            raise CondorRefused(f"HTCondor refuses the job: {error}") from None
        try:
            jobs = [FakeJob(ad, self._user, self.schedd.now, spool) for ad in ads]
        except OSError as error:
            raise CondorError(f"the input files could not be spooled: {error}") from None
        self._clusters = cluster
        self.schedd.add(jobs)
        return cluster

    def jobs(self, constraint: str, attributes: Iterable[str], limit: int = -1) -> list[dict[str, Any]]:
        self._check("query")
        names = {*attributes, "JobStatus", "HoldReasonCode", "EnteredCurrentStatus", "ServerTime"}
        found = self.schedd.select(constraint)
        return [values(job.ad, names) for job in (found if limit < 0 else found[:limit])]

    def time(self) -> int:
        self._check("query")
        return self.schedd.now

    def retrieve(self, constraint: str) -> None:
        """Copy output files. If a job has none, copy the files of the other jobs, and then raise an error."""
        self._check("retrieve")
        missing: list[FileNotFoundError] = []
        for job in self.schedd.select(constraint):
            try:
                job.write_output()
            except FileNotFoundError as error:
                missing.append(error)
        if missing:
            raise CondorError(f"access point: retrieve failed: {missing[0]}")

    def edit(self, expressions: Mapping[str, str], attribute: str, notify_shadow: bool = False) -> None:
        self._check("edit")
        missing = ""
        for jobs, expression in expressions.items():
            cluster, dot, proc = jobs.partition(".")
            is_number = dot and cluster.isdigit() and proc.isdigit()
            found = [each for each in [self.schedd.queue.get(jobs)] if each] if is_number else self.schedd.select(jobs)
            missing = missing if found else jobs
            for each in found:
                each.edit(attribute, expression)
                if notify_shadow and each.run:
                    self.schedd.notify(each)
        if attribute.lower() == "jobprio":
            self.schedd.rebuild()
        if missing:
            raise CondorError(f"access point: edit failed: no job {missing}")

    def remove(self, constraint: str, reason: str) -> int:
        """Remove jobs. If a job's node is dead, the job stays in the queue as removed until its shadow has given up."""
        self._check("act")
        found = [job for job in self.schedd.select(constraint) if job.status != JobStatus.REMOVED]
        for job in found:
            if job.is_on_dead_lane:
                job.set_status(JobStatus.REMOVED, self.schedd.now)
            else:
                self.schedd.delete(job)
        return len(found)

    def reconsider(self, constraint: str, priority: int) -> None:
        with suppress(CondorError):
            self.edit({constraint: str(priority)}, "JobPrio")

    def _check(self, method: str) -> None:
        if self.schedd.clock.monotonic() < self.down_until:
            raise CondorError(f"access point: {method} failed: no answer")
