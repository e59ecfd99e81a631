"""Move work at the end of a run, so that all glideins finish together. This module only computes.

When no records are pending, a glidein that has finished its jobs would be idle while others still work. So the driver
takes records back from the running jobs that would take longest, and submits them again. A job gives back only records
that it has not begun, so nothing is computed twice. If a job has begun all its records, the driver may submit a second
job with the same records, a twin. The result that comes first counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from glide.invoke.pack import START_SECONDS
from glide.sweep.view import Action, GlideinView, JobView, SubmitTwin, TakeBack

# A move takes the time until the driver has read the job's answer, and this number of seconds until the new job starts.
MOVE_SECONDS = 1.0
# A glidein gives records back only if it would finish later than the common end by this number of seconds, and by this
# share of the time until the common end.
GAIN_SECONDS = 0.5
GAIN_SHARE = 0.05
# If a job does not answer a request within this number of seconds, the driver may ask again. The number is larger than
# the longest time between two transfers of a job's results.
ANSWER_SECONDS = 90.0
# Maximum number of requests to give back records in one cycle. Each request is a transaction of the access point.
MOST_REQUESTS = 1000
MOST_TWINS = 20  # maximum number of twins in one cycle; each twin is a submission
# A twin is submitted only if it is expected to finish within this share of the time that the slow glidein still needs.
TWIN_SHARE = 0.5


def balance(
    running: Collection[JobView], waiting: int, glideins: Mapping[str, GlideinView], latency: float, now: float
) -> list[Action]:
    """Return which records are taken back, and which jobs get a twin.

    Call this function only if no records are pending.

    Args:
        running: the running jobs, also those of glideins that get no further jobs.
        waiting: number of records in jobs that wait for a lane.
        glideins: the glideins that can get jobs, by GlideId.
        latency: seconds from a decision until the driver can submit the records that are taken back.
        now: time of the driver's clock, in seconds.
    """
    measured = [each.record_seconds for each in glideins.values() if each.warm and each.record_seconds]
    if not measured:
        return []
    usual = sum(measured) / len(measured)
    paces = {name: each.record_seconds or usual for name, each in glideins.items()}
    jobs: defaultdict[str, list[JobView]] = defaultdict(list)
    starting = 0
    for job in running:
        jobs[name := job.glidein].append(job)
        starting += not job.begun
        if (glidein := glideins.get(name)) is None:
            if name:  # the glidein gets no further jobs, but its jobs can give records back
                paces.setdefault(name, usual)
        elif not glidein.record_seconds and glidein.warm:  # an engine that has finished no record may be very slow
            paces[name] = max(paces[name], now - max(job.since, glidein.since))
    left = {name: _seconds_left(jobs[name], pace, now) if name in jobs else 0.0 for name, pace in paces.items()}
    # The access point starts one job after the other. The new jobs start after those that it has to start now.
    move = MOVE_SECONDS + latency + starting * START_SECONDS
    # Glideins that have no work, or will soon have none, and so can take work over.
    helpers = [name for name, each in glideins.items() if each.warm and not each.retired and left[name] < move]
    late = sorted((name for name in left if left[name] > move + GAIN_SECONDS), key=left.__getitem__, reverse=True)
    if not helpers or not late:
        return []
    end, busy = _common_end(late, helpers, left, paces, move, waiting)
    # The access point needs START_SECONDS for each new job, and starts one after the other.
    while len(helpers) > 1 and len(helpers) * START_SECONDS > end - move:
        helpers = helpers[: len(helpers) // 2]
        end, busy = _common_end(late, helpers, left, paces, move, waiting)
    wanted = int(sum((end - busy) / paces[name] for name in helpers))
    wanted -= sum(job.records - job.asked for job in running if job.asked is not None and has_to_answer(job, now))
    keep: list[tuple[JobView, int]] = []
    for name in late:
        if wanted * usual < max(GAIN_SECONDS, (end - busy) / 2) or left[name] < end + max(
            GAIN_SECONDS, GAIN_SHARE * end
        ):
            break
        taken, some = _take_back(jobs[name], min(wanted, int((left[name] - end) / paces[name])), now)
        keep += some
        wanted -= taken
    if keep:
        return [TakeBack(tuple(keep[:MOST_REQUESTS]))]
    if waiting or any(has_to_answer(job, now) for job in running):
        return []
    return _twins(jobs, left, paces, helpers, move)[:MOST_TWINS]


def from_loading_glideins(
    running: Collection[JobView], idle: int, glideins: Mapping[str, GlideinView], now: float
) -> list[Action]:
    """For each free warm lane, take back all records of one job that waits for a template to be loaded.

    Jobs that were asked, and have not answered yet, count.

    Args:
        running: the running jobs.
        idle: number of jobs that wait for a lane.
        glideins: the glideins that can get jobs, by GlideId.
        now: time of the driver's clock, in seconds.
    """
    free = sum(each.free for each in glideins.values() if each.warm) - idle
    free -= sum(job.asked == 0 and has_to_answer(job, now) for job in running)
    if free <= 0:
        return []
    coming = (
        job for job in running if job.glidein in glideins and not glideins[job.glidein].warm and not job.twin
    )  # fmt: skip
    asked = [(job, 0) for job in coming if job.asked is None or now - job.asked_at > ANSWER_SECONDS]
    return [TakeBack(tuple(asked[: min(free, MOST_REQUESTS)]))] if asked else []


def _common_end(
    late: Sequence[str], helpers: Collection[str], left: Mapping[str, float], paces: Mapping[str, float], move: float,
    waiting: int,
) -> tuple[float, float]:  # fmt: skip
    """Return the seconds until the late glideins and the helpers finish together, if the helpers take work over.

    Also return the seconds until the helpers can begin with the work that they take over.

    Args:
        late: the glideins that have most work. The glidein that would finish last comes first.
        helpers: the glideins that have no work, or will soon have none.
        left: seconds that each glidein still needs.
        paces: seconds that each glidein needs per record.
        move: seconds until taken records can begin.
        waiting: number of records in jobs that wait for a lane. The helpers compute these first.
    """
    speed = sum(1 / paces[name] for name in helpers)
    end = busy = max(move, waiting / speed)
    records = speed * busy
    for number, name in enumerate(late):
        records += left[name] / paces[name]
        speed += 1 / paces[name]
        end = records / speed
        if number + 1 == len(late) or end >= left[late[number + 1]]:
            break
    return end, busy


def has_to_answer(job: JobView, now: float) -> bool:
    """Return whether a job was asked to give back records less than ANSWER_SECONDS ago, and has not answered."""
    return job.asked is not None and job.asked < job.records and now - job.asked_at < ANSWER_SECONDS


def _seconds_left(jobs: Sequence[JobView], pace: float, now: float) -> float:
    """Return the number of seconds that a glidein needs for its jobs, from now on.

    Args:
        jobs: the jobs that run on the glidein.
        pace: seconds that the glidein's engine needs per record.
    """
    records, read = 0, 0.0
    for job in jobs:
        records += job.unanswered
        if job.asked is not None and has_to_answer(job, now):
            records -= job.records - job.asked
        if job.read > read:
            read = job.read
    return max(0.0, pace * records - (now - read))


def _take_back(jobs: Collection[JobView], records: int, now: float) -> tuple[int, list[tuple[JobView, int]]]:
    """Take records back from a glidein's jobs. Begin with the job that has most records that are not begun.

    Args:
        records: number of records to take back.

    Returns:
        The number of records that the jobs can give back, and for each such job the number of records that it keeps.
    """
    keep: list[tuple[JobView, int]] = []
    taken = 0
    for job in sorted(jobs, key=lambda job: job.begun - job.records):
        number = min(records - taken, job.records - job.begun)
        if number > 0 and not job.twin and not has_to_answer(job, now):
            keep.append((job, job.records - number))
            taken += number
    return taken, keep


def _twins(
    jobs: Mapping[str, list[JobView]], left: Mapping[str, float], paces: Mapping[str, float], helpers: list[str],
    move: float,
) -> list[Action]:  # fmt: skip
    """Return twins for the jobs whose glidein needs far longer than a helper would need."""
    actions: list[Action] = []
    for helper, name in zip(helpers, sorted(left, key=lambda name: -left[name]), strict=False):
        for job in jobs.get(name, ()):
            needed = move + job.unanswered * paces[helper]
            if name not in helpers and not job.twin and job.unanswered and needed < TWIN_SHARE * left[name]:
                actions.append(SubmitTwin(job))
    return actions
