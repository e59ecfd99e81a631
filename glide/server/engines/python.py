"""The python engine: state is what the user's own function returns, and each record a call that uses it.

A record's `prompt` is cloudpickle's of (arguments, keyword arguments) in base64, and its `generate` has the function,
pickled likewise. The call's parameters that are named like keys of the state are filled from it. What the call
prints comes back with its result.
"""

from __future__ import annotations

import base64
import inspect
import os
import pickle
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from glide.server.engines import Completion, Record
from glide.template import Template
from glide.template.placed import on_node
from glide.template.spec import Function
from glide.vocabulary import State

OUTPUT_BYTES = 1 << 16  # of what a call prints, the last so many come back
resident: dict[str, Any] = {}  # the state: of this process, which is the engine's own


class WrongVersion(Exception):
    """The node's Python cannot read what another version has pickled."""


class Python:
    """Calls one record at a time: what it does is the user's own code."""

    @dataclass(frozen=True)
    class Options:
        """None: a function's arguments are its options."""

    def __init__(self, template: Template, options: Options):
        self.template = template
        self.batch = 1
        self.window = 1024
        self.function = lru_cache(64)(_unpickled)

    def prepare(self) -> None:
        made = self.template.function
        if made is None:
            raise ValueError("this template has no function")
        _check_versions(made)
        self.made = _unpickled(made.pickle)

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        function, arguments, keywords = self.made
        state = function(
            *(on_node(each, folder) for each in arguments),
            **{name: on_node(each, folder) for name, each in keywords.items()},
        )
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise TypeError(f"{self.template.model} returned {type(state).__name__}, not a dict of named values")
        resident.update(state)

    def plan(self, records: Sequence[Record]) -> list[list[Record]]:
        return [[record] for record in records]

    def call(self, records: Sequence[Record]) -> list[Completion]:
        (record,) = records
        with _captured() as printed:
            try:
                function = self.function(record.generate["function"])
                arguments, keywords = _unpickled(record.prompt)
                value = function(*arguments, **{**self._filled(function, arguments), **keywords})
                outcome = {"value": _pickled(value)}
                error = None
            except (Exception, SystemExit) as raised:  # `sys.exit` in a call ends the call, not the state
                error = {"type": type(raised).__name__, "message": str(raised)[:2000]}
                outcome = {"traceback": _traceback(raised), "exception": _pickled_exception(raised)}
        return [Completion(None if error else "", 0, {**outcome, **printed}, error)]

    def _filled(self, function: Callable, arguments: tuple) -> dict[str, Any]:
        """The parameters that the state has values for, but for those that the arguments fill."""
        names = list(_parameters(function))[len(arguments) :]
        return {name: resident[name] for name in names if name in resident}

    def describe(self) -> dict[str, Any]:
        return {}


@lru_cache(64)
def _parameters(function: Callable) -> tuple[str, ...]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin function that does not tell
        return ()
    return tuple(name for name, each in parameters.items() if each.kind in named)


def _check_versions(made: Function) -> None:
    here = ".".join(platform.python_version_tuple()[:2])
    if made.python != here:
        raise WrongVersion(
            f"made by Python {made.python}, and this is {here}; set the entry's `python`, or the state's `environment`"
        )
    import cloudpickle  # what its pickles are read by

    if made.cloudpickle.split(".")[0] != cloudpickle.__version__.split(".")[0]:
        raise WrongVersion(
            f"made by cloudpickle {made.cloudpickle}, and this node has {cloudpickle.__version__}; install that version"
        )


def _unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))


def _pickled(value: Any) -> str:
    import cloudpickle

    return base64.b64encode(cloudpickle.dumps(value)).decode()


def _pickled_exception(error: BaseException) -> str:
    """The exception, or nothing where it cannot be brought back (many cannot: their __init__ wants more)."""
    try:
        text = _pickled(error)
        _unpickled(text)
        return text
    except Exception:
        return ""


def _traceback(error: BaseException) -> str:
    """As the user knows it: without the frames of this file."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename == __file__:
        first = first.tb_next
    return "".join(traceback.format_exception(type(error), error, first))


@contextmanager
def _captured() -> Iterator[dict[str, str]]:
    """What is printed meanwhile, by this process or its children, by Python or not."""
    printed: dict[str, str] = {}
    with _diverted(1, printed, "stdout"), _diverted(2, printed, "stderr"):
        try:
            yield printed
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


@contextmanager
def _diverted(descriptor: int, printed: dict[str, str], name: str) -> Iterator[None]:
    saved = os.dup(descriptor)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            os.dup2(saved, descriptor)
            os.close(saved)
            file.seek(max(0, file.seek(0, os.SEEK_END) - OUTPUT_BYTES))
            if text := file.read().decode(errors="replace"):
                printed[name] = text
