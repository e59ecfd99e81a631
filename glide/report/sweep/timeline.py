"""What a sweep's history amounts to: series over time, a line for each glidein, and where all the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from glide.report.sweep.history import History, Interval, Lane, Stay
from glide.vocabulary import State

LOST = ("lost", "evicted")
UNKNOWN = "not known (never warm)"
CPU = "CPU"
SERVING = "serving"
IDLE = "warm, idle"
SPENT = ("productive", "loading", "lost", "idle")  # a lane's time

Series = list[tuple[float, float]]


@dataclass(frozen=True)
class Glidein:
    """A glidein's time: what its model server did, in a row.

    Attributes:
        warm: seconds from its first sight to its first warm moment; None if it never was.
        end: "lost" (with work on it, or before it was warm), "failed", "left", or empty if it was still there.
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


def records_done(history: History) -> Series:
    """How many records had a result, when that was counted."""
    return [(at, float(counts["done"])) for at, counts in history.counts if "done" in counts]


def lanes_over_time(history: History) -> dict[str, Series]:
    """How many lanes were connected, warm, and claimed."""
    return {
        "connected": level(Interval(lane.start, lane.ended) for lane in history.lanes),
        "warm": level(phase for lane in history.lanes for phase in lane.warm),
        "claimed": level(claim for lane in history.lanes for claim in lane.claims),
    }


def level(intervals: Iterable[Interval]) -> Series:
    """How many of the intervals there are at once, at each change."""
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


def losses(history: History) -> list[float]:
    """When carriers were lost, or put back into their queue."""
    return sorted(stay.ended for stay in stays(history) if stay.end in LOST)


# ---- where the time went -------------------------------------------------------------------------


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time without overlaps, in order."""
    joined: list[Interval] = []
    for each in sorted(intervals, key=lambda interval: interval.start):
        if joined and each.start <= joined[-1].end:
            joined[-1] = Interval(joined[-1].start, max(joined[-1].end, each.end), each.kind)
        elif each.seconds > 0:
            joined.append(each)
    return joined


def within(intervals: Iterable[Interval], bounds: Sequence[Interval]) -> list[Interval]:
    """Those parts of the intervals that lie within the bounds."""
    parts = (
        Interval(max(each.start, bound.start), min(each.end, bound.end), each.kind)
        for each in intervals
        for bound in bounds
    )
    return [part for part in parts if part.seconds > 0]


def stays(history: History) -> Iterator[Stay]:
    return (stay for carrier in history.carriers for stay in carrier.stays)


def task_seconds(history: History) -> list[float]:
    """How long jobs ran whose results came home."""
    ran = (stay for stay in stays(history) if stay.end == "gathered" and stay.executing is not None)
    return [round(stay.ended - (stay.executing or 0.0), 3) for stay in ran]


def busy_seconds(history: History) -> float:
    """For how long jobs ran, whatever became of them."""
    return sum(stay.ended - stay.executing for stay in stays(history) if stay.executing is not None)


def goodput(history: History) -> dict[str, dict[str, float]]:
    """What the lanes' seconds were spent on, by device; as much together as they were connected.

    Productive is what ran and is safe, lost what ran in vain on a lane that went away; a job that has lost part of
    its records counts in proportion. The time from one job to the next is idle.
    """
    devices = _devices(history.lanes)
    on: dict[str, list[Stay]] = {}
    for stay in stays(history):
        on.setdefault(stay.lane, []).append(stay)
    spent: dict[str, dict[str, float]] = {}
    for lane in history.lanes:
        account = spent.setdefault(devices[lane.glidein], dict.fromkeys(SPENT, 0.0))
        for what, seconds in _account(lane, on.get(lane.name, ())).items():
            account[what] += seconds
    return dict(sorted(spent.items()))


def _account(lane: Lane, jobs: Iterable[Stay]) -> dict[str, float]:
    productive = lost = latest = 0.0
    ran = [(stay.executing, stay) for stay in jobs if stay.executing is not None]
    for executing, stay in sorted(ran, key=lambda each: each[0]):
        whole = Interval(max(executing, latest), stay.ended)  # times are whole seconds: neighbours may overlap
        latest = max(latest, stay.ended)
        seconds = sum(part.seconds for part in within([whole], lane.warm))
        productive += stay.saved * seconds
        lost += (1 - stay.saved) * seconds
    again = min(productive, lane.reloaded)
    loading = sum(phase.seconds for phase in lane.phases if phase.kind in State.COMING_UP)
    idle = lane.ended - lane.start - loading - productive - lost
    return {"productive": productive - again, "loading": loading + again, "lost": lost, "idle": idle}


def _devices(lanes: Iterable[Lane]) -> dict[str, str]:
    """By glidein; what has no GPU says so only by being warm without one."""
    devices: dict[str, str] = {}
    for lane in lanes:
        known = devices.get(lane.glidein, UNKNOWN)
        devices[lane.glidein] = lane.device or (CPU if lane.warm and known == UNKNOWN else known)
    return devices


# ---- glideins ------------------------------------------------------------------------------------


def glideins(history: History) -> list[Glidein]:
    """All there were, in the order of their coming."""
    devices = _devices(history.lanes)
    jobs: dict[str, list[Stay]] = {}
    for stay in stays(history):
        jobs.setdefault(stay.lane, []).append(stay)
    by_id = sorted(history.lanes, key=lambda lane: (lane.glidein, lane.name, lane.start))
    found = []
    for name, group in groupby(by_id, key=lambda lane: lane.glidein):
        lanes = list(group)
        ran = [stay for lane_name in {lane.name for lane in lanes} for stay in jobs.get(lane_name, ())]
        found.append(_glidein(name, devices[name], lanes, ran))
    return sorted(found, key=lambda glidein: (glidein.start, glidein.id))


def _glidein(name: str, device: str, lanes: list[Lane], jobs: list[Stay]) -> Glidein:
    # Its lanes have one model server, so that one of them tells for all in which state that was.
    first = [lane for lane in lanes if lane.name == lanes[0].name]
    phases = [phase for lane in first for phase in lane.phases]
    served = union(Interval(stay.executing, stay.ended, SERVING) for stay in jobs if stay.executing is not None)
    intervals: list[Interval] = []
    for phase in phases:
        intervals += _split(phase, served) if phase.kind == State.WARM else [phase]
    warm = next((phase.start for phase in phases if phase.kind == State.WARM), None)
    return Glidein(
        name, device, len({lane.name for lane in lanes}), tuple(intervals),
        None if warm is None else warm - phases[0].start, _end(first[-1], warm is not None, jobs), first[0].reloaded,
    )  # fmt: skip


def _split(warm: Interval, served: Sequence[Interval]) -> Iterator[Interval]:
    """A warm phase as what was served in it, and the rest."""
    latest = warm.start
    for each in within(served, [warm]):
        if each.start > latest:
            yield Interval(latest, each.start, IDLE)
        yield each
        latest = each.end
    if warm.end > latest or warm.seconds == 0:
        yield Interval(latest, warm.end, IDLE)


def coarse(intervals: Sequence[Interval], step: float) -> list[Interval]:
    """What can be told apart where a step is a dot: each is what most of it was."""
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


def _end(last: Lane, was_warm: bool, jobs: list[Stay]) -> str:
    # Where HTCondor put a job back into its queue, a lane may have died or not; and it may match one to a dead lane.
    worked = max((stay.ended for stay in jobs if stay.end not in LOST), default=0.0)
    after = {stay.end for stay in jobs if stay.end in LOST and stay.ended >= worked}
    if "lost" in after:
        return "lost"
    if last.phases[-1].kind == State.FAILED:
        return "failed"
    if last.end == "gone":
        return "left" if was_warm and not after else "lost"
    return ""


# ---- what it was spent on ------------------------------------------------------------------------


def spent_by_carriers(history: History, engine: float) -> dict[str, float]:
    """Seconds of the jobs: in the queue, starting, running; of the last what was lost, the engine's, and the rest.

    Args:
        engine: seconds for which engines computed what has come home.
    """
    waiting = starting = running = lost = 0.0
    for carrier in history.carriers:
        if carrier.stays:
            waiting += max(0.0, carrier.stays[0].started - carrier.queued)
        for stay in carrier.stays:
            executing = stay.ended if stay.executing is None else stay.executing
            starting += executing - stay.started
            running += (stay.ended - executing) * stay.saved
            lost += (stay.ended - executing) * (1 - stay.saved)
    engine = min(engine, running)
    return {"waiting": waiting, "starting": starting, "engine": engine, "sharing": running - engine, "lost": lost}


def spent_by_glideins(found: Iterable[Glidein], engine: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the glideins: until warm by phase, then the engine's, the rest of serving, and idle.

    Args:
        engine: seconds for which engines computed what has come home, by glidein.
    """
    spent = dict.fromkeys((*State.COMING_UP[1:], "engine", SERVING, IDLE, "other"), 0.0)
    for each in found:
        for interval in each.intervals:
            known = interval.kind in spent
            spent[interval.kind if known else "other"] += interval.seconds
        # Jobs' times are whole seconds: the engine may have begun within one that counts as idle.
        warm = each.seconds(SERVING) + each.seconds(IDLE)
        computed = min(engine.get(each.id, 0.0), warm)
        again = min(each.reloaded, warm - computed)
        rest = max(0.0, each.seconds(SERVING) - computed - again)
        spent[SERVING] += rest - each.seconds(SERVING)
        spent[IDLE] += warm - computed - again - rest - each.seconds(IDLE)
        spent["engine"] += computed
        spent[State.LOADING] += again
    return spent
