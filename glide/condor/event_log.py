"""The access point's own event log: the first to know that a job's node is gone. Not every user may read it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from glide.condor import bindings
from glide.condor.signals import undisturbed

# A shadow that has lost its starter writes these at once, long before the queue shows it.
LOST = ("JOB_DISCONNECTED", "JOB_RECONNECT_FAILED")
ENDED = ("JOB_TERMINATED", "JOB_EVICTED", "JOB_ABORTED", "JOB_HELD", "SHADOW_EXCEPTION", *LOST)


@dataclass(frozen=True)
class Event:
    """What happened to which job, and when (Unix time)."""

    kind: str
    job: str
    at: float


class EventLog:
    """Follows an event log from now on; silent where there is none or it can't be read.

    All that it has shows in the queue too, later: whatever goes wrong here, there are no events, and nothing is raised.

    Args:
        path: by default the configured EVENT_LOG.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = str(bindings.htcondor2.param.get("EVENT_LOG") or "") if path is None else path
        self.log: Any = None
        self.inode = self.size = 0
        self.new()

    @property
    def readable(self) -> bool:
        return self.log is not None

    def new(self) -> list[Event]:
        """Events since the last look; never waits."""
        try:
            status = os.stat(self.path)
        except OSError:  # a fresh access point has none before its first job; rotated, it is absent for a moment
            return self._read()
        replaced = self.log is not None and (self.inode != status.st_ino or status.st_size < self.size)
        events = self._read() if replaced and self.inode != status.st_ino else []  # the end of what was rotated away
        if self.log is None or replaced:
            self.log = self._opened()
        self.inode, self.size = status.st_ino, status.st_size
        return events + self._read()

    @undisturbed()
    def _opened(self) -> Any:
        try:
            return bindings.htcondor2.JobEventLog(self.path)
        except (OSError, RuntimeError, ValueError, bindings.htcondor2.HTCondorException):
            return None

    @undisturbed()
    def _read(self) -> list[Event]:
        """What the open log has beyond what was read; at an event that cannot be read, the next look goes on."""
        events: list[Event] = []
        with suppress(OSError, RuntimeError, ValueError, bindings.htcondor2.HTCondorException):
            for event in self.log.events(stop_after=0) if self.log is not None else ():
                events.append(Event(event.type.name, f"{event.cluster}.{event.proc}", event.timestamp))
        return events
