"""Calls in processes of their own with a time limit: several at once (`ask`), or one (`isolated`).

HTCondor's bindings hold Python's lock for as long as a daemon does not answer, so that no thread can watch them. Most
calls give up after some 20 s by themselves; a ping and a question for the configuration wait for ever.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from glide.errors import CondorError, GlideError, mistake
from glide.system import end_with_parent

CALL_SECONDS = 20.0  # as HTCondor's own limit for a query
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Unseen:
    """Why there is no answer, and which kind of error that is."""

    reason: str
    kind: type[CondorError] = CondorError


def ask(questions: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """The answers, and Unseen for who raised an error or took longer than so many seconds."""
    processes = multiprocessing.get_context("fork")
    asked = {}
    for name, question in questions.items():
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(target=_answer, args=(there, question), daemon=True)
        process.start()
        there.close()
        asked[name] = process, here
    deadline = time.monotonic() + seconds
    try:
        return {name: _received(pipe, deadline, seconds) for name, (_, pipe) in asked.items()}
    finally:
        for process, pipe in asked.values():
            process.kill()
            process.join()
            pipe.close()


def isolated(call: Callable[[], Answer], seconds: float = CALL_SECONDS) -> Answer:
    """Return what a call of the bindings returns; where this process is itself such a process, call directly.

    Raises:
        CondorError: the call took longer than `seconds`, or it raised an error (one of CondorError's own kinds is
            raised as what it is), or no process can be started.
    """
    if multiprocessing.current_process().daemon:
        return call()
    try:
        answer = ask({"call": call}, seconds)["call"]
    except OSError as error:
        raise CondorError(f"cannot start a process: {error.strerror}") from None
    if isinstance(answer, Unseen):
        raise answer.kind(answer.reason)
    return answer


def _received(pipe: Connection, deadline: float, seconds: float) -> Any:
    try:
        if pipe.poll(max(0.0, deadline - time.monotonic())):
            return pipe.recv()
        return Unseen(f"no answer within {seconds:.0f} s")
    except EOFError:
        return Unseen("who asked has died over it")


def _answer(pipe: Connection, question: Callable[[], Any]) -> None:
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        pipe.send(question())
    except CondorError as error:
        pipe.send(Unseen(str(error), type(error)))
    except (GlideError, OSError) as error:
        pipe.send(Unseen(str(error)))
    except Exception as error:  # a mistake of ours in one place is no reason to see nothing of the others
        pipe.send(Unseen(mistake(error)))
