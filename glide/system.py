"""What the operating system does for several rooms. Standard library only."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO


def publish(path: Path, content: bytes | str, mode: int = 0o600, durable: bool = True) -> None:
    """Write a file in one step, never readable by others: who reads it meanwhile gets the old or the new one whole.

    Args:
        durable: whether it must outlive a crash of this machine, which takes two disk flushes.
    """
    with publishing(path, mode, durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def publishing(path: Path, mode: int = 0o600, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes its place when the block ends without an exception; as `publish`."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder outlive a crash of this machine."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be used without being read, and then cannot be flushed either
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # which says that this file system flushes no folders
            raise
    finally:
        os.close(number)


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


def tail(path: Path, limit: int, since: int = 0) -> str:
    """Return the last `limit` bytes of a log as text, but nothing before the offset `since`.

    Nothing where it cannot be read. A log that is shorter than `since` was emptied meanwhile, and counts from its
    beginning.
    """
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(since if since <= size else 0, size - limit))
        return file.read(limit).decode(errors="replace")
    return ""


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that has started it is gone."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
