"""Decide what a driver does next. The function `decide` only computes: it uses neither HTCondor nor files nor a clock.

The driver of a sweep or session, and the simulated driver, call `decide_and_act` after each observation of the pool.
This function calls `decide`, and then the driver carries out the actions and updates the view. After a Gather, Peek or
RemoveJobs, `decide` is called again with the new view, but with the same time. So no output is read twice in a cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from operator import attrgetter

from glide.invoke.pack import Wave, eviction_rate, pack
from glide.sweep.balance import balance, from_loading_glideins, has_to_answer
from glide.sweep.view import (
    ANSWERED,
    AVOID_SECONDS,
    HELD,
    LOST,
    OUTDATED,
    RECUT,
    Action,
    Gather,
    GiveUp,
    JobView,
    Memory,
    Peek,
    Remind,
    RemoveJobs,
    SubmitJobs,
    View,
)
from glide.vocabulary import JobStatus

MOST_ROUNDS = 5  # maximum number of decisions in one cycle
PEEK_SECONDS = 2.0  # seconds between two reads of a running job's output, if the driver waits for no answer of the job
MOST_PEEKS = 1000  # maximum number of outputs that are read in one cycle, so that a cycle stays short
# While other jobs are in the queue, the driver gathers at most once in this number of seconds. One gather of many jobs
# costs the access point little more than a gather of one job. So the driver waits until it can gather several together.
GATHER_SECONDS = 1.0
# The driver counts how often it finds held jobs. A new result resets the count to 0. If the count is at most this
# number, the driver sends the records of the held jobs again. If the count is larger, the run fails.
MOST_HOLDS = 5
# If a job is idle for this number of seconds while a warm lane is free, the driver asks HTCondor for a new match.
STUCK_SECONDS = 5.0
# Waiting jobs are divided differently at most once in this number of seconds, and only if the right size differs from
# their size by this factor. Both limits keep the driver from dividing the same records again and again.
RECUT_SECONDS = 10.0
RECUT_FACTOR = 2


def decide(memory: Memory, view: View, now: float) -> list[Action]:
    """Return the actions for this view, in the order in which they have to be carried out.

    Args:
        memory: what the driver remembers. This function does not change it.
        view: what the driver observes. This function does not change it.
        now: time of the driver's clock, in seconds.
    """
    if view.give_up:
        return [GiveUp(view.give_up)]
    groups = _by_status(view)
    # First bring the view up to date: read results, and remove jobs that have to be submitted again.
    actions: list[Action] = []
    if groups.completed and (not groups.others or groups.held or now - memory.gathered > GATHER_SECONDS):
        actions.append(Gather(tuple(groups.completed)))
        if groups.held:
            return actions  # whether jobs are held in spite of progress depends on these results
    if groups.held and memory.holds_with(view) > MOST_HOLDS:
        first = groups.held[0]
        reason = f"HTCondor holds jobs repeatedly; reason for job {first.id}: {first.hold_reason}"
        return [*actions, GiveUp(reason, held=True)]
    for jobs, why in (
        (groups.outdated, OUTDATED), (groups.held, HELD), (groups.lost, LOST), (groups.answered, ANSWERED)
    ):  # fmt: skip
        if jobs:
            actions.append(RemoveJobs(tuple(jobs), why))
    if memory.peeked < now:
        last = now - PEEK_SECONDS if now - memory.peeked >= PEEK_SECONDS / 2 else float("-inf")
        if due := _to_read(groups.running, last, now):
            actions.append(Peek(tuple(due[:MOST_PEEKS])))
    if actions:
        return actions
    # Then decide where the records go.
    lanes = _lanes(view)
    free = lanes.free
    stuck = [job for job in groups.idle if job.id and now - job.since > STUCK_SECONDS] if free else []
    if stuck and now - memory.reminded > STUCK_SECONDS:
        actions.append(Remind(tuple(stuck)))
    if now - memory.recut > RECUT_SECONDS:
        if old := sorted((job for job in stuck if now - job.since > AVOID_SECONDS), key=lambda job: job.since)[:free]:
            # They may exclude glideins that work again. New jobs do not.
            return [*actions, RemoveJobs(tuple(old), RECUT)]
        queued = sorted(groups.idle, key=lambda job: job.since)[free:]  # the other jobs will start on the free lanes
        if _have_wrong_size(memory, view, lanes, queued, now):
            return [*actions, RemoveJobs(tuple(queued), RECUT)]
    submitted = 0
    if view.pending > 0:
        wave = _next_wave(memory, view, lanes, len(view.jobs) - len(groups.completed), now)
        submitted = sum(wave.sizes)
        if wave.sizes:
            actions.append(SubmitJobs(wave.sizes, wave.reason, submitted >= view.pending and view.all_known))
    if submitted >= view.pending:  # all records are in jobs, so the end is near
        early = from_loading_glideins(groups.running, len(groups.idle) + (submitted > 0), view.glideins, now)
        if early or view.fixed is not None:
            actions += early
        else:
            waiting = sum(job.unanswered for job in groups.idle) + view.pending
            # A job reads a request, and answers it, within `stream` seconds. The next cycle reads the answer.
            latency = view.cycle * math.ceil(view.stream / view.cycle)
            actions += balance(groups.running, waiting, view.glideins, latency, now)
    return actions


def decide_and_act(memory: Memory, view: View, now: float, act: Callable[[Action], None]) -> list[Action]:
    """Decide and act, and repeat both as long as the actions change what was decided. Return the last actions.

    Args:
        memory: what the driver remembers. It is updated.
        view: what the driver observes. The function `act` updates it.
        now: time of the driver's clock when it observed the pool, in seconds.
        act: function that carries out an action.
    """
    actions: list[Action] = []
    memory.observe(view, now)
    for _ in range(MOST_ROUNDS):
        actions = decide(memory, view, now)
        for action in actions:
            act(action)
            memory.note(action, view, now)
        if not any(isinstance(action, (Gather, Peek, RemoveJobs)) for action in actions):
            break
    return actions


@dataclass
class _Lanes:
    """The lanes of a view.

    Attributes:
        count: number of lanes on which jobs can start.
        free: number of warm lanes that no job has claimed.
        batch: number of records in an engine call, the largest of all warm glideins.
        paces: seconds per record of a lane, one value for each glidein that has been measured. Retired glideins count
            only if no other glidein has been measured.
        glideins: number of glideins on which jobs can start.
    """

    count: int = 0
    free: int = 0
    batch: int = 1
    paces: list[float] = field(default_factory=list)
    glideins: int = 0


def _lanes(view: View) -> _Lanes:
    lanes, retired = _Lanes(), []
    for each in view.glideins.values():
        if each.retired:
            if each.record_seconds:
                retired.append(each.record_seconds * each.lanes)
            continue
        lanes.glideins += 1
        lanes.count += each.lanes
        if each.warm:
            lanes.free += each.free
            if each.batch > lanes.batch:
                lanes.batch = each.batch
            if each.record_seconds:
                lanes.paces.append(each.record_seconds * each.lanes)
    lanes.paces = lanes.paces or retired
    return lanes


def _next_wave(
    memory: Memory, view: View, lanes: _Lanes, queued: int, now: float, returned: int = 0, limit: int | None = None
) -> Wave:
    """Return the sizes of the next jobs.

    Args:
        queued: number of jobs in the queue that have not completed.
        returned: number of records in waiting jobs that the caller may remove from the queue.
        limit: maximum number of jobs; None if only the lanes limit it.
    """
    # The factory starts at most one glidein for each job. So keep enough jobs for the glideins that may still come.
    missing = max(0, view.most_glideins - lanes.glideins)
    count = lanes.count if lanes.count and lanes.paces else max(lanes.count, 2 * view.most_glideins)
    losses = eviction_rate(memory.evictions, count, now - (memory.first_warm or memory.started))
    return pack(
        view.pending + returned, count, queued, lanes.paces, view.batch or lanes.batch, view.fixed, losses,
        unfinished=view.unfinished, missing=missing, limit=limit,
    )  # fmt: skip


def _to_read(running: Collection[JobView], last: float, now: float) -> list[JobView]:
    """Return the jobs to read: first those that have to answer a request, then those that were read long ago.

    Args:
        last: jobs that were read at this time or before are read again.
    """
    asked, due = [], []
    for job in running:
        if job.asked is not None and has_to_answer(job, now):
            asked.append(job)
        elif job.read <= last:
            due.append(job)
    due.sort(key=attrgetter("read"))
    return asked + due


def _have_wrong_size(memory: Memory, view: View, lanes: _Lanes, idle: Collection[JobView], now: float) -> bool:
    """Return whether the records of the waiting jobs should be divided differently, because more is known now.

    For example, the speed of the lanes has been measured, or there are more or fewer lanes than before.
    """
    if not idle or view.fixed is not None:
        return False
    records, largest, full = 0, 0, False
    for job in idle:
        if job.twin or not job.id:  # a job without a number has just been submitted, and was not observed yet
            return False
        records += job.unanswered
        if job.unanswered > largest:
            largest = job.unanswered
        full = full or job.full
    sizes = _next_wave(memory, view, lanes, len(view.jobs) - len(idle), now, records, limit=1).sizes
    if not sizes:
        return False
    if full:  # larger jobs would exceed the maximum size of an input file
        return largest > RECUT_FACTOR * sizes[0]
    return largest > RECUT_FACTOR * sizes[0] or (len(idle) > 1 and largest * RECUT_FACTOR < sizes[0])


class _Groups:
    """The jobs of a view, by what has to be done with them. A job is in one group only.

    Attributes:
        others: whether there are jobs that have not completed.
    """

    def __init__(self) -> None:
        self.completed: list[JobView] = []
        self.outdated: list[JobView] = []
        self.held: list[JobView] = []
        self.lost: list[JobView] = []
        self.answered: list[JobView] = []
        self.running: list[JobView] = []
        self.idle: list[JobView] = []
        self.others = False


def _by_status(view: View) -> _Groups:
    groups = _Groups()
    lost, running, idle = view.lost, groups.running, groups.idle
    is_idle, is_running = JobStatus.IDLE, JobStatus.RUNNING
    for job in view.jobs.values():  # a view may have 20,000 jobs, so the most frequent cases come first
        status = job.status
        if status == is_idle and not (job.outdated or job.twin):
            idle.append(job)
        elif status == is_running and not (job.outdated or job.twin or (lost and job.id in lost)):
            running.append(job)
        elif status == JobStatus.COMPLETED:
            groups.completed.append(job)
        elif job.outdated:
            groups.outdated.append(job)
        elif status == JobStatus.HELD:
            groups.held.append(job)
        elif job.id in lost:
            groups.lost.append(job)
        elif job.twin and not job.unanswered:
            groups.answered.append(job)
        elif status == JobStatus.RUNNING:
            running.append(job)
        elif status == JobStatus.IDLE:
            idle.append(job)
    groups.others = len(groups.completed) < len(view.jobs)
    return groups
