"""A job that is being served, and the records it waits for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glide.server.stream import ResultStream
from glide.server.ticket import Ticket


@dataclass(eq=False)
class Item:
    """A record in the queue: whose it is, what the job calls it, what the engine needs."""

    job: Job
    custom_id: str
    prompt: str
    generate: dict[str, Any]
    timeout: float
    attempts: int
    deaths: int = 0  # engines that died while this record was alone in them


@dataclass(eq=False)
class Job:
    """A ticket that is being served; `waiting` is bounded by QUEUE_LIMIT through `room`."""

    ticket: Ticket
    writer: asyncio.StreamWriter
    results: ResultStream
    waiting: deque[Item] = field(default_factory=deque)
    unanswered: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False

    def say(self, words: str) -> None:
        """Words for the job's error output."""
        self.writer.write(words.replace("\n", " ").encode() + b"\n")

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
    items = [oldest.waiting.popleft() for _ in range(min(most, len(oldest.waiting)))]
    while len(items) < wanted and (others := [job for job in others if job.waiting]):
        items += [job.waiting.popleft() for job in others[: wanted - len(items)]]
    return items
