"""Ask daemons whether this account, or the bearer of a token, has an authorization level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from glide.condor import bindings
from glide.condor.bounded import isolated
from glide.condor.collector import locate


@dataclass(frozen=True)
class Authorization:
    """Whether a daemon grants an authorization level to an identity.

    Attributes:
        who: the name of the identity. Messages show this name.
        daemon: Schedd or Collector.
        level: READ, WRITE, ADVERTISE_STARTD, …
        granted: whether the daemon grants the level.
    """

    who: str
    daemon: str
    level: str
    granted: bool


def check_authorization(who: str, daemon: str, level: str, token: str | None = None) -> Authorization:
    """Ask a daemon of the pool whether it grants an authorization level to this account or to a token's bearer.

    Args:
        who: the name of this account or of the bearer. Messages show this name.
        daemon: Schedd or Collector.
        level: READ, WRITE, ADVERTISE_STARTD, …
        token: the token to authenticate with; None for this account's own credentials.

    Raises:
        CondorError: the pool has no such daemon, or the daemon does not answer.
    """
    location = locate(daemon)
    return Authorization(who, daemon, level, isolated(partial(_granted, location, level, token)))


def _granted(location: Any, level: str, token: str | None) -> bool:
    try:
        security = bindings.htcondor2.SecurityContext(token=token) if token else None
        answer = bindings.htcondor2.ping(location, level, security)
        return bool(answer.get("AuthorizationSucceeded"))
    except (RuntimeError, bindings.htcondor2.HTCondorException):
        return False
