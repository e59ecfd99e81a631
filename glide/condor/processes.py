"""Find the processes of a pool by an environment variable, which is read from /proc.

A pid file could be out of date. The environment of a running process cannot be out of date.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME_LENGTH = 15  # maximum length of a process's name in Linux; Linux cuts off the rest


@dataclass(frozen=True)
class Process:
    """A running process and the environment that it was started with."""

    pid: int
    name: str
    environment: frozenset[bytes]
    parent: int

    def variable(self, name: str) -> str | None:
        """Return the value of an environment variable; None if it is not set."""
        prefix = f"{name}=".encode()
        return next((os.fsdecode(entry[len(prefix) :]) for entry in self.environment if entry.startswith(prefix)), None)

    def send(self, number: int) -> None:
        """Send a signal to the process. Do nothing if the process has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def with_variable(name: str, value: str) -> list[Process]:
    """Return the processes of this account whose environment contains `name=value`. Leave out this process."""
    wanted = f"{name}={value}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with suppress(OSError):  # the process has just ended, or belongs to another user
            environment = frozenset((folder / "environ").read_bytes().split(b"\0"))
            # Zombies are left out, because a zombie has no environment.
            if wanted in environment and pid != os.getpid():
                name = (folder / "comm").read_text("utf-8", "replace").strip()
                parent = int((folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
                found.append(Process(pid, name, environment, parent))
    return found


def children(pid: int) -> list[int]:
    """Return the process IDs of a process's children. If the process has ended, return an empty list."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):  # each thread has its own children
        with suppress(OSError):
            found += map(int, path.read_text("utf-8").split())
    return found


def daemons(found: list[Process], name: str) -> list[Process]:
    """Return the processes in `found` that are daemons with the program name `name`.

    Leave out forked copies of a daemon. A forked copy has the daemon's name until the copy runs another program.
    """
    named = [process for process in found if process.name == name[:NAME_LENGTH]]
    forked = {process.pid for process in named}
    return [process for process in named if process.parent not in forked]
