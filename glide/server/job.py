"""A job that the model server is serving, and the queue of the job's records."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from glide.protocol.request import Request, WrongInput, requests
from glide.server.engines import printable
from glide.server.stream import ResultStream
from glide.server.ticket import JobRequest
from glide.vocabulary import Exit

QUEUE_RECORDS = 4096  # maximum number of records in a job's queue; while the queue is full, the job's input is not read
QUEUE_BYTES = 32_000_000  # maximum size of all records in a job's queue together, in bytes
# If the records in a message to the engine have at least this size together, in bytes, no further record is added.
CALL_BYTES = 32_000_000
PAUSE_BYTES = 1_000_000  # number of bytes that are read from a job's input before other jobs get a turn


@dataclass(eq=False)
class QueuedRecord:
    """A record in a job's queue.

    Attributes:
        size: length of the record's line in the job's input, in bytes.
        deaths: number of engines that died while they served only this record.
    """

    job: ServedJob
    request: Request
    size: int
    deaths: int = 0

    @property
    def attempts(self) -> int:
        """Number of times that the record was tried, in earlier jobs and in this job. The present try counts, too."""
        return self.request.attempts + self.job.job_request.starts + 1


@dataclass(eq=False)
class ServedJob:
    """An invocation job that the model server is serving.

    Attributes:
        writer: stream that sends data to the job.
        adapters: names of the adapters that the job's template has.
        waiting: the job's queue. It has the records that were read from the input and not yet sent to the engine.
        waiting_bytes: sum of the sizes of the waiting records.
        unanswered: number of records that were read from the input and have no result.
        has_space: event that is set when a record has left the queue.
        answered: event that is set when `unanswered` becomes 0, or when `problem` is set.
        gone: whether the job has ended or has been disconnected.
        problem: reason why the job cannot be served on this glidein; empty while the job can be served.
    """

    job_request: JobRequest
    writer: asyncio.StreamWriter
    results: ResultStream
    adapters: Collection[str] = ()
    waiting: deque[QueuedRecord] = field(default_factory=deque)
    waiting_bytes: int = 0
    unanswered: int = 0
    has_space: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    problem: str = ""

    async def serve(self, work: asyncio.Event) -> int:
        """Read the job's records, wait until all records have a result, and return the job's exit code.

        Args:
            work: event that this function sets when it puts a record into the queue.
        """
        try:
            done = await self.results.resume() if self.job_request.starts or self.job_request.resumed else set()
            read = 0
            for request, size in requests(self.job_request.input):
                if request is not None and request.custom_id not in done:
                    self._check_adapter(request)
                    self.waiting.append(QueuedRecord(self, request, size))
                    self.waiting_bytes += size
                    self.unanswered += 1
                    work.set()
                read += size
                if read > PAUSE_BYTES:
                    read = 0
                    await asyncio.sleep(0)
                while len(self.waiting) >= QUEUE_RECORDS or self.waiting_bytes >= QUEUE_BYTES:
                    self.has_space.clear()
                    await self.has_space.wait()
        except WrongInput as error:
            self.report(str(error))
            return Exit.INPUT
        except OSError as error:
            self.problem = f"its records cannot be read: {error}"
        while self.unanswered and not self.problem:
            self.answered.clear()
            await self.answered.wait()
        if self.problem:
            self.report(self.problem)
        return Exit.SERVER_LOST if self.problem else Exit.OK

    def _check_adapter(self, request: Request) -> None:
        if request.adapter and request.adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            where = f"record {request.custom_id!r:.200}"
            raise WrongInput(f"wrong input: {where}: no adapter {request.adapter!r:.80}; the model has {known}")

    def pop_first(self) -> QueuedRecord:
        """Remove the first waiting record and return it."""
        item = self.waiting.popleft()
        self.waiting_bytes -= item.size
        self.has_space.set()
        return item

    def put_back(self, item: QueuedRecord) -> None:
        """Put a record back into the queue, as the first record."""
        self.waiting.appendleft(item)
        self.waiting_bytes += item.size

    def send_elsewhere(self, problem: str) -> None:
        """Stop serving the job here, because of a problem of this node. HTCondor then runs the job on another lane."""
        self.problem = self.problem or problem
        self.answered.set()

    def report(self, message: str) -> None:
        """Write a line to the job's error output."""
        self.writer.write(printable(message.replace("\n", " ")).encode() + b"\n")

    def finish(self, code: int) -> None:
        """Close the job's files, and make the job end with the exit code `code`."""
        self.results.close()
        self.writer.write(b"exit %d\n" % code)


def oldest_first(jobs: Sequence[ServedJob], wanted: int) -> list[QueuedRecord]:
    """Remove the next records from the jobs' queues and return them.

    Three quarters of the records come from the oldest job, and one quarter comes from the other jobs in turn. With
    equal shares, all jobs could end at the same time. Then the engine would be idle until new jobs arrive.

    Args:
        jobs: the jobs that are served now; the oldest job is first.
        wanted: maximum number of records to return.
    """
    waiting = [job for job in jobs if job.waiting]
    if not waiting:
        return []
    oldest, *others = waiting
    most = wanted - wanted // 4 if others else wanted
    items: list[QueuedRecord] = []
    size = 0
    while oldest.waiting and len(items) < most and size < CALL_BYTES:
        items.append(oldest.pop_first())
        size += items[-1].size
    while len(items) < wanted and size < CALL_BYTES and (others := [job for job in others if job.waiting]):
        for job in others[: wanted - len(items)]:
            items.append(job.pop_first())
            size += items[-1].size
    return items
