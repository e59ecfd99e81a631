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
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import IO, Any

from glide.server.engines import Completion, Record, described, printable
from glide.template import Template
from glide.template.placed import on_node, opened
from glide.template.spec import Function
from glide.vocabulary import State

OUTPUT_BYTES = 1 << 16  # of what a call prints, the last so many come back
TRAPPED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE,
    signal.SIGUSR1,
)  # fmt: skip
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
        # What a user's program pickles by reference to its __main__ is looked for there.
        sys.modules["__main__"] = ModuleType("__main__")
        self.made = opened(_unpickled(made.pickle))

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        function, arguments, keywords = self.made
        _into_main(function)
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
        _reopen_streams()
        with _captured() as printed, _restored():
            try:
                function = opened(self.function(record.generate["function"]))
                _into_main(function)
                arguments, keywords = opened(_unpickled(record.prompt))
                value = function(*arguments, **{**self._filled(function, arguments), **keywords})
                outcome = {"value": _pickled(value)}
                error = None
            except BaseException as raised:  # `sys.exit` in a call ends the call, not the state
                error = described(raised)
                outcome = {"traceback": _traceback(raised), "exception": _pickled_exception(raised)}
        return [Completion(None if error else "", 0, {**outcome, **printed}, error)]

    def _filled(self, function: Callable, arguments: tuple) -> dict[str, Any]:
        """The parameters that the state has values for, but for those that the arguments fill."""
        names = list(_parameters(function))[len(arguments) :]
        return {name: resident[name] for name in names if name in resident}

    def describe(self) -> dict[str, Any]:
        return {}


def _into_main(function: Callable) -> None:
    """Put what a function of a user's __main__ refers to into this process's: plain pickles name it so."""
    names = getattr(function, "__globals__", {})
    if names.get("__name__") == "__main__":
        vars(sys.modules["__main__"]).update({name: each for name, each in names.items() if not name.startswith("__")})


@contextmanager
def _restored() -> Iterator[None]:
    """Undo afterwards what calls often change of their process, and the next call would not expect."""
    environment = dict(vars(os.environb)["_data"])  # itself: to decode it takes longer than all else here
    path = list(sys.path)
    streams = sys.stdin, sys.stdout, sys.stderr
    handlers = {number: signal.getsignal(number) for number in TRAPPED}
    folder = os.open(".", os.O_PATH | os.O_DIRECTORY)
    mask = os.umask(0o077)
    os.umask(mask)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(mask)
        with suppress(OSError):  # the call has closed all descriptors
            os.fchdir(folder)
            os.close(folder)
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.path[:] = path
        if vars(os.environb)["_data"] != environment:
            os.environb.clear()
            os.environb.update(environment)


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
    except BaseException:
        return ""


def _traceback(error: BaseException) -> str:
    """As the user knows it: without the frames of this file."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename == __file__:
        first = first.tb_next
    try:
        return printable("".join(traceback.format_exception(type(error), error, first)))
    except BaseException:  # an exception whose own methods raise
        return printable("".join(traceback.format_tb(first)))


def _reopen_streams() -> None:
    """Bring back what an earlier call has closed."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name).closed:
            stream = open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


@contextmanager
def _captured() -> Iterator[dict[str, str]]:
    """What is printed meanwhile, by this process or its children, by Python or not."""
    printed: dict[str, str] = {}
    with _diverted(1, printed, "stdout"), _diverted(2, printed, "stderr"):
        try:
            yield printed
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # the disk is full, or the call has closed it
                    stream.flush()


@contextmanager
def _diverted(descriptor: int, printed: dict[str, str], name: str) -> Iterator[None]:
    saved = os.dup(descriptor)
    try:
        file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError:  # this node's disk is full: the call is worth more than what it prints
        file = open(os.devnull, "w+b")  # noqa: SIM115
    with file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            os.dup2(saved, descriptor)
            os.close(saved)
            if file.seekable() and (text := _last(file)):
                printed[name] = text


def _last(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - OUTPUT_BYTES))
    return file.read().decode(errors="replace")
