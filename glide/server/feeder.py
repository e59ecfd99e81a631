"""Send the records of jobs, and live calls, to an engine."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from glide.server.batcher import Batcher
from glide.server.engine import EngineHandle
from glide.server.job import QueuedRecord
from glide.server.template_state import TemplateState
from glide.vocabulary import State

LARGEST_MESSAGE = 1024  # maximum number of live calls in one message to a concurrent engine
# Clients that have just got their answers often send their next calls at once. An engine that makes one call at a time
# waits for them, so that one engine call serves all clients, and not two calls half of them each. It waits for at most
# this share of the duration of its last call, and for at most LONGEST_WAIT seconds.
WAIT_SHARE, LONGEST_WAIT = 0.05, 0.25


class Feeder:
    """Sends records to one engine until its tasks are cancelled.

    Args:
        warm: the engine's message after it has loaded its template, with `batch` and `window`.

    Attributes:
        sending_suspects: whether the engine serves suspects, so that it must get no other record.
        sent: number of live calls in the last message, and the time when it was sent (monotonic seconds).
    """

    def __init__(self, engine: EngineHandle, batcher: Batcher, state: TemplateState, warm: dict[str, Any]):
        self.engine = engine
        self.batcher = batcher
        self.state = state
        self.warm = warm
        self.sending_suspects = False
        self.sent = 0, 0.0

    async def run(self) -> None:
        """Send records to the engine, so that the engine always has further records to serve, and is never idle."""
        while True:
            await self.engine.wait_for_pending_below(self._most_pending)
            ended, expected = time.monotonic(), self.sent[0] + self.batcher.waiting_calls
            # Send no records to an engine that is being ended. The next engine serves the records that have arrived.
            # Send no records to an engine that is being woken up, either. Then the state is Loading. If waking up
            # fails, the jobs have begun no record.
            while True:
                await self._wait_for_calls(ended, expected)
                self.sending_suspects = bool(self.batcher.suspects)
                if self._is_ready and (items := self._next_records()):
                    break
                self.batcher.work.clear()
                await self.batcher.work.wait()
            await self._send(items)
            # Each suspect is a record that may have killed an earlier engine. Send nothing else until the engine has
            # served these records.
            if self.sending_suspects:
                await self.engine.wait_for_pending_below(1)
                self.sending_suspects = False

    async def _wait_for_calls(self, ended: float, expected: int) -> None:
        """Wait a moment for further live calls, if some are waiting, and more are expected.

        Args:
            ended: time when the last engine call ended (monotonic seconds).
            expected: number of clients that wait, or have got their answers from the last engine call.
        """
        if self.engine.concurrent or not self.batcher.has_only_calls:
            return
        now, duration = time.monotonic(), ended - self.sent[1]
        until = now + min(WAIT_SHARE * duration, LONGEST_WAIT) if now - ended < duration else now
        while 0 < self.batcher.waiting_calls < min(expected, self.warm["batch"]) and time.monotonic() < until:
            self.batcher.work.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.batcher.work.wait(), until - time.monotonic())

    async def send_calls(self) -> None:
        """Send live calls to a concurrent engine at once, even if it has records that wait."""
        while True:
            await self.batcher.live_work.wait()
            self.batcher.live_work.clear()
            is_free = not self.sending_suspects and not self.batcher.suspects
            if self._is_ready and is_free and (items := self.batcher.next_calls(LARGEST_MESSAGE)):
                await self._send(items)

    @property
    def _is_ready(self) -> bool:
        return not self.engine.unused and self.state.status.state != State.LOADING

    async def _send(self, items: list[QueuedRecord]) -> None:
        self.engine.sent(len(items))
        self.sent = sum(item.job.is_live for item in items), time.monotonic()
        await self.engine.send(self.batcher.serve_message(items))

    @property
    def _most_pending(self) -> int:
        """Return the maximum number of pending calls.

        For an Engine it is 2: one call runs, and one waits. It is 1 if only live calls are served, so that the calls
        that arrive during an engine call share the next one. For a ConcurrentEngine, it is the number of records that
        the engine may have.
        """
        if not self.engine.concurrent:
            return 1 if self.batcher.has_only_calls else 2
        wanted = self.batcher.records_for(2 * self.warm["batch"], self.state.status.record_seconds)
        return min(self.warm["window"], wanted)

    def _next_records(self) -> list[QueuedRecord]:
        if self.engine.concurrent:
            return self.batcher.next_records(max(1, self._most_pending - len(self.engine.pending_calls)))
        wanted = self.batcher.records_for(self.warm["batch"], self.state.status.record_seconds)
        return self.batcher.next_records(min(self.warm["window"], wanted))
