"""What goes wrong during the soak, and when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from glide.condor import EmbeddedPool

KILL_SECONDS = 20.0  # seconds between two kills of a glidein
SCHEDD_SECONDS = 600.0  # seconds between two kills of the schedd
EDIT_SECONDS = 420.0  # seconds between two changes of the site file
FULL_SECONDS = 30.0  # seconds for which the disk is full
STEP_SECONDS = 120  # seconds by which the clock is ahead for a while
QUIET_SECONDS = 60.0  # seconds at the beginning and at the end without faults
DISK_MEGABYTES = 3000  # size of the disk on which everything is


@dataclass(frozen=True)
class Fault:
    """A fault that happens a number of seconds after the beginning."""

    second: float
    name: str


def schedule(seconds: float) -> list[Fault]:
    """Return the faults of a soak in the order of their times. Each kind happens at least once.

    Args:
        seconds: duration of the soak.
    """
    begin, end = QUIET_SECONDS, seconds - QUIET_SECONDS
    found = [Fault(second, "glidein") for second in _every(begin, end, KILL_SECONDS)]
    found += [Fault(second, "schedd") for second in _every(begin, end, min(SCHEDD_SECONDS, seconds / 2))]
    found += [Fault(second, "site") for second in _every(begin, end, min(EDIT_SECONDS, seconds / 3))]
    found += [Fault(0.37 * seconds, "clock ahead"), Fault(0.53 * seconds, "clock back"), Fault(0.65 * seconds, "disk")]
    return sorted(found, key=lambda fault: fault.second)


def _every(begin: float, end: float, pause: float) -> Iterator[float]:
    second = max(begin, pause)
    while second < end:
        yield second
        second += pause


class Faults:
    """Makes the faults happen.

    Args:
        site: the site file of the factory. Its first entry is changed.
        disk: folder of the disk with everything on it, which can be filled; None if it cannot.
        clock: file with the number of seconds by which the access point's clock is ahead.
    """

    def __init__(self, pool: EmbeddedPool, site: Path, disk: Path | None, clock: Path):
        self.pool = pool
        self.site = site
        self.disk = disk
        self.clock = clock
        self.counts: dict[str, int] = {}

    def happen(self, fault: Fault) -> None:
        """Make a fault happen, and count it if it was possible."""
        actions: Mapping[str, Callable[[], bool]] = {
            "glidein": self._kill_glidein, "schedd": self._kill_schedd, "site": self._edit_site,
            "clock ahead": lambda: self._step_clock(STEP_SECONDS), "clock back": lambda: self._step_clock(0),
            "disk": self._fill_disk,
        }  # fmt: skip
        self.counts[fault.name] = self.counts.get(fault.name, 0) + actions[fault.name]()

    def _kill_glidein(self) -> bool:
        masters = self.pool.glidein_masters()
        for master in random.sample(masters, min(1, len(masters))):
            master.send(signal.SIGKILL)
        return bool(masters)

    def _kill_schedd(self) -> bool:
        found = self.pool.daemons("condor_schedd")
        for schedd in found:
            schedd.send(signal.SIGKILL)
        return bool(found)

    def _edit_site(self) -> bool:
        """Change the number of glideins of the first entry, which the factory must notice by itself."""
        content = yaml.safe_load(self.site.read_text("utf-8"))
        entry = content["entries"][0]
        entry["max_glideins"] = 3 if entry["max_glideins"] > 3 else 4
        self.site.write_text(yaml.safe_dump(content), "utf-8")
        return True

    def _step_clock(self, seconds: int) -> bool:
        self.clock.write_text(f"+{seconds}s\n", "utf-8")
        return True

    def _fill_disk(self) -> bool:
        if self.disk is None:
            return False
        ballast = self.disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        time.sleep(FULL_SECONDS)
        ballast.unlink()
        return True


@contextmanager
def own_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a file system of its own at a folder. Without the right to do so, yield None."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 30
        while subprocess.run(["umount", str(folder)], capture_output=True).returncode and time.monotonic() < deadline:
            time.sleep(0.5)
