"""The jobs that the model server is serving, and the queues of their records.

An invocation job has an input file with its records (ServedJob). A standing job gets its records, the live calls, over
a connection (glide.server.live).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from glide.protocol.request import Request, WrongInput, requests
from glide.server.engines import printable
from glide.server.stream import EarlierStarts, ResultStream
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
        position: number of records before this record in the job's input.
        deaths: number of engines that died while they served only this record.
        cancelled: whether the caller no longer needs the result.
    """

    job: RecordQueue
    request: Request
    size: int
    position: int = 0
    deaths: int = 0
    cancelled: bool = False

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody needs the result."""
        return self.cancelled or self.job.gone

    @property
    def attempts(self) -> int:
        """Number of times that the record was tried, in earlier jobs and in this job. The present try counts, too."""
        return self.request.attempts + self.job.earlier_attempts + 1


@dataclass(eq=False)
class RecordQueue(ABC):
    """The records of a job, in the order in which they go to the engine.

    Attributes:
        job_request: the request with which the job has come.
        writer: stream that sends data to the job.
        adapters: names of the adapters that the job's template has.
        waiting: the records that have arrived and were not yet sent to the engine.
        waiting_bytes: sum of the sizes of the waiting records.
        unanswered: number of records that have arrived and have no result.
        has_space: event that is set when a record has left the queue.
        answered: event that is set when `unanswered` becomes 0, or when `problem` is set.
        gone: whether the job has ended or has been disconnected.
        problem: reason why the job cannot be served on this glidein; empty while the job can be served.
    """

    is_live = False  # whether somebody waits for each single result; such records go to the engine first

    job_request: JobRequest
    writer: asyncio.StreamWriter
    adapters: Collection[str] = ()
    waiting: deque[QueuedRecord] = field(default_factory=deque)
    waiting_bytes: int = 0
    unanswered: int = 0
    has_space: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    problem: str = ""

    @property
    def earlier_attempts(self) -> int:
        """The number of earlier starts of this job that have sent records to an engine, or may have done so."""
        return 0

    @abstractmethod
    def add_result(self, item: QueuedRecord, line: bytes) -> None:
        """Deliver the result of a record.

        Args:
            line: the line of a job's output, as `result_line` returns it.

        Raises:
            OSError: the result cannot be written.
        """

    @abstractmethod
    def add_text(self, item: QueuedRecord, piece: str | None) -> None:
        """Deliver the next piece of a record's text. None: the text begins again."""

    def _queue(self, item: QueuedRecord) -> None:
        self._check_adapter(item.request)
        self.waiting.append(item)
        self.waiting_bytes += item.size
        self.unanswered += 1

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

    @abstractmethod
    def note_sent(self, item: QueuedRecord) -> None:
        """Note that a record is being sent to the engine."""

    def note_answered(self) -> None:
        """Note that one more record has its result."""
        self.unanswered -= 1
        if self.unanswered == 0:
            self.answered.set()

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
        """Make the job end with the exit code `code`."""
        self.writer.write(b"exit %d\n" % code)


@dataclass(eq=False)
class ServedJob(RecordQueue):
    """An invocation job that the model server is serving.

    Attributes:
        results: the job's output file, which is also transferred to the access point.
        sent: number of the first records of the input that must stay in this job, because the last of them was sent to
            the engine.
        kept: number of the first records of the input that the job keeps; None if it keeps all. The driver may put the
            other records into other jobs, so this number never grows.
        asked: the value of GlideKeep that `kept` is the answer to.
        refused_starts: number of earlier starts of this job that have sent no record to an engine.
    """

    results: ResultStream = field(kw_only=True)
    sent: int = 0
    kept: int | None = None
    asked: int | None = None
    refused_starts: int = 0

    async def serve(self, work: asyncio.Event) -> int:
        """Read the job's records, wait until all records have a result, and return the job's exit code.

        Args:
            work: event that this function sets when it puts a record into the queue.
        """
        try:
            earlier = await self._resume()
            read, position = 0, -1
            for request, size in requests(self.job_request.input):
                if request is not None:
                    position += 1
                    if self.kept is not None and position >= self.kept:
                        break
                    if request.custom_id in earlier.ids:
                        self.sent = max(self.sent, position + 1)
                    else:
                        self._queue(QueuedRecord(self, request, size, position))
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

    async def _resume(self) -> EarlierStarts:
        """Return what earlier starts of this job have streamed, and decide how many records the job keeps."""
        request = self.job_request
        earlier = await self.results.resume() if request.starts or request.resumed else EarlierStarts()
        self.kept, self.asked, self.refused_starts = earlier.kept, earlier.asked, earlier.refused
        if request.keep is not None and request.keep != self.asked:
            if earlier.ids:
                self.sent = await self._records_until_last(earlier.ids)
            self.keep_first(request.keep)
        self.results.ready.set()
        return earlier

    async def _records_until_last(self, ids: Collection[str]) -> int:
        """Return the number of records in the input up to the last record whose id is in `ids`."""
        count = until = read = 0
        for request, size in requests(self.job_request.input):
            count += request is not None
            if request is not None and request.custom_id in ids:
                until = count
            read += size
            if read > PAUSE_BYTES:
                read = 0
                await asyncio.sleep(0)
        return until

    @property
    def earlier_attempts(self) -> int:
        return max(0, self.job_request.starts - self.refused_starts)

    def add_result(self, item: QueuedRecord, line: bytes) -> None:
        self.results.add(line)

    def keep_first(self, number: int) -> None:
        """Keep the first records of the input, and give back the others if they were not sent to the engine.

        Report the number of records that are kept, so that the driver can put the others into another job.

        Args:
            number: number of records to keep, which is the value of GlideKeep.

        Raises:
            OSError: the number of records that are kept cannot be written to the output file.
        """
        if number == self.asked:
            return
        self.asked = number
        kept = max(number, self.sent)
        self.kept = kept if self.kept is None else min(kept, self.kept)
        given_back = [item for item in self.waiting if item.position >= self.kept]
        self.waiting = deque(item for item in self.waiting if item.position < self.kept)
        self.waiting_bytes -= sum(item.size for item in given_back)
        self.unanswered -= len(given_back)
        self.has_space.set()
        if self.unanswered == 0:
            self.answered.set()
        self.results.add_kept(self.kept, number)

    def add_text(self, item: QueuedRecord, piece: str | None) -> None:
        """Ignore the piece: the result has the whole text."""

    def note_sent(self, item: QueuedRecord) -> None:
        """Note that a record is being sent to the engine. From now on, it must stay in this job."""
        self.results.begun += 1
        self.sent = max(self.sent, item.position + 1)

    def finish(self, code: int) -> None:
        """Close the job's files, and make the job end with the exit code `code`."""
        self.results.close()
        super().finish(code)


def oldest_first(jobs: Sequence[RecordQueue], wanted: int) -> list[QueuedRecord]:
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
