"""Decide how many standing jobs a model needs. The decision is a pure function, and each action has a reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

IDLE_SECONDS = 60.0  # a lane that was not needed for this number of seconds is given back to batch jobs
RETIRES_SECONDS = 30.0  # a lane is replaced this number of seconds before its glidein retires
RECONNECT_SECONDS = 10.0  # a job that runs, but is not connected for this number of seconds, is replaced
SPARE_CALLS = 0.9  # a lane is full if it has this share of its capacity


@dataclass(frozen=True)
class ConnectedJob:
    """A standing job whose lane is connected.

    Attributes:
        name: the job's name.
        glidein: GlideId of its glidein.
        capacity: number of calls that its engine should have at a time; 0 while it is not ready.
        calls: number of calls that it computes now.
        retires: Unix time after which the glidein should get no further calls; 0 if it is unknown.
        is_ending: whether it gets no further calls.
    """

    name: str
    glidein: str
    capacity: int
    calls: int
    retires: int
    is_ending: bool


@dataclass(frozen=True)
class WaitingJob:
    """A standing job in the queue whose lane is not connected.

    Attributes:
        running_seconds: seconds since it runs without a connection; None if it does not run.
        hold_reason: why it is held; empty if it is not held.
        was_lost: whether its connection broke. It may connect again, but its node is probably lost.
    """

    name: str
    running_seconds: float | None = None
    hold_reason: str = ""
    was_lost: bool = False


@dataclass(frozen=True)
class ModelDemand:
    """The facts about a model that decide its number of standing jobs.

    Attributes:
        most: maximum number of glideins that may serve its calls at the same time.
        connected: the standing jobs whose lanes are connected.
        waiting: the standing jobs that are submitted and not connected.
        demand: the largest number of calls that were unfinished at the same time within IDLE_SECONDS.
        capacity: number of calls that an engine should have at a time, as last known; 0 if it is unknown.
        idle_seconds: seconds without a call after which no job is kept. None: one job is always kept.
        last_call: Unix time when the last call was unfinished, or when the server has started.
        now: Unix time.
    """

    most: int
    connected: Sequence[ConnectedJob] = ()
    waiting: Sequence[WaitingJob] = ()
    demand: int = 0
    capacity: int = 0
    idle_seconds: float | None = None
    last_call: float = 0.0
    now: float = 0.0

    def wanted(self, have: int) -> tuple[int, str]:
        """Return the number of jobs that the model needs, and the reason.

        Args:
            have: number of jobs that it has.
        """
        needed = math.ceil(self.demand / (SPARE_CALLS * self.capacity)) if self.capacity else min(self.demand, 1)
        if needed > 1:
            return min(needed, self.most), f"{self.demand} calls, {self.capacity} calls a lane"
        if self.idle_seconds is None:
            return 1, "one lane is always kept"
        if needed:
            return 1, "a call needs a lane"
        if have and self.now - self.last_call < self.idle_seconds:
            return 1, "one lane is kept for a while"
        return 0, f"no call for {self.idle_seconds:g} s"


@dataclass(frozen=True)
class StartJobs:
    """Submit standing jobs.

    Attributes:
        count: number of jobs.
        avoid: GlideIds of glideins that already serve calls.
    """

    count: int
    avoid: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class EndJob:
    """End a standing job. A connected job ends when its calls have results. Other jobs are removed from the queue."""

    name: str
    reason: str


def plan(model: ModelDemand) -> list[StartJobs | EndJob]:
    """Return what must be done so that a model has the standing jobs that it needs.

    There are several if the calls need more than the capacity of one lane. Without calls, one job is kept, always or
    for a while.
    """
    actions: list[StartJobs | EndJob] = []
    staying: list[ConnectedJob] = []
    for job in model.connected:
        if job.is_ending:
            continue
        if job.retires and job.retires - model.now < RETIRES_SECONDS:
            actions.append(EndJob(job.name, "its glidein retires"))
        else:
            staying.append(job)
    hopeful: list[WaitingJob] = []
    for waiting in model.waiting:
        if waiting.hold_reason:
            actions.append(EndJob(waiting.name, f"held: {waiting.hold_reason}"))
        elif waiting.running_seconds is not None and waiting.running_seconds > RECONNECT_SECONDS:
            actions.append(EndJob(waiting.name, "its lane does not connect"))
        elif not waiting.was_lost:  # otherwise, another job replaces it at once
            hopeful.append(waiting)
    have = len(staying) + len(hopeful)
    wanted, why = model.wanted(have)
    if have < wanted:
        avoid = tuple(sorted({job.glidein for job in model.connected}))
        actions.append(StartJobs(wanted - have, avoid, f"{why}: {wanted} lanes wanted, {have} jobs"))
    surplus = have - wanted
    for idle in [job for job in hopeful if job.running_seconds is None][: max(0, surplus)]:
        actions.append(EndJob(idle.name, "no longer needed"))
        surplus -= 1
    for free in sorted(staying, key=lambda job: job.calls)[: max(0, surplus)]:
        actions.append(EndJob(free.name, f"not needed for {IDLE_SECONDS:g} s" if wanted else why))
    return actions
