"""The ids that a sweep's records have in jobs."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping

from glide.sweep.out import cell_of, flat
from glide.sweep.record_set import RecordSet

HASH = re.compile(r"[0-9a-f]{16}")
POSITION = re.compile(r"[0-9]{1,15}")


class JobIds:
    """Ids of the form "cell/position/hash#version". The hash is that of the record's custom_id.

    The version is the fingerprint of the request, and a mark if the record is run again after an error. So if a request
    changes or runs again, its id changes.

    Args:
        records: the records of the sweep.
        fingerprints: the fingerprints of each cell's requests, in input order.
        marks: marks of the records that are run again, by cell and position.
    """

    def __init__(
        self, records: RecordSet, fingerprints: Mapping[str, array[int]], marks: Mapping[tuple[str, int], str]
    ):
        self.records = records
        self.fingerprints = fingerprints
        self.marks = marks

    def format(self, cell: str, number: int) -> str:
        """Return the id for a cell and a position."""
        return f"{flat(cell)}/{number}/{self.records.ids[number]:016x}#{self._version(cell, number)}"

    def locate(self, job_id: str) -> tuple[str, int] | None:
        """Return the cell and the position for an id, or None if no current request has this id.

        A job of an earlier driver may have an old position, because the input has changed since then.
        """
        name, _, rest = job_id.partition("/")
        position, _, rest = rest.partition("/")
        record, _, version = rest.partition("#")
        cell = cell_of(name)
        if cell not in self.fingerprints or not HASH.fullmatch(record):
            return None
        number: int | None = (
            int(position) if position.isascii() and position.isdecimal() and len(position) < 20 else None
        )
        if number is None or number >= len(self.records) or f"{self.records.ids[number]:016x}" != record:
            number = self.records.number_of(int(record, 16))
        return None if number is None or version != self._version(cell, number) else (cell, number)

    def _version(self, cell: str, number: int) -> str:
        mark = self.marks.get((cell, number), "") if self.marks else ""
        return f"{self.fingerprints[cell][number]:016x}{mark}"
