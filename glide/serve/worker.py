"""A process that uses HTCondor's bindings for `glide serve`, so that a slow daemon does not block the HTTP server."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from glide.errors import CondorError, GlideError, describe_bug
from glide.system import end_with_parent

ANSWER_SECONDS = 90.0  # a question that takes longer has failed; a submission alone may take a minute


class CondorWorker:
    """Runs methods of an object in a separate process, one at a time.

    Args:
        build: function that makes the object. The process calls it before the first question, and again after an error.
            It must be possible to pickle it.
    """

    def __init__(self, build: Callable[[], Any]):
        self.build = build
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="condor")

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its result.

        Raises:
            CondorError: HTCondor does not answer, or the method failed.
        """
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._ask, method, arguments)

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            if self.process is None or not self.process.is_alive():
                self._start()
            assert self.pipe is not None
            self.pipe.send((method, arguments))
            if not self.pipe.poll(ANSWER_SECONDS):
                raise CondorError(f"HTCondor has not answered within {ANSWER_SECONDS:g} s")
            answer = self.pipe.recv()
        except (EOFError, OSError, CondorError) as error:
            self.stop()
            raise error if isinstance(error, CondorError) else CondorError(f"worker ended: {error!r}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the HTTP server and its open sockets
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_answer, args=(theirs, self.build), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """End the process. The next question starts a new one."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
        if self.pipe is not None:
            self.pipe.close()


def _answer(pipe: Connection, build: Callable[[], Any]) -> None:
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # a Ctrl-C goes to the whole group; the server ends this process
        signal.signal(number, signal.SIG_IGN)
    subject: Any = None
    with suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            try:
                subject = build() if subject is None else subject
                answer = getattr(subject, method)(*arguments)
            except CondorError as error:
                subject, answer = None, error
            except (GlideError, OSError) as error:
                answer = CondorError(str(error))
            except Exception as error:
                answer = CondorError(describe_bug(error))
            pipe.send(answer)
