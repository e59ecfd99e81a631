"""The ids that a sweep's records have in jobs."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from glide.sweep.out import cell_of, flat
from glide.sweep.record_set import RecordSet, id_hash

Place = tuple[str, int]  # a cell, and the position of a record in the input


class JobIds:
    """Ids of the form "cell/position/custom_id#version".

    The version is the fingerprint of the request, and a mark if the record is run again after an error. So if a request
    changes or runs again, its id changes.

    Args:
        records: the records of the sweep.
        fingerprints: the fingerprints of each cell's requests, in input order.
        marks: marks of the records that are run again, by cell and position.
    """

    def __init__(self, records: RecordSet, fingerprints: Mapping[str, array[int]], marks: Mapping[Place, str]):
        self.records = records
        self.fingerprints = fingerprints
        self.marks = marks

    def format(self, cell: str, number: int, custom_id: str) -> str:
        """Return the id for a cell and a record."""
        return f"{flat(cell)}/{number}/{custom_id}#{self._version(cell, number)}"

    @staticmethod
    def custom_id(job_id: str) -> str:
        """Return the custom_id in an id."""
        return job_id.split("/", 2)[2].rpartition("#")[0]

    def locate(self, job_id: str) -> Place | None:
        """Return the cell and the position for an id, or None if no current request has this id.

        A job of an earlier driver may have an old position, because the input has changed since then.
        """
        name, _, rest = job_id.partition("/")
        position, _, rest = rest.partition("/")
        custom_id, _, version = rest.rpartition("#")
        cell = cell_of(name)
        if cell not in self.fingerprints:
            return None
        wanted = id_hash(custom_id)
        number: int | None = int(position) if position.isascii() and position.isdigit() and len(position) < 16 else None
        if number is None or number >= len(self.records) or self.records.ids[number] != wanted:
            number = self.records.number_of(wanted)
        return None if number is None or version != self._version(cell, number) else (cell, number)

    def _version(self, cell: str, number: int) -> str:
        mark = self.marks.get((cell, number), "") if self.marks else ""
        return f"{self.fingerprints[cell][number]:016x}{mark}"
