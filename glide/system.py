"""What the operating system does for several rooms. Standard library only."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import stat
from pathlib import Path
from typing import IO


def publish(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Write a file in one step, never readable by others: who reads it meanwhile gets the old or the new one whole."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    fresh.replace(path)


def open_regular(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a file that somebody else has named ("rb" or "wb"); OSError for what could block, a FIFO or a device."""
    flags = os.O_RDONLY if mode == "rb" else os.O_WRONLY | os.O_CREAT
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    if mode == "wb":
        os.ftruncate(descriptor, 0)
    return open(descriptor, mode)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that has started it is gone."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
