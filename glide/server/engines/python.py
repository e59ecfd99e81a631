"""The python engine. A user's function returns the state. Each record is a call of a function that uses the state.

A record's `prompt` is the tuple (arguments, keyword arguments), pickled with cloudpickle and encoded in base64. The
record's `generate` is {"function": the pickled function}. If the call has no argument for a parameter, the engine looks
in the state for a value with the parameter's name. If the state has such a value, the parameter gets the value. The
record's result also has the output that the call prints.
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

from glide.server.engines.base import Completion, EngineRecord, RecordTimeout, error_fields, printable
from glide.template import Template
from glide.template.file_argument import on_node, unwrap
from glide.template.spec import Function
from glide.vocabulary import State

OUTPUT_BYTES = 1 << 16  # maximum bytes of each output stream in a result; from longer output, only the end is kept
# User code may change the handlers of these signals. They are restored after each call.
RESTORED_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE,
    signal.SIGUSR1,
)  # fmt: skip
resident: dict[str, Any] = {}  # the state's values, with names as keys; global, because a process has only one engine


class WrongVersion(Exception):
    """The function was pickled by a version of Python or cloudpickle that this node cannot read."""


class Python:
    """The python engine. Each call serves only one record, because a record's code may fail or take very long."""

    @dataclass(frozen=True)
    class Options:
        """The python engine has no options. The user can pass arguments to the function."""

    def __init__(self, template: Template, options: Options):
        self.template = template
        self.batch = 1
        self.window = 1024
        self.cached_function = lru_cache(64)(_unpickled)

    def prepare(self) -> None:
        function = self.template.function
        if function is None:
            raise ValueError("the python engine needs a template with a function, and this template has none")
        _check_versions(function)
        # Pickles may refer to names in the user's __main__. Python looks these names up in this process's __main__. So
        # make __main__ an empty module, to which `_define_in_main` copies the user's names.
        sys.modules["__main__"] = ModuleType("__main__")
        self.state_call = unwrap(_unpickled(function.pickle))

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        function, arguments, keywords = self.state_call
        _define_in_main(function)
        state = function(
            *(on_node(each, folder) for each in arguments),
            **{name: on_node(each, folder) for name, each in keywords.items()},
        )
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise TypeError(f"{self.template.model} returned {type(state).__name__}; return a dict with names as keys")
        resident.update(state)

    def plan(self, records: Sequence[EngineRecord]) -> list[list[EngineRecord]]:
        return [[record] for record in records]

    def call(self, records: Sequence[EngineRecord]) -> list[Completion]:
        (record,) = records
        _reopen_streams()
        with _output_captured() as printed, _process_state_restored():
            try:
                function = unwrap(self.cached_function(record.generate["function"]))
                _define_in_main(function)
                arguments, keywords = unwrap(_unpickled(str(record.prompt)))
                value = function(*arguments, **{**self._values_from_state(function, arguments), **keywords})
                outcome = {"value": _pickled(value)}
                error = None
            except BaseException as raised:  # also catch SystemExit, so that `sys.exit` ends only this call
                error = error_fields(raised)
                outcome = {"traceback": _user_traceback(raised), "exception": _pickled_exception(raised)}
        return [Completion(None if error else "", 0, {**outcome, **printed}, error)]

    def _values_from_state(self, function: Callable, arguments: tuple) -> dict[str, Any]:
        """Return the keyword arguments that a function gets from the state, as a dict from parameter name to value.

        A parameter gets a value from the state if both conditions are true:

        - The positional arguments in `arguments` have no value for the parameter.
        - The state has a value with the parameter's name.
        """
        names = list(_parameters(function))[len(arguments) :]
        return {name: resident[name] for name in names if name in resident}

    def describe(self) -> dict[str, Any]:
        return {}


def _define_in_main(function: Callable) -> None:
    """If a function was defined in the user's __main__, copy the function's globals into this process's __main__.

    For functions and classes of __main__, the standard library's `pickle` stores only names. To read such a pickle,
    Python needs these names in this process's __main__.
    """
    names = getattr(function, "__globals__", {})
    if names.get("__name__") == "__main__":
        vars(sys.modules["__main__"]).update({name: each for name, each in names.items() if not name.startswith("__")})


@contextmanager
def _process_state_restored() -> Iterator[None]:
    """Restore environment variables, working folder, signal handlers and so on after the user code in the block."""
    # Copy the environment as bytes, because decoding it would take longer than the rest of this function.
    environment = dict(vars(os.environb)["_data"])
    path = list(sys.path)
    streams = sys.stdin, sys.stdout, sys.stderr
    handlers = {number: signal.getsignal(number) for number in RESTORED_SIGNALS}
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
        with suppress(OSError):  # the call may have closed all descriptors
            os.fchdir(folder)
            os.close(folder)
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.path[:] = path
        if vars(os.environb)["_data"] != environment:
            os.environb.clear()
            os.environb.update(environment)


@lru_cache(64)
def _parameters(function: Callable) -> tuple[str, ...]:
    """Return the names of a function's parameters that can be passed by keyword."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtin functions have no signature
        return ()
    return tuple(name for name, each in parameters.items() if each.kind in named)


def _check_versions(function: Function) -> None:
    here = ".".join(platform.python_version_tuple()[:2])
    if function.python != here:
        raise WrongVersion(
            f"the function was pickled by Python {function.python}, but this node has {here}; "
            "set the entry's `python` or the state's `environment`"
        )
    import cloudpickle  # to read the pickles, the node needs cloudpickle

    if function.cloudpickle.split(".")[0] != cloudpickle.__version__.split(".")[0]:
        raise WrongVersion(
            f"the function was pickled by cloudpickle {function.cloudpickle}, "
            f"but this node has {cloudpickle.__version__}; install version {function.cloudpickle} on the node"
        )


def _unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))


def _pickled(value: Any) -> str:
    import cloudpickle

    return base64.b64encode(cloudpickle.dumps(value)).decode()


def _pickled_exception(error: BaseException) -> str:
    """Return the exception as a pickle, or an empty text.

    If the text is empty, the caller gets an InvocationError instead of the exception. The text is empty in these cases:

    - The exception cannot be pickled.
    - The pickle cannot be read, for example because __init__ needs arguments that the exception does not store.
    - The exception is a RecordTimeout. The engine raised this error, not the user's function.
    """
    if isinstance(error, RecordTimeout):
        return ""
    try:
        text = _pickled(error)
        _unpickled(text)
        return text
    except BaseException:
        return ""


def _user_traceback(error: BaseException) -> str:
    """Return the traceback of an exception as text. The text begins with the first frame that is not in this file."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename == __file__:
        first = first.tb_next
    try:
        return printable("".join(traceback.format_exception(type(error), error, first)))
    except BaseException:  # the exception's own methods may raise errors
        return printable("".join(traceback.format_tb(first)))


def _reopen_streams() -> None:
    """Open stdout and stderr again if an earlier call has closed them."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name).closed:
            stream = open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


@contextmanager
def _output_captured() -> Iterator[dict[str, str]]:
    """Capture what this process and its children print in the `with` block, from Python or from native code.

    Yields:
        A dict. After the block, the keys "stdout" and "stderr" have the output of these streams. A stream without
            output has no key.
    """
    printed: dict[str, str] = {}
    with _descriptor_captured(1, printed, "stdout"), _descriptor_captured(2, printed, "stderr"):
        try:
            yield printed
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # the disk may be full, or the call may have closed the stream
                    stream.flush()


@contextmanager
def _descriptor_captured(descriptor: int, printed: dict[str, str], name: str) -> Iterator[None]:
    """Redirect a descriptor to a file in the `with` block. After the block, put the output into `printed[name]`.

    If the output has more than OUTPUT_BYTES bytes, keep only the last OUTPUT_BYTES bytes of the output.
    """
    saved = os.dup(descriptor)
    try:
        file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError:  # the node's disk is full, so discard the output of the call
        file = open(os.devnull, "w+b")  # noqa: SIM115
    with file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            os.dup2(saved, descriptor)
            os.close(saved)
            if file.seekable() and (text := _last_bytes(file)):
                printed[name] = text


def _last_bytes(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - OUTPUT_BYTES))
    return file.read().decode(errors="replace")
