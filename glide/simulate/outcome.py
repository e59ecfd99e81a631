"""What came out of a simulation, as numbers and curves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glide.simulate.world import Record

POINTS = 200  # of a curve


@dataclass(frozen=True)
class Outcome:
    """One simulation's account; seconds are simulated ones.

    Attributes:
        done: records whose results are there, of `records`.
        makespan: until the last result was gathered, or until the end of what was simulated.
        first_warm: until the first glidein was warm; None if none ever was.
        jobs, glideins: submitted.
        evictions: of glideins.
        lost_in_flight: records begun on a node that was lost, and done again elsewhere.
        spent: glidein-seconds: serving, loading (all on the way to a warm model), lost with their node, idle.
        by_device: records by kind of GPU.
        times, curve, warm: seconds, and records done and warm glideins at them.
        why: records are left, if any are.
        took: real seconds.
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
        """Of the glideins' time, by kind."""
        whole = sum(self.spent.values()) or 1.0
        return {kind: seconds / whole for kind, seconds in self.spent.items()}

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
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


def outcome(record: Record, records: int, have: int, makespan: float, why: str, took: float) -> Outcome:
    """The account of what was noted."""
    times = np.linspace(0.0, makespan, POINTS)
    spent = record.spent
    kinds = {
        "serving": spent["serving"], "loading": spent["starting"] + spent["loading"],
        "lost": spent["unborn"] + spent["lost"],
        "idle": spent["warm"] - spent["serving"] - spent["loading"] - spent["lost"],
    }  # fmt: skip
    return Outcome(
        records, have, makespan, record.first_warm, record.jobs, record.glideins, record.evictions,
        record.lost_in_flight, kinds, dict(record.by_device),
        tuple(times.tolist()), tuple(_done(record.served, times).tolist()),
        tuple(_warm(record.warm, times)), "" if have >= records else why, took,
    )  # fmt: skip


def _done(served: list[tuple[float, float, int]], times: np.ndarray) -> np.ndarray:
    """Records done at these times: each interval's come evenly, those of an interval without length at once."""
    begin, end, count = np.array(served or [(0.0, 0.0, 0)]).T
    total = np.zeros(len(times))
    # As the sum of ramps: each begins with its slope, and ends with it.
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
    order = np.argsort(end[~steady])
    steps = np.concatenate([[0.0], np.cumsum(count[~steady][order])])
    return np.round(total + steps[np.searchsorted(end[~steady][order], times, side="right")], 3)


def _warm(changes: Iterable[tuple[float, int]], times: np.ndarray) -> list[int]:
    known = sorted(changes) or [(0.0, 0)]
    at, change = np.array(known).T
    sums = np.concatenate([[0], np.cumsum(change)])
    return [int(each) for each in sums[np.searchsorted(at, times, side="right")]]
