"""Use HTCondor on this machine: find or install it, run an embedded pool, use the queue and the collector.

The module ports contains the interfaces of queue, collector, event log and clock. The package fake contains a pool in
memory and in virtual time, FakePool, with the same interfaces.

Only glide.condor.bindings imports HTCondor's Python bindings. The following parts of glide use HTCondor without the
bindings:
- glide.ssh runs HTCondor's commands on login hosts.
- glide.files.peers runs condor_status.
- glide.glidein starts HTCondor's daemons.
- glide.server.stream writes to a job's folder on the access point with HTCondor's chirp protocol.
"""

from __future__ import annotations

import os
from pathlib import Path

from glide.condor import bindings, install
from glide.condor.access_point import AccessPoint
from glide.condor.collector import Collector
from glide.condor.event_log import EventLog
from glide.condor.pool import EmbeddedPool, home
from glide.condor.ports import (
    Clock,
    JobControl,
    JobEvents,
    JobQueue,
    PoolHandle,
    SlotDirectory,
    SystemClock,
    configured_pool,
)
from glide.errors import CondorError

__all__ = [
    "AccessPoint", "Clock", "Collector", "EmbeddedPool", "EventLog", "JobControl", "JobEvents", "JobQueue",
    "PoolHandle", "SlotDirectory", "SystemClock", "configured", "configured_pool", "connect", "home", "install",
]  # fmt: skip


def configured() -> bool:
    """Return whether a pool is configured: CONDOR_CONFIG is set, or /etc/condor/condor_config exists."""
    return "CONDOR_CONFIG" in os.environ or Path("/etc/condor/condor_config").exists()


def connect() -> None:
    """Choose the pool that HTCondor's Python bindings use: the first pool of this list that exists.

    1. the pool of the configuration file that CONDOR_CONFIG names
    2. the embedded pool in GLIDE_HOME, if it is running
    3. the pool of /etc/condor/condor_config

    Raises:
        CondorError: none of these pools exists.
    """
    if "CONDOR_CONFIG" not in os.environ and (pool := EmbeddedPool(home())).listens():
        os.environ.update(pool.environment())
    elif not configured():
        raise CondorError(
            "no pool: start one here with `glide pool up`, or set CONDOR_CONFIG to the configuration file of another"
            " pool"
        )
    bindings.reload()
