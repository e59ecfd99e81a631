"""Run a program that may hang, print without end, or leave processes behind. Standard library only."""

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

from glide.system import end_with_parent

MOST_OUTPUT = 4 << 20  # bytes that are kept of what a program prints
POLL_SECONDS = 0.5  # between looks at whether it is still at work
BLOCK = 1 << 16


@dataclass(frozen=True)
class Done:
    """How a program ended, and the first MOST_OUTPUT bytes of what it printed."""

    code: int
    output: str
    errors: str


def run(
    command: Sequence[str | Path], seconds: float, cwd: Path | None = None, moved: Callable[[], object] = lambda: None
) -> Done:
    """Run a program, in a process group that ends with it, and with the thread that calls this.

    Args:
        seconds: in which it has to end, counted anew whenever `moved` returns another value than before.
        moved: tells how far it is.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it has not ended in time.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
        start_new_session=True, preexec_fn=end_with_parent,
    )  # fmt: skip
    assert process.stdout and process.stderr
    kept = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with process.stdout, process.stderr, selectors.DefaultSelector() as pipes:
        for pipe in kept:
            os.set_blocking(pipe, False)
            pipes.register(pipe, selectors.EVENT_READ)
        since, before = time.monotonic(), moved()
        try:
            while process.poll() is None:
                for key, _ in pipes.select(POLL_SECONDS) if pipes.get_map() else ():
                    if not _drained(key.fd, kept[key.fd]):
                        pipes.unregister(key.fd)
                if not pipes.get_map():
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_SECONDS)
                if (now := moved()) != before:
                    since, before = time.monotonic(), now
                if time.monotonic() - since > seconds and process.poll() is None:
                    raise TimeoutError(f"{Path(command[0]).name} has not ended in {seconds:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe, text in kept.items():
            _drained(pipe, text)  # what it printed last
    output, errors = (bytes(text).decode("utf-8", "replace") for text in kept.values())
    return Done(process.returncode, output, errors)


def _drained(pipe: int, kept: bytearray) -> bool:
    """Read what a program has printed, though not for ever; return whether more may come."""
    for _ in range(2 * MOST_OUTPUT // BLOCK):
        try:
            data = os.read(pipe, BLOCK)
        except BlockingIOError:
            return True
        if not data:
            return False
        kept += data[: MOST_OUTPUT - len(kept)]
    return True
