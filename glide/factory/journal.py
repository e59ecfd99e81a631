"""What a factory saw and did, cycle by cycle, as JSON lines: for `glide factory status`, timelines and other programs.

The factory itself decides nothing by it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.factory.activity import activities
from glide.factory.plan import Action
from glide.factory.snapshot import OTHER, Snapshot
from glide.factory.totals import ENDED, ERRORS, EVICTED, SERVED, Totals
from glide.vocabulary import JobStatus

SILENCE_SECONDS = 60.0  # without news, a line so often, for what is only measured
BLOCK = 65536  # bytes that are read for the last line, at first
LARGEST = 10_000_000  # bytes; what is older than that goes to journal.jsonl.1, and what is there goes


class Journal:
    """A site's journal in its factory's folder. A cycle like the one before only touches the file, most of the time.

    What is counted (`evictions`, `ended`, `records`, `errors`) starts anew with each factory; `glidein_seconds` are
    those since the line before, by what running glideins did (`glide.factory.activity`).
    """

    def __init__(self, folder: Path):
        self.path = folder / "journal.jsonl"
        self.last: dict[str, Any] = {}
        self.totals = Totals()
        self.spent: Counter[str] = Counter()
        self.cycle = self.told = 0.0  # Unix times of the last cycle, and of the last that has a line

    def write(self, snapshot: Snapshot, actions: Collection[Action], refused: Collection[str] = ()) -> None:
        """Add a line, if anything is new or none was added for a while, and note that there was a cycle.

        Args:
            refused: what HTCondor did not do of the actions.
        """
        self._measure(snapshot)
        counted = {"evictions": self.totals.of(EVICTED), "ended": self.totals.of(ENDED)}
        told = {**describe(snapshot, actions), "refused": list(refused), **counted}
        news = not self.path.exists() or _stable(told) != _stable(self.last)
        if not news and snapshot.now - self.told < SILENCE_SECONDS:
            return os.utime(self.path)
        if self.path.exists() and self.path.stat().st_size > LARGEST:
            self.path.replace(self._rotated)
        spent = {did: round(seconds, 1) for did, seconds in self.spent.items()}
        measured = {"records": self.totals.of(SERVED), "errors": self.totals.of(ERRORS), "glidein_seconds": spent}
        line = json.dumps({"time": round(time.time(), 3), **told, **measured}) + "\n"
        with self.path.open("ab+") as file:
            # Where the disk was full, the last line may have no end.
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                line = "\n" + line
            file.write(line.encode())
        self.last, self.told = told, snapshot.now
        self.spent.clear()

    def _measure(self, snapshot: Snapshot) -> None:
        """Add up what happened since the cycle before, which is not news in itself."""
        self.totals.add(snapshot)
        seconds = min(snapshot.now - self.cycle, SILENCE_SECONDS) if self.cycle else 0.0
        for counts in () if snapshot.failed else activities(snapshot).values():
            self.spent.update({did: count * seconds for did, count in counts.items()})
        self.cycle = snapshot.now

    @property
    def _rotated(self) -> Path:
        return self.path.with_suffix(".jsonl.1")

    def lines(self, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """The journal from its beginning, or from a Unix time on; a torn line is none."""
        for path in (self._rotated, self.path):
            if not path.exists() or path.stat().st_mtime + 1 < since:  # a file's clock is a coarse one
                continue
            with path.open(encoding="utf-8") as file:
                for line in file:
                    with suppress(ValueError):
                        told = json.loads(line) if _time(line) >= since else None
                        if isinstance(told, dict):
                            yield told

    def latest(self) -> dict[str, Any]:
        """The last line; empty where there is none."""
        if not self.path.exists():
            return {}
        with self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start, length = end, BLOCK
            while start:  # further back, until there is a whole one
                start = file.seek(max(0, end - length))
                for line in reversed(file.read(end - start).split(b"\n")[bool(start) :]):
                    with suppress(ValueError):
                        return json.loads(line)
                length *= 4
        return {}

    def age(self) -> float | None:
        """Seconds since the last cycle; None where there was none."""
        return time.time() - self.path.stat().st_mtime if self.path.exists() else None


def refusals(home: Path) -> list[str]:
    """What the factories that work under a GLIDE_HOME could not do in their last cycle, and why."""
    found: list[str] = []
    for path in sorted((home / "factory").glob("*/journal.jsonl")):
        journal = Journal(path.parent)
        with suppress(OSError):  # it may be rotated just now
            if (journal.age() or 0.0) < SILENCE_SECONDS:
                found += map(str, journal.latest().get("refused", []))
    return found


def _time(line: str) -> float:
    """When a line was written, without reading it: a day has many. ValueError where it is torn."""
    return float(line.removeprefix('{"time": ').partition(",")[0])


def _stable(told: dict[str, Any]) -> str:
    """Without the seconds in reasons, which pass."""
    return re.sub(r"\d+ s\b", "", json.dumps(told))


def describe(snapshot: Snapshot, actions: Collection[Action]) -> dict[str, Any]:
    """A cycle: glideins by entry and status, lanes by model and state, jobs by model, what was not seen, actions."""
    entries: dict[str, Counter[str]] = {}
    for glidein in snapshot.glideins:
        entries.setdefault(glidein.entry, Counter())[JobStatus.NAMES[glidein.status]] += 1
    lanes: dict[str, Counter[str]] = {}
    for lane in snapshot.lanes:
        lanes.setdefault(lane.model, Counter())[lane.state] += 1
    demand: Counter[str] = Counter()
    for each in snapshot.demands:
        demand[snapshot.models.get(each.template, OTHER)] += each.jobs
    return {
        "glideins": {entry: dict(states) for entry, states in sorted(entries.items())},
        "lanes": {model: dict(states) for model, states in sorted(lanes.items())},
        "jobs": dict(demand),
        "unseen": [*snapshot.failed, *(f"{entry}: {why}" for entry, why in snapshot.blind.items())],
        "actions": [action.public() for action in actions],
    }
