"""A sweep's history, read: its runs, lanes, and carriers, from the lines that glide.sweep.history has written.

Times are seconds of the sweep: its clock stands still while no driver ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from glide.vocabulary import State

ORDER = (State.FETCHING, State.IMPORTING, State.LOADING, State.WARMING, State.WARM)
PER_RUN = ("recomputed", "lost_in_flight")  # are counted from zero by each driver
RUNNING = ("running", "transferring", "suspended", "completed")


@dataclass(frozen=True)
class Interval:
    """A stretch of time; `kind` is a model server's state or what else it was spent on."""

    start: float
    end: float
    kind: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Run:
    """A driver's life, in Unix time; `end` says how it ended, and nothing of one that was killed or goes on."""

    name: str
    began: float
    ended: float
    found: int
    end: str = ""


@dataclass(frozen=True)
class Lane:
    """A lane as long as it was there.

    Attributes:
        phases: the states of its model server, without gaps.
        claims: when it was claimed.
        reloaded: seconds for which its server loaded the model while it counted as warm.
        end: "gone", or empty if it was still there.
    """

    name: str
    glidein: str
    device: str
    phases: tuple[Interval, ...]
    claims: tuple[Interval, ...]
    reloaded: float
    end: str

    @property
    def start(self) -> float:
        return self.phases[0].start

    @property
    def ended(self) -> float:
        return self.phases[-1].end

    @property
    def warm(self) -> list[Interval]:
        return [phase for phase in self.phases if phase.kind == State.WARM]


@dataclass(frozen=True)
class Stay:
    """A carrier's time on a lane.

    Attributes:
        executing: since when its job ran there; None if it never did.
        saved: share of the records begun here whose results are safe.
        end: gathered, lost, held, removed; evicted, where HTCondor itself put the job back into its queue; or empty.
    """

    lane: str
    started: float
    executing: float | None
    ended: float
    end: str = ""
    saved: float = 1.0


@dataclass(frozen=True)
class Carrier:
    """A job from its submission to its end; None for what has not been."""

    job: str
    records: int
    starts: int
    queued: float
    stays: tuple[Stay, ...]
    end: str

    @property
    def evictions(self) -> int:
        """As a sweep's summary counts them."""
        return max(0, self.starts - 1) + (self.end == "lost")


@dataclass(frozen=True)
class History:
    """All of it.

    Attributes:
        counts: what had been counted, and when; over all runs.
        resumed: when the runs after the first began.
    """

    runs: tuple[Run, ...] = ()
    lanes: tuple[Lane, ...] = ()
    carriers: tuple[Carrier, ...] = ()
    counts: tuple[tuple[float, dict[str, int]], ...] = ()
    resumed: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        return sum(run.ended - run.began for run in self.runs)


class Clock:
    """Seconds of the sweep by Unix time."""

    def __init__(self, runs: Iterable[Run]):
        self.runs = tuple(runs)

    def __call__(self, at: float) -> float:
        return sum(min(max(at, run.began), run.ended) - run.began for run in self.runs)


def read(lines: Iterable[Mapping[str, Any]]) -> History:
    """The history that these lines tell; the empty one, if none begins a run."""
    told = [line for line in lines if isinstance(line.get("at"), (int, float))]
    reader = _Reader(_runs(told))
    for line in told:
        reader.take(line)
    return reader.history()


def _runs(told: Iterable[Mapping[str, Any]]) -> list[Run]:
    """Each from its beginning to the last that is told of it."""
    runs: list[Run] = []
    for line in told:
        if "run" in line:
            runs.append(Run(str(line["run"]), line["at"], line["at"], line.get("done", 0)))
        elif runs:
            last = runs[-1]
            end = line["end"] if "counts" in line and "end" in line else ""
            runs[-1] = replace(last, ended=max(last.ended, line["at"]), end=end)
    return runs


@dataclass
class _Lane:
    """A lane that is being read: what was last told of it, when which state began, and when claims began or ended."""

    facts: dict[str, Any] = field(default_factory=dict)
    marks: list[tuple[float, str]] = field(default_factory=list)
    claims: list[tuple[float, str]] = field(default_factory=list)
    reloaded: float = 0.0


@dataclass
class _Carrier:
    """A carrier that is being read; the last of its stays may go on."""

    facts: dict[str, Any] = field(default_factory=dict)
    stays: list[dict[str, Any]] = field(default_factory=list)
    seen: float = 0.0  # when its run was last heard of
    end: str = ""


class _Reader:
    """Takes lines in their order."""

    def __init__(self, runs: list[Run]):
        self.runs = runs
        self.clock = Clock(runs)
        self.begun = 0
        self.open: dict[str, _Lane] = {}
        self.lanes: list[Lane] = []
        self.closed: dict[str, float] = {}  # when lanes were last gone
        self.lost: dict[str, float] = {}  # when glideins were last lost, as jobs on them tell
        self.carriers: dict[str, _Carrier] = {}
        self.counts: list[tuple[float, dict[str, int]]] = []
        self.earlier: dict[str, int] = {}  # what each run counts from zero, of those before this one

    def take(self, line: Mapping[str, Any]) -> None:
        at = float(line["at"])
        if "run" in line:
            self._run_begins(line, at)
        elif not self.begun:
            return  # nothing is known of what came before
        elif "lane" in line:
            self._lane(str(line["lane"]), line, at)
        elif "carrier" in line:
            self._carrier(self.carriers.setdefault(str(line["carrier"]), _Carrier()), line, at)
        elif "counts" in line:
            told = {**self.counts[-1][1], **line["counts"], **self._summed(line["counts"])}
            self.counts.append((self.clock(at), told))

    def history(self) -> History:
        if not self.runs:
            return History()
        self._close_lanes(self.runs[-1].ended, "")
        carriers = (self._finished(carrier) for carrier in self.carriers.values())
        return History(
            tuple(self.runs), tuple(self.lanes), tuple(carriers), tuple(self.counts),
            tuple(self.clock(run.began) for run in self.runs[1:]),
        )  # fmt: skip

    def _run_begins(self, line: Mapping[str, Any], at: float) -> None:
        if self.begun:  # nobody has seen what lanes did meanwhile
            self._close_lanes(self.runs[self.begun - 1].ended, "")
        self.earlier = self._summed({})
        self.begun += 1
        last = self.counts[-1][1] if self.counts else {}
        self.counts.append((self.clock(at), {**last, "done": line.get("done", 0)}))

    def _summed(self, counts: Mapping[str, int]) -> dict[str, int]:
        if not counts and self.counts:
            return {name: self.counts[-1][1].get(name, 0) for name in PER_RUN}
        return {name: self.earlier.get(name, 0) + counts.get(name, 0) for name in PER_RUN}

    # ---- lanes -----------------------------------------------------------------------------------

    def _lane(self, name: str, line: Mapping[str, Any], at: float) -> None:
        if "end" in line:
            if name in self.open:
                self._close_lane(name, at, line["end"])
            return
        lane = self.open.setdefault(name, _Lane())
        before, lane.facts = lane.facts, {**lane.facts, **line}
        if lane.facts.get("state") != before.get("state") or lane.facts.get("since") != before.get("since"):
            # One that comes back tells when its state began, too, and what was before has been counted.
            earliest = max(self.runs[self.begun - 1].began, self.closed.get(name, 0.0))
            marks = _marks(lane.facts, lane.marks[-1] if lane.marks else None)
            lane.marks += [(max(earliest, since), state) for since, state in marks]
        elif lane.facts["state"] == State.WARM:
            lane.reloaded += max(0.0, (lane.facts.get("load") or 0.0) - (before.get("load") or 0.0))
        if "claimed" in line:
            lane.claims.append((at, "claimed" if line["claimed"] else ""))

    def _close_lanes(self, at: float, end: str) -> None:
        for name in list(self.open):
            self._close_lane(name, at, end)

    def _close_lane(self, name: str, at: float, end: str) -> None:
        lane = self.open.pop(name)
        lost = self.lost.get(lane.facts.get("glidein", ""), 0.0)
        if lane.marks and lane.marks[0][0] < lost < at:  # its ad is there for a while longer
            at = lost
        self.closed[name] = at
        if lane.marks:
            device = lane.facts.get("device") or ("service" if lane.facts.get("service") else "")
            phases = tuple(_intervals(lane.marks, at, self.clock))
            claims = tuple(each for each in _intervals(lane.claims, at, self.clock) if each.kind)
            glidein = str(lane.facts.get("glidein") or name)
            self.lanes.append(Lane(name, glidein, str(device), phases, claims, lane.reloaded, end))

    # ---- carriers --------------------------------------------------------------------------------

    def _carrier(self, carrier: _Carrier, line: Mapping[str, Any], at: float) -> None:
        carrier.seen = self.runs[self.begun - 1].ended
        facts = carrier.facts = {**carrier.facts, **line}
        stay = carrier.stays[-1] if carrier.stays and "ended" not in carrier.stays[-1] else None
        started = facts.get("started")
        if stay and (facts.get("status") not in RUNNING or started != stay["started"]):
            stay |= {"ended": at, "end": "evicted"}
            stay = None
        if not stay and facts.get("status") in RUNNING and started is not None and "end" not in carrier.facts:
            stay = {"started": started}
            carrier.stays.append(stay)
        if stay:
            stay |= {"lane": facts.get("on") or "", "executing": facts.get("executing")}
        if "end" in line:
            carrier.end = line["end"]
            if stay:
                self._stay_ends(stay, facts, at)

    def _stay_ends(self, stay: dict[str, Any], facts: Mapping[str, Any], at: float) -> None:
        stay |= {"ended": at, "end": facts["end"]}
        if facts["end"] == "gathered":
            stay["ended"] = facts.get("completed") or at
        elif facts["end"] == "lost":
            begun, saved = facts.get("begun", 0), facts.get("saved", 0)
            stay["saved"] = min(1.0, saved / begun) if begun else 0.0
            if stay["lane"] in self.open:
                self.lost[self.open[stay["lane"]].facts.get("glidein", "")] = at

    def _finished(self, carrier: _Carrier) -> Carrier:
        facts = carrier.facts
        return Carrier(
            str(facts.get("job", "")), facts.get("records", 0), facts.get("starts", 0),
            self.clock(facts.get("queued", 0.0)), tuple(self._stay(stay, carrier.seen) for stay in carrier.stays),
            carrier.end,
        )  # fmt: skip

    def _stay(self, stay: dict[str, Any], seen: float) -> Stay:
        started, executing = float(stay["started"]), stay.get("executing")
        ended = max(started, stay.get("ended", seen))
        ran = self.clock(executing) if executing and started <= executing <= ended else None
        saved = stay.get("saved", 1.0)
        return Stay(stay["lane"], self.clock(started), ran, self.clock(ended), stay.get("end", ""), saved)


def _marks(facts: Mapping[str, Any], last: tuple[float, str] | None) -> list[tuple[float, str]]:
    """When the state of a lane began, and those before it that nobody saw, by the seconds that they took."""
    state, since = str(facts["state"]), float(facts.get("since") or facts["at"])
    fetch = facts.get("fetch") or 0.0
    spent = {
        State.FETCHING: fetch, State.IMPORTING: max(0.0, (facts.get("import") or 0.0) - fetch),  # which overlap
        State.LOADING: facts.get("load") or 0.0, State.WARMING: facts.get("warm") or 0.0,
    }  # fmt: skip
    if last:  # ads tell whole seconds, and how long a phase took more exactly
        since = max(since, min(since + 1, last[0] + spent.get(last[1], 0.0)))
    marks = [(since, state)]
    if state in ORDER:
        after = ORDER.index(last[1]) + 1 if last and last[1] in ORDER else 0
        earliest = last[0] if last else float(facts.get("born") or 0.0)
        for phase in reversed(ORDER[after : ORDER.index(state)]):
            began = max(earliest, marks[0][0] - spent[phase])
            marks.insert(0, (began, phase))
    return marks


def _intervals(marks: Iterable[tuple[float, str]], end: float, clock: Clock) -> Iterator[Interval]:
    """From each mark to the next, the last one to the end."""
    whole = [*marks, (end, "")]
    for number, ((start, kind), (until, _)) in enumerate(pairwise(whole), 2):
        if until > start or number == len(whole):
            yield Interval(clock(start), clock(max(start, until)), kind)
