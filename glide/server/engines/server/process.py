"""The process of a program: start it, read its output, and notice its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from glide.vocabulary import UNSUITABLE

# Seconds between the end of a program and the end of this process, so that finished outcomes are still reported.
REPORT_SECONDS = 0.2
LAST_LINES = 20  # number of lines at the end of the output that are kept
LONGEST_REASON = 700  # maximum length of the last lines in a message, in characters
# Output of programs that shows that the node lacks an instruction set, a driver, a library, or a capability of the GPU.
UNSUITABLE_OUTPUT = re.compile(
    r"(?i)illegal instruction|no kernel image is available|driver version is insufficient|compute capability|"
    r"no CUDA-capable device|version `GLIBC\S+' not found|does not support AVX|requires .{0,40}instruction"
)
PORT_TAKEN = re.compile(r"(?i)address already in use|EADDRINUSE|couldn't bind|failed to bind|Errno 98")


def log_line(text: str) -> None:
    """Write a line to standard error, which is the log of the model server and its engines.

    `print` would write the end of the line separately. A line of the model server could come between.
    """
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class ProgramProcess:
    """A running program. Its output goes to this process's standard error.

    The program runs in this engine's process tree. So the keeper ends it, with all its descendants, when the engine
    ends (glide.server.keeper).

    Args:
        on_line: function that is called with each line of output, in another thread.
        folder: the program's working directory.

    Attributes:
        process: the program's process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        on_line: Callable[[str], None],
        folder: str,
    ):
        self.name = name
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self.process = subprocess.Popen(
            list(command), env=dict(variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, cwd=folder,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for data in self.process.stdout:
            line = data.decode("utf-8", "replace").rstrip()
            with suppress(OSError):  # if the disk is full, continue to read; the program blocks if nobody does
                log_line(line)
            if line.strip():
                self._lines.append(line)
            self._on_line(line)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def port_was_taken(self) -> bool:
        """Whether the program's output says that another program uses its port."""
        return any(PORT_TAKEN.search(line) for line in self._lines)

    def end_reason(self) -> str:
        """Return how the program ended, and its last lines of output, in one line."""
        self._reader.join(1.0)  # a descendant may keep the pipe open
        code = self.process.wait()
        ended = f"exited with code {code}" if code >= 0 else f"was killed by signal {-code}"
        lines = " | ".join(" ".join(line.split()) for line in self._lines)
        lacks = code == -signal.SIGILL or UNSUITABLE_OUTPUT.search(lines)
        reason = f"{self.name} {ended}; its last output: {lines[-LONGEST_REASON:] or 'none'}"
        return f"{UNSUITABLE}: {reason}" if lacks else reason

    def end_this_process_with_program(self) -> None:
        """Wait until the program ends, and then end this engine process, because every end of the program is a failure.

        If a signal killed the program, end this process with the same signal. Otherwise exit with code 1.
        """
        code = self.process.wait()
        time.sleep(REPORT_SECONDS)
        log_line(self.end_reason())
        if code < 0:
            os.kill(os.getpid(), -code)
            time.sleep(1.0)  # this process may ignore the signal
        os._exit(1)
