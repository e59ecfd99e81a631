"""Make charts of a site's last hours, from the journal of the site's factory."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from glide.factory.activity import Activity
from glide.factory.journal import SILENCE_SECONDS, Journal
from glide.vocabulary import State
from glide.web.chart import Chart, Series

HOURS = (1, 6, 24)  # time ranges that the charts can show, in hours
STEPS = 240  # number of steps on the time axis of a chart
# If two successive journal lines are further apart than this number of seconds, no factory ran between them.
GAP_SECONDS = 2.5 * SILENCE_SECONDS

# The series of the stacked charts, from bottom to top. For each series: its colour, and the states that it includes.
GLIDEINS = {
    "running": ("green", {"running", "transferring"}),
    "idle": ("sky", {"idle"}),
    "held": ("vermilion", {"held", "suspended"}),
}
LANES = {
    "warm": ("green", {State.WARM}),
    "getting ready": ("sky", {*State.COMING_UP, State.ASLEEP}),
    "draining": ("yellow", {State.DRAINING}),
    "failed": ("vermilion", {State.FAILED}),
}
SHARES = {
    Activity.SERVING: "green",
    Activity.IDLE: "yellow",
    Activity.COMING: "sky",
    Activity.LOST: "vermilion",
}

# The keys of a journal line that the charts need. The key `actions` is left out, because its value is large.
DRAWN = ("time", "glideins", "lanes", "unseen", "records", "evictions", "glidein_seconds")
Line = Mapping[str, Any]
Levels = list[float | None]


def charts(folder: Path, entries: Collection[str], hours: int) -> list[Chart]:
    """Return the charts of a site. They are cached for as long as one step of their time axis.

    Args:
        folder: path of the folder with the factory's journal.
        entries: names of the site's entries.
        hours: length of the time range, in hours.
    """
    step = hours * 3600.0 / STEPS
    return _charts(folder, tuple(entries), hours, int(time.time() // step))


@lru_cache(maxsize=32)
def _charts(folder: Path, entries: tuple[str, ...], hours: int, steps: int) -> list[Chart]:
    step = hours * 3600.0 / STEPS
    start = (steps + 1 - STEPS) * step
    lines = Journal(folder).lines(start - GAP_SECONDS)
    return build_charts([{name: line[name] for name in DRAWN if name in line} for line in lines], entries, start, step)


def build_charts(lines: Collection[Line], entries: Collection[str], start: float, step: float) -> list[Chart]:
    """Return the charts of a site. Their data come from the journal of the site's factory.

    Args:
        lines: the journal lines, in order of time.
        entries: names of the site's entries. The glideins of all other entries in the journal are left out.
        start: Unix time of the first step.
        step: length of a step, in seconds.
    """

    def glideins(line: Line) -> Iterator[tuple[str, int]]:
        for entry, states in line["glideins"].items():
            yield from states.items() if entry in entries else ()

    def lanes(line: Line) -> Iterator[tuple[str, int]]:
        for states in line["lanes"].values():
            yield from states.items()

    def stack(kinds: Mapping[str, tuple[str, set[str]]], counts: Callable[[Line], Iterable]) -> list[Series]:
        def level(of: Collection[str]) -> Levels:
            return _levels(lines, start, step, lambda line: float(sum(n for name, n in counts(line) if name in of)))

        return [Series(name, colour, level(of)) for name, (colour, of) in kinds.items()]

    covered = _spread(lines, start, step, lambda before, line: line["time"] - before["time"])
    records = _spread(lines, start, step, lambda before, line: _more("records", before, line))
    throughput = [each / seconds if seconds else None for each, seconds in zip(records, covered, strict=True)]
    evictions = Series("evictions", "vermilion", _events(lines, start, step, "evictions"))
    return [
        Chart("Glideins", "stack", stack(GLIDEINS, glideins), start, step),
        Chart("Lanes", "stack", stack(LANES, lanes), start, step),
        Chart("Records per second", "line", [Series("records/s", "blue", throughput)], start, step),
        Chart("Activity of running glideins", "stack", _shares(lines, start, step), start, step, " %", 100.0),
        Chart("Evictions", "bars", [evictions], start, step),
    ]


def _levels(lines: Iterable[Line], start: float, step: float, value: Callable[[Line], float]) -> Levels:
    """Return a level, such as a number of glideins, at the end of each step.

    The level is None if no factory ran at that time, or if the factory could read neither queues nor the collector.
    """
    levels: Levels = [None] * STEPS
    for before, line in pairwise([*lines, {"time": start + STEPS * step}]):
        if before["unseen"] and not before["glideins"] and not before["lanes"]:
            continue
        until = min(line["time"], before["time"] + GAP_SECONDS)
        first, last = int((before["time"] - start) // step), int((until - start) // step)
        for number in range(max(0, first), min(STEPS, last + 1)):
            levels[number] = value(before)
    return levels


def _spread(lines: Iterable[Line], start: float, step: float, amount: Callable[[Line, Line], float]) -> list[float]:
    """Return an amount, such as a number of served records, for each step.

    The amount between two journal lines is spread evenly over the steps between these lines.

    Args:
        amount: a function that returns the amount between two lines.
    """
    found = [0.0] * STEPS
    for before, line in pairwise(lines):
        begin, end = before["time"], line["time"]
        if not 0 < end - begin <= GAP_SECONDS:
            continue
        each = amount(before, line) / (end - begin)
        for number in range(max(0, int((begin - start) // step)), min(STEPS, int((end - start) // step) + 1)):
            low, high = start + number * step, start + (number + 1) * step
            found[number] += each * max(0.0, min(end, high) - max(begin, low))
    return found


def _events(lines: Iterable[Line], start: float, step: float, name: str) -> list[float | None]:
    """Return the number of events in each step.

    Args:
        name: a key of the journal lines, such as `evictions`. The key's value is the number of events since the factory
            started.
    """
    found: list[float | None] = [0.0] * STEPS
    for before, line in pairwise(lines):
        number = int((line["time"] - start) // step)
        if 0 <= number < STEPS:
            found[number] = (found[number] or 0.0) + _more(name, before, line)
    return found


def _more(name: str, before: Line, line: Line) -> float:
    """Return the increase of a count between two journal lines; 0 if the count fell.

    A count falls when a new factory has started, because each factory counts from zero.
    """
    return max(0.0, line.get(name, 0) - before.get(name, 0)) if name in before else 0.0


def _shares(lines: Collection[Line], start: float, step: float) -> list[Series]:
    """Return one series for each activity of glideins, for example "serving" or "idle".

    A value is the percentage of time that the running glideins spent in this activity.
    """

    def of(did: str) -> list[float]:
        return _spread(lines, start, step, lambda _, line: line.get("glidein_seconds", {}).get(did, 0.0))

    spent = {did: of(did) for did in SHARES}
    whole = [sum(column) for column in zip(*spent.values(), strict=True)]

    def share(did: str) -> Levels:
        return [100 * part / total if total else None for part, total in zip(spent[did], whole, strict=True)]

    return [Series(did, colour, share(did)) for did, colour in SHARES.items()]
