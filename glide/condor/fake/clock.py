"""The clock of the fake pool."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

UNIX_START = 1_800_000_000  # Unix time at which the fake clock's monotonic time is 0


class FakeClock:
    """A clock whose time passes only in `sleep`. While it passes, the clock calls the functions that are due."""

    def __init__(self) -> None:
        self.now = 1000.0  # not 0, because no machine runs a driver in the second in which it starts
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return UNIX_START + self.now

    def call_later(self, seconds: float, action: Callable[[], object]) -> None:
        """Call a function after a number of seconds. Functions that are due at the same time keep their order."""
        heapq.heappush(self._due, (self.now + max(0.0, seconds), next(self._numbers), action))

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        until = self.now + max(0.0, seconds)
        while not (wake and wake.is_set()):
            if not self._due or self._due[0][0] > until:
                self.now = until
                return
            self.now, _, action = heapq.heappop(self._due)
            action()
