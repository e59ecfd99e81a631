"""A model whose calls are computed on standing jobs: its calls, its lanes, and its jobs in the queue."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from glide.live.links import LaneLink
from glide.live.plan import IDLE_SECONDS, ConnectedJob, ModelDemand, WaitingJob
from glide.live.router import CallRouter
from glide.live.status import ModelStatus
from glide.template import Template
from glide.vocabulary import State


@dataclass(frozen=True)
class LiveModel:
    """A model whose calls are computed on standing jobs.

    Attributes:
        name: name of the model in messages.
        template: what the nodes load.
        glideins: maximum number of glideins that serve calls at the same time.
    """

    name: str
    template: Template
    glideins: int


@dataclass
class ServedModel:
    """A model, its calls, and its standing jobs.

    Attributes:
        pending: the standing jobs that were submitted and are not connected, by name. The value is the time of the
            submission (monotonic seconds), until the queue shows the job.
        waiting: the same jobs as the queue shows them.
        ids: number of each standing job in the queue, by name.
        lost_at: when the connection of a job was lost that may connect again (monotonic seconds), by name.
        lanes: states of the model's lanes, and reasons of failures, as the collector reports them.
        peaks: numbers of unfinished calls with their times (monotonic seconds), for the demand.
        capacity: the last known number of calls that an engine should have at a time.
        problem: why no further standing job could be submitted; empty if there is no reason.
        not_ready_since: Unix time since when no lane can compute calls; 0 if one can.
    """

    offered: LiveModel
    router: CallRouter[LaneLink] = field(default_factory=CallRouter)
    pending: dict[str, float] = field(default_factory=dict)
    waiting: dict[str, WaitingJob] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    lost_at: dict[str, float] = field(default_factory=dict)
    lanes: tuple[tuple[str, str], ...] = ()
    peaks: deque[tuple[float, int]] = field(default_factory=deque)
    capacity: int = 0
    problem: str = ""
    not_ready_since: float = field(default_factory=time.time)

    @property
    def is_ready(self) -> bool:
        """Whether a lane can compute calls now."""
        return any(lane.capacity and not lane.is_ending for lane in self.router.lanes)

    @property
    def state(self) -> str:
        """What the model waits for, as text for a user."""
        if self.is_ready:
            return "ready"
        failures = [failure for state, failure in self.lanes if state == State.FAILED and failure]
        if self.problem or failures:
            return self.problem or failures[0]
        states = sorted({state for state, _ in self.lanes if state in State.COMING_UP})
        return f"lanes are {', '.join(states)}" if states else "no lane yet"

    @property
    def status(self) -> ModelStatus:
        """The status for other processes."""
        self.not_ready_since = 0.0 if self.is_ready else self.not_ready_since or time.time()
        return ModelStatus(
            self.offered.name, self.state, self.is_ready, self.not_ready_since, len(self.router.lanes),
            self.router.in_flight, self.router.queued,
        )  # fmt: skip

    def note_demand(self) -> None:
        """Remember how many calls are unfinished now."""
        now, count = time.monotonic(), self.router.queued + self.router.in_flight
        while self.peaks and now - self.peaks[0][0] > IDLE_SECONDS:
            self.peaks.popleft()
        while self.peaks and self.peaks[-1][1] <= count:
            self.peaks.pop()
        self.peaks.append((now, count))

    def demand(self) -> ModelDemand:
        """Return the input of `plan`."""
        self.note_demand()
        connected = tuple(
            ConnectedJob(link.job, link.glidein, link.capacity, len(link.calls), link.retires, link.is_ending)
            for link in self.router.lanes
        )
        names = self.pending.keys() | self.waiting.keys()
        waiting = tuple(self.waiting.get(name, WaitingJob(name)) for name in sorted(names))
        return ModelDemand(
            self.offered.glideins, connected, waiting, self.peaks[0][1], self.capacity, time.time()
        )  # fmt: skip
