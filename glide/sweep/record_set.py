"""The records of a sweep. They stay on disk: memory holds about 30 bytes for each record.

Records of uncompressed JSON lines are read from their own file. All other records are copied to a temporary file first.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy

from glide.errors import InputError
from glide.protocol.json_lines import decoded
from glide.sweep.records import Record


def id_hash(custom_id: str) -> int:
    """Return a hash of 64 bits of a record's id. It is the same in every process."""
    digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class RecordSet(Sequence[Record]):
    """Records in input order. A record is read from disk each time that it is asked for.

    Consecutive records that are read from the same file form a section.

    Args:
        parse: function that makes a record of a row in one of the files, as `parse(source, row)`. It is used for the
            records that stay in their own file.

    Attributes:
        ids: hash of each record's id, in input order.
        offsets: offset of each record in its file, in bytes.
        firsts: for each section, the position of its first record, counted from 0.
        places: for each section, the file that contains its records; None for the temporary file.
    """

    def __init__(self, parse: Callable[[Path, bytes], Record]):
        self.parse = parse
        self.ids = array("Q")
        self.offsets = array("Q")
        self.firsts: list[int] = []
        self.places: list[Path | None] = []
        self._spool: IO[bytes] | None = None
        self._open: tuple[Path | None, IO[bytes]] | None = None
        self._sorted: tuple[memoryview, memoryview] | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordSet:
        """Return a set of records that are in no file."""
        found = cls(_no_file)
        for record in records:
            found.add(record, None)
        return found

    def add(self, record: Record, offset: int | None) -> None:
        """Add a record at the end.

        Args:
            offset: offset of the record's line in its own file; None if the record cannot be read from there.
        """
        place = None if offset is None else record.source
        if offset is None:
            self._spool = self._spool or tempfile.TemporaryFile(prefix="glide-records-")  # noqa: SIM115
            offset = self._spool.tell()
            line = {"source": str(record.source), "line": record.line, "fields": record.fields}
            self._spool.write(json.dumps(line).encode() + b"\n")
        if not self.places or self.places[-1] != place:
            self.firsts.append(len(self.ids))
            self.places.append(place)
        self.ids.append(id_hash(record.custom_id))
        self.offsets.append(offset)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        place = self.places[bisect_right(self.firsts, number) - 1]
        file = self._file(place)
        file.seek(self.offsets[number])
        line = file.readline()
        try:
            record = _from_spool(line) if place is None else self.parse(place, line)
        except ValueError:
            record = None
        if record is None or id_hash(record.custom_id) != self.ids[number]:
            raise InputError(f"{place}: has changed while the sweep was running; run the sweep again")
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def _file(self, place: Path | None) -> IO[bytes]:
        if place is None:
            assert self._spool is not None
            return self._spool
        if self._open is None or self._open[0] != place:
            if self._open is not None:
                self._open[1].close()
            try:
                self._open = place, place.open("rb", buffering=1 << 18)
            except OSError as error:
                raise InputError(f"{place}: {error.strerror}") from None
        return self._open[1]

    def number(self, custom_id: str, guess: int = 0) -> int | None:
        """Return the position of a record, counted from 0, or None if no record has this id.

        Args:
            guess: the position that the record probably has. A right guess saves a search.
        """
        wanted = id_hash(custom_id)
        return guess if guess < len(self.ids) and self.ids[guess] == wanted else self.number_of(wanted)

    def number_of(self, wanted: int) -> int | None:
        """Return the position of the record whose id has this hash, or None if there is no such record."""
        if self._sorted is None:
            ids = numpy.frombuffer(self.ids, "<u8") if self.ids else numpy.empty(0, "<u8")
            order = numpy.argsort(ids, kind="stable").astype("<u4")
            self._sorted = ids[order].data, order.data
        ids_sorted, order_view = self._sorted
        at = bisect_left(ids_sorted, wanted)
        return order_view[at] if at < len(ids_sorted) and ids_sorted[at] == wanted else None

    def equal_ids(self) -> set[int]:
        """Return each hash that belongs to several records.

        Usually, these records have the same id. Very rarely, different ids have the same hash.
        """
        ids = numpy.sort(numpy.frombuffer(self.ids, "<u8")) if self.ids else numpy.empty(0, "<u8")
        return {int(each) for each in numpy.unique(ids[1:][ids[1:] == ids[:-1]])}


def _from_spool(line: bytes) -> Record:
    from glide.sweep.records import own_request

    content = decoded(line)
    fields = content["fields"]
    return Record(fields["custom_id"], fields, content["line"], Path(content["source"]), own_request(fields))


def _no_file(source: Path, line: bytes) -> Record:
    raise AssertionError  # never called, because all records are in the temporary file
