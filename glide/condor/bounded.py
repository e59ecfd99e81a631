"""Run calls of HTCondor's Python bindings with a time limit, each call in its own process.

The bindings hold Python's global lock until a daemon answers, so no thread of the same process can interrupt a call.
Most calls give up by themselves after about 20 s. A ping and a query for a daemon's configuration never give up.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from glide.condor.signals import defer_signals
from glide.errors import CondorError, GlideError, describe_bug
from glide.system import end_with_parent

CALL_SECONDS = 20.0  # default time limit of a call, in seconds; most calls give up by themselves after about this time
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class NoReply:
    """The result of a failed call. `reason` is the error message. `kind` is the class of the error to raise."""

    reason: str
    kind: type[CondorError] = CondorError


class ForkedProcess(multiprocessing.context.ForkProcess):
    """A process that starts although a thread of its parent reads standard input.

    Without this class, multiprocessing would close `sys.stdin` in the new process, and wait forever for its lock.
    """

    def _bootstrap(self, *arguments: Any, **options: Any) -> int:
        sys.stdin = None
        return super()._bootstrap(*arguments, **options)  # type: ignore[misc]


def ask(questions: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Run several calls at the same time, each in its own process. Return a dict with the result of each call.

    If a call raises an error, or has not ended after `seconds`, its result is a NoReply.

    Args:
        questions: a dict with the calls. Each result has the same key as its call.
        seconds: time limit, in seconds. All calls start together, so the limit is the same for each call.
    """
    asked = {}
    try:
        with defer_signals():  # Python ignores exceptions of signal handlers in the functions that it calls at a fork
            for name, question in questions.items():
                here, there = multiprocessing.Pipe(duplex=False)
                process = ForkedProcess(target=_answer, args=(there, question), daemon=True)
                process.start()
                there.close()
                asked[name] = process, here
        deadline = time.monotonic() + seconds
        return {name: _receive(pipe, deadline, seconds) for name, (_, pipe) in asked.items()}
    finally:
        for process, pipe in asked.values():
            process.kill()
            process.join()
            pipe.close()


def isolated(call: Callable[[], Answer], seconds: float = CALL_SECONDS) -> Answer:
    """Run a call of the bindings in its own process, and return the result.

    If the current process was started by `ask`, the call runs in the current process, without a time limit.

    Raises:
        CondorError: the call raised an error or took longer than `seconds`, or no process can be started.
            If the call raises a subclass of CondorError, this function raises the same subclass.
    """
    if multiprocessing.current_process().daemon:
        return call()
    try:
        answer = ask({"call": call}, seconds)["call"]
    except OSError as error:
        raise CondorError(f"cannot start a process: {error.strerror}") from None
    if isinstance(answer, NoReply):
        raise answer.kind(answer.reason)
    return answer


def _receive(pipe: Connection, deadline: float, seconds: float) -> Any:
    try:
        if pipe.poll(max(0.0, deadline - time.monotonic())):
            return pipe.recv()
        return NoReply(f"no answer within {seconds:.0f} s")
    except EOFError:
        return NoReply("the process that made the call crashed")


def _answer(pipe: Connection, question: Callable[[], Any]) -> None:
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    answer(pipe, question)


def answer(pipe: Connection, question: Callable[[], Any]) -> None:
    """Make a call, and send its result to a pipe. If the call raises an error, send a NoReply."""
    try:
        pipe.send(question())
    except CondorError as error:
        pipe.send(NoReply(str(error), type(error)))
    except (GlideError, OSError) as error:
        pipe.send(NoReply(str(error)))
    except Exception as error:
        # An exception other than GlideError and OSError is a bug in glide. The NoReply describes the bug.
        pipe.send(NoReply(describe_bug(error)))
