"""What this account, or the bearer of a token, may do in a pool."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from glide.condor import bindings
from glide.condor.bounded import isolated
from glide.condor.collector import located


@dataclass(frozen=True)
class Right:
    """An authorization level (READ, ADVERTISE_STARTD, …) that a daemon grants, or does not."""

    who: str
    daemon: str
    level: str
    granted: bool


def right(who: str, daemon: str, level: str, token: str | None = None) -> Right:
    """Ask a daemon of the pool (Schedd, Collector) whether it grants a level.

    Args:
        who: for people, whose right it is.
        token: instead of what this account has.

    Raises:
        CondorError: there is no such daemon, or it does not answer.
    """
    location = located(daemon)
    return Right(who, daemon, level, isolated(partial(_granted, location, level, token)))


def _granted(location: Any, level: str, token: str | None) -> bool:
    try:
        security = bindings.htcondor2.SecurityContext(token=token) if token else None
        answer = bindings.htcondor2.ping(location, level, security)
        return bool(answer.get("AuthorizationSucceeded"))
    except (RuntimeError, bindings.htcondor2.HTCondorException):
        return False
