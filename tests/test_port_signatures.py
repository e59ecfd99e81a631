"""The implementations of the ports have the methods and parameters that glide.condor.ports declares."""

from __future__ import annotations

import inspect

import pytest

from glide.condor import AccessPoint, Collector, EventLog
from glide.condor.fake.clock import FakeClock
from glide.condor.fake.directory import FakeDirectory
from glide.condor.fake.pool import FakeEventLog
from glide.condor.fake.queue import FakeQueue
from glide.condor.ports import Clock, JobControl, JobEvents, JobQueue, SlotDirectory, SystemClock
from glide.ssh.access_point import RemoteAccessPoint


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (JobQueue, AccessPoint), (JobControl, RemoteAccessPoint), (SlotDirectory, Collector), (JobEvents, EventLog),
        (Clock, SystemClock), (JobQueue, FakeQueue), (SlotDirectory, FakeDirectory), (JobEvents, FakeEventLog),
        (Clock, FakeClock),
    ],
)  # fmt: skip
def test_implementation_has_signatures_of_port(port: type, kind: type):
    for name in (name for name in dir(port) if not name.startswith("_")):
        if callable(member := getattr(port, name)):
            wanted = inspect.signature(member).parameters
            found = inspect.signature(getattr(kind, name)).parameters
            assert list(found)[: len(wanted)] == list(wanted), name
            extra = list(found.values())[len(wanted) :]
            assert all(parameter.default is not parameter.empty for parameter in extra), name
