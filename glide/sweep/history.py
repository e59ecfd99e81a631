"""A run's history: what its driver saw of lanes, carriers and records, as JSON lines, for the report.

A line says when (`at`, Unix time) and what is new of a `run` (which begins or goes on with it), a `lane`, a `carrier`
or the `counts`; `end` says how a carrier or a run has ended. Nothing is decided by it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from glide.invoke.carriers import Carrier
from glide.vocabulary import JobStatus, Machine

COUNT_SECONDS = 1.0  # between lines that only count
# What a lane's ad tells beyond its Name and State, by what it is called here.
LANE = {
    "glidein": Machine.ID, "slot": "SlotID", "state": Machine.STATE, "since": Machine.STATE_SINCE,
    "device": Machine.GPU_NAME, "service": Machine.SERVICE, "born": "DaemonStartTime", "fetch": Machine.FETCH_SECONDS,
    "import": Machine.IMPORT_SECONDS,
    "load": Machine.LOAD_SECONDS, "warm": Machine.WARM_SECONDS,
}  # fmt: skip


class History:
    """Writes what has changed. One without a file is for those who need none."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self.file: TextIO | None = None
        self.told: dict[tuple[str, str], dict[str, Any]] = {}  # of each lane and carrier that is there
        self.counts: dict[str, int] = {}  # the latest
        self.counted: tuple[float, dict[str, int]] = (0.0, {})  # when they were told last, and what

    def begin(self, **facts: Any) -> None:
        """A driver begins, or goes on with what another has left, maybe in the middle of a line."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                torn = file.read(1) not in (b"", b"\n")
            self.file = self.path.open("a", encoding="utf-8")
            self.file.write("\n" * torn)
            self._add(facts)
            self.file.flush()

    def close(self, how: str) -> None:
        """The driver ends: finished, or stopped."""
        if self.file is not None:
            self._add({"counts": self.counts, "end": how})
            self.file.close()
            self.file = None

    def saw_queue(self, queue: Sequence[Carrier]) -> None:
        """The run's jobs that are in the queue."""
        if self.file is not None:
            for carrier in queue:
                self._tell("carrier", carrier.part, _of_carrier(carrier))
            here = {carrier.part for carrier in queue}
            for part in [name for kind, name in self.told if kind == "carrier" and name not in here]:
                self._forget("carrier", part, {"end": "removed"})  # by others

    def saw_lanes(self, lanes: Sequence[Mapping[str, Any]]) -> None:
        """The ads of the lanes that have, or are about to have, what the run needs."""
        if self.file is not None:
            for lane in lanes:
                self._tell("lane", lane["Name"], _of_lane(lane))
            here = {lane["Name"] for lane in lanes}
            for lane_name in [name for kind, name in self.told if kind == "lane" and name not in here]:
                self._forget("lane", lane_name, {"end": "gone"})

    def saw_counts(self, **counts: int) -> None:
        """What the driver has counted so far; the last of a cycle's news."""
        if self.file is not None:
            self.counts = counts
            since, told = self.counted
            if counts != told and time.monotonic() - since >= COUNT_SECONDS:
                self.counted = time.monotonic(), counts
                self._add({"counts": counts})
            self.file.flush()

    def ended(self, carriers: Sequence[Carrier], how: str, **facts: Any) -> None:
        """Carriers have left the queue: gathered, lost, held or removed.

        Args:
            facts: what is known of it; `at`, if not now.
        """
        if self.file is not None:
            for carrier in carriers:
                self._forget("carrier", carrier.part, {**facts, "end": how})

    def _tell(self, kind: str, name: str, facts: dict[str, Any]) -> None:
        before = self.told.get((kind, name), {})
        if facts != before:
            self.told[kind, name] = facts
            self._add({kind: name, **{key: value for key, value in facts.items() if before.get(key) != value}})

    def _forget(self, kind: str, name: str, facts: dict[str, Any]) -> None:
        if self.told.pop((kind, name), None):
            self._add({kind: name, **facts})

    def _add(self, facts: Mapping[str, Any]) -> None:
        assert self.file is not None
        self.file.write(json.dumps({"at": round(time.time(), 3), **facts}, ensure_ascii=False) + "\n")


def _of_carrier(carrier: Carrier) -> dict[str, Any]:
    return {
        "job": carrier.job, "records": carrier.records, "status": JobStatus.NAMES[carrier.status],
        "starts": carrier.starts, "on": carrier.lane or carrier.last_lane, **carrier.times,
    }  # fmt: skip


def _of_lane(lane: Mapping[str, Any]) -> dict[str, Any]:
    return {name: lane.get(attribute) for name, attribute in LANE.items()} | {"claimed": lane["State"] == "Claimed"}
