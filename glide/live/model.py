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

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 10.0  # seconds until actions that have failed are tried again


@dataclass(frozen=True)
class LiveModel:
    """A model whose calls are computed on standing jobs.

    Attributes:
        name: name of the model in messages.
        template: what the nodes load.
        glideins: maximum number of glideins that serve calls at the same time.
        idle_seconds: seconds without a call after which no lane is kept. None: one lane is always kept.
    """

    name: str
    template: Template
    glideins: int
    idle_seconds: float | None


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
        last_call: Unix time when a call was unfinished for the last time, or when this server has started.
        problem: why the last actions, such as a submission, have failed; empty if they have not.
        pause: seconds from the last actions, which have failed, to the next ones; 0 if they have not failed.
        retry_at: time before which nothing is tried again (monotonic seconds).
        not_ready_since: Unix time since when no lane can compute calls; 0 if one can, or if the model is idle.
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
    last_call: float = field(default_factory=time.time)
    problem: str = ""
    pause: float = 0.0
    retry_at: float = 0.0
    not_ready_since: float = field(default_factory=time.time)

    def note_outcome(self, problem: str) -> None:
        """Note why the planned actions have failed; empty if they have not. The pause doubles with each failure."""
        self.problem = problem
        self.pause = min(max(2 * self.pause, SHORTEST_PAUSE), LONGEST_PAUSE) if problem else 0.0
        self.retry_at = time.monotonic() + self.pause

    @property
    def ready_lanes(self) -> int:
        """Number of lanes that can compute calls now. A lane may be connected before it has loaded the model."""
        return sum(lane.capacity > 0 and not lane.is_ending for lane in self.router.lanes)

    @property
    def is_ready(self) -> bool:
        """Whether a lane can compute calls now."""
        return self.ready_lanes > 0

    @property
    def is_idle(self) -> bool:
        """Whether no lane has the model, because nobody needs it now."""
        on_demand = self.offered.idle_seconds is not None
        return on_demand and not (self.router.lanes or self.pending or self.waiting or self.router.queued)

    @property
    def state(self) -> str:
        """What the model waits for, as text for a user."""
        if self.is_ready:
            return "ready"
        if self.is_idle and not self.problem:
            return "not loaded; the next call loads it"
        failures = [failure for state, failure in self.lanes if state == State.FAILED and failure]
        if self.problem or failures:
            return self.problem or failures[0]
        states = sorted({state for state, _ in self.lanes if state in State.COMING_UP})
        return f"lanes are {', '.join(states)}" if states else "no lane yet"

    @property
    def status(self) -> ModelStatus:
        """The status for other processes."""
        self.not_ready_since = 0.0 if self.is_ready or self.is_idle else self.not_ready_since or time.time()
        return ModelStatus(
            self.offered.name, self.state, self.is_ready, self.not_ready_since, self.ready_lanes,
            self.router.in_flight, self.router.queued,
        )  # fmt: skip

    def note_demand(self) -> None:
        """Remember how many calls are unfinished now."""
        now, count = time.monotonic(), self.router.queued + self.router.in_flight
        self.last_call = time.time() if count else self.last_call
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
            self.offered.glideins, connected, waiting, self.peaks[0][1], self.capacity, self.offered.idle_seconds,
            self.last_call, time.time(),
        )  # fmt: skip
