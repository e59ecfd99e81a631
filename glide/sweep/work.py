"""The interface through which the driver gets records and delivers results, for sweeps and for sessions."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Generic, TypeVar

from glide.sweep.history import HistoryWriter
from glide.template import Template

# The key of a record in the driver's memory. A key needs less memory than the id that the record has in jobs.
Key = TypeVar("Key")


class Work(ABC, Generic[Key]):
    """The records of a run, and counts of the received results. Each record gets exactly one result.

    Attributes:
        template: the template that all records need.
        glideins: maximum number of glideins that may run at the same time.
        pack: number of records per job if the user has fixed this number, else None.
        batch: number of records in a batch; None if the engine chooses this number. Each job except the last one gets
            whole batches. If the user has fixed `pack`, `batch` is not used.
        done: for each record with a result, a hash of the execution that computed the result (`execution_hash`). The
            keys are those of the method `key`.
        resumed: number of records that had a result before this driver began.
        max_result_bytes: maximum length of one result's line in a job's output, in bytes.
        recomputed: number of results that were ignored, because an earlier execution had computed the record's result.
        errors: number of results that have an error.
        tokens: sum of the results' tokens.
        by_glidein: number of results by GlideId.
        history: writer of the driver's observations. By default the writer has no file, and writes nothing.
        new_work: an event that is set when records are added, and cleared when the driver takes note.
    """

    max_result_bytes = 64 << 20

    def __init__(self, template: Template, glideins: int, pack: int | None = None, batch: int | None = None):
        self.template = template
        self.glideins = glideins
        self.pack = pack
        self.batch = batch
        self.done: MutableMapping[Key, int] = {}
        self.resumed = self.recomputed = self.errors = self.tokens = 0
        self.by_glidein: dict[str, int] = {}
        self.history = HistoryWriter()
        self.new_work = threading.Event()

    @property
    @abstractmethod
    def total(self) -> int:
        """The number of records known so far."""

    @property
    def all_known(self) -> bool:
        """Whether no more records will be added."""
        return True

    @property
    def finished(self) -> bool:
        """Whether every record has a result, and no more records will be added."""
        return len(self.done) == self.total

    def wait_for_work(self) -> bool:
        """Block until a record is pending, or until no more records will be added. Return whether the call waited.

        All records of a sweep are known from the start, so this default method never waits.
        """
        return False

    @abstractmethod
    def pending(self, in_flight: Collection[Key]) -> Iterator[dict[str, Any]]:
        """Yield the requests that have to be sent. A request has `custom_id`, `prompt`, `generate` and `timeout`.

        Args:
            in_flight: the records that are in jobs now. These records, and records with a result, are left out.
        """

    @abstractmethod
    def key(self, record: str) -> Key | None:
        """Return the key of the record that has this id in jobs, or None if the id belongs to no current request.

        The requests of a sweep may change after a driver has submitted jobs. Then the next driver finds outdated
        requests in these jobs.
        """

    def check_result(self, result: dict[str, Any]) -> str:
        """Return what is wrong with a result, or an empty text if the result is valid.

        When this method is called, glide.invoke.answers has already checked the fields that every result must have.
        """
        return ""

    @abstractmethod
    def deliver(self, results: Mapping[Key, dict[str, Any]]) -> None:
        """Write new results to disk, or pass them to the session's callers. Each record gets only one result.

        If this method raises an error, the caller delivers all these results again later.

        Args:
            results: the results, by the keys of their records.
        """

    def store(self, results: Iterable[tuple[Key | None, dict[str, Any]]], is_twin: bool = False) -> int:
        """Deliver the results that are new. The driver removes a job from the queue only after this call has returned.

        Three kinds of results are ignored. Only the last kind is counted in `recomputed`, and is returned:

        - results for outdated requests
        - copies of results that are already stored
        - results of a second execution of a record that has a result

        Args:
            results: each result with the key of its record. The key is None if the request is outdated.
            is_twin: whether the driver wanted a second execution. Then it is not counted in `recomputed`.
        """
        new: dict[Key, dict[str, Any]] = {}
        again = 0
        for key, result in results:
            if key is None:
                continue
            if earlier := self.done.get(key):
                again += earlier != execution_hash(result)
            elif key in new:
                again += execution_hash(new[key]) != execution_hash(result)
            else:
                new[key] = result
        if new:
            self.deliver(new)
        for key, result in new.items():
            self.count(key, result)
        self.recomputed += 0 if is_twin else again
        return again

    def note_wave(self, sizes: Sequence[int], reason: str) -> None:
        """Save how many records each new job has, and the reason for this. This default method saves nothing."""

    def count(self, key: Key, result: dict[str, Any]) -> None:
        """Add the result of a record to the counts."""
        self.done[key] = execution_hash(result)
        self.errors += result.get("error") is not None
        self.tokens += tokens_of(result)
        glidein = result.get("glidein") or ""
        self.by_glidein[glidein] = self.by_glidein.get(glidein, 0) + 1


def tokens_of(result: Mapping[str, Any]) -> int:
    """Return the number of tokens that were generated for a result. All texts of the result count."""
    usage = result.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else result.get("tokens") or 0


def execution_hash(result: Mapping[str, Any]) -> int:
    """Return a hash of a result.

    Copies of one result have the same hash. If a record is executed again, the new result has a different hash, except
    by chance. The hash is a number of 32 bits, and never 0.
    """
    return hash((result.get("glidein"), result.get("attempts"), result.get("seconds"))) & 0xFFFFFFFF or 1
