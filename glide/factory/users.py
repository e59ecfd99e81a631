"""Who uses a site's factory: runs share the one that the first of them has started, and it ends after the last.

A user holds a shared lock, which the kernel releases however it ends.
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
from glide.factory.daemon import folder

LOOK_SECONDS = 0.5  # between looks whether somebody uses it


@contextmanager
def use(site: SiteFile) -> Iterator[None]:
    """Have a factory that was started with `--while-used` stay."""
    with _file(site) as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield


def is_used(site: SiteFile) -> bool:
    """Whether somebody uses it."""
    with _file(site) as users:
        return not _takes(users)


def serve_users(sites: Sequence[SiteFile]) -> None:
    """Send this process, a factory of these sites, a SIGTERM when nobody uses any of them."""

    def watch() -> None:
        while any(is_used(site) for site in sites):
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    for site in sites:  # for as long as this process lives
        mine = _mark(site).open("w", encoding="utf-8")
        fcntl.flock(mine, fcntl.LOCK_EX)
        _held.append(mine)
    threading.Thread(target=watch, daemon=True, name="users").start()


def ends_by_itself(site: SiteFile) -> bool:
    """Whether the site's factory is one that ends when nobody uses it."""
    with _mark(site).open("a", encoding="utf-8") as mark:
        return not _takes(mark)


_held: list[IO[str]] = []


def _takes(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _file(site: SiteFile) -> IO[str]:
    return (folder(site) / "users.lock").open("a", encoding="utf-8")


def _mark(site: SiteFile) -> Path:
    return folder(site) / "while-used.lock"
