"""Counts that only grow, of glideins that come and go: added up from one look to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.vocabulary import State

FORGET_SECONDS = 86400.0  # nothing of a glidein that was not seen for so long comes back


class Count(NamedTuple):
    """What is counted; `label` is a model for records, and how they ended for glideins that have."""

    kind: str
    entry: str
    label: str = ""


SERVED, ERRORS, EVICTED, ENDED = "served", "errors", "evicted", "ended"
ENDS = (State.WARM, State.FAILED, "never warm")  # how far a glidein that has ended had come


class Totals:
    """Adds up what glideins say of themselves.

    Each one's highest word counts: what its job knows lags behind what its lanes advertise, and neither may be
    counted twice. A model that a glidein loads a second time is counted again from where it was. What is counted
    before its model is known has none, and stays so.
    """

    def __init__(self) -> None:
        self.counts: Counter[Count] = Counter()
        self._heights: dict[tuple[str, str], tuple[float, float]] = {}  # of a kind and who; and when each was seen last
        self._models: dict[str, str] = {}

    def add(self, snapshot: Snapshot) -> None:
        """Count what is new in a look."""
        self._models = snapshot.models | self._models  # a template's first name stays
        for count, who, height in self._said(snapshot):
            before, _ = self._heights.get((count.kind, who), (0.0, 0.0))
            self.counts[count] += max(0, int(height - before))
            self._heights[count.kind, who] = max(before, height), snapshot.now
        self._heights = {key: each for key, each in self._heights.items() if snapshot.now - each[1] < FORGET_SECONDS}

    def of(self, kind: str) -> int:
        """All of a kind together."""
        return sum(number for count, number in self.counts.items() if count.kind == kind)

    def _said(self, snapshot: Snapshot) -> Iterator[tuple[Count, str, float]]:
        """What is counted, of whom, and how high it stands."""
        for glidein in (*snapshot.glideins, *snapshot.ended):
            yield Count(EVICTED, glidein.entry), glidein.job, max(0, glidein.started - 1)
        for glidein in snapshot.ended:
            yield Count(ENDED, glidein.entry, glidein.state if glidein.state in ENDS else ENDS[-1]), glidein.job, 1
        served: list[Lane | Glidein] = [*snapshot.lanes, *snapshot.glideins, *snapshot.ended]
        for each in served:
            model = self._models.get(each.template, "")
            yield Count(SERVED, each.entry, model), f"{each.glide_id} {each.template}", each.served
            yield Count(ERRORS, each.entry, model), f"{each.glide_id} {each.template}", each.errors
