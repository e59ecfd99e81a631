"""Repeat a cycle that observes and acts, whatever goes wrong in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from glide.errors import CondorError, describe_bug

_log = logging.getLogger("glide")


async def repeat(
    what: str, cycle: Callable[[], Awaitable[None]], wake: asyncio.Event, pause: Callable[[], float | None]
) -> None:
    """Run a cycle again and again, until this task is cancelled. Log its errors, and continue.

    An error of HTCondor is logged once, and when it is over. An outage may last for hours.

    Args:
        what: what the cycle is about, for the log.
        wake: event that ends the pause between two cycles.
        pause: function that returns the seconds until the next cycle; None to wait for `wake`.
    """
    reported = ""
    while True:
        try:
            await cycle()
            if reported:
                _log.info("%s: HTCondor answers again", what)
            reported = ""
        except CondorError as error:
            if str(error) != reported:
                _log.warning("%s: %s", what, error)
            reported = str(error)
        except Exception as error:
            _log.error("%s: %s", what, describe_bug(error))
        wake.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(wake.wait(), pause())
