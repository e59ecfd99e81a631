"""Write and read the factory's journal: JSON lines with the observations and the actions of the cycles.

`glide factory status`, the charts and other programs read the journal. The factory's decisions do not depend on the
journal.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.factory.actions import Action
from glide.factory.activity import activities
from glide.factory.snapshot import OTHER, Snapshot
from glide.factory.totals import ENDED, ERRORS, EVICTED, SERVED, Totals
from glide.vocabulary import JobStatus

SILENCE_SECONDS = 60.0  # maximum time between two lines, in seconds, even if nothing changes
BLOCK = 65536  # to find the last line, first read this number of bytes at the end of the file
# Maximum size of the journal, in bytes. A larger journal is renamed to journal.jsonl.1, and replaces an earlier file of
# this name. Then a new journal begins.
LARGEST = 10_000_000


class Journal:
    """The journal of a site, which is a file in the site's folder.

    A cycle without a change usually writes no line and only updates the file's modification time. In a line, the counts
    `evictions`, `ended`, `records` and `errors` include everything since the factory started. The field
    `glidein_seconds` shows how all glideins together have spent the time since the previous line. The field is a dict
    from an activity to the number of seconds for this activity.
    """

    def __init__(self, folder: Path):
        self.path = folder / "journal.jsonl"
        self.last_line: dict[str, Any] = {}
        self.totals = Totals()
        self.glidein_seconds: Counter[str] = Counter()
        self.cycle_time = self.line_time = 0.0  # Unix times of the last cycle and of the last line

    def write(self, snapshot: Snapshot, actions: Collection[Action], refused: Collection[str] = ()) -> None:
        """Record a cycle. Write a line if something changed, or if no line was written for SILENCE_SECONDS.

        Args:
            refused: the errors of the actions that failed.
        """
        self._measure(snapshot)
        counted = {"evictions": self.totals.total(EVICTED), "ended": self.totals.total(ENDED)}
        fields = {**describe_cycle(snapshot, actions), "refused": list(refused), **counted}
        changed = not self.path.exists() or fields != self.last_line
        if not changed and snapshot.now - self.line_time < SILENCE_SECONDS:
            return os.utime(self.path)
        if self.path.exists() and self.path.stat().st_size > LARGEST:
            self.path.replace(self._rotated)
        spent = {activity: round(seconds, 1) for activity, seconds in self.glidein_seconds.items()}
        measured = {"records": self.totals.total(SERVED), "errors": self.totals.total(ERRORS), "glidein_seconds": spent}
        line = json.dumps({"time": round(time.time(), 3), **fields, **measured}) + "\n"
        with self.path.open("ab+") as file:
            # If the last line is incomplete because the disk was full, begin a new line.
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                line = "\n" + line
            file.write(line.encode())
        self.last_line, self.line_time = fields, snapshot.now
        self.glidein_seconds.clear()

    def _measure(self, snapshot: Snapshot) -> None:
        """Update the counts in `totals`. Add the time since the last cycle to `glidein_seconds`.

        The records, the errors and the seconds change often. So a change of these numbers alone causes no new line.
        """
        self.totals.add(snapshot)
        seconds = min(snapshot.now - self.cycle_time, SILENCE_SECONDS) if self.cycle_time else 0.0
        for counts in () if snapshot.unavailable_sources else activities(snapshot).values():
            self.glidein_seconds.update({activity: count * seconds for activity, count in counts.items()})
        self.cycle_time = snapshot.now

    @property
    def _rotated(self) -> Path:
        return self.path.with_suffix(".jsonl.1")

    def lines(self, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """Yield the lines that were written since a Unix time. Leave out incomplete lines."""
        for path in (self._rotated, self.path):
            # The time `st_mtime` may be up to 1 s too early, because some file systems round this time down.
            if not path.exists() or path.stat().st_mtime + 1 < since:
                continue
            with path.open(encoding="utf-8") as file:
                for line in file:
                    with suppress(ValueError):
                        fields = json.loads(line) if _time(line) >= since else None
                        if isinstance(fields, dict):
                            yield fields

    def latest(self) -> dict[str, Any]:
        """Return the last complete line, or an empty dict if the journal has no complete line."""
        if not self.path.exists():
            return {}
        with self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start, length = end, BLOCK
            while start:  # read further back until a complete line is found
                start = file.seek(max(0, end - length))
                for line in reversed(file.read(end - start).split(b"\n")[bool(start) :]):
                    with suppress(ValueError):
                        return json.loads(line)
                length *= 4
        return {}

    def age(self) -> float | None:
        """Return the seconds since the last cycle; None before the first cycle."""
        return time.time() - self.path.stat().st_mtime if self.path.exists() else None


def refusals(home: Path) -> list[str]:
    """Return the errors of the last cycle of every factory that runs with this GLIDE_HOME."""
    found: list[str] = []
    for path in sorted((home / "factory").glob("*/journal.jsonl")):
        journal = Journal(path.parent)
        with suppress(OSError):  # the factory may rename the journal at this moment
            if (journal.age() or 0.0) < SILENCE_SECONDS:
                found += map(str, journal.latest().get("refused", []))
    return found


def _time(line: str) -> float:
    """Return the Unix time of a journal's line. Read only the beginning of the line, because JSON is slow to parse.

    Raises:
        ValueError: the line is incomplete.
    """
    return float(line.removeprefix('{"time": ').partition(",")[0])


def describe_cycle(snapshot: Snapshot, actions: Collection[Action]) -> dict[str, Any]:
    """Return the fields that describe a cycle in a line of the journal. The keys are:

    - glideins: for each entry, the number of glideins in each status
    - lanes: for each model, the number of lanes in each state
    - jobs: for each model, the number of invocation jobs
    - unseen: the reasons why queues or the collector are unavailable
    - actions: the actions of the cycle
    """
    entries: dict[str, Counter[str]] = {}
    for glidein in snapshot.glideins:
        entries.setdefault(glidein.entry, Counter())[JobStatus.NAMES[glidein.status]] += 1
    lanes: dict[str, Counter[str]] = {}
    for lane in snapshot.lanes:
        lanes.setdefault(lane.model, Counter())[lane.state] += 1
    demand: Counter[str] = Counter()
    for each in snapshot.demands:
        demand[snapshot.models.get(each.template, OTHER)] += each.jobs
    unavailable = [f"{entry}: {why}" for entry, why in snapshot.unavailable_entries.items()]
    return {
        "glideins": {entry: dict(states) for entry, states in sorted(entries.items())},
        "lanes": {model: dict(states) for model, states in sorted(lanes.items())},
        "jobs": dict(demand),
        "unseen": [*snapshot.unavailable_sources, *unavailable],
        "actions": [action.public() for action in actions],
    }
