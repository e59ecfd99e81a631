"""The only room that talks to HTCondor: finding it, an embedded pool of it, its queue, its collector."""

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
    """Whether this machine or its user has chosen a pool other than glide's embedded one."""
    return "CONDOR_CONFIG" in os.environ or Path("/etc/condor/condor_config").exists()


def connect() -> None:
    """Point the bindings at the pool in force: CONDOR_CONFIG, a running embedded pool, the system's own.

    Raises:
        CondorError: there is none.
    """
    if "CONDOR_CONFIG" not in os.environ and (pool := EmbeddedPool(home())).listens():
        os.environ.update(pool.environment())
    elif not configured():
        raise CondorError("no pool: start one here with `glide pool up`, or set CONDOR_CONFIG to an existing one's")
    bindings.reload()
