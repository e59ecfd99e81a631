"""Which records of a sweep have a result. Memory holds four bytes for each record and cell."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from glide.sweep.job_ids import Place

# Each position of an array holds 0 if the record has no result. Otherwise, it holds a hash of the execution that has
# computed the result (execution_hash in glide.sweep.work). So a hash is never 0.
MISSING = 0


class DoneRecords(MutableMapping[Place, int]):
    """A mapping with one item for each result.

    The key is the cell and the position of the result's record. The value is a hash of the execution that computed the
    result.

    Args:
        cells: names of the cells.
        records: number of records in each cell.
    """

    def __init__(self, cells: Iterable[str], records: int):
        self.hashes = {cell: array("I", [MISSING]) * records for cell in cells}
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def get(self, place: Place, default: Any = None) -> Any:
        return self.hashes[place[0]][place[1]] or default  # faster than the inherited method, which needs an exception

    def __getitem__(self, place: Place) -> int:
        found = self.hashes[place[0]][place[1]]
        if found == MISSING:
            raise KeyError(place)
        return found

    def __setitem__(self, place: Place, execution: int) -> None:
        cell, number = place
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

    def __delitem__(self, place: Place) -> None:
        self[place]  # raises KeyError if the record has no result
        self.hashes[place[0]][place[1]] = MISSING
        self.count -= 1

    def __iter__(self) -> Iterator[Place]:
        for cell, hashes in self.hashes.items():
            yield from ((cell, number) for number, each in enumerate(hashes) if each != MISSING)

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
