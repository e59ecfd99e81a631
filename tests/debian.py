"""Real programs of Debian's for tests, fetched once into the cache, without root and without touching the system."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from glide.condor import install
from glide.files.elf import repoint


class Fetched:
    """What packages put where nothing is installed.

    Attributes:
        root: what would be `/`.
        environment: for programs of it.
    """

    def __init__(self, root: Path):
        self.root = root
        folders = sorted({str(path.parent) for path in root.glob("**/*.so*")}, key=len)
        self.environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}

    def program(self, path: str) -> str:
        return str(self.root / path)


def fetched(*packages: str) -> Fetched:
    """Packages of the system's own suite, with the libraries that they need and it may lack."""

    def put(apt: install.PrivateApt, staging: Path) -> None:
        install.unpack(_own(apt, packages), staging, relocatable=False)

    return Fetched(_once(packages[0], put))


def relocated(package: str, suite: str, adapt: Callable[[Path], None]) -> Path:
    """A package of another suite of Debian, which runs with its own libraries.

    Args:
        adapt: what is to be done to the unpacked folder before it has come to lie where it stays.
    """

    def put(apt: install.PrivateApt, staging: Path) -> None:
        apt.use(suite)
        install.unpack(apt.download(package), staging)
        adapt(staging)
        repoint(staging, staging.with_suffix(""))

    return _once(package, put)


def _own(apt: install.PrivateApt, packages: tuple[str, ...]) -> list[Path]:
    """Without what the system's programs run with anyway: a second libc would be another one's."""
    return [path for path in apt.download(*packages) if not path.name.startswith(("libc6_", "libgcc-", "libstdc++"))]


def _once(name: str, put: Callable[[install.PrivateApt, Path], None]) -> Path:
    prefix = install.cache_dir() / name
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with prefix.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not prefix.exists():
            apt = install.PrivateApt(prefix.with_suffix(".apt"))
            apt.refresh()
            staging = prefix.with_suffix(".unpacking")
            put(apt, staging)
            staging.rename(prefix)
            shutil.rmtree(apt.state)
    return prefix
