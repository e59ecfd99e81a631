"""Functions for files and processes that several packages of glide use.

This module uses only the standard library, so that code on nodes can import it.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import functools
import gc
import os
import secrets
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

COLLECT_SECONDS = 60.0  # a collection takes about 0.1 s


def publish(path: Path, content: bytes | str, mode: int = 0o600, durable: bool = True) -> None:
    """Write a file in one step. At any time, readers of the file get either the old content or the new content.

    Args:
        mode: permissions of the file. By default only the owner can read the file.
        durable: whether the new content must survive a crash of this machine. A durable write takes two disk flushes.
    """
    with publishing(path, mode, durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def publishing(path: Path, mode: int = 0o600, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a temporary file for writing. If the block ends without an exception, rename the temporary file to `path`.

    The arguments have the same meaning as in `publish`.
    """
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
    """Flush a folder to disk, so that a crash of this machine cannot undo the creation or removal of files there."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # without read access to the folder, no flush is possible
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL means that this file system cannot flush folders
            raise
    finally:
        os.close(number)


def open_regular(path: Path, mode: str = "rb", follow: bool = True) -> IO[bytes]:
    """Open a regular file at a path that comes from an untrusted source.

    Args:
        mode: "rb" or "wb".
        follow: whether to follow a symbolic link at the end of the path. If not, a link is an error.

    Raises:
        OSError: the file cannot be opened, or is not a regular file. A FIFO or a device could block the caller forever.
    """
    flags = os.O_RDONLY if mode == "rb" else os.O_WRONLY | os.O_CREAT
    flags |= 0 if follow else os.O_NOFOLLOW
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    if mode == "wb":
        os.ftruncate(descriptor, 0)
    return open(descriptor, mode)


def tail(path: Path, limit: int, since: int = 0) -> str:
    """Return the end of a log as text; empty if the log cannot be read.

    Args:
        limit: maximum number of bytes that are read.
        since: offset in bytes. Earlier bytes are left out. If the log has fewer bytes than `since`, it was emptied and
            written again. Then no bytes are left out.
    """
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(since if since <= size else 0, size - limit))
        return file.read(limit).decode(errors="replace")
    return ""


def files_below(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield the files below a folder, although other processes may delete some meanwhile. Path.rglob fails then.

    Links to files are included. Links to folders are not followed.

    Args:
        pattern: pattern of the files' names, as in a shell.
    """
    for place, _, names in os.walk(folder):
        yield from (path for name in fnmatch.filter(names, pattern) if (path := Path(place, name)).is_file())


class GarbageCollection:
    """Collects garbage in a process that runs for long, at most once in COLLECT_SECONDS.

    Python keeps up to 2000 freed tuples of each length until it collects all garbage, which it rarely does by itself. A
    new tuple takes the memory of a kept one, but not if it is made from a generator, and in CPython 3.11 not if it has
    20 elements. So without this, a process grows for an hour.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()

    def run_if_due(self) -> None:
        if time.monotonic() - self._last >= COLLECT_SECONDS:
            gc.collect()
            self._last = time.monotonic()


def end_with_parent(number: int = signal.SIGKILL, parent: int = 0) -> None:
    """Make the kernel send a signal to this process when its parent ends. The parent is the thread that started it.

    Args:
        number: number of the signal.
        parent: the parent's process ID. If the parent has already ended, send the signal now. 0: do not check. Then
            something else has to end this process if its parent ends early, for example a closed pipe.
    """
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)  # after a fork, the parent's handler would ignore the signal
    ctypes.CDLL(None).prctl(1, number)  # 1 is PR_SET_PDEATHSIG
    if parent and os.getppid() != parent:
        os.kill(os.getpid(), number)


def ending_with_us(number: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` for a child process. It makes the kernel send a signal to the child when this thread ends.

    Args:
        number: number of the signal.
    """
    return functools.partial(end_with_parent, number, os.getpid())
