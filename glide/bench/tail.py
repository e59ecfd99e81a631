"""Measure how much longer a sweep takes than the ideal, if records or nodes have different speeds."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from glide.bench.rig import rig
from glide.server.engines.noop import PACE_VARIABLE

RECORDS = 2000
RECORD_SECONDS = 0.02
SLOWER = 10.0  # how many times as long each record takes on the slow node
# For each case, the cost of a record by its place in the file. The cost multiplies the record's time.
CASES: Mapping[str, list[float]] = {
    "rising": [0.1 + 1.8 * place / (RECORDS - 1) for place in range(RECORDS)],
    "one in fifty": [100.0 if place % 50 == 25 else 1.0 for place in range(RECORDS)],
}
SLOW_NODE = "one slow node"


def tail(repeat: int) -> dict[str, Any]:
    """Measure the makespan of sweeps on two glideins, and divide it by the ideal makespan.

    The makespan is the time from the first warm lane to the last result. The ideal makespan is the time in which both
    glideins finish together, without any overhead.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    ideal = {case: RECORD_SECONDS * sum(costs) / 2 for case, costs in CASES.items()}
    ideal[SLOW_NODE] = RECORD_SECONDS * RECORDS / (1 + 1 / SLOWER)
    options = {"record_seconds": RECORD_SECONDS, "cost_in_prompt": True}
    with rig(cores=3) as bench:
        bench.sweep(64, options, glideins=2, texts=["1"] * 64)  # this sweep only starts the glideins
        for _ in range(repeat):
            for case, costs in CASES.items():
                texts = [f"{cost:.3f} text" for cost in costs]
                runs.setdefault(case, []).append(bench.sweep(RECORDS, options, glideins=2, texts=texts))
    with tempfile.TemporaryDirectory(prefix="glide-bench-") as folder:
        entries = [{"name": "fast"}, {"name": "slow", "python": str(_slow_python(Path(folder)))}]
        with rig(cores=3, entries=entries, max_glideins=1) as bench:
            options = {"record_seconds": RECORD_SECONDS}
            bench.sweep(64, options, glideins=2)
            for _ in range(repeat):
                runs.setdefault(SLOW_NODE, []).append(bench.sweep(RECORDS, options, glideins=2))
    return {
        "ideal_s": {case: round(seconds, 3) for case, seconds in ideal.items()},
        "makespans_s": {case: [each["warm_makespan_s"] for each in same] for case, same in runs.items()},
        "over_ideal": {
            case: round(median(each["warm_makespan_s"] for each in same) / ideal[case], 3)
            for case, same in runs.items()
        },
        "jobs": {case: [each["jobs"] for each in same] for case, same in runs.items()},
        "recomputed": {case: sum(each["recomputed"] for each in same) for case, same in runs.items()},
        "twins": {case: sum(each["twins"] for each in same) for case, same in runs.items()},
    }  # fmt: skip


def _slow_python(folder: Path) -> Path:
    """Write a script that is the Python interpreter of the slow node, and return its path."""
    script = folder / "slow-python"
    script.write_text(f'#!/bin/sh\nexport {PACE_VARIABLE}={SLOWER:g}\nexec "{sys.executable}" "$@"\n', "utf-8")
    script.chmod(0o755)
    return script
