"""Run a program that may hang, print without limit, or leave processes behind.

This module uses only the standard library.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glide.system import ending_with_us

MOST_OUTPUT = 4 << 20  # maximum number of bytes that are kept from stdout; stderr has the same limit
POLL_SECONDS = 0.5  # seconds between two checks of the program's progress
BLOCK = 1 << 16


@dataclass(frozen=True)
class ProgramOutput:
    """The exit code of a program, and the first MOST_OUTPUT bytes of its output and of its error output."""

    code: int
    output: str
    errors: str


def run(
    command: Sequence[str | Path],
    seconds: float,
    cwd: Path | None = None,
    progress: Callable[[], object] = lambda: None,
) -> ProgramOutput:
    """Run a program in a process group of its own. When the program ends or its time is over, kill the whole group.

    If the calling thread ends before the program, the kernel kills the program.

    Args:
        seconds: time limit in seconds. The time starts again whenever `progress` returns a new value.
        cwd: working folder of the program. None: the current folder.
        progress: function that returns a new value whenever the program has made progress.

    Raises:
        OSError: the program cannot be started.
        TimeoutError: the program has not ended in time.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
        start_new_session=True, preexec_fn=ending_with_us(),
    )  # fmt: skip
    assert process.stdout and process.stderr
    kept = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with process.stdout, process.stderr, selectors.DefaultSelector() as pipes:
        for pipe in kept:
            os.set_blocking(pipe, False)
            pipes.register(pipe, selectors.EVENT_READ)
        since, before = time.monotonic(), progress()
        try:
            while process.poll() is None:
                for key, _ in pipes.select(POLL_SECONDS) if pipes.get_map() else ():
                    if not _read_available(key.fd, kept[key.fd]):
                        pipes.unregister(key.fd)
                if not pipes.get_map():
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_SECONDS)
                if (now := progress()) != before:
                    since, before = time.monotonic(), now
                if time.monotonic() - since > seconds and process.poll() is None:
                    raise TimeoutError(f"{Path(command[0]).name} has not ended in {seconds:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe, text in kept.items():
            _read_available(pipe, text)  # output that the program wrote just before its end
    output, errors = (bytes(text).decode("utf-8", "replace") for text in kept.values())
    return ProgramOutput(process.returncode, output, errors)


def _read_available(pipe: int, kept: bytearray) -> bool:
    """Read a pipe without waiting. Keep MOST_OUTPUT bytes at most. Return whether the pipe is still open."""
    for _ in range(2 * MOST_OUTPUT // BLOCK):
        try:
            data = os.read(pipe, BLOCK)
        except BlockingIOError:
            return True
        if not data:
            return False
        kept += data[: MOST_OUTPUT - len(kept)]
    return True
