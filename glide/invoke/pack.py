"""How many records a job carries: a pure function of what is left and what has been measured.

Guided self-scheduling (Polychronopoulos and Kuck, 1987): each job takes a share of what is left, so the first
jobs are large, the last ones small, and the lanes finish together. Jobs are submitted in waves, just ahead of
the lanes' hunger, so that each wave is sized by the newest estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PROBE_RECORDS = 32  # a job's size while nothing has been measured
SHARE = 3  # a job takes 1/SHARE of a lane's part of what is left
# A job costs the access point about 60 ms whatever it carries, so the smallest is worth many times that;
# the largest bounds what is lost with a node.
SHORTEST_SECONDS = 2.0
LONGEST_SECONDS = 60.0
# Jobs in the queue per lane: one runs, one more is there when it ends.
AHEAD = 2
# Jobs of a size that the user has fixed may be so short that no wave keeps ahead of the lanes.
FIXED_AHEAD = 1000


@dataclass(frozen=True)
class Wave:
    """Sizes of the jobs to submit now, and the reason in words."""

    sizes: tuple[int, ...]
    reason: str


def pack(left: int, lanes: int, queued: int, record_seconds: float | None, fixed: int | None = None) -> Wave:
    """Size the next wave.

    Args:
        left: records in no job yet.
        lanes: how many lanes there are, or are going to be.
        queued: jobs in the queue, running ones included.
        record_seconds: a lane's measured seconds per record; None before the first result.
        fixed: records per job, when the user has fixed it.
    """
    room = (FIXED_AHEAD if fixed else max(1, lanes) * AHEAD) - queued
    if left <= 0 or room <= 0:
        return Wave((), "the lanes have work")
    if fixed is not None:
        return Wave(_cut(left, [fixed] * room), f"{fixed} records a job, as fixed by the sweep")
    if record_seconds is None:
        return Wave(_cut(left, [PROBE_RECORDS] * room), f"{PROBE_RECORDS} records a job until their time is known")
    least = max(1, math.ceil(SHORTEST_SECONDS / record_seconds)) if record_seconds > 0 else left
    most = max(1, int(LONGEST_SECONDS / record_seconds)) if record_seconds > 0 else left
    sizes: list[int] = []
    remaining = left
    for _ in range(room):
        size = min(max(math.ceil(remaining / (max(1, lanes) * SHARE)), least), most, remaining)
        if size == 0:
            break
        if remaining - size < least:  # no crumbs: a job of its own for them would end last
            size = min(remaining, most)
        sizes.append(size)
        remaining -= size
    reason = f"{sizes[0]} records a job: {1000 * record_seconds:.3g} ms each, {left} left, {lanes} lanes"
    return Wave(tuple(sizes), reason)


def _cut(left: int, sizes: list[int]) -> tuple[int, ...]:
    """The sizes, shortened so that they sum to at most what is left."""
    cut = []
    for size in sizes:
        if left <= 0:
            break
        cut.append(min(size, left))
        left -= size
    return tuple(cut)
