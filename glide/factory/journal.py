"""What a factory saw and did, cycle by cycle, as JSON lines: for `glide factory status`, timelines and other programs.

The factory itself decides nothing by it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.factory.plan import Action
from glide.factory.snapshot import Snapshot
from glide.vocabulary import JobStatus

LARGEST = 10_000_000  # bytes; what is older than that goes to journal.jsonl.1, and what is there goes


class Journal:
    """A site's journal in its factory's folder. A cycle like the one before only touches the file."""

    def __init__(self, folder: Path):
        self.path = folder / "journal.jsonl"
        self.last: dict[str, Any] = {}

    def write(self, snapshot: Snapshot, actions: Collection[Action], refused: Collection[str] = ()) -> None:
        """Add a line, if anything is new, and note that there was a cycle.

        Args:
            refused: what HTCondor did not do of the actions.
        """
        told = {**describe(snapshot, actions), "refused": list(refused)}
        if self.path.exists() and _stable(told) == _stable(self.last):
            return os.utime(self.path)
        if self.path.exists() and self.path.stat().st_size > LARGEST:
            self.path.replace(self.path.with_suffix(".jsonl.1"))
        with self.path.open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **told}) + "\n")
        self.last = told

    def lines(self) -> Iterator[dict[str, Any]]:
        """The journal from its beginning; a torn line is none."""
        if self.path.exists():
            with self.path.open() as file:
                for line in file:
                    with suppress(ValueError):
                        yield json.loads(line)

    def latest(self) -> dict[str, Any]:
        """The last line; empty where there is none."""
        return deque(self.lines(), maxlen=1).pop() if self.path.exists() else {}

    def age(self) -> float | None:
        """Seconds since the last cycle; None where there was none."""
        return time.time() - self.path.stat().st_mtime if self.path.exists() else None


def _stable(told: dict[str, Any]) -> str:
    """Without the seconds in reasons, which pass."""
    return re.sub(r"\d+ s\b", "", json.dumps(told))


def describe(snapshot: Snapshot, actions: Collection[Action]) -> dict[str, Any]:
    """A cycle: glideins by entry and status, lanes by model and state, demand by model, what was not seen, actions."""
    entries: dict[str, Counter[str]] = {}
    for glidein in snapshot.glideins:
        entries.setdefault(glidein.entry, Counter())[JobStatus.NAMES[glidein.status]] += 1
    lanes: dict[str, Counter[str]] = {}
    for lane in snapshot.lanes:
        lanes.setdefault(lane.model, Counter())[lane.state] += 1
    demand: Counter[str] = Counter()
    for each in snapshot.demands:
        demand[each.model] += each.jobs
    return {
        "glideins": {entry: dict(states) for entry, states in sorted(entries.items())},
        "lanes": {model: dict(states) for model, states in sorted(lanes.items())},
        "jobs": dict(demand),
        "unseen": [*snapshot.failed, *(f"{entry}: {why}" for entry, why in snapshot.blind.items())],
        "actions": [action.public() for action in actions],
    }
