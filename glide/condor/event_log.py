"""Read the access point's event log, which shows the loss of a node earlier than the queue does.

Not every user has the right to read this log.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from glide.condor import bindings
from glide.condor.signals import defer_signals

# As soon as a shadow loses its starter, it writes one of the events in LOST. The queue shows the loss much later.
LOST = ("JOB_DISCONNECTED", "JOB_RECONNECT_FAILED")
NEVER_WAIT = 10 * 365 * 86400  # seconds
ENDED = ("JOB_TERMINATED", "JOB_EVICTED", "JOB_ABORTED", "JOB_HELD", "SHADOW_EXCEPTION", *LOST)


@dataclass(frozen=True)
class Event:
    """One event of a job.

    Attributes:
        kind: HTCondor's name of the event, such as JOB_TERMINATED.
        job: the job, as cluster.proc.
        at: Unix time of the event.
    """

    kind: str
    job: str
    at: float


class EventLog:
    """A reader of an event log. It returns only events that are written after the reader was created.

    If the log does not exist or cannot be read, the reader returns no events and raises no error, because the queue
    shows the same facts later.

    Args:
        path: path of the log; None for the configured EVENT_LOG.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = str(bindings.htcondor2.param.get("EVENT_LOG") or "") if path is None else path
        self.log: Any = None
        self.inode = self.size = 0
        self.new_events()

    @property
    def readable(self) -> bool:
        return self.log is not None

    def new_events(self) -> list[Event]:
        """Return the events that were written since the last call. Do not wait for new events."""
        try:
            status = os.stat(self.path)
        except OSError:  # the log is missing before the first job, and for a moment while HTCondor rotates it
            return self._read()
        replaced = self.log is not None and (self.inode != status.st_ino or status.st_size < self.size)
        # If HTCondor has rotated the log, first read the remaining events of the old file.
        events = self._read() if replaced and self.inode != status.st_ino else []
        if self.log is None or replaced:
            self.log = self._open_log()
        self.inode, self.size = status.st_ino, status.st_size
        return events + self._read()

    @defer_signals()
    def _open_log(self) -> Any:
        try:
            return bindings.htcondor2.JobEventLog(self.path)
        except (OSError, RuntimeError, ValueError, bindings.htcondor2.HTCondorException):
            return None

    @defer_signals()
    def _read(self) -> list[Event]:
        """Return the unread events of the open log.

        If an event cannot be read, return the events before it. The next call continues after the unreadable event.
        """
        events: list[Event] = []
        # The bindings turn `stop_after` into a time of the clock. If this time is long past, they never wait for an
        # event, also when the clock is set back.
        with suppress(OSError, RuntimeError, ValueError, bindings.htcondor2.HTCondorException):
            for event in self.log.events(stop_after=-NEVER_WAIT) if self.log is not None else ():
                events.append(Event(event.type.name, f"{event.cluster}.{event.proc}", event.timestamp))
        return events
