"""The configuration that HTCondor runs with: asked from the daemon that it is for, else this machine's own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from glide.condor import bindings
from glide.condor.bounded import isolated
from glide.condor.collector import located

Value = bool | float | str


@dataclass(frozen=True)
class Configuration:
    """Parameters by name, those that are not defined left out; `asked` says whether the daemon itself has told them."""

    values: dict[str, Value] = field(default_factory=dict)
    asked: bool = True


def configuration(daemon: str, names: Iterable[str]) -> Configuration:
    """What a daemon of the pool (Schedd, Negotiator, …) runs with.

    Raises:
        CondorError: there is none, or it does not answer.
    """
    return isolated(partial(_read, located(daemon), tuple(names)))


def _read(location: Any, names: tuple[str, ...]) -> Configuration:
    try:
        told, asked = bindings.htcondor2.RemoteParam(location), True
    except (RuntimeError, bindings.htcondor2.HTCondorException):  # who may not read its configuration has this one
        told, asked = bindings.htcondor2.param, False
    return Configuration({name: _value(str(told[name])) for name in names if name in told}, asked)


def _value(text: str) -> Value:
    """What a parameter's text comes to: many are expressions."""
    with suppress(ValueError, RuntimeError, bindings.classad2.ClassAdException):
        found = bindings.classad2.ExprTree(text).eval()
        if isinstance(found, bool | int | float):
            return found
    return text
