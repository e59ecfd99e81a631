"""Read the history of a sweep: its drivers, its lanes and its jobs. glide.sweep.history wrote the history.

A time is the number of seconds since the sweep began. Periods in which no driver ran do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from glide.report.sweep.phases import state_starts
from glide.vocabulary import State

PER_RUN = ("recomputed", "lost_in_flight")  # names of the counts that start from zero in each driver run
RUNNING = ("running", "transferring", "suspended", "completed")


@dataclass(frozen=True)
class Interval:
    """An interval of time. `kind` is the state of a model server in the interval, or what the interval was used for."""

    start: float
    end: float
    kind: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class DriverRun:
    """One run of a driver. Its times are Unix times.

    Attributes:
        found: number of records that already had a result when the run began.
        end: "finished" or "stopped"; empty if the driver was killed or still runs.
    """

    name: str
    began: float
    ended: float
    found: int
    end: str = ""


@dataclass(frozen=True)
class LaneHistory:
    """The history of a lane, from the time when it appeared until it disappeared.

    Attributes:
        phases: intervals with the states of the lane's model server, in order of time and without gaps.
        claims: intervals in which the lane was claimed.
        reloaded: seconds in which the model server loaded the model again while the lane counted as warm.
        end: "gone" if the lane disappeared; empty if the lane was present at the end of the driver's run.
        devices: number of devices that the lane stands for; a glidein's devices are divided by its number of lanes.
        price: price of one device for one hour; None if it is not known.
        joules: energy in J that the glidein's GPUs have used while the lane was present; None if it is not known.
    """

    name: str
    glidein: str
    device: str
    phases: tuple[Interval, ...]
    claims: tuple[Interval, ...]
    reloaded: float
    end: str
    devices: float = 0.0
    price: float | None = None
    joules: float | None = None

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
class JobExecution:
    """One execution of a job on a lane.

    Attributes:
        started: when HTCondor started the job, before the file transfer.
        executing: when the job's program started; None if it never started.
        saved: (number of saved results) / (number of records that have begun). The value is 1 if `end` is not "lost".
        end: "evicted" if HTCondor put the job back into its queue; otherwise "gathered", "lost", "held" or "removed".
            The text is empty while the execution runs.
    """

    lane: str
    started: float
    executing: float | None
    ended: float
    end: str = ""
    saved: float = 1.0


@dataclass(frozen=True)
class JobHistory:
    """The history of an invocation job. `end` is "gathered", for example; it is empty while the job is in the queue."""

    job: str
    records: int
    starts: int
    queued: float
    executions: tuple[JobExecution, ...]
    end: str

    @property
    def evictions(self) -> int:
        """The number of evictions, counted as in a sweep's summary."""
        return max(0, self.starts - 1) + (self.end == "lost")


@dataclass(frozen=True)
class SweepHistory:
    """The history of a sweep."""

    runs: tuple[DriverRun, ...] = ()
    lanes: tuple[LaneHistory, ...] = ()
    jobs: tuple[JobHistory, ...] = ()
    counts: tuple[tuple[float, dict[str, int]], ...] = ()  # pairs: a time, and the whole sweep's counts at this time
    resumed: tuple[float, ...] = ()  # for each run of the driver except the first: when it began

    @property
    def seconds(self) -> float:
        return sum(run.ended - run.began for run in self.runs)


class RunClock:
    """Convert a Unix time to seconds since the sweep began, without the time between two runs of the driver."""

    def __init__(self, runs: Iterable[DriverRun]):
        self.runs = tuple(runs)

    def __call__(self, at: float) -> float:
        return sum(min(max(at, run.began), run.ended) - run.began for run in self.runs)


def read(lines: Iterable[Mapping[str, Any]]) -> SweepHistory:
    """Return the sweep history that these lines describe. If they show no driver run, the history is empty."""
    timed = [line for line in lines if isinstance(line.get("at"), (int, float))]
    reader = _Reader(_runs(timed))
    for line in timed:
        reader.add(line)
    return reader.history()


def _runs(lines: Iterable[Mapping[str, Any]]) -> list[DriverRun]:
    """Return the driver runs of a history file. A driver run lasts from its first line to its last line."""
    runs: list[DriverRun] = []
    for line in lines:
        if "run" in line:
            runs.append(DriverRun(str(line["run"]), line["at"], line["at"], line.get("done", 0)))
        elif runs:
            last = runs[-1]
            end = line["end"] if "counts" in line and "end" in line else ""
            runs[-1] = replace(last, ended=max(last.ended, line["at"]), end=end)
    return runs


@dataclass
class _OpenLane:
    """A lane before its `LaneHistory` is complete. The reader adds data from each line about this lane."""

    facts: dict[str, Any] = field(default_factory=dict)  # the newest value of each key in the lines about this lane
    marks: list[tuple[float, str]] = field(default_factory=list)  # pairs: the time when a state began, and the state
    # Pairs of a time and a text. The text describes the lane from this time on: "claimed", or "" for an unclaimed lane.
    claims: list[tuple[float, str]] = field(default_factory=list)
    reloaded: float = 0.0
    first_joules: float | None = None  # the energy in the first line that has an energy


@dataclass
class _OpenJob:
    """A job before its `JobHistory` is complete. An execution gets the keys "ended" and "end" only when it ends."""

    facts: dict[str, Any] = field(default_factory=dict)
    executions: list[dict[str, Any]] = field(default_factory=list)
    seen: float = 0.0  # end (Unix time) of the last driver run that wrote a line about the job
    end: str = ""


class _Reader:
    """Build a history from its lines. Add the lines in the order of the file."""

    def __init__(self, runs: list[DriverRun]):
        self.runs = runs
        self.clock = RunClock(runs)
        self.begun = 0
        self.open: dict[str, _OpenLane] = {}
        self.lanes: list[LaneHistory] = []
        self.closed: dict[str, float] = {}  # for each lane, the time when it last disappeared
        self.lost: dict[str, float] = {}  # for each glidein, the time when it last lost a job
        self.jobs: dict[str, _OpenJob] = {}
        self.counts: list[tuple[float, dict[str, int]]] = []
        self.earlier: dict[str, int] = {}  # for each count in PER_RUN, its sum over the earlier driver runs

    def add(self, line: Mapping[str, Any]) -> None:
        at = float(line["at"])
        if "run" in line:
            self._begin_run(line, at)
        elif not self.begun:
            return  # ignore a line that was written before the first driver started
        elif "lane" in line:
            self._lane(str(line["lane"]), line, at)
        elif "carrier" in line:
            self._job(self.jobs.setdefault(str(line["carrier"]), _OpenJob()), line, at)
        elif "counts" in line:
            counts = {**self.counts[-1][1], **line["counts"], **self._summed(line["counts"])}
            self.counts.append((self.clock(at), counts))

    def history(self) -> SweepHistory:
        if not self.runs:
            return SweepHistory()
        self._close_lanes(self.runs[-1].ended, "")
        jobs = (self._job_history(job) for job in self.jobs.values())
        return SweepHistory(
            tuple(self.runs), tuple(self.lanes), tuple(jobs), tuple(self.counts),
            tuple(self.clock(run.began) for run in self.runs[1:]),
        )  # fmt: skip

    def _begin_run(self, line: Mapping[str, Any], at: float) -> None:
        if self.begun:  # close all lanes, because no driver observed them after the run
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
        lane = self.open.setdefault(name, _OpenLane())
        before, lane.facts = lane.facts, {**lane.facts, **line}
        if lane.facts.get("state") != before.get("state") or lane.facts.get("since") != before.get("since"):
            # A lane can disappear and come back in the same state. The time before the disappearance is already
            # counted. So count only the time after the disappearance.
            earliest = max(self.runs[self.begun - 1].began, self.closed.get(name, 0.0))
            marks = state_starts(lane.facts, lane.marks[-1] if lane.marks else None)
            lane.marks += [(max(earliest, since), state) for since, state in marks]
        elif lane.facts["state"] == State.WARM:
            lane.reloaded += max(0.0, (lane.facts.get("load") or 0.0) - (before.get("load") or 0.0))
        if lane.first_joules is None:
            lane.first_joules = line.get("joules")
        if "claimed" in line:
            lane.claims.append((at, "claimed" if line["claimed"] else ""))

    def _close_lanes(self, at: float, end: str) -> None:
        for name in list(self.open):
            self._close_lane(name, at, end)

    def _close_lane(self, name: str, at: float, end: str) -> None:
        lane = self.open.pop(name)
        lost = self.lost.get(lane.facts.get("glidein", ""), 0.0)
        if lane.marks and lane.marks[0][0] < lost < at:  # a lost lane's ad stays in the collector for a while
            at = lost
        self.closed[name] = at
        if lane.marks:
            facts = lane.facts
            device = facts.get("device") or ("service" if facts.get("service") else "")
            phases = tuple(_intervals(lane.marks, at, self.clock))
            claims = tuple(each for each in _intervals(lane.claims, at, self.clock) if each.kind)
            glidein = str(facts.get("glidein") or name)
            first = lane.first_joules
            joules = None if first is None else max(0.0, (facts.get("joules") or 0.0) - first)
            self.lanes.append(LaneHistory(
                name, glidein, str(device), phases, claims, lane.reloaded, end, facts.get("devices") or 0.0,
                facts.get("price"), joules,
            ))  # fmt: skip

    # ---- jobs ------------------------------------------------------------------------------------

    def _job(self, job: _OpenJob, line: Mapping[str, Any], at: float) -> None:
        job.seen = self.runs[self.begun - 1].ended
        facts = job.facts = {**job.facts, **line}
        execution = job.executions[-1] if job.executions and "ended" not in job.executions[-1] else None
        started = facts.get("started")
        if execution and (facts.get("status") not in RUNNING or started != execution["started"]):
            execution |= {"ended": at, "end": "evicted"}
            execution = None
        if not execution and facts.get("status") in RUNNING and started is not None and "end" not in job.facts:
            execution = {"started": started}
            job.executions.append(execution)
        if execution:
            execution |= {"lane": facts.get("on") or "", "executing": facts.get("executing")}
        if "end" in line:
            job.end = line["end"]
            if execution:
                self._end_execution(execution, facts, at)

    def _end_execution(self, execution: dict[str, Any], facts: Mapping[str, Any], at: float) -> None:
        execution |= {"ended": at, "end": facts["end"]}
        if facts["end"] == "gathered":
            execution["ended"] = facts.get("completed") or at
        elif facts["end"] == "lost":
            begun, saved = facts.get("begun", 0), facts.get("saved", 0)
            execution["saved"] = min(1.0, saved / begun) if begun else 0.0
            if execution["lane"] in self.open:
                self.lost[self.open[execution["lane"]].facts.get("glidein", "")] = at

    def _job_history(self, job: _OpenJob) -> JobHistory:
        facts = job.facts
        return JobHistory(
            str(facts.get("job", "")), facts.get("records", 0), facts.get("starts", 0),
            self.clock(facts.get("queued", 0.0)), tuple(self._execution(each, job.seen) for each in job.executions),
            job.end,
        )  # fmt: skip

    def _execution(self, read: dict[str, Any], seen: float) -> JobExecution:
        started, executing = float(read["started"]), read.get("executing")
        ended = max(started, read.get("ended", seen))
        ran = self.clock(executing) if executing and started <= executing <= ended else None
        saved = read.get("saved", 1.0)
        return JobExecution(read["lane"], self.clock(started), ran, self.clock(ended), read.get("end", ""), saved)


def _intervals(marks: Iterable[tuple[float, str]], end: float, clock: RunClock) -> Iterator[Interval]:
    """Yield one interval for each mark. A mark is a pair (Unix time, new state). The last interval ends at `end`."""
    whole = [*marks, (end, "")]
    for number, ((start, kind), (until, _)) in enumerate(pairwise(whole), 2):
        if until > start or number == len(whole):
            yield Interval(clock(start), clock(max(start, until)), kind)
