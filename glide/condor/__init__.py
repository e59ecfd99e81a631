"""Use HTCondor on the access point: find or install HTCondor, run an embedded pool, use the queue and the collector.

Only glide.condor.bindings imports HTCondor's Python bindings. Other packages use HTCondor without the bindings:
glide.ssh runs HTCondor's commands on login hosts, glide.files.peers runs condor_status, glide.glidein starts HTCondor's
daemons, and glide.server.stream writes to a job's spool with HTCondor's chirp protocol.
"""

from __future__ import annotations

import os
from pathlib import Path

from glide.condor import bindings, install
from glide.condor.access_point import AccessPoint
from glide.condor.collector import Collector
from glide.condor.event_log import EventLog
from glide.condor.pool import EmbeddedPool, home
from glide.errors import CondorError

__all__ = ["AccessPoint", "Collector", "EmbeddedPool", "EventLog", "configured", "connect", "home", "install"]


def configured() -> bool:
    """Return whether CONDOR_CONFIG or /etc/condor/condor_config configures a pool."""
    return "CONDOR_CONFIG" in os.environ or Path("/etc/condor/condor_config").exists()


def connect() -> None:
    """Choose the pool that the bindings use.

    The choice is the pool in CONDOR_CONFIG. If CONDOR_CONFIG is not set, the choice is a running embedded pool, or else
    the system's pool.

    Raises:
        CondorError: none of these pools exists.
    """
    if "CONDOR_CONFIG" not in os.environ and (pool := EmbeddedPool(home())).listens():
        os.environ.update(pool.environment())
    elif not configured():
        raise CondorError("no pool: start one here with `glide pool up`, or set CONDOR_CONFIG to an existing one's")
    bindings.reload()
