"""Notice a factory that hangs: end it with a traceback, so that what started it can start it again.

HTCondor's bindings hold Python's lock while they wait, so neither a thread nor a signal's handler can act meanwhile;
faulthandler's timer needs no lock. systemd watches from outside, by the messages that sd_notify(3) describes.
"""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CYCLE_SECONDS = 900.0  # of one cycle, in which large files may be read and sent; WatchdogSec of the unit is longer


@contextmanager
def limited(seconds: float = CYCLE_SECONDS) -> Iterator[None]:
    """End this process (exit code 1, all tracebacks in its log) if what is done here takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def notify(message: str) -> None:
    """Tell systemd `READY=1`, `WATCHDOG=1` or `STOPPING=1`; nothing where it did not start this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(message.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
