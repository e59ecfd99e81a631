"""Does the batch size matter? The same records in batches of 1, 10, 100, 1000 and auto, against the ideal."""

from __future__ import annotations

from statistics import median
from typing import Any

from glide.bench.rig import rig

BATCHES = (1, 10, 100, 1000, "auto")


def batch(repeat: int, records: int = 4000, record_seconds: float = 0.02, glideins: int = 2) -> dict[str, Any]:
    """Makespans from the first warm lane to the last result gathered, over the ideal: records × seconds ÷ glideins."""
    ideal = records * record_seconds / glideins
    options = {"record_seconds": record_seconds}
    makespans: dict[str, list[float]] = {str(size): [] for size in BATCHES}
    with rig() as bench:
        bench.sweep(64 * glideins, options, glideins=glideins)  # the glideins are up and warm
        for _ in range(repeat):
            for size in BATCHES:  # in turn, so that a slow minute of the machine is everyone's
                summary = bench.sweep(records, options, glideins=glideins, batch=size)
                makespans[str(size)].append(summary["warm_makespan_s"])
    medians = {size: median(times) for size, times in makespans.items()}
    return {
        "ideal_s": ideal,
        "makespans_s": makespans,
        "over_ideal": {size: round(time / ideal, 4) for size, time in medians.items()},
        "spread": round(max(medians.values()) / min(medians.values()) - 1, 4),
    }
