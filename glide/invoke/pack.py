"""How many records a job carries: a pure function of what is left and what has been measured.

Guided self-scheduling (Polychronopoulos and Kuck, 1987): each job takes a share of what is left, so the first
jobs are large, the last ones small, and the lanes finish together. Jobs are submitted in waves, just ahead of
the lanes' hunger, so that each wave is sized by the newest estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 3  # a job takes 1/SHARE of a lane's part of what is left
# While nothing has been measured, a job takes its share within these records: enough that fast lanes do not run dry
# before their pace is known, and no more than slow ones can do.
PROBE_RECORDS = (8, 128)
# A job costs the access point about START_SECONDS whatever it carries; all lanes' jobs together may keep it busy for
# AP_SHARE of the time, and the smallest job is worth many starts even where there is one lane.
START_SECONDS = 0.06
AP_SHARE = 0.5
SHORTEST_SECONDS = 2.0
# What a lost node had finished is safe, but the rest of its job has to be sent again: so jobs end, as a rule, before
# their nodes do, and none is longer than this, but where the access point could not start as many.
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


def pack(
    left: int,
    lanes: int,
    queued: int,
    paces: Sequence[float] = (),
    batch: int = 1,
    fixed: int | None = None,
    eviction_rate: float = 0.0,
    start_seconds: float = START_SECONDS,
    undone: int = 0,
) -> Wave:
    """Size the next wave.

    Args:
        left: records in no job yet.
        lanes: how many lanes there are, or are going to be.
        queued: jobs in the queue, running ones included.
        paces: measured seconds per record, one for each lane that has measured: GPU models differ.
        batch: records of an engine call; a job carries whole calls, for half a call takes more than half the time.
        fixed: records per job, when the user has fixed it.
        eviction_rate: losses per lane and second.
        start_seconds: what a job's start costs the access point.
        undone: records without a result, those in jobs included.
    """
    lanes = max(1, lanes)
    room = max(FIXED_AHEAD if fixed else 0, lanes * AHEAD) - queued
    if not paces and not fixed:  # jobs are small as yet: no more of them wait than the access point can start soon
        room = min(room, lanes + int(SHORTEST_SECONDS / start_seconds) - queued)
    if left <= 0 or room <= 0:
        return Wave((), "the lanes have work")
    if fixed is not None:
        return Wave(_cut(left, [fixed] * room), f"{fixed} records a job, as fixed by the sweep")
    if not paces:
        least, most = PROBE_RECORDS
        # Fewer where there are not as many for each lane: they may take a minute each, and a run gets no more glideins
        # than it has jobs. But no more jobs than can be started soon.
        least = min(least, max(math.ceil(left / lanes), math.ceil(left * start_seconds / SHORTEST_SECONDS)))
        size = min(max(math.ceil(left / lanes / SHARE), least), most)
        return Wave(_cut(left, [size] * room), f"{size} records a job until their time is known")
    slowest = max(paces)  # any lane may get any job, and the last one must not be long on the slowest
    if slowest == 0:
        return Wave((left,), f"all {left} records in one job: they take no time")
    speed = lanes * sum(1 / max(pace, slowest / 1000) for pace in paces) / len(paces)
    work = max(left, undone) * lanes / speed  # seconds, for one lane
    # At the end a job each for the lanes; or fewer, so that all their starts take as long as one of them runs.
    last = max(work / lanes, math.sqrt(work * start_seconds))
    shortest = max(SHORTEST_SECONDS, min(lanes * start_seconds / AP_SHARE, last))
    longest = max(shortest, min(LONGEST_SECONDS, 0.25 / eviction_rate if eviction_rate else LONGEST_SECONDS))
    least = batch * math.ceil(shortest * speed / lanes / batch)
    most = batch * max(1, int(longest / slowest / batch))
    sizes: list[int] = []
    remaining = left
    for _ in range(room):
        share = batch * math.ceil(remaining / speed / SHARE / slowest / batch)
        # What the access point needs counts for more, as long as the slowest lane is done with it when the others are.
        cap = max(most, batch * int(min(remaining / speed / slowest, shortest * speed / lanes) / batch))
        size = min(max(share, least), cap, remaining)
        if size == 0:
            break
        if remaining - size < least:  # no crumbs, whose job would end last: two jobs alike, or one
            half = batch * math.ceil(remaining / 2 / batch)
            size = min(half if remaining > cap or remaining - half >= 0.75 * least else remaining, cap)
        sizes.append(size)
        remaining -= size
    pace = f"{1000 * min(paces):.3g}" + (f" to {1000 * slowest:.3g}" if slowest > 1.05 * min(paces) else "")
    return Wave(tuple(sizes), f"{sizes[0]} records a job: {pace} ms each, {left} left, {lanes} lanes")


def eviction_rate(evictions: int, lanes: int, seconds: float) -> float:
    """Jobs lost per lane and second, as far as has been seen in the seconds since the first lane was warm."""
    return evictions / (lanes * (seconds + 60.0))


def _cut(left: int, sizes: list[int]) -> tuple[int, ...]:
    """The sizes, shortened so that they sum to at most what is left."""
    cut = []
    for size in sizes:
        if left <= 0:
            break
        cut.append(min(size, left))
        left -= size
    return tuple(cut)
