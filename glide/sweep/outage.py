"""What a driver does while HTCondor does not answer, or a disk is full: it waits, and says so once."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from glide.errors import CondorError, GlideError, Refused

FULL = (errno.ENOSPC, errno.EDQUOT)
LONGEST_PAUSE = 10.0  # seconds between attempts
STEP = 0.25  # seconds between looks whether there is anything left to wait for
_log = logging.getLogger("glide")


def passes(error: Exception) -> bool:
    """Whether what has failed is to be tried again until it works."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, CondorError) and not isinstance(error, Refused)


class Outage:
    """The time in which a run cannot go on.

    Args:
        run: its name, for the messages.
        probe: raises a GlideError as long as HTCondor does not answer.
    """

    def __init__(self, run: str, probe: Callable[[], object]):
        self.run = run
        self.probe = probe
        self.since: float | None = None  # Unix time
        self.reason = ""
        self.pause = 0.0

    def wait(self, error: Exception, needless: Callable[[], bool]) -> None:
        """Return when it makes sense to try again, or when waiting is needless."""
        if self.since is None:
            self.since = time.time()
            at = time.strftime("%H:%M:%S", time.localtime(self.since))
            self.reason = f"waits since {at}: {error}"
            _log.warning("%s waits since %s, and goes on when this is over: %s", self.run, at, error)
            self.pause = STEP
        while not needless():
            _sleep(self.pause, needless)
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            with suppress(GlideError):
                self.probe()
                return

    def over(self) -> None:
        """Say that it is over, if there was one."""
        if self.since is not None:
            _log.warning("%s goes on after %.0f s", self.run, time.time() - self.since)
            self.since, self.reason = None, ""


def _sleep(seconds: float, needless: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not needless():
        time.sleep(min(STEP, left))
