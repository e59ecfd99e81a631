"""The outcome of a simulation, as numbers and curves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glide.simulate.world import SimulationLog

POINTS = 200  # number of points of a curve


@dataclass(frozen=True)
class Outcome:
    """The outcome of one simulation. All seconds are simulated, except `took`.

    Attributes:
        records: number of records of the sweep.
        done: number of records that have a result.
        makespan: seconds until the last result was gathered, or until the simulation ended.
        first_warm: seconds until the first glidein was warm; None if no glidein ever was warm.
        jobs, glideins: number of submitted invocation jobs, and number of submitted glideins.
        evictions: number of evictions of glideins.
        lost_in_flight: number of records that were begun on a node and done again on another node, because the first
            node was lost.
        spent: seconds that glideins spent, by kind. `serving` is the computation of results. `loading` is all the time
            until the model is warm. `lost` is time that was wasted because a node was lost. `idle` is the rest.
        by_device: number of records that were computed, by kind of GPU.
        times, curve, warm: three lists of the same length. `times` contains seconds from the beginning. For each time,
            `curve` contains the number of records that are done, and `warm` contains the number of warm glideins.
        why: reason why records have no result; empty if all records have a result.
        took: real seconds that the simulation took.
    """

    records: int
    done: int
    makespan: float
    first_warm: float | None
    jobs: int
    glideins: int
    evictions: int
    lost_in_flight: int
    spent: dict[str, float] = field(default_factory=dict)
    by_device: dict[str, int] = field(default_factory=dict)
    times: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    warm: tuple[int, ...] = ()
    why: str = ""
    took: float = 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Return, for each kind of time in `spent`, its share in the total time of the glideins, from 0 to 1."""
        whole = sum(self.spent.values()) or 1.0
        return {kind: seconds / whole for kind, seconds in self.spent.items()}

    def document(self) -> dict[str, Any]:
        """Return the outcome as a JSON document."""
        return {
            "records": self.records, "done": self.done, "makespan_s": round(self.makespan, 3),
            "first_warm_s": self.first_warm and round(self.first_warm, 3),
            "records_per_s": round(self.done / self.makespan, 3) if self.makespan else 0.0,
            "jobs": self.jobs, "glideins": self.glideins, "evictions": self.evictions,
            "lost_in_flight": self.lost_in_flight,
            "glidein_s": {kind: round(seconds, 1) for kind, seconds in self.spent.items()},
            "by_device": self.by_device, "why": self.why, "simulated_in_s": round(self.took, 3),
            "curve": [
                [round(at, 1), round(done), warm]
                for at, done, warm in zip(self.times, self.curve, self.warm, strict=True)
            ],
        }  # fmt: skip


def outcome(log: SimulationLog, records: int, done: int, makespan: float, why: str, took: float) -> Outcome:
    """Compute the outcome of a simulation from its log. The other arguments have the same meaning as in Outcome."""
    times = np.linspace(0.0, makespan, POINTS)
    spent = log.spent
    kinds = {
        "serving": spent["serving"], "loading": spent["starting"] + spent["loading"],
        "lost": spent["never_warm"] + spent["lost"],
        "idle": spent["warm"] - spent["serving"] - spent["loading"] - spent["lost"],
    }  # fmt: skip
    return Outcome(
        records, done, makespan, log.first_warm, log.jobs, log.glideins, log.evictions,
        log.lost_in_flight, kinds, dict(log.by_device),
        tuple(times.tolist()), tuple(_done_at(log.served, times).tolist()),
        tuple(_warm_at(log.warm, times)), "" if done >= records else why, took,
    )  # fmt: skip


def _done_at(served: list[tuple[float, float, int]], times: np.ndarray) -> np.ndarray:
    """Return, for each time in `times`, the number of records that are done at this time.

    Args:
        served: for each computation, a tuple (start, end, number of records). Within a computation, records are done at
            a constant rate.
        times: times in seconds from the beginning of the simulation.
    """
    begin, end, count = np.array(served or [(0.0, 0.0, 0)]).T
    total = np.zeros(len(times))
    # The slope of the curve is the total rate of all running computations, in records per second. So the slope
    # increases when a computation starts. The slope decreases by the same amount when the computation ends.
    steady = end > begin
    slope = count[steady] / (end - begin)[steady]
    for edges, slopes in ((begin[steady], slope), (end[steady], -slope)):
        order = np.argsort(edges)
        at = edges[order]
        slopes = slopes[order]
        upto = np.searchsorted(at, times, side="right")
        rate = np.concatenate([[0.0], np.cumsum(slopes)])[upto]
        offset = np.concatenate([[0.0], np.cumsum(slopes * at)])[upto]
        total += rate * times - offset
    # A computation whose start equals its end adds a step to the curve, because all its records are done together.
    order = np.argsort(end[~steady])
    steps = np.concatenate([[0.0], np.cumsum(count[~steady][order])])
    return np.round(total + steps[np.searchsorted(end[~steady][order], times, side="right")], 3)


def _warm_at(changes: Iterable[tuple[float, int]], times: np.ndarray) -> list[int]:
    known = sorted(changes) or [(0.0, 0)]
    at, change = np.array(known).T
    sums = np.concatenate([[0], np.cumsum(change)])
    return [int(each) for each in sums[np.searchsorted(at, times, side="right")]]
