"""What the factory sees, as plain values: glideins, lanes, demand. Nothing is remembered between looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from glide.template import Template

OTHER = "other"  # model of a template that no glidein has, where models are counted


@dataclass(frozen=True)
class Glidein:
    """An outer job. `started` counts its starts; `age` is seconds in its status.

    `state` is the last that its server told the job, Warm or Failed, and empty if it never came so far; `warm_seconds`
    is how long it has been warm, or was; `served` counts records, of which `errors` failed.
    """

    cluster: int
    proc: int
    entry: str
    template: str
    status: int
    started: int = 0
    age: float = 0.0
    hold_reason: str = ""
    state: str = ""
    failure: str = ""
    host: str = ""
    warm_seconds: float = 0.0
    served: int = 0
    errors: int = 0
    model: str = ""  # that it was sent with

    @property
    def job(self) -> str:
        return f"{self.cluster}.{self.proc}"

    @property
    def glide_id(self) -> str:
        """The GlideId that its present life advertises."""
        restarts = f"r{self.started - 1}" if self.started > 1 else ""
        return f"{self.entry}-{self.cluster}.{self.proc}{restarts}"


@dataclass(frozen=True)
class Lane:
    """A slot of a glidein, as the collector has it."""

    glide_id: str
    entry: str
    template: str
    model: str
    state: str
    claimed: bool
    failure: str = ""
    since: float = 0.0  # Unix time of its state
    record_seconds: float = 0.0
    start_seconds: float = 0.0  # what fetching, loading and warming up took
    retires: float = float("inf")  # Unix time from when on it takes no further job
    served: int = 0
    errors: int = 0
    name: str = ""  # of the slot
    fetched: float | None = None  # share of what it is fetching
    cached: tuple[str, ...] = ()  # short names of the trees of files that its host has


@dataclass(frozen=True)
class Move:
    """A sticky job of ours in the queue: brings a template to a lane."""

    template: str
    lane: str
    hold_reason: str = ""  # where it is held, because the template did not load there


@dataclass(frozen=True)
class Demand:
    """One run's unfinished invocation jobs for one template; `records` are those in them and those still to come.

    A `modest` one is served with what nobody else has: no idle glidein unloads its model, or goes, for it.
    """

    template: str
    model: str
    run: str
    user: str
    idle: int
    running: int
    wanted: int
    spec: Template | None = None
    records: int = 0
    modest: bool = False

    @property
    def jobs(self) -> int:
        return self.idle + self.running


@dataclass(frozen=True)
class Snapshot:
    """One consistent look.

    Attributes:
        failed: which source did not answer, or can't be believed; then no action is safe.
        moves: sticky jobs that are under way, or were of no avail.
        blind: the same for single entries, whose glideins are in another pool's queue.
        ended: the glideins of the last hour that are no more; their age is the time since then.
        unread: what is wrong with site files; their factories go on with what they read before.
        now: Unix time.
        user: who the factory is to the access point.
    """

    glideins: tuple[Glidein, ...] = ()
    lanes: tuple[Lane, ...] = ()
    demands: tuple[Demand, ...] = ()
    failed: tuple[str, ...] = ()
    ended: tuple[Glidein, ...] = ()
    now: float = 0.0
    user: str = ""
    blind: Mapping[str, str] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    unread: tuple[str, ...] = ()

    def offers(self, glidein: Glidein) -> set[str]:
        """The templates that a glidein has, or is about to have: what it was sent for until its lanes know more."""
        mine = self.lanes_of.get(glidein.glide_id, [])
        return {self._coming.get(lane.name, lane.template or glidein.template) for lane in mine} or {glidein.template}

    @cached_property
    def lanes_of(self) -> dict[str, list[Lane]]:
        """The lanes of each glidein that has some, by GlideId."""
        found: dict[str, list[Lane]] = {}
        for lane in self.lanes:
            found.setdefault(lane.glide_id, []).append(lane)
        return found

    @cached_property
    def models(self) -> dict[str, str]:
        """The model of each template that glideins have, by name; jobs may call it anything."""
        told: list[Lane | Glidein] = [*self.ended, *self.glideins, *self.lanes]  # the last one's word holds
        return {each.template: each.model for each in told if each.template and each.model}

    @cached_property
    def _coming(self) -> dict[str, str]:
        return {move.lane: move.template for move in self.moves if not move.hold_reason}

    def of(self, entry: str) -> tuple[list[Glidein], list[Glidein]]:
        """An entry's glideins: those that are, and those that have ended."""
        return (
            [glidein for glidein in self.glideins if glidein.entry == entry],
            [glidein for glidein in self.ended if glidein.entry == entry],
        )

    def template(self, digest: str) -> Template | None:
        """The template of that digest, as the jobs that want it describe it."""
        return next((demand.spec for demand in self.demands if demand.template == digest and demand.spec), None)
