"""Limit the connections of clients: their number, and the time that a client may take to send a request's head."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0  # time limit for the head of a request, in seconds
# Above this number of connections without a request, those that are idle for more than IDLE_SECONDS are closed. Clients
# that have just connected get that time to send a request.
MOST_IDLE, IDLE_SECONDS = 1024, 3.0
LARGEST_HEAD = 32_768  # maximum size of a request's head in bytes
KEEP_ALIVE_SECONDS = 75  # an idle connection is closed after this number of seconds
MOST_FILES = 65_536  # number of open files that this process may need: each call has a connection


class LimitedProtocol(H11Protocol):
    """A connection of a client. If it has no request, and too many others have none either, it is closed.

    Attributes:
        idle: the connections of the server without a request, and since when they have none (time of the event loop).
            The one that is idle longest is first.
        timer: the time limit for the head of a request; None while no head is expected.
    """

    idle: ClassVar[dict[LimitedProtocol, float]]
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()
        self._note_idle()

    def data_received(self, data: bytes) -> None:
        if self.timer is None and not self._is_busy:
            self._begin_head()
        super().data_received(data)
        if self._is_busy:
            self._end_head()
            self.idle.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_busy and not self.transport.is_closing():
            self._note_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self.idle.pop(self, None)
        super().connection_lost(exc)

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _note_idle(self) -> None:
        self.idle[self] = now = self.loop.time()
        while len(self.idle) > MOST_IDLE:
            oldest, since = next(iter(self.idle.items()))
            if now - since < IDLE_SECONDS:
                return
            del self.idle[oldest]
            oldest.transport.abort()

    def _begin_head(self) -> None:
        self._end_head()
        self.timer = self.loop.call_later(HEAD_SECONDS, self._abort)

    def _end_head(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _abort(self) -> None:
        if not self._is_busy:
            self.transport.abort()


def new_protocol() -> type[LimitedProtocol]:
    """Return the class of one server's connections."""
    return type("LimitedProtocol", (LimitedProtocol,), {"idle": {}})


@contextmanager
def many_files() -> Iterator[None]:
    """Raise the limit of open files of this process while the `with` block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
