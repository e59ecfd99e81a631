"""Store the fingerprints of a cell's requests in `.glide/requests/CELL.bin`.

A result has the id of its record, but not the request. The sweep file, the records or the model may change after the
result was computed. The result is still valid if the request has the same fingerprint as before. A result may be in
`results.jsonl` only if the fingerprint of its request is in CELL.bin. Results of changed requests are moved to
`.glide/superseded`.

CELL.bin has two numbers of 64 bits (little endian) for each record, in input order. The first number is the hash of the
record's id. The second number is the fingerprint of the record's request.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from glide.protocol.json_lines import read_lines
from glide.sweep.out import flat, internal_path
from glide.sweep.record_set import RecordSet, id_hash
from glide.system import publishing

NO_RESULT = -1  # used as the offset of a record that has no result
BLOCK = 1 << 18  # number of records that are compared or written at a time
HASH = re.compile(r"[0-9a-f]{16}")
PAIR = numpy.dtype([("id", "<u8"), ("request", "<u8")])


def requests_file(out: Path, cell: str) -> Path:
    return internal_path(out, "requests") / f"{flat(cell)}.bin"


@dataclass(frozen=True)
class RequestIndex:
    """The current requests of a cell, compared with the requests that the results in `out` belong to.

    Attributes:
        records: the records of the sweep.
        fingerprints: the fingerprints of the current requests, in input order.
        unchanged: for each record in input order, 1 if the record's request has not changed, else 0. A result in `out`
            is still valid if the request has not changed.
        old: ids and fingerprints of the requests that were changed or removed, as an array of PAIR, sorted by id.
        up_to_date: whether the file of fingerprints holds exactly the current requests.
    """

    records: RecordSet
    fingerprints: array[int]
    unchanged: bytearray
    old: Any
    up_to_date: bool

    def superseded(self, custom_id: str) -> str | None:
        """Return the old fingerprint of a request that was changed or removed; None if there is no such request."""
        wanted = id_hash(custom_id)
        at = int(numpy.searchsorted(self.old["id"], numpy.uint64(wanted)))
        found = at < len(self.old) and int(self.old["id"][at]) == wanted
        return f"{int(self.old['request'][at]):016x}" if found else None

    def all_current(self) -> RequestIndex:
        """Return an index in which all requests are unchanged. This index is right after these two steps:

        - All results of old requests have been moved.
        - The current fingerprints have been written to the file of fingerprints.
        """
        unchanged = bytearray(b"\1") * len(self.records)
        return RequestIndex(self.records, self.fingerprints, unchanged, numpy.empty(0, PAIR), True)


def compare(path: Path, records: RecordSet, fingerprints: array[int]) -> RequestIndex:
    """Compare the current requests with the fingerprints in the file `path`. A missing file counts as empty.

    Args:
        records: the records of the sweep.
        fingerprints: the fingerprints of the current requests, in input order.
    """
    unchanged, ordered, count = bytearray(len(records)), True, 0
    others = [numpy.empty(0, PAIR)]
    for block in _blocks(path):
        end = count + len(block)
        # Slices are copies. A view would keep an array from growing.
        ids = numpy.array(records.ids[count:end], "<u8")
        if len(ids) == len(block) and bool((ids == block["id"]).all()):  # the records are the same as before
            equal = numpy.array(fingerprints[count:end], "<u8") == block["request"]
            unchanged[count:end] = equal.astype("u1").tobytes()
            others.append(block[~equal])
        else:
            ordered = False
            others.append(_match(block, records, fingerprints, unchanged))
        count = end
    old = numpy.sort(numpy.concatenate(others), order="id")
    return RequestIndex(
        records,
        fingerprints,
        unchanged,
        old,
        path.exists() and ordered and count == len(records) and 0 not in unchanged,
    )


def _match(block: Any, records: RecordSet, fingerprints: array[int], unchanged: bytearray) -> Any:
    """Mark the records whose request is in a block of pairs. Return the pairs that are no longer current."""
    rest = numpy.ones(len(block), bool)
    for at, (record_id, request) in enumerate(block.tolist()):
        number = records.number_of(record_id)
        if number is not None and fingerprints[number] == request:
            unchanged[number] = 1
            rest[at] = False
    return block[rest]


def write(path: Path, index: RequestIndex) -> None:
    """Replace the content of the file `path` with the current fingerprints."""
    with publishing(path, 0o666) as file:
        for start in range(0, len(index.records), BLOCK):
            ids = index.records.ids[start : start + BLOCK]
            block = numpy.empty(len(ids), PAIR)
            block["id"], block["request"] = ids, index.fingerprints[start : start + BLOCK]
            file.write(block.tobytes())


def _blocks(path: Path) -> Iterator[Any]:
    """Yield the pairs in a file, a block at a time. An incomplete pair at the end is left out.

    If there is no such file, yield the pairs of the JSON lines that earlier versions of glide have written.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        pairs = [
            (id_hash(line["custom_id"]), int(line["request"], 16))
            for line in read_lines(path.with_suffix(".jsonl"))
            if isinstance(line.get("custom_id"), str) and HASH.fullmatch(str(line.get("request")))
        ]
        yield numpy.array(pairs, PAIR)
        return
    with file:
        while data := file.read(BLOCK * PAIR.itemsize):
            yield numpy.frombuffer(data[: len(data) // PAIR.itemsize * PAIR.itemsize], PAIR)
