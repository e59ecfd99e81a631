"""Processes found by what they are, read from /proc: a pid file may be stale, an environment is not."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME_LENGTH = 15  # what Linux keeps of a program's name


@dataclass(frozen=True)
class Process:
    """A running process and the environment it was started with."""

    pid: int
    name: str
    environment: frozenset[bytes]
    parent: int

    def variable(self, name: str) -> str | None:
        prefix = f"{name}=".encode()
        return next((os.fsdecode(entry[len(prefix) :]) for entry in self.environment if entry.startswith(prefix)), None)

    def send(self, number: int) -> None:
        """Send a signal; a process that is already gone is no error."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def with_variable(name: str, value: str) -> list[Process]:
    """All live processes of ours whose environment has name=value, except this one."""
    wanted = f"{name}={value}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with suppress(OSError):  # ended meanwhile, or another user's
            environment = frozenset((folder / "environ").read_bytes().split(b"\0"))
            # A zombie has no environment any more, so it is never found here.
            if wanted in environment and pid != os.getpid():
                name = (folder / "comm").read_text("utf-8", "replace").strip()
                parent = int((folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
                found.append(Process(pid, name, environment, parent))
    return found


def daemons(found: list[Process], name: str) -> list[Process]:
    """Of these the daemons of a name, without what they fork: that has their name until it runs another program."""
    named = [process for process in found if process.name == name[:NAME_LENGTH]]
    forked = {process.pid for process in named}
    return [process for process in named if process.parent not in forked]
