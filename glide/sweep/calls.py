"""The function calls of a session. A driver runs each call on a glidein, and sets the result of the call's future."""

from __future__ import annotations

import base64
import pickle
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from glide.errors import InvocationError
from glide.sweep.live_calls import LiveCalls
from glide.sweep.work import Work
from glide.template import Template

CANCELLED = 1  # the dict `done` has this value for a cancelled call; other calls have the hash of their execution
_TEXTS = ("value", "exception", "traceback", "stdout", "stderr")


class RemoteTraceback(Exception):
    """The traceback of an exception on a node. In the caller's process, this is the exception's `__cause__`."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Call(Future):
    """The future of one function call. The attributes are set when the call has ended.

    Attributes:
        stdout, stderr: the text that the call printed to standard output, and to standard error.
        glidein: GlideId of the glidein that ran the call.
        attempts: number of times that the call was started.
        seconds: time that the call took on the node, in seconds.
    """

    stdout = stderr = glidein = ""
    attempts = 0
    seconds = 0.0

    def __init__(self, request: dict[str, Any]):
        super().__init__()
        self.request = request

    def set_outcome(self, result: dict[str, Any]) -> None:
        """Set this future's attributes from the call's result. Then set this future's value or exception."""
        for name in ("stdout", "stderr", "glidein", "attempts", "seconds"):
            if name in result:
                setattr(self, name, result[name])
        try:
            if result["error"] is None:
                self.set_result(_unpickled(result["value"]))
            else:
                self.set_exception(_raised(result))
        except Exception as error:  # this process cannot unpickle what the node sent
            self.set_exception(error)
        except BaseException as error:  # unpickling may raise SystemExit, which must not end the driver
            self.set_exception(InvocationError(type(error).__name__, str(error)))


class Calls(Work[str]):
    """The calls of a session that need the same template.

    This process unpickles the values that nodes send, and unpickling can run any code. So a value is accepted only from
    one of the session's own jobs, and only for a call that has no outcome yet.

    Attributes:
        open: the calls without an outcome, by id. The oldest call comes first.
        added: number of calls that have been added so far.
        closed: whether no more calls will be added.
        together: number of calls that have been added since no call was open.
        live: computes calls on standing jobs; None before a chain of calls was noticed.
        live_open: ids of the open calls that `live` computes. The driver leaves them out.
        storing: lock that is held while results are stored.
        start_live: function that starts `live`; None if the template's glideins have no lane to spare.
    """

    def __init__(self, template: Template, glideins: int):
        super().__init__(template, glideins)
        self.open: dict[str, Call] = {}
        self.added = 0
        self.closed = False
        self.storing = threading.RLock()
        self.together = 0
        self.live: LiveCalls | None = None
        self.live_open: set[str] = set()
        self.start_live: Callable[[], LiveCalls] | None = None

    @property
    def total(self) -> int:
        return self.added - len(self.live_open)

    @property
    def all_known(self) -> bool:
        return self.closed

    @property
    def finished(self) -> bool:
        return self.closed and not self.open

    def add(self, request: dict[str, Any]) -> Call:
        """Add a call with this request (`prompt`, `generate`, `timeout`), and return the call's future."""
        # Two calls in a row, each alone, are probably links of a chain.
        is_link, self.together = not self.open and self.together == 1, 1 + (self.together if self.open else 0)
        if self.live is None and self.start_live is not None and is_link:
            self.live = self.start_live()
        self.added += 1
        number = str(self.added)
        call = Call({"custom_id": number, **request})
        if self.live is not None and self.live.is_free and call.set_running_or_notify_cancel():
            self.live_open.add(number)  # first, because the driver must leave the call out
            self.open[number] = call
            self.live.begin(number, request)
            return call
        self.open[number] = call
        self.new_work.set()
        return call

    def finish_live(self, number: str, result: dict[str, Any]) -> None:
        """Store the result of a call that was computed on a standing job."""
        if wrong := self.check_result(result):
            error = {"type": "InvalidResult", "message": wrong}
            result = {"text": None, "tokens": 0, "seconds": 0.0, "glidein": "", "attempts": 1, "error": error}
        self.store([(number, result)])
        self.live_open.discard(number)  # last, because the driver must not see an open call that nobody computes
        if self.closed:
            self.new_work.set()  # the driver may be waiting for the last result

    def return_live(self, number: str) -> None:
        """Let the driver compute a call."""
        self.live_open.discard(number)
        self.new_work.set()

    def close(self) -> None:
        """Accept no more calls, and wake the driver so that the driver can finish."""
        self.closed = True
        self.new_work.set()

    def fail(self, error: BaseException) -> None:
        """Set `error` as the outcome of all open calls, and accept no more calls."""
        self.closed = True
        for call in list(self.open.values()):
            if call.running() or call.set_running_or_notify_cancel():
                call.set_exception(error)
        self.open.clear()

    def wait_for_work(self) -> bool:
        waited = False
        while len(self.open) == len(self.live_open) and not (self.closed and not self.open):
            waited = True
            self.new_work.wait(1.0)
            self.new_work.clear()
        return waited

    def pending(self, in_flight: Collection[str]) -> Iterator[dict[str, Any]]:
        for number, call in list(self.open.items()):
            if call.running() or call.set_running_or_notify_cancel():
                if number not in in_flight and number not in self.live_open:
                    yield call.request
            else:  # the caller has cancelled the call
                self.done[number] = CANCELLED
                del self.open[number]

    def key(self, record: str) -> str:
        return record

    def check_result(self, result: dict[str, Any]) -> str:
        """Return what is wrong with a call's result, or an empty text if the result is valid.

        A result without an error must have a `value`. All fields in _TEXTS that are present must be strings.
        """
        if result["error"] is None and not isinstance(result.get("value"), str):
            return "`value` is not a string"
        wrong = [name for name in _TEXTS if not isinstance(result.get(name, ""), str)]
        return f"`{wrong[0]}` is not a string" if wrong else ""

    def store(self, results: Iterable[tuple[str | None, dict[str, Any]]], is_twin: bool = False) -> int:
        with self.storing:  # the driver and `live` store results, each in its own thread
            return super().store(results, is_twin)

    def deliver(self, results: Mapping[str, dict[str, Any]]) -> None:
        for number, result in results.items():
            if call := self.open.pop(number, None):
                call.set_outcome(result)


def _raised(result: dict[str, Any]) -> BaseException:
    """Return the exception that a call raised. If it cannot be unpickled, return an InvocationError instead."""
    described = InvocationError(result["error"]["type"], result["error"]["message"])
    error: BaseException = described
    with suppress(Exception):
        error = _unpickled(result["exception"])
    if not isinstance(error, Exception):  # if this process raised a SystemExit, the user's program would end
        error = described
    error.__cause__ = RemoteTraceback(result["traceback"]) if "traceback" in result else None
    return error


def _unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))
