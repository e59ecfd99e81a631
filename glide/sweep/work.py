"""What a driver has to get done, whoever wants it: a sweep's records, or a session's calls."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from glide.sweep.history import History
from glide.template import Template


class Work(ABC):
    """Records to send, and an account of what has come back, each id once.

    Attributes:
        template: what all records need.
        glideins: how many may run at once.
        pack: records per job, where the user has fixed that.
        have: the ids that have a result, each with a hash of who computed it when.
        found: how many of them were there before.
        answer_bytes: the longest that a record's result may be, as a line of a job's output.
        recomputed: results that came although there was one already.
        history: is told what the driver sees; not everybody keeps one.
        fresh: set when there is more to send than at the driver's last look.
    """

    answer_bytes = 64 << 20

    def __init__(self, template: Template, glideins: int, pack: int | None = None):
        self.template = template
        self.glideins = glideins
        self.pack = pack
        self.have: dict[str, int] = {}
        self.found = self.recomputed = self.errors = self.tokens = 0
        self.by_glidein: dict[str, int] = {}
        self.history = History()
        self.fresh = threading.Event()

    @property
    @abstractmethod
    def total(self) -> int:
        """How many records there are, as far as is known."""

    @property
    def complete(self) -> bool:
        """Whether all records are known, and no more will come."""
        return True

    @property
    def finished(self) -> bool:
        """Whether all results are there, and no more records to come."""
        return len(self.have) == self.total

    def rest(self) -> bool:
        """Return when there is something to do, and whether that took a while; where all is known, there is."""
        return False

    @abstractmethod
    def unsent(self, on_their_way: Collection[str]) -> Iterator[dict[str, Any]]:
        """The records without a result that are in no job: `custom_id`, `prompt`, `generate`, `timeout` each."""

    def wants(self, records: Collection[str]) -> bool:
        """Whether all these records are still to be sent as they were; a sweep's file may have changed since."""
        return True

    def complaint(self, result: dict[str, Any]) -> str:
        """What is wrong with a result beyond what is checked of each (glide.invoke.answers); empty if nothing is."""
        return ""

    @abstractmethod
    def store(self, results: Collection[dict[str, Any]]) -> None:
        """Make results durable or hand them over, each id's only once; where that fails, none of them counts."""

    def keep(self, results: Iterable[dict[str, Any]]) -> None:
        """Take results that have come, copies of earlier ones among them; only then are their jobs removed.

        A copy is left out; another computation of a record that has a result is left out, and counted.
        """
        new: dict[str, dict[str, Any]] = {}
        again = 0
        for result in results:
            record = result["custom_id"]
            if record in self.have:
                again += self.have[record] != _computation(result)
            elif record in new:
                again += _computation(new[record]) != _computation(result)
            else:
                new[record] = result
        if new:
            self.store(new.values())
        self.recomputed += again
        for record, result in new.items():
            self.count(record, result)

    def note_wave(self, sizes: Sequence[int], reason: str) -> None:  # noqa: B027
        """Jobs of these sizes have been sent, for this reason; not everybody keeps that."""

    def count(self, record: str, result: dict[str, Any]) -> None:
        """A record's result is there."""
        self.have[record] = _computation(result)
        self.errors += result.get("error") is not None
        self.tokens += result.get("tokens") or 0
        glidein = result.get("glidein") or ""
        self.by_glidein[glidein] = self.by_glidein.get(glidein, 0) + 1


def _computation(result: dict[str, Any]) -> int:
    """Tells two computations of a record apart, and copies of one's result not."""
    return hash((result.get("glidein"), result.get("attempts"), result.get("seconds")))
