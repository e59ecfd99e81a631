"""What a sweep's results answer: a fingerprint of each request, beside the results, in a file per prompt.

Results carry ids alone. When the sweep file, its records or its model change, the fingerprints tell which results
still are answers: those whose request has the same fingerprint as when they were computed. So `results.jsonl` never
holds a result for another request than `requests` says, and what is no longer asked for is in `superseded`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from glide.invoke.carriers import read_lines
from glide.sweep.out import own
from glide.system import publishing

NONE = -1  # the place of a result that is not there


def requests_file(out: Path, prompt: str) -> Path:
    return own(out, "requests") / f"{prompt}.jsonl"


@dataclass(frozen=True)
class Asked:
    """What a prompt asks of the records, and what it asked when the results in `out` were computed.

    Attributes:
        ids: the records' numbers by custom_id.
        prints: the fingerprints of their requests, in their order.
        same: for each record whether its request is still the one whose result may be here.
        before: the fingerprints of requests that are no longer made, by custom_id.
        written: whether `requests` says just that already.
    """

    ids: Mapping[str, int]
    prints: array[int]
    same: bytearray
    before: Mapping[str, str]
    written: bool


def compare(path: Path, ids: Mapping[str, int], prints: array[int]) -> Asked:
    """Compare what is asked with what was asked, as `path` has it."""
    same, before, ordered, count = bytearray(len(prints)), {}, True, 0
    for custom_id, fingerprint in _read(path):
        number = ids.get(custom_id)
        if number is not None and f"{prints[number]:016x}" == fingerprint:
            same[number] = True
        else:
            before[custom_id] = fingerprint
        ordered, count = ordered and number == count, count + 1
    return Asked(ids, prints, same, before, ordered and count == len(prints) and all(same))


def write(path: Path, asked: Asked) -> None:
    with publishing(path, 0o666) as file:
        for custom_id, number in asked.ids.items():
            line = {"custom_id": custom_id, "request": f"{asked.prints[number]:016x}"}
            file.write(json.dumps(line).encode() + b"\n")


def _read(path: Path) -> Iterator[tuple[str, str]]:
    for line in read_lines(path):
        custom_id, fingerprint = line.get("custom_id"), line.get("request")
        if isinstance(custom_id, str) and isinstance(fingerprint, str):
            yield custom_id, fingerprint
