"""Write the driver's observations of lanes, jobs and counts as JSON lines. The report of a sweep reads this history.

Each line has `at` (Unix time), the facts that have changed, and one of these keys:

- `run`: name of the run. A driver writes this line when it starts.
- `lane`: Name of the lane that the facts are about.
- `carrier`: The facts are about one invocation job. The records in this job form a group, which has a name. The value
  of `carrier` is the name of this group.
- `counts`: numbers of results, errors, tokens, recomputed records and lost records.

The key `end` says how a driver, a lane or a job has ended. The driver itself never reads the history.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from glide.invoke.jobs import InvocationJob
from glide.protocol.ads import LaneAd
from glide.vocabulary import JobStatus

JOULES = 36_000  # energy is written in steps of this number of J (0.01 kWh), so that it seldom causes a new line
COUNT_SECONDS = 1.0  # minimum time between two lines that have only counts, in seconds


class HistoryWriter:
    """Write one line for each change of a lane, a job or a count. Without a path, write nothing.

    Attributes:
        written: a dict from each lane or invocation job to the facts that were last written. The key of a lane is
            ("lane", Name of the lane). The key of an invocation job is ("carrier", name of the job's part). In the
            history, such a job is called "carrier". If a lane or job has ended, the entry is deleted.
        counts: the newest counts, written or not.
        last_counts: time when counts were last written (monotonic seconds), and the counts that were written.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self.file: TextIO | None = None
        self.written: dict[tuple[str, str], dict[str, Any]] = {}
        self.counts: dict[str, int] = {}
        self.last_counts: tuple[float, dict[str, int]] = (0.0, {})

    def begin(self, **facts: Any) -> None:
        """Open the file, end its last line with a newline if needed, and write a line for the start of a driver.

        Args:
            facts: entries of the new line. `run` is the run's name, `total` is the number of the run's records, and
                `done` is the number of records that already have a result.
        """
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                torn = file.read(1) not in (b"", b"\n")
            self.file = self.path.open("a", encoding="utf-8")
            self.file.write("\n" * torn)
            self._write_line(facts)
            self.file.flush()

    def close(self, how: str) -> None:
        """Write the newest counts and how the driver ended: "finished" or "stopped". Then close the file."""
        if self.file is not None:
            self._write_line({"counts": self.counts, "end": how})
            self.file.close()
            self.file = None

    def write_queue(self, queue: Sequence[InvocationJob]) -> None:
        """Write new facts about the run's jobs, and the end of each job that has left the queue.

        If the driver itself gathered or removed a job, `write_ended` has already written the end of the job.
        """
        if self.file is not None:
            for job in queue:
                self._write_changes("carrier", job.part, _job_facts(job))
            present = {job.part for job in queue}
            for part in [name for kind, name in self.written if kind == "carrier" and name not in present]:
                self._write_end("carrier", part, {"end": "removed"})  # a person or HTCondor has removed the job

    def write_lanes(self, lanes: Sequence[LaneAd]) -> None:
        """Write new facts about the lanes, and the end of each lane that is gone.

        Args:
            lanes: ads of the lanes that have loaded the run's template or are loading it. All other lanes are gone.
        """
        if self.file is not None:
            for lane in lanes:
                self._write_changes("lane", lane.name, _lane_facts(lane))
            present = {lane.name for lane in lanes}
            for lane_name in [name for kind, name in self.written if kind == "lane" and name not in present]:
                self._write_end("lane", lane_name, {"end": "gone"})

    def write_counts(self, **counts: int) -> None:
        """Write the counts if they have changed, at most once in COUNT_SECONDS. Then flush the file.

        The driver calls this method after each cycle.
        """
        if self.file is not None:
            self.counts = counts
            since, before = self.last_counts
            if counts != before and time.monotonic() - since >= COUNT_SECONDS:
                self.last_counts = time.monotonic(), counts
                self._write_line({"counts": counts})
            self.file.flush()

    def write_ended(self, jobs: Sequence[InvocationJob], how: str, **facts: Any) -> None:
        """For each job that has left the queue, write a line that says how the job ended.

        Args:
            how: "gathered", "lost" or "removed".
            facts: further entries for each job's line in the history. The entry `at` is the Unix time when the jobs
                ended. If `at` is missing, the line gets the current time.
        """
        if self.file is not None:
            for job in jobs:
                self._write_end("carrier", job.part, {**facts, "end": how})

    def _write_changes(self, kind: str, name: str, facts: dict[str, Any]) -> None:
        before = self.written.get((kind, name), {})
        if facts != before:
            self.written[kind, name] = facts
            self._write_line({kind: name, **{key: value for key, value in facts.items() if before.get(key) != value}})

    def _write_end(self, kind: str, name: str, facts: dict[str, Any]) -> None:
        if self.written.pop((kind, name), None):
            self._write_line({kind: name, **facts})

    def _write_line(self, facts: Mapping[str, Any]) -> None:
        assert self.file is not None
        self.file.write(json.dumps({"at": round(time.time(), 3), **facts}, ensure_ascii=False) + "\n")


def _job_facts(job: InvocationJob) -> dict[str, Any]:
    return {
        "job": job.id, "records": job.records, "status": JobStatus.NAMES[job.status],
        "starts": job.starts, "on": job.lane or job.last_lane, **job.times,
    }  # fmt: skip


def _lane_facts(lane: LaneAd) -> dict[str, Any]:
    return {
        "glidein": lane.glide_id, "slot": lane.slot, "state": lane.state, "since": lane.state_since,
        "device": lane.gpu_name, "service": lane.service, "born": lane.born, "fetch": lane.fetch_seconds,
        "import": lane.import_seconds, "load": lane.load_seconds, "warm": lane.warm_seconds,
        "claimed": lane.claim == "Claimed", "devices": lane.devices, "price": lane.price,
        "joules": None if lane.joules is None else JOULES * (lane.joules // JOULES),
    }  # fmt: skip
