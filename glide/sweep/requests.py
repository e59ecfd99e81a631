"""Store the fingerprints of a cell's requests in `.glide/requests/CELL.jsonl`.

A result has the id of its record, but not the request. The sweep file, the records or the model may change after the
result was computed. The result is still valid if the request has the same fingerprint as before. A result may be in
`results.jsonl` only if the fingerprint of its request is in CELL.jsonl. Results of changed requests are moved to
`.glide/superseded`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from glide.invoke.jobs import read_lines
from glide.sweep.out import flat, internal_path
from glide.system import publishing

NO_RESULT = -1  # used as the offset of a record that has no result


def requests_file(out: Path, cell: str) -> Path:
    return internal_path(out, "requests") / f"{flat(cell)}.jsonl"


@dataclass(frozen=True)
class RequestIndex:
    """The current requests of a cell, compared with the requests that the results in `out` belong to.

    Attributes:
        numbers: position of each record in the input, by custom_id.
        fingerprints: the fingerprints of the current requests, in input order.
        unchanged: for each record in input order, 1 if the record's request has not changed, else 0. A result in `out`
            is still valid if the request has not changed.
        superseded: a dict from custom_id to the old fingerprint, for each request that was changed or removed.
        up_to_date: whether the file of fingerprints holds exactly the current requests.
    """

    numbers: Mapping[str, int]
    fingerprints: array[int]
    unchanged: bytearray
    superseded: Mapping[str, str]
    up_to_date: bool


def compare(path: Path, numbers: Mapping[str, int], fingerprints: array[int]) -> RequestIndex:
    """Compare the current requests with the fingerprints in the file `path`.

    Args:
        numbers: position of each record in the input, by custom_id.
        fingerprints: the fingerprints of the current requests, in input order.
    """
    unchanged, superseded, ordered, count = bytearray(len(fingerprints)), {}, True, 0
    for custom_id, fingerprint in _read(path):
        number = numbers.get(custom_id)
        if number is not None and f"{fingerprints[number]:016x}" == fingerprint:
            unchanged[number] = True
        else:
            superseded[custom_id] = fingerprint
        ordered, count = ordered and number == count, count + 1
    up_to_date = ordered and count == len(fingerprints) and all(unchanged)
    return RequestIndex(numbers, fingerprints, unchanged, superseded, up_to_date)


def write(path: Path, index: RequestIndex) -> None:
    """Replace the content of the file `path` with the current fingerprints."""
    with publishing(path, 0o666) as file:
        for custom_id, number in index.numbers.items():
            line = {"custom_id": custom_id, "request": f"{index.fingerprints[number]:016x}"}
            file.write(json.dumps(line).encode() + b"\n")


def _read(path: Path) -> Iterator[tuple[str, str]]:
    for line in read_lines(path):
        custom_id, fingerprint = line.get("custom_id"), line.get("request")
        if isinstance(custom_id, str) and isinstance(fingerprint, str):
            yield custom_id, fingerprint
