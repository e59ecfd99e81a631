"""A job that is being served, and the records it waits for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from glide.server.engines import printable
from glide.server.records import Request, WrongInput, requests
from glide.server.stream import ResultStream
from glide.server.ticket import Ticket
from glide.vocabulary import Exit

QUEUE_RECORDS = 4096  # that a job may have waiting; more are read from its input as these get done
QUEUE_BYTES = 32_000_000  # of its input, likewise
CALL_BYTES = 32_000_000  # of input that go to the engine at once
PAUSE_BYTES = 1_000_000  # of input after which other jobs have their turn


@dataclass(eq=False)
class Item:
    """A record in the queue: whose it is, what it asks for, and how many bytes of input it was."""

    job: Job
    request: Request
    size: int
    deaths: int = 0  # engines that died while this record was alone in them

    @property
    def attempts(self) -> int:
        return self.request.attempts + self.job.ticket.starts + 1


@dataclass(eq=False)
class Job:
    """A ticket that is being served."""

    ticket: Ticket
    writer: asyncio.StreamWriter
    results: ResultStream
    waiting: deque[Item] = field(default_factory=deque)
    waiting_bytes: int = 0
    unanswered: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)  # in the queue
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    problem: str = ""  # why it cannot be served here

    async def serve(self, work: asyncio.Event) -> int:
        """Read the job's records, and return its exit code when they are answered; `work` is set for each record."""
        try:
            done = await self.results.earlier() if self.ticket.starts or self.ticket.resumed else set()
            read = 0
            for request, size in requests(self.ticket.input):
                if request is not None and request.custom_id not in done:
                    self.waiting.append(Item(self, request, size))
                    self.waiting_bytes += size
                    self.unanswered += 1
                    work.set()
                read += size
                if read > PAUSE_BYTES:
                    read = 0
                    await asyncio.sleep(0)
                while len(self.waiting) >= QUEUE_RECORDS or self.waiting_bytes >= QUEUE_BYTES:
                    self.room.clear()
                    await self.room.wait()
        except WrongInput as error:
            self.say(str(error))
            return Exit.INPUT
        except OSError as error:
            self.problem = f"its records cannot be read: {error}"
        while self.unanswered and not self.problem:
            self.answered.clear()
            await self.answered.wait()
        if self.problem:
            self.say(self.problem)
        return Exit.SERVER_LOST if self.problem else Exit.OK

    def next(self) -> Item:
        """Take the first record that waits."""
        item = self.waiting.popleft()
        self.waiting_bytes -= item.size
        self.room.set()
        return item

    def put_back(self, item: Item) -> None:
        """Have a record wait again, before the others."""
        self.waiting.appendleft(item)
        self.waiting_bytes += item.size

    def lose(self, problem: str) -> None:
        """End the job here, to be served elsewhere."""
        self.problem = self.problem or problem
        self.answered.set()

    def say(self, words: str) -> None:
        """Words for the job's error output."""
        self.writer.write(printable(words.replace("\n", " ")).encode() + b"\n")

    def dismiss(self, code: int) -> None:
        """Tell the job to end, when what it is to bring home is written."""
        self.results.close()
        self.writer.write(b"exit %d\n" % code)


def oldest_first(jobs: Sequence[Job], wanted: int) -> list[Item]:
    """Most from the oldest job, for jobs that end together leave the engine nothing to do; some from the others."""
    waiting = [job for job in jobs if job.waiting]
    if not waiting:
        return []
    oldest, *others = waiting
    most = wanted - wanted // 4 if others else wanted
    items: list[Item] = []
    size = 0
    while oldest.waiting and len(items) < most and size < CALL_BYTES:
        items.append(oldest.next())
        size += items[-1].size
    while len(items) < wanted and size < CALL_BYTES and (others := [job for job in others if job.waiting]):
        for job in others[: wanted - len(items)]:
            items.append(job.next())
            size += items[-1].size
    return items
