"""The calls of a session: futures on one side, records and results on the other."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from glide.errors import InvocationError
from glide.sweep.work import Work
from glide.template import Template

_TEXTS = ("value", "exception", "traceback", "stdout", "stderr")


class RemoteTraceback(Exception):
    """Where on the node an exception was raised; it stands as the cause of that."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Call(Future):
    """The future of an invocation.

    Attributes:
        stdout, stderr: what the call printed, once it has ended.
        glidein: where it ran. attempts: how often it was begun. seconds: how long it took.
    """

    stdout = stderr = glidein = ""
    attempts = 0
    seconds = 0.0

    def __init__(self, request: dict[str, Any]):
        super().__init__()
        self.request = request

    def end(self, result: dict[str, Any]) -> None:
        """Take a line of the results as the outcome."""
        for name in ("stdout", "stderr", "glidein", "attempts", "seconds"):
            if name in result:
                setattr(self, name, result[name])
        try:
            if result["error"] is None:
                self.set_result(_unpickled(result["value"]))
            else:
                self.set_exception(_raised(result))
        except Exception as error:  # a value that cannot be unpickled here
            self.set_exception(error)
        except BaseException as error:  # SystemExit, say: whatever its pickle does, it is this call's outcome alone
            self.set_exception(InvocationError(type(error).__name__, str(error)))


class Calls(Work):
    """What a session has been given to do with one template.

    Values are unpickled in this process, which can run code that a node has chosen: they are taken from the session's
    own jobs alone, for calls that are open.
    """

    def __init__(self, template: Template, glideins: int):
        super().__init__(template, glideins)
        self.open: dict[str, Call] = {}  # those without an outcome, oldest first
        self.added = 0
        self.closed = False

    @property
    def total(self) -> int:
        return self.added

    @property
    def complete(self) -> bool:
        return self.closed

    @property
    def finished(self) -> bool:
        return self.closed and not self.open

    def add(self, request: dict[str, Any]) -> Call:
        self.added += 1
        call = Call({"custom_id": str(self.added), **request})
        self.open[call.request["custom_id"]] = call
        self.fresh.set()
        return call

    def close(self) -> None:
        """No more are coming."""
        self.closed = True
        self.fresh.set()

    def fail(self, error: BaseException) -> None:
        """None of those that are open will have a result, for this reason."""
        self.closed = True
        for call in list(self.open.values()):
            if call.running() or call.set_running_or_notify_cancel():
                call.set_exception(error)
        self.open.clear()

    def rest(self) -> bool:
        rested = False
        while not self.open and not self.closed:
            rested = True
            self.fresh.wait(1.0)
            self.fresh.clear()
        return rested

    def unsent(self, on_their_way: Collection[str]) -> Iterator[dict[str, Any]]:
        for number, call in list(self.open.items()):
            if call.running() or call.set_running_or_notify_cancel():
                if number not in on_their_way:
                    yield call.request
            else:  # cancelled
                self.have[number] = 0
                del self.open[number]

    def complaint(self, result: dict[str, Any]) -> str:
        """A call's result has its value, and all else as text."""
        if result["error"] is None and not isinstance(result.get("value"), str):
            return "`value` is not a string"
        wrong = [name for name in _TEXTS if not isinstance(result.get(name, ""), str)]
        return f"`{wrong[0]}` is not a string" if wrong else ""

    def store(self, results: Collection[dict[str, Any]]) -> None:
        for result in results:
            if call := self.open.pop(result["custom_id"], None):
                call.end(result)


def _raised(result: dict[str, Any]) -> BaseException:
    """The exception that a call raised, or one that describes it where it cannot be brought back."""
    described = InvocationError(result["error"]["type"], result["error"]["message"])
    error: BaseException = described
    with suppress(Exception):
        error = _unpickled(result["exception"])
    if not isinstance(error, Exception):  # SystemExit would end who asks for the result
        error = described
    error.__cause__ = RemoteTraceback(result["traceback"]) if "traceback" in result else None
    return error


def _unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))
