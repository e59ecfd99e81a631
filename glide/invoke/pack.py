"""Choose the number of records of each job. This module only computes: it uses neither HTCondor nor a clock.

The method is guided self-scheduling (Polychronopoulos and Kuck, 1987). Each job gets a share of the pending records,
which are the records that are in no job yet. So the first jobs are large, the last jobs are small, and the lanes finish
together. Jobs are submitted in waves, just before the lanes need them, so that each wave uses the newest measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

SHARE = 3  # a job gets (number of pending records) / (number of lanes) / SHARE records
# Minimum and maximum number of records of a job as long as no lane's speed is known. A smaller job would be too short
# for fast lanes. If a job turns out to be too long, the driver takes records back from it.
UNMEASURED_RECORDS = (8, 4096)
# The access point needs about START_SECONDS to start a job. This time does not depend on the job's number of records.
# The access point may spend the fraction AP_SHARE of its time on starting jobs. So with more lanes, jobs must take
# longer. In addition, a job should take at least SHORTEST_SECONDS, so that its start is short in comparison.
START_SECONDS = 0.06
AP_SHARE = 0.5
SHORTEST_SECONDS = 2.0
# Maximum planned duration of a job, in seconds. When a node is lost, the unfinished records of its job are sent again.
# So a job should not be much longer than needed. But if there are very many lanes, the access point cannot start enough
# short jobs. In this case, jobs take longer than this maximum.
LONGEST_SECONDS = 300.0
# Maximum number of records of a job, except if the user has fixed the number. The driver reads all results of a job
# into memory, so the number must be limited. A job reaches this maximum only if each record takes less than 9 ms. With
# very many fast lanes, jobs may have more records (see `largest` below).
MOST_RECORDS = 1 << 15
# Number of jobs in the queue for each lane. While one job runs, a second job waits.
AHEAD = 2
# Minimum number of jobs in the queue if the user has fixed the number of records per job. Such jobs may be very short,
# and then two jobs for each lane would not keep the lanes busy.
FIXED_AHEAD = 1000


# While a job runs, its results are transferred to the access point. One transfer takes the job's shadow about
# TRANSFER_SECONDS of CPU time. All shadows together may use TRANSFER_SHARE of one core for these transfers.
TRANSFER_SECONDS = 0.0002
TRANSFER_SHARE = 0.5


@dataclass(frozen=True)
class Wave:
    """The jobs to submit now.

    Attributes:
        sizes: the number of records of each job; empty if no job is to be submitted.
        reason: why the jobs have these sizes, or why there is no job, as text for the user.
    """

    sizes: tuple[int, ...]
    reason: str


def pack(
    pending: int,
    lanes: int,
    queued: int,
    record_seconds: Sequence[float] = (),
    batch: int = 1,
    fixed: int | None = None,
    eviction_rate: float = 0.0,
    start_seconds: float = START_SECONDS,
    unfinished: int = 0,
    missing: int = 0,
    limit: int | None = None,
) -> Wave:
    """Return the number of records of each job in the next wave.

    Args:
        pending: number of records that are in no job yet.
        lanes: number of lanes on which jobs can start; before the first measurement, number of expected lanes.
        queued: number of jobs in the queue, including running jobs.
        record_seconds: seconds per record of a lane, one value for each glidein that has been measured. The lanes of a
            glidein share one engine. So if a glidein has n lanes, its value is n times the engine's seconds per record.
        batch: number of records in one engine call. A job gets a multiple of this number, because a call with half of
            the records takes more than half of the time.
        fixed: number of records per job if the user has fixed this number, else None.
        eviction_rate: average number of jobs that are lost on one lane in one second.
        start_seconds: time that the access point needs to start a job, in seconds.
        unfinished: number of records without a result, including the records that are in jobs.
        missing: number of glideins that the run may still get. The factory starts at most one glidein for each job.
        limit: maximum number of jobs in the wave; None if only the lanes limit it.
    """
    lanes = max(1, lanes)
    most_jobs = max(FIXED_AHEAD if fixed else 0, lanes * AHEAD, lanes + missing) - queued
    if not record_seconds and not fixed:
        # Until a lane has been measured, the best size of a job is unknown. So the queue may contain only these jobs:
        # - one job for each lane
        # - as many further jobs as the access point can start within SHORTEST_SECONDS
        most_jobs = min(most_jobs, lanes + int(SHORTEST_SECONDS / start_seconds) - queued)
    most_jobs = most_jobs if limit is None else min(most_jobs, limit)
    if pending <= 0 or most_jobs <= 0:
        return Wave((), "the lanes have work")
    if fixed is not None:
        return Wave(_cut(pending, [fixed] * most_jobs), f"{fixed} records a job, as fixed by the sweep")
    if not record_seconds:
        least, most = UNMEASURED_RECORDS
        # If few records are pending, a job may have fewer records than the usual minimum. The reasons are:
        # - With smaller jobs, there are more jobs.
        # - A run gets at most one glidein for each job. So with more jobs, the run can get more glideins.
        # - If each record takes long, such as a minute, more glideins shorten the run.
        # The number of these smaller jobs has two upper limits:
        # - the number of lanes
        # - the number of jobs that the access point can start within SHORTEST_SECONDS
        least = min(least, max(math.ceil(pending / lanes), math.ceil(pending * start_seconds / SHORTEST_SECONDS)))
        size = min(max(math.ceil(pending / lanes / AHEAD), least), most)
        size = batch * math.ceil(size / batch) if size > batch else size
        return Wave(_cut(pending, [size] * most_jobs), f"{size} records a job until their time is known")
    measured = numpy.asarray(record_seconds)
    slowest, fastest = float(measured.max()), float(measured.min())
    if slowest == 0:
        return Wave(_cut(pending, [MOST_RECORDS] * most_jobs), "jobs of the largest size: the records take no time")
    # The speed of all lanes together, in records per second. HTCondor may give any job to any lane. A job for an
    # average lane may be too long for a slow lane, which then gives records back at the end of the run.
    speed = lanes * float((1 / numpy.maximum(measured, slowest / 1000)).mean())
    work = max(pending, unfinished) * lanes / speed  # seconds that one lane would need for all remaining records
    # Planned duration of a job at the end of the run, in seconds. All jobs at the end have the same duration:
    # - If the access point starts jobs quickly, the remaining records are divided into one job for each lane.
    # - If the access point starts jobs slowly, the remaining records are divided into fewer and longer jobs. The
    #   duration of one job is then the time that the access point needs to start all these jobs.
    last = max(work / lanes, math.sqrt(work * start_seconds))
    shortest = max(SHORTEST_SECONDS, min((lanes + missing) * start_seconds / AP_SHARE, last))
    longest = max(shortest, min(LONGEST_SECONDS, 0.25 / eviction_rate if eviction_rate else LONGEST_SECONDS))
    least = batch * math.ceil(shortest * speed / lanes / batch)
    # The access point can start only a limited number of jobs per second. These jobs must contain enough records for
    # all lanes. So if there are very many fast lanes, a job may have more than MOST_RECORDS records.
    largest = batch * math.ceil(max(MOST_RECORDS, speed * start_seconds / AP_SHARE) / batch)
    least = min(least, largest)
    most = max(least, min(batch * max(1, int(longest * speed / lanes / batch)), largest))
    sizes: list[int] = []
    remaining = pending
    for _ in range(most_jobs):
        share = batch * math.ceil(remaining / lanes / SHARE / batch)
        size = min(max(share, least), most, remaining)
        if size == 0:
            break
        if remaining - size < least:  # instead of a tiny last job, make two equal jobs or one larger job
            half = batch * math.ceil(remaining / 2 / batch)
            size = min(half if remaining > most or remaining - half >= 0.75 * least else remaining, most)
        sizes.append(size)
        remaining -= size
    times = f"{1000 * fastest:.3g}" + (f" to {1000 * slowest:.3g}" if slowest > 1.05 * fastest else "")
    return Wave(tuple(sizes), f"{sizes[0]} records a job: {times} ms each, {pending} left, {lanes} lanes")


def stream_seconds(lanes: int) -> float:
    """Return the seconds between two transfers of a running job's new results to the access point.

    With more lanes, each lane transfers its results less often, so that the access point's load stays limited. The
    result is between 1 and 60.
    """
    return min(max(1.0, lanes * TRANSFER_SECONDS / TRANSFER_SHARE), 60.0)


def eviction_rate(evictions: int, lanes: int, seconds: float) -> float:
    """Return the average number of jobs that are lost on one lane in one second.

    Args:
        evictions: number of lost jobs.
        lanes: number of lanes.
        seconds: time since the first lane was warm.
    """
    return evictions / (lanes * (seconds + 60.0))


def _cut(pending: int, sizes: list[int]) -> tuple[int, ...]:
    """Return the sizes of jobs, reduced so that their sum is at most `pending`."""
    cut = []
    for size in sizes:
        if pending <= 0:
            break
        cut.append(min(size, pending))
        pending -= size
    return tuple(cut)
