"""A site's last hours, from its factory's journal: what was there, what was done, what it was worth."""

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

HOURS = (1, 6, 24)  # what may be asked for
STEPS = 240  # of a chart
GAP_SECONDS = 2.5 * SILENCE_SECONDS  # after so long without a line there was no factory

# Series by what they count, from bottom to top, and their colours.
GLIDEINS = {
    "running": ("green", {"running", "transferring"}),
    "idle": ("sky", {"idle"}),
    "held": ("vermilion", {"held", "suspended"}),
}
LANES = {
    "warm": ("green", {State.WARM}),
    "getting ready": ("sky", set(State.COMING_UP)),
    "draining": ("yellow", {State.DRAINING}),
    "failed": ("vermilion", {State.FAILED}),
}
SHARES = {
    Activity.SERVING: "green",
    Activity.IDLE: "yellow",
    Activity.COMING: "sky",
    Activity.LOST: "vermilion",
}

# Of a line of the journal; what it says of actions is most of it.
DRAWN = ("time", "glideins", "lanes", "unseen", "records", "evictions", "glidein_seconds")
Line = Mapping[str, Any]
Levels = list[float | None]


def charts(folder: Path, entries: Collection[str], hours: int) -> list[Chart]:
    """The charts of a site, drawn anew when a further step of them is over.

    Args:
        folder: where its factory keeps its journal.
    """
    step = hours * 3600.0 / STEPS
    return _charts(folder, tuple(entries), hours, int(time.time() // step))


@lru_cache(maxsize=32)
def _charts(folder: Path, entries: tuple[str, ...], hours: int, steps: int) -> list[Chart]:
    step = hours * 3600.0 / STEPS
    start = (steps + 1 - STEPS) * step
    lines = Journal(folder).lines(start - GAP_SECONDS)
    return drawn([{name: line[name] for name in DRAWN if name in line} for line in lines], entries, start, step)


def drawn(lines: Collection[Line], entries: Collection[str], start: float, step: float) -> list[Chart]:
    """Charts of what these lines of a journal say.

    Args:
        entries: those of the site; a journal tells of others that are submitted from there.
        start: where they begin, Unix time.
        step: seconds of each step.
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
    pace = [each / seconds if seconds else None for each, seconds in zip(records, covered, strict=True)]
    evictions = Series("evictions", "vermilion", _events(lines, start, step, "evictions"))
    return [
        Chart("Glideins", "stack", stack(GLIDEINS, glideins), start, step),
        Chart("Lanes", "stack", stack(LANES, lanes), start, step),
        Chart("Records served a second", "line", [Series("records/s", "blue", pace)], start, step),
        Chart("What running glideins do", "stack", _shares(lines, start, step), start, step, " %", 100.0),
        Chart("Evictions", "bars", [evictions], start, step),
    ]


def _levels(lines: Iterable[Line], start: float, step: float, value: Callable[[Line], float]) -> Levels:
    """What held at the end of each step; None where there was no factory, or it saw nothing."""
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
    """What was added up between lines, to each step its part."""
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
    """How often something happened in each step."""
    found: list[float | None] = [0.0] * STEPS
    for before, line in pairwise(lines):
        number = int((line["time"] - start) // step)
        if 0 <= number < STEPS:
            found[number] = (found[number] or 0.0) + _more(name, before, line)
    return found


def _more(name: str, before: Line, line: Line) -> float:
    """What a count has grown by; it starts anew with the factory."""
    return max(0.0, line.get(name, 0) - before.get(name, 0)) if name in before else 0.0


def _shares(lines: Collection[Line], start: float, step: float) -> list[Series]:
    """Per cent of running glideins' time by what they did."""

    def of(did: str) -> list[float]:
        return _spread(lines, start, step, lambda _, line: line.get("glidein_seconds", {}).get(did, 0.0))

    spent = {did: of(did) for did in SHARES}
    whole = [sum(column) for column in zip(*spent.values(), strict=True)]

    def share(did: str) -> Levels:
        return [100 * part / total if total else None for part, total in zip(spent[did], whole, strict=True)]

    return [Series(did, colour, share(did)) for did, colour in SHARES.items()]
