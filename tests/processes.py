"""Processes on this machine that an engine or a glidein of a test runs as."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def processes_in(folder: Path) -> list[int]:
    """Engines that work in a server's folder, or somewhere in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            works = (process / "cwd").resolve().is_relative_to(folder)
            words = (process / "cmdline").read_bytes()
            if works and b"engine_process" in words and b"keeper.py" not in words:
                found.append(int(process.name))
    return found


def glideins(node: Path) -> list[int]:
    """The condor_masters that run from a node's cache: from what was unpacked there, so through its own loader."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            loaded = (process / "maps").read_text()
        except OSError:
            continue
        if b"condor_master" in words and f"{node}/trees/" in loaded:
            found.append(int(process.name))
    return found


def processes_with(word: str) -> list[int]:
    """Return the processes whose command contains a word."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found
