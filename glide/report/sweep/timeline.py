"""Compute data from a sweep's history: series over time, a timeline of each glidein, and how time was used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from glide.report.sweep.history import Interval, JobExecution, LaneHistory, SweepHistory
from glide.vocabulary import State

LOST = ("lost", "evicted")
UNKNOWN = "not known (never warm)"
CPU = "CPU"
SERVING = "serving"
IDLE = "warm, idle"
SPENT = ("productive", "loading", "lost", "idle")  # the kinds of time of a lane

Series = list[tuple[float, float]]


@dataclass(frozen=True)
class GlideinTimeline:
    """The timeline of a glidein.

    Attributes:
        intervals: the activities of the glidein's model server, in order of time and without gaps.
        warm: seconds from the glidein's first appearance until it was warm; None if it was never warm.
        end: how the glidein ended.
            "failed": the glidein could not load its template.
            "left": the glidein was warm, and disappeared without jobs.
            "lost": the glidein disappeared with jobs, or before it was warm.
            Empty: the glidein was still present at the end of the sweep.
        reloaded: seconds in which the model server loaded the model again while the glidein counted as warm.
    """

    id: str
    device: str
    lanes: int
    intervals: tuple[Interval, ...]
    warm: float | None
    end: str
    reloaded: float = 0.0

    @property
    def start(self) -> float:
        return self.intervals[0].start

    @property
    def ended(self) -> float:
        return self.intervals[-1].end

    def seconds(self, kind: str) -> float:
        return sum(each.seconds for each in self.intervals if each.kind == kind)


# ---- series --------------------------------------------------------------------------------------


def records_done(history: SweepHistory) -> Series:
    """Return the number of records with a result, over time, as the driver counted them."""
    return [(at, float(counts["done"])) for at, counts in history.counts if "done" in counts]


def lanes_over_time(history: SweepHistory) -> dict[str, Series]:
    """Return three series over time: the numbers of connected, warm and claimed lanes."""
    return {
        "connected": count_over_time(Interval(lane.start, lane.ended) for lane in history.lanes),
        "warm": count_over_time(phase for lane in history.lanes for phase in lane.warm),
        "claimed": count_over_time(claim for lane in history.lanes for claim in lane.claims),
    }


def count_over_time(intervals: Iterable[Interval]) -> Series:
    """For each time, count the intervals that contain this time.

    Return a pair (time, count) for each change of the count.
    """
    changes: Counter[float] = Counter()
    for each in intervals:
        if each.seconds > 0:
            changes[each.start] += 1
            changes[each.end] -= 1
    series, now = [(0.0, 0.0)], 0.0
    for at in sorted(changes):
        now += changes[at]
        series.append((at, now))
    return series


def losses(history: SweepHistory) -> list[float]:
    """Return the times when jobs were lost or evicted. HTCondor puts an evicted job back into the queue."""
    return sorted(each.ended for each in executions(history) if each.end in LOST)


# ---- where the time went -------------------------------------------------------------------------


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Join all intervals that overlap or touch. Return the resulting intervals in order of time."""
    joined: list[Interval] = []
    for each in sorted(intervals, key=lambda interval: interval.start):
        if joined and each.start <= joined[-1].end:
            joined[-1] = Interval(joined[-1].start, max(joined[-1].end, each.end), each.kind)
        elif each.seconds > 0:
            joined.append(each)
    return joined


def within(intervals: Iterable[Interval], bounds: Sequence[Interval]) -> list[Interval]:
    """Return each interval's intersections with the intervals of `bounds`."""
    parts = (
        Interval(max(each.start, bound.start), min(each.end, bound.end), each.kind)
        for each in intervals
        for bound in bounds
    )
    return [part for part in parts if part.seconds > 0]


def executions(history: SweepHistory) -> Iterator[JobExecution]:
    """Yield the executions of all jobs."""
    return (execution for job in history.jobs for execution in job.executions)


def task_seconds(history: SweepHistory) -> list[float]:
    """Return the run time in seconds of each job whose results were gathered."""
    ran = (each for each in executions(history) if each.end == "gathered" and each.executing is not None)
    return [round(each.ended - (each.executing or 0.0), 3) for each in ran]


def busy_seconds(history: SweepHistory) -> float:
    """Return the total run time of all jobs in seconds, including jobs whose results were lost."""
    return sum(each.ended - each.executing for each in executions(history) if each.executing is not None)


def goodput(history: SweepHistory) -> dict[str, dict[str, float]]:
    """For each device, return the productive, loading, lost and idle seconds of its connected lanes.

    If all results of a job were saved, the job's run time is productive. If only 30 % of the results were saved, 30 %
    of the run time is productive and 70 % is lost. The time between two jobs is idle.
    """
    spent: dict[str, dict[str, float]] = {}
    for device, _, seconds_of in lanes_by_device(history):
        of_device = spent.setdefault(device, dict.fromkeys(SPENT, 0.0))
        for kind, seconds in seconds_of.items():
            of_device[kind] += seconds
    return dict(sorted(spent.items()))


def lanes_by_device(history: SweepHistory) -> Iterator[tuple[str, LaneHistory, dict[str, float]]]:
    """Yield each lane with its device, and its seconds for each kind of time."""
    devices = _devices(history.lanes)
    on: dict[str, list[JobExecution]] = {}
    for execution in executions(history):
        on.setdefault(execution.lane, []).append(execution)
    for lane in history.lanes:
        yield devices[lane.glidein], lane, _lane_seconds(lane, on.get(lane.name, ()))


def _lane_seconds(lane: LaneHistory, jobs: Iterable[JobExecution]) -> dict[str, float]:
    productive = lost = latest = 0.0
    ran = [(execution.executing, execution) for execution in jobs if execution.executing is not None]
    for executing, execution in sorted(ran, key=lambda each: each[0]):
        # Times are whole seconds, so two successive jobs can seem to overlap. Count the overlap once.
        whole = Interval(max(executing, latest), execution.ended)
        latest = max(latest, execution.ended)
        seconds = sum(part.seconds for part in within([whole], lane.warm))
        productive += execution.saved * seconds
        lost += (1 - execution.saved) * seconds
    again = min(productive, lane.reloaded)
    loading = sum(phase.seconds for phase in lane.phases if phase.kind in State.COMING_UP)
    idle = lane.ended - lane.start - loading - productive - lost
    return {"productive": productive - again, "loading": loading + again, "lost": lost, "idle": idle}


def _devices(lanes: Iterable[LaneHistory]) -> dict[str, str]:
    """Return the device of each glidein.

    Only a lane with a GPU advertises its device. So, if a warm lane advertises no device, it runs on the CPU.
    """
    devices: dict[str, str] = {}
    for lane in lanes:
        known = devices.get(lane.glidein, UNKNOWN)
        devices[lane.glidein] = lane.device or (CPU if lane.warm and known == UNKNOWN else known)
    return devices


# ---- glideins ------------------------------------------------------------------------------------


def glideins(history: SweepHistory) -> list[GlideinTimeline]:
    """Return the timelines of all glideins, in the order in which they appeared."""
    devices = _devices(history.lanes)
    jobs: dict[str, list[JobExecution]] = {}
    for execution in executions(history):
        jobs.setdefault(execution.lane, []).append(execution)
    by_id = sorted(history.lanes, key=lambda lane: (lane.glidein, lane.name, lane.start))
    found = []
    for name, group in groupby(by_id, key=lambda lane: lane.glidein):
        lanes = list(group)
        ran = [execution for lane_name in {lane.name for lane in lanes} for execution in jobs.get(lane_name, ())]
        found.append(_glidein(name, devices[name], lanes, ran))
    return sorted(found, key=lambda glidein: (glidein.start, glidein.id))


def _glidein(name: str, device: str, lanes: list[LaneHistory], jobs: list[JobExecution]) -> GlideinTimeline:
    # The lanes of a glidein share one model server, so the states of one lane are enough.
    first = [lane for lane in lanes if lane.name == lanes[0].name]
    phases = [phase for lane in first for phase in lane.phases]
    served = union(Interval(each.executing, each.ended, SERVING) for each in jobs if each.executing is not None)
    intervals: list[Interval] = []
    for phase in phases:
        intervals += _split(phase, served) if phase.kind == State.WARM else [phase]
    warm = next((phase.start for phase in phases if phase.kind == State.WARM), None)
    return GlideinTimeline(
        name, device, len({lane.name for lane in lanes}), tuple(intervals),
        None if warm is None else warm - phases[0].start, _end(first[-1], warm is not None, jobs), first[0].reloaded,
    )  # fmt: skip


def _split(warm: Interval, served: Sequence[Interval]) -> Iterator[Interval]:
    """Split a warm phase into serving and idle intervals."""
    latest = warm.start
    for each in within(served, [warm]):
        if each.start > latest:
            yield Interval(latest, each.start, IDLE)
        yield each
        latest = each.end
    if warm.end > latest or warm.seconds == 0:
        yield Interval(latest, warm.end, IDLE)


def coarsen(intervals: Sequence[Interval], step: float) -> list[Interval]:
    """Reduce intervals to the resolution of a figure.

    Args:
        step: seconds that one dot of the figure covers. The dot shows only the longest activity in these seconds.
    """
    steps: dict[int, dict[str, float]] = {}
    for each in intervals:
        for number in range(int(each.start / step), int(each.end / step) + 1):
            seconds = min(each.end, (number + 1) * step) - max(each.start, number * step)
            spent = steps.setdefault(number, {})
            spent[each.kind] = spent.get(each.kind, 0.0) + seconds
    joined: list[Interval] = []
    for number, spent in sorted(steps.items()):
        kind = max(spent, key=lambda kind: spent[kind])
        start, end = max(number * step, intervals[0].start), min((number + 1) * step, intervals[-1].end)
        if joined and joined[-1].kind == kind:
            joined[-1] = Interval(joined[-1].start, end, kind)
        elif end > start:
            joined.append(Interval(start, end, kind))
    return joined


def _end(last: LaneHistory, was_warm: bool, jobs: list[JobExecution]) -> str:
    # A lost or evicted job does not prove that its glidein is lost. So ignore the loss if another job of the glidein
    # ended normally after the loss.
    worked = max((execution.ended for execution in jobs if execution.end not in LOST), default=0.0)
    after = {execution.end for execution in jobs if execution.end in LOST and execution.ended >= worked}
    if "lost" in after:
        return "lost"
    if last.phases[-1].kind == State.FAILED:
        return "failed"
    if last.end == "gone":
        return "left" if was_warm and not after else "lost"
    return ""


# ---- how jobs' and glideins' time was used -------------------------------------------------------


def spent_by_jobs(history: SweepHistory, engine: float) -> dict[str, float]:
    """Return a dict from the kind of time to the total seconds of all jobs.

    The first two kinds are the time before a job runs. The last three kinds together are the run time.

    - `waiting`: The job was in the queue.
    - `starting`: HTCondor was starting the job on a lane.
    - `engine`: The engine computed results of the job, and the results were gathered.
    - `sharing`: The job waited while its engine served other jobs.
    - `lost`: The job ran, but the results of this time were lost.

    Args:
        engine: seconds in which engines computed the gathered results.
    """
    waiting = starting = running = lost = 0.0
    for job in history.jobs:
        if job.executions:
            waiting += max(0.0, job.executions[0].started - job.queued)
        for execution in job.executions:
            executing = execution.ended if execution.executing is None else execution.executing
            starting += executing - execution.started
            running += (execution.ended - executing) * execution.saved
            lost += (execution.ended - executing) * (1 - execution.saved)
    engine = min(engine, running)
    return {"waiting": waiting, "starting": starting, "engine": engine, "sharing": running - engine, "lost": lost}


def spent_by_glideins(found: Iterable[GlideinTimeline], engine: Mapping[str, float]) -> dict[str, float]:
    """Return a dict from the kind of time to the total seconds of all glideins.

    - `Fetching`, `Importing`, `Loading` and `Warming`: The glidein was in this state.
    - `engine`: The glidein was warm, and its engine computed results that were gathered.
    - `serving`: The glidein was warm and had jobs. But in this time, its engine computed nothing, or its results were
      lost.
    - `warm, idle`: The glidein was warm and had no jobs.
    - `other`: The glidein was in another state, such as `Failed`.

    A model server can load its model again while its glidein is warm. This time counts as `Loading`.

    Args:
        engine: for each glidein, the seconds in which its engine computed the gathered results.
    """
    spent = dict.fromkeys((*State.COMING_UP[1:], "engine", SERVING, IDLE, "other"), 0.0)
    for each in found:
        for interval in each.intervals:
            known = interval.kind in spent
            spent[interval.kind if known else "other"] += interval.seconds
        # Run times of jobs are rounded to whole seconds. Computing times of engines are not rounded. So the computing
        # time can be larger than the run time. Then reduce the idle time, so that the sum of all times stays correct.
        warm = each.seconds(SERVING) + each.seconds(IDLE)
        computed = min(engine.get(each.id, 0.0), warm)
        again = min(each.reloaded, warm - computed)
        rest = max(0.0, each.seconds(SERVING) - computed - again)
        spent[SERVING] += rest - each.seconds(SERVING)
        spent[IDLE] += warm - computed - again - rest - each.seconds(IDLE)
        spent["engine"] += computed
        spent[State.LOADING] += again
    return spent
