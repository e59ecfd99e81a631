"""Read the configuration of a daemon. If the daemon refuses the query, read the configuration of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from glide.condor import bindings
from glide.condor.bounded import isolated
from glide.condor.collector import locate

Value = bool | float | str


@dataclass(frozen=True)
class Configuration:
    """Values of HTCondor's configuration parameters.

    Attributes:
        values: a dict from parameter name to value. Parameters that are not defined are left out.
        from_daemon: True if a daemon of the pool reported the values.
            False if the values come from this machine's configuration.
    """

    values: dict[str, Value] = field(default_factory=dict)
    from_daemon: bool = True


def configuration(daemon: str, names: Iterable[str]) -> Configuration:
    """Return the values of some configuration parameters of a daemon of the pool.

    Args:
        daemon: type of the daemon: Schedd, Negotiator, …
        names: names of the parameters.

    Raises:
        CondorError: the pool has no daemon of this type, or the daemon does not answer.
    """
    return isolated(partial(_read, locate(daemon), tuple(names)))


def _read(location: Any, names: tuple[str, ...]) -> Configuration:
    try:
        found, from_daemon = bindings.htcondor2.RemoteParam(location), True
    except (RuntimeError, bindings.htcondor2.HTCondorException):  # the daemon refuses to show its configuration
        found, from_daemon = bindings.htcondor2.param, False
    return Configuration({name: _value(str(found[name])) for name in names if name in found}, from_daemon)


def _value(text: str) -> Value:
    """Return the number or boolean to which a parameter's text evaluates. In all other cases, return the text."""
    with suppress(ValueError, RuntimeError, bindings.classad2.ClassAdException):
        found = bindings.classad2.ExprTree(text).eval()
        if isinstance(found, bool | int | float):
            return found
    return text
