"""A process that uses HTCondor's bindings for a server of live calls: `python -m glide.live.worker`.

The bindings block a whole process until a daemon answers. With a process of their own, a slow daemon delays no call.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

from glide.errors import CondorError, GlideError, describe_bug
from glide.system import GarbageCollection, end_with_parent, ending_with_us

ANSWER_SECONDS = 90.0  # a question that takes longer has failed; a submission alone may take a minute


class CondorWorker:
    """Runs methods of an object in a separate process, one at a time.

    The two processes exchange pickles over pipes that no other process has.

    Args:
        build: function that makes the object. The process calls it before the first question, and again after an error.
            It must be possible to pickle it.
    """

    def __init__(self, build: Callable[[], Any]):
        self.build = build
        self.process: subprocess.Popen[bytes] | None = None
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="condor")

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its result.

        Raises:
            CondorError: HTCondor does not answer, or the method failed.
        """
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._ask, method, arguments)

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            if self.process is None or self.process.poll() is not None:
                self._start()
            assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
            _write(self.process.stdin, (method, arguments))
            poll = select.poll()  # select.select cannot handle descriptors above 1023
            poll.register(self.process.stdout, select.POLLIN)
            if not poll.poll(1000 * ANSWER_SECONDS):
                raise CondorError(f"HTCondor has not answered within {ANSWER_SECONDS:g} s")
            answer = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError, CondorError) as error:
            self._kill()
            raise error if isinstance(error, CondorError) else CondorError(f"worker ended: {error!r}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> None:
        self._kill()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glide.live.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            preexec_fn=ending_with_us(), start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        _write(self.process.stdin, self.build)

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self.process = None

    def stop(self) -> None:
        """End the process and its thread."""
        self.thread.submit(self._kill)
        self.thread.shutdown(wait=True)


def _write(pipe: IO[bytes], message: Any) -> None:
    pipe.write(pickle.dumps(message))
    pipe.flush()


def main() -> None:
    """Answer the questions that arrive on standard input, until it is closed."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ends this process
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the bindings print must not get between the answers
    build = pickle.load(sys.stdin.buffer)
    subject: Any = None
    garbage = GarbageCollection()
    with suppress(EOFError, OSError):
        while True:
            method, arguments = pickle.load(sys.stdin.buffer)
            try:
                subject = build() if subject is None else subject
                # Python keeps thousands of names that it has looked up, so each time this must be the same object.
                answer = getattr(subject, sys.intern(method))(*arguments)
            except CondorError as error:
                subject, answer = None, error
            except (GlideError, OSError) as error:
                answer = CondorError(str(error))
            except Exception as error:
                answer = CondorError(describe_bug(error))
            _write(answers, answer)
            garbage.run_if_due()


if __name__ == "__main__":
    main()
