"""The interfaces through which a driver uses a pool.

Each interface has two implementations:

| interface | HTCondor on this machine | fake pool, in virtual time |
|---|---|---|
| JobQueue | glide.condor.AccessPoint | glide.condor.fake.queue.FakeQueue |
| SlotDirectory | glide.condor.Collector | glide.condor.fake.directory.FakeDirectory |
| JobEvents | glide.condor.EventLog | glide.condor.fake.pool.FakeEventLog |
| Clock | SystemClock | glide.condor.fake.clock.FakeClock |

A driver gets a PoolHandle. It sends all requests to the pool through this handle, and uses no other clock. So a test
can run a driver in virtual time, without HTCondor. tests/test_ports.py runs the same tests with both implementations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from glide.condor.access_point import SUBMIT_SECONDS, AccessPoint
from glide.condor.collector import Collector
from glide.condor.event_log import Event, EventLog
from glide.condor.job_folders import job_folders


class JobControl(Protocol):
    """The methods of a queue that also work through a login host (glide.ssh.access_point.RemoteAccessPoint).

    Each method raises CondorError if the access point does not answer. glide.condor.AccessPoint explains the methods.
    """

    @property
    def user(self) -> str: ...

    def jobs(self, constraint: str, attributes: Iterable[str], limit: int = ...) -> list[dict[str, Any]]: ...

    def retrieve(self, constraint: str) -> None: ...

    def remove(self, constraint: str, reason: str) -> int: ...

    def reconsider(self, constraint: str, priority: int) -> None: ...


class JobQueue(JobControl, Protocol):
    """The queue of an access point. glide.condor.AccessPoint explains the methods."""

    def submit(
        self,
        description: str,
        macros: Mapping[str, str] = ...,
        items: Sequence[Mapping[str, str]] = ...,
        spool: bool = ...,
        seconds: float = SUBMIT_SECONDS,
    ) -> int: ...

    def edit(self, expressions: Mapping[str, str], attribute: str, notify_shadow: bool = ...) -> None: ...

    def time(self) -> int: ...


class SlotDirectory(Protocol):
    """The collector of a pool. glide.condor.Collector explains the methods."""

    def lanes(self, attributes: Iterable[str], constraint: str = ...) -> list[dict[str, Any]]: ...

    def age(self) -> float: ...

    def expunge(self, constraint: str) -> None: ...


class JobEvents(Protocol):
    """A reader of an access point's event log. glide.condor.EventLog explains the methods."""

    @property
    def readable(self) -> bool: ...

    def new_events(self) -> list[Event]: ...


class Clock(Protocol):
    """A clock, and a way to wait."""

    def monotonic(self) -> float:
        """Return the seconds since some fixed moment. The value never decreases."""
        ...

    def time(self) -> float:
        """Return the Unix time."""
        ...

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        """Wait for a number of seconds, or until the event `wake` is set. None: only the time ends the wait."""
        ...


class SystemClock:
    """The clock of this machine."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        if wake is None:
            time.sleep(max(0.0, seconds))
        else:
            wake.wait(seconds)


@dataclass(frozen=True)
class PoolHandle:
    """All that a driver needs of a pool.

    Each driver needs its own handle, because `events` returns each event only once.

    Attributes:
        job_folders: the folder in which each job gets its own folder. The driver and the access point both use these
            folders, so the jobs need not be spooled. None: the jobs are spooled.
    """

    queue: JobQueue
    directory: SlotDirectory
    events: JobEvents
    clock: Clock
    job_folders: Path | None = None


def configured_pool(queue: AccessPoint) -> PoolHandle:
    """Return a handle of the configured pool, with one of its access points.

    Raises:
        CondorError: the access point does not answer.
    """
    return PoolHandle(queue, Collector(), EventLog(), SystemClock(), job_folders(queue))
