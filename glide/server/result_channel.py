"""Send the starts, pauses and outcomes from a concurrent engine to the model server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from glide.protocol import frames
from glide.server.engines.base import Completion

# Seconds for which results are collected, before they are sent to the model server together. They are sent at once if
# the engine has no other record, or if one of them is the result of a live call.
FLUSH_SECONDS = 0.05
FLUSH_SIZE = 8_000_000  # results with more characters than this number are sent in several messages


class ResultChannel:
    """Collects starts and outcomes of records from all threads of an engine, and sends them to the model server.

    A result's `seconds` is the record's share of the time in which the engine had work. So the sum over all results is
    the time in which the engine was busy.

    Args:
        server: the engine's connection to the model server.
        encode: function that turns a record's outcome and its seconds into the result's JSON text, and returns whether
            the result is an error.
        facts: function that returns further fields of the messages with outcomes.
    """

    def __init__(
        self,
        server: socket.socket,
        encode: Callable[[Completion, float], tuple[str, bool]],
        facts: Callable[[], dict[str, Any]],
    ):
        self._server = server
        self._encode = encode
        self._facts = facts
        self._changed = threading.Condition()
        self._events: list[dict[str, list[Any]]] = []
        self._done: list[tuple[int, Completion]] = []
        self._live: set[int] = set()
        self._is_urgent = False
        self._unfinished = 0
        self._busy_since = 0.0
        self._busy = 0.0
        threading.Thread(target=self._send_all, daemon=True).start()

    def received(self, keys: Sequence[int], live: bool = False) -> None:
        """Note that the engine has got records. The engine is busy until all of them have an outcome.

        Args:
            keys: the keys of the records.
            live: whether their outcomes are sent at once.
        """
        with self._changed:
            if not self._unfinished:
                self._busy_since = time.monotonic()
            self._unfinished += len(keys)
            self._live.update(keys if live else ())

    def started(self, keys: Sequence[int]) -> None:
        with self._changed:
            self._events.append({"started": list(keys)})
            self._changed.notify()

    def paused(self, keys: Sequence[int]) -> None:
        with self._changed:
            self._events.append({"paused": list(keys)})
            self._changed.notify()

    def text(self, key: int, piece: str | None) -> None:
        with self._changed:
            self._events.append({"text": [key, piece]})
            self._changed.notify()

    def done(self, key: int, completion: Completion) -> None:
        with self._changed:
            self._done.append((key, completion))
            self._unfinished -= 1
            self._is_urgent |= key in self._live or not self._unfinished
            self._live.discard(key)
            if not self._unfinished:
                self._busy += time.monotonic() - self._busy_since
            self._changed.notify()

    def _send_all(self) -> None:
        with suppress(OSError):  # the model server has ended, and the main thread notices this, too
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._events or self._done)
                    # Send a start immediately, but send all earlier outcomes first. Otherwise, if this process then
                    # ends, the model server could suspect a record that already has an outcome.
                    self._changed.wait_for(lambda: self._events or self._is_urgent, FLUSH_SECONDS)
                    events, done, busy = self._events, self._done, self._spent()
                    self._events, self._done, self._is_urgent = [], [], False
                self._send_done(done, busy)
                for message in events:
                    self._server.sendall(frames.encode(message))

    def _send_done(self, done: Sequence[tuple[int, Completion]], busy: float) -> None:
        """Send results, in several messages if they are large.

        Args:
            busy: seconds in which the engine had work since the last results.
        """
        part: list[tuple[int, str, bool]] = []
        size = 0
        for number, (key, completion) in enumerate(done, 1):
            text, failed = self._encode(completion, busy / len(done))
            part.append((key, text, failed))
            size += len(text)
            if size > FLUSH_SIZE or number == len(done):
                message = {"done": part, "busy": busy * len(part) / len(done), **self._facts()}
                self._server.sendall(frames.encode(message))
                part, size = [], 0

    def _spent(self) -> float:
        """Return the seconds in which the engine had work since outcomes were last sent; 0 without a new outcome."""
        if not self._done:
            return 0.0
        now = time.monotonic()
        spent, self._busy = self._busy, 0.0
        if self._unfinished:
            spent += now - self._busy_since
            self._busy_since = now
        return spent
