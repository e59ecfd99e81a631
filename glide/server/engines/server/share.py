"""The part of the machine that belongs to this glidein, and the memory that a program uses."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glide.job_ad import read_ad


@dataclass(frozen=True)
class Share:
    """The part of the machine that belongs to this glidein.

    Attributes:
        cpus: number of CPU cores.
        memory: main memory in MB.
    """

    cpus: int
    memory: float


def share() -> Share:
    """Return this glidein's share, as HTCondor writes it to the ad of the outer job's machine.

    Without such an ad, return all cores and half of the free memory, because other programs also use the machine.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 1e6
    cpus = len(os.sched_getaffinity(0))
    ad = read_ad(os.environ.get("_CONDOR_MACHINE_AD"))
    return Share(int(_number(ad.get("Cpus"), cpus)), _number(ad.get("Memory"), memory / 2))


def _number(text: str, default: float) -> float:
    return float(text) if text.isdecimal() and int(text) else default


def tree_megabytes(process: int) -> float:
    """Return the memory of a process and all its descendants in MB. Shared memory is counted once (PSS)."""
    total = 0.0
    with suppress(OSError):
        found = re.search(r"(?m)^Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text("utf-8"))
        total = int(found[1]) / 1000 if found else 0.0
        for thread in Path(f"/proc/{process}/task").iterdir():
            total += sum(tree_megabytes(int(child)) for child in (thread / "children").read_text("utf-8").split())
    return total
