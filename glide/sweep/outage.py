"""Wait while HTCondor does not answer or a disk is full. Log only the beginning and the end of the wait."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from glide.condor.ports import Clock, SystemClock
from glide.errors import CondorError, CondorRefused, GlideError

FULL = (errno.ENOSPC, errno.EDQUOT)  # error numbers of a full disk and of an exceeded disk quota
LONGEST_PAUSE = 10.0  # maximum time between two attempts, in seconds
STEP = 0.25  # seconds between two checks whether the wait is still needed; also the length of the first pause
_log = logging.getLogger("glide")


def is_temporary(error: Exception) -> bool:
    """Return whether the cause of an error may disappear by itself, so that a retry may succeed."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, CondorError) and not isinstance(error, CondorRefused)


class Outage:
    """A period in which a run cannot continue.

    Args:
        run: the run's name, for log lines.
        probe: a function that raises a GlideError as long as HTCondor does not answer.
        clock: the clock by which the outage waits.

    Attributes:
        since: Unix time at which the outage began; None if the run can continue.
        reason: text with the start time and the cause of the outage; empty if the run can continue.
        pause: seconds before the next attempt. This value is doubled after each attempt, up to LONGEST_PAUSE.
    """

    def __init__(self, run: str, probe: Callable[[], object], clock: Clock | None = None):
        self.run = run
        self.probe = probe
        self.clock = clock or SystemClock()
        self.since: float | None = None
        self.reason = ""
        self.pause = 0.0

    def wait(self, error: Exception, unneeded: Callable[[], bool]) -> None:
        """Pause, then call the probe. Repeat both until the probe succeeds, or until `unneeded` returns True.

        Args:
            error: the error that stopped the run. The error is logged only at the beginning of an outage.
            unneeded: a function that returns True if the wait is no longer needed.
        """
        if self.since is None:
            self.since = self.clock.time()
            at = time.strftime("%H:%M:%S", time.localtime(self.since))
            self.reason = f"paused since {at}: {error}"
            _log.warning("%s paused since %s: %s; it resumes by itself when this is over", self.run, at, error)
            self.pause = STEP
        while not unneeded():
            self._sleep(self.pause, unneeded)
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            with suppress(GlideError):
                self.probe()
                return

    def end(self) -> None:
        """Log the end of the outage, if an outage has begun."""
        if self.since is not None:
            _log.warning("%s resumed after %.0f s", self.run, self.clock.time() - self.since)
            self.since, self.reason = None, ""

    def _sleep(self, seconds: float, unneeded: Callable[[], bool]) -> None:
        deadline = self.clock.monotonic() + seconds
        while (left := deadline - self.clock.monotonic()) > 0 and not unneeded():
            self.clock.sleep(min(STEP, left))
