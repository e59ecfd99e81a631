"""If the factory hangs, end its process and log a traceback. Then the program that started the factory can restart it.

HTCondor's bindings hold Python's global lock while they wait. During this time no thread and no signal handler can run.
So this module uses faulthandler's timer, which does not need the lock. systemd can also watch the process, because the
factory sends the messages of sd_notify(3).
"""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# The time limit of one cycle, in seconds. The time limit is long because a cycle may read and send large files. The
# systemd unit has a longer WatchdogSec.
CYCLE_SECONDS = 900.0


@contextmanager
def time_limit(seconds: float = CYCLE_SECONDS) -> Iterator[None]:
    """End this process if the block takes longer than `seconds`.

    The process logs the tracebacks of all its threads and ends with exit code 1.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def notify(message: str) -> None:
    """Send `READY=1`, `WATCHDOG=1` or `STOPPING=1` to systemd, if systemd started this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(message.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
