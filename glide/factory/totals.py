"""Count the evictions, the ends and the served records of all glideins that a factory has had.

The counters never decrease, even if glideins disappear. Each snapshot adds the increase since the previous snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.vocabulary import State

FORGET_SECONDS = 86400.0  # a glidein is forgotten this number of seconds after its last report


class MetricKey(NamedTuple):
    """The name of a counter.

    Attributes:
        kind: SERVED, ERRORS, EVICTED or ENDED.
        label: the model's name for SERVED and ERRORS; the glidein's last state for ENDED; empty for EVICTED.
    """

    kind: str
    entry: str
    label: str = ""


SERVED, ERRORS, EVICTED, ENDED = "served", "errors", "evicted", "ended"
PLACES = {EVICTED: 0, ENDED: 1, SERVED: 0, ERRORS: 1}  # an outer job reports the first two, a model server the others
ENDS = (State.WARM, State.FAILED, "never warm")  # possible last states of a glidein that has ended


class Totals:
    """The sums of the counts that glideins report.

    The job ad and the machine ads of a glidein report the same counts. The job ad is updated later. Each new value of a
    count is compared with the largest earlier value. Only an increase is added to the sum. So nothing is counted twice.

    If a glidein loads a template for the second time, the glidein's counts begin at 0 again. The new counts add nothing
    until they exceed the earlier counts. So the sum can be too low.

    While the name of a model is unknown, each increase is added to a counter with an empty label. These increases stay
    in this counter, even after the name is known.
    """

    def __init__(self) -> None:
        self.counts: Counter[MetricKey] = Counter()
        # For each reporter: the largest reported count of each of its two kinds (see PLACES), and the Unix time of the
        # last report. Ended glideins stay here for a long time, so an entry must be small.
        self._maxima: dict[str, list[float]] = {}
        self._models: dict[str, str] = {}

    def add(self, snapshot: Snapshot) -> None:
        """Add the increase of each count since the last snapshot."""
        self._models = snapshot.models | self._models  # a template keeps the model name that was reported first
        for key, reporter, value in self._reported(snapshot):
            maxima, place = self._maxima.setdefault(reporter, [0, 0, 0]), PLACES[key.kind]
            self.counts[key] += max(0, int(value - maxima[place]))
            maxima[place], maxima[-1] = max(maxima[place], value), snapshot.now
        self._maxima = {name: each for name, each in self._maxima.items() if snapshot.now - each[-1] < FORGET_SECONDS}

    def total(self, kind: str) -> int:
        """Return the sum of all counters of a kind."""
        return sum(number for key, number in self.counts.items() if key.kind == kind)

    def _reported(self, snapshot: Snapshot) -> Iterator[tuple[MetricKey, str, float]]:
        """Yield the counter, the reporter and the value of each reported count.

        The reporter is a text. It names an outer job, or a GlideId and the digest of a template.
        """
        for glidein in (*snapshot.glideins, *snapshot.ended):
            yield MetricKey(EVICTED, glidein.entry), glidein.job, max(0, glidein.starts - 1)
        for glidein in snapshot.ended:
            yield MetricKey(ENDED, glidein.entry, glidein.state if glidein.state in ENDS else ENDS[-1]), glidein.job, 1
        served: list[Lane | Glidein] = [*snapshot.lanes, *snapshot.glideins, *snapshot.ended]
        for each in served:
            model = self._models.get(each.template, "")
            yield MetricKey(SERVED, each.entry, model), f"{each.glide_id} {each.template}", each.served
            yield MetricKey(ERRORS, each.entry, model), f"{each.glide_id} {each.template}", each.errors
