"""Measure whether the batch size changes the makespan. Sweeps run the same records with several batch sizes."""

from __future__ import annotations

from statistics import median
from typing import Any

from glide.bench.rig import rig

BATCHES = (1, 10, 100, 1000, "auto")


def batch(repeat: int, records: int = 4000, record_seconds: float = 0.02, glideins: int = 2) -> dict[str, Any]:
    """Measure the makespan of a sweep for each batch size, and divide it by the ideal makespan.

    The makespan is the time from the first warm lane to the last result. The ideal makespan is records × seconds per
    record ÷ glideins.
    """
    ideal = records * record_seconds / glideins
    options = {"record_seconds": record_seconds}
    makespans: dict[str, list[float]] = {str(size): [] for size in BATCHES}
    with rig() as bench:
        bench.sweep(64 * glideins, options, glideins=glideins)  # this sweep only starts the glideins
        for _ in range(repeat):
            for size in BATCHES:  # each repetition runs all sizes, so a slow minute affects all of them
                summary = bench.sweep(records, options, glideins=glideins, batch=size)
                makespans[str(size)].append(summary["warm_makespan_s"])
    medians = {size: median(times) for size, times in makespans.items()}
    return {
        "ideal_s": ideal,
        "makespans_s": makespans,
        "over_ideal": {size: round(time / ideal, 4) for size, time in medians.items()},
        "spread": round(max(medians.values()) / min(medians.values()) - 1, 4),
    }
