"""Which records of a sweep have a result. Memory holds four bytes for each record and cell."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, MutableMapping

from glide.sweep.job_ids import JobIds

# Each position of an array holds 0 if the record has no result. Otherwise, it holds a hash of the execution that has
# computed the result (execution_hash in glide.sweep.work). So a hash is never 0.
MISSING = 0


class DoneRecords(MutableMapping[str, int]):
    """A mapping with one item for each result.

    The key is the id that the result's record has in jobs. The value is a hash of the execution that computed the
    result.

    Args:
        cells: names of the cells.
        records: number of records in each cell.
        job_ids: the ids that records have in jobs.
    """

    def __init__(self, cells: Iterable[str], records: int, job_ids: JobIds):
        self.hashes = {cell: array("I", [MISSING]) * records for cell in cells}
        self.locate = job_ids.locate
        self.job_id = lambda cell, number: job_ids.format(cell, number, job_ids.records[number].custom_id)
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, record: str) -> int:
        place = self.locate(record)
        found = MISSING if place is None else self.hashes[place[0]][place[1]]
        if found == MISSING:
            raise KeyError(record)
        return found

    def __setitem__(self, record: str, execution: int) -> None:
        place = self.locate(record)
        if place is None:
            raise KeyError(record)
        self.set(*place, execution)

    def set(self, cell: str, number: int, execution: int) -> None:
        """Set the hash of the execution of a record."""
        hashes = self.hashes[cell]
        self.count += hashes[number] == MISSING
        hashes[number] = execution

    def fill(self, cell: str, executions: array[int], results: int) -> None:
        """Set the hashes of a cell that has none yet.

        Args:
            executions: the hash for each record, in input order.
            results: number of hashes that are not MISSING.
        """
        self.hashes[cell] = executions
        self.count += results

    def __delitem__(self, record: str) -> None:
        cell, number = self.locate(record) or ("", 0)
        if self.hashes[cell][number] == MISSING:
            raise KeyError(record)
        self.hashes[cell][number] = MISSING
        self.count -= 1

    def __iter__(self) -> Iterator[str]:
        for cell, hashes in self.hashes.items():
            yield from (self.job_id(cell, number) for number, each in enumerate(hashes) if each != MISSING)

    def missing(self, cell: str, start: int) -> Iterator[int]:
        """Yield the positions, from `start` on, of the records in a cell that have no result.

        The array may change meanwhile.
        """
        hashes = self.hashes[cell]
        while True:
            try:
                start = hashes.index(MISSING, start)
            except ValueError:
                return
            yield start
            start += 1
