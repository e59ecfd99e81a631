"""The access point's own event log: the first to know that a job's node is gone. Not every user may read it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from glide.condor import bindings

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
    """Follows the configured EVENT_LOG from now on; silent where there is none or it can't be read."""

    def __init__(self) -> None:
        self.path = str(bindings.htcondor2.param.get("EVENT_LOG") or "")
        self.log: Any = None
        self.inode = 0
        self.new()

    @property
    def readable(self) -> bool:
        return self.log is not None

    def new(self) -> list[Event]:
        """Events since the last look; never waits."""
        if not os.access(self.path, os.R_OK):
            return []  # a fresh access point has none before its first job
        if self.log is None or self.inode != os.stat(self.path).st_ino:  # or it was rotated
            self.log = bindings.htcondor2.JobEventLog(self.path)
            self.inode = os.stat(self.path).st_ino
        events = []
        with suppress(ValueError):  # an event of a kind that these bindings do not know
            for event in self.log.events(stop_after=0):
                events.append(Event(event.type.name, f"{event.cluster}.{event.proc}", event.timestamp))
        return events
