"""Measure a sweep of very many records: memory and rate of its driver, and the time to resume it after kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from glide.bench.rig import rig
from glide.protocol.json_lines import read_lines
from glide.sweep.out import history_file

RECORD_BYTES = 250  # length of each line of the input, in bytes
SAMPLE_SECONDS = 0.5
POINTS = 60  # number of points of the curve in the result


def records(repeat: int, count: int = 1_000_000) -> dict[str, Any]:
    """Run a sweep of records that take no time, on one glidein with two lanes.

    The driver runs in a separate process. When half of the records have a result, the benchmark kills this process.
    Then a second driver resumes the sweep.

    Args:
        repeat: is not used. The sweep runs only once, because it takes long.
        count: number of records.
    """
    with rig(cores=3) as bench:
        bench.sweep(64, {}, glideins=1)
        folder = bench.folder / "records"
        folder.mkdir()
        _write_input(folder / "records.jsonl", count)
        out = folder / "out"
        file = {
            "name": "records", "model": {"name": "noop", "engine": "noop", "options": {}}, "records": "records.jsonl",
            "prompts": {"plain": "{text}"}, "out": str(out),
        }  # fmt: skip
        (folder / "sweep.yaml").write_text(yaml.safe_dump(file), "utf-8")
        first = _DriverProcess(folder / "sweep.yaml", "run", out)
        first.watch(lambda done: done >= count / 2)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        stored = _line_count(out / "plain" / "results.jsonl")
        second = _DriverProcess(folder / "sweep.yaml", "resume", out)
        second.watch(lambda done: False)
        summary = json.loads((out / "summary.json").read_text("utf-8"))
        assert second.process.returncode == 0 and summary["prompts"]["plain"] == {
            "records": count, "errors": 0, "accuracy": None,
        }  # fmt: skip
        begun = first.history[0]["at"]
        complete = max(line["at"] for line in second.history if line.get("end") == "gathered")
        rates = first.rates + second.rates
        # A driver with few records may end before its rate can be measured.
        change = median(second.rates[-5:]) / median(first.rates[:5]) if first.rates and second.rates else None
        return {
            "records": count,
            "check_s": round(begun - first.started, 1),
            "check_records_per_s": round(count / (begun - first.started)),
            "peak_mb": max(point["mb"] for point in first.points + second.points),
            "records_per_s": round(median(rates)) if rates else None,
            "rate_last_over_first": change and round(change, 3),
            "resume_s": round(second.history[0]["at"] - second.started, 1),
            "finish_s": round(second.ended - complete, 1),
            "recomputed": summary["recomputed"],
            "stored_at_kill": stored,
            "found_at_resume": second.history[0]["done"],
            "curve": _thinned(first.points + second.points),
        }


class _DriverProcess:
    """A driver in a separate process, with measurements of this process.

    Attributes:
        started: Unix time when the process started.
        ended: Unix time when the last call of `watch` ended.
        points: measurements of the process. Each point has `s` (seconds since the start), `mb` (the memory that the
            process uses, in MB) and `done` (number of results).
    """

    def __init__(self, file: Path, command: str, out: Path):
        self.out = out
        self.points: list[dict[str, float]] = []
        self.started = self.ended = time.time()
        self.seen = len(list(read_lines(history_file(out))))  # lines of earlier drivers
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glide", "sweep", command, str(file)], stdout=subprocess.DEVNULL, stderr=sys.stderr
        )

    def watch(self, enough: Callable[[int], bool]) -> None:
        """Sample the process until it has ended, or until `enough` is true for the number of results."""
        done = 0
        while self.process.poll() is None:
            for line in self.history[-3:]:
                done = max(done, line.get("counts", line).get("done", 0))
            self.points.append({"s": round(time.time() - self.started, 1), "mb": self._megabytes(), "done": done})
            if enough(done):
                break
            time.sleep(SAMPLE_SECONDS)
        self.ended = time.time()

    def _megabytes(self) -> int:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        except OSError:
            return 0
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) // 1024 if found else 0

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines that this driver has written to the sweep's history."""
        return list(read_lines(history_file(self.out)))[self.seen :]

    @property
    def rates(self) -> list[float]:
        """Rates, in results per second.

        From time to time, the driver writes the number of results so far to the sweep's history. Each pair of
        successive numbers gives one rate. But a pair of equal numbers gives no rate. The time before the first result
        is left out.
        """
        counts = [(line["at"], line["counts"]["done"]) for line in self.history if line.get("counts", {}).get("done")]
        pairs = pairwise(counts)
        return [(after - before) / (late - early) for (early, before), (late, after) in pairs if after > before]


def _write_input(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            line = json.dumps({"custom_id": f"r{number:010}", "text": f"text {number} "})
            file.write(line[:-2] + "x" * (RECORD_BYTES - 1 - len(line)) + '"}\n')


def _line_count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _thinned(points: list[dict[str, float]]) -> list[dict[str, float]]:
    step = max(1, len(points) // POINTS)
    return points[::step]
