"""Find out whether a site's factory is in use. Several runs share the factory that the first run started.

A factory with `--while-used` ends when its last user has ended. A user is a process that holds a shared lock on a file.
The kernel releases this lock when the process ends, even if the process is killed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from glide.config import SiteFile
from glide.factory.home import site_folder

POLL_SECONDS = 0.5  # seconds between two checks whether the factory is in use


@contextmanager
def use_factory(site: SiteFile) -> Iterator[None]:
    """Make this process a user of the site's factory while the block runs."""
    with _users_file(site) as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield


def is_used(site: SiteFile) -> bool:
    """Return whether a process uses the site's factory."""
    with _users_file(site) as users:
        return not _is_free(users)


def stop_when_unused(sites: Sequence[SiteFile]) -> None:
    """End this factory's process when no other process uses the factory any more.

    A thread waits until no process uses any of the factory's sites, and then sends SIGTERM to this process.
    """

    def watch() -> None:
        while any(is_used(site) for site in sites):
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    # Hold a lock for each site. The lock is a sign for other processes: this factory runs with `--while-used`.
    for site in sites:
        file = _while_used_file(site).open("w", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        _locks.append(file)
    threading.Thread(target=watch, daemon=True, name="users").start()


def ends_when_unused(site: SiteFile) -> bool:
    """Return whether the site's factory runs with `--while-used`."""
    with _while_used_file(site).open("a", encoding="utf-8") as file:
        return not _is_free(file)


_locks: list[IO[str]] = []


def _is_free(file: IO[str]) -> bool:
    """Return whether no other process holds a lock on the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _users_file(site: SiteFile) -> IO[str]:
    return (site_folder(site) / "users.lock").open("a", encoding="utf-8")


def _while_used_file(site: SiteFile) -> Path:
    return site_folder(site) / "while-used.lock"
