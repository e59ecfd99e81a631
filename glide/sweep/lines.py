"""Read the lines of a results.jsonl. Keep the results of current requests, and move all other lines aside.

A request is current if the sweep still has this request, unchanged. The file has one line for each record that has a
result. If a record is run again because its result is an error, the file may have two lines for the record, and the
last line counts. The file may be larger than memory. So it is read line by line, and only the offsets of the lines are
kept in memory.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glide.protocol.json_lines import decoded, read_lines, to_json
from glide.protocol.result import answer_problem
from glide.sweep.requests import NO_RESULT, RequestIndex
from glide.sweep.work import execution_hash, tokens_of
from glide.system import publishing

BLOCK = 1 << 16  # number of bytes in each read when `drop_torn_line` searches a file backwards for the last newline
# The allowed types of each required field of a result. An engine may add further fields.
KINDS: dict[str, tuple[type, ...]] = {
    "custom_id": (str,), "text": (str, type(None)), "tokens": (int, type(None)), "error": (dict, type(None)),
    "glidein": (str, type(None)), "attempts": (int, type(None)), "seconds": (int, float, type(None)),
}  # fmt: skip
FIELDS = tuple(KINDS)
LARGEST_NUMBER = 1e12  # a result is invalid if it has a number of this size or larger


def is_valid(result: Mapping[str, Any]) -> bool:
    """Return whether a result has all required fields, with valid types and values."""
    for name, kinds in KINDS.items():
        if not isinstance(result.get(name), kinds):
            return False
    error = result.get("error")
    if error is not None and not all(isinstance(error.get(name), str) for name in ("type", "message")):
        return False
    if answer_problem(result):
        return False
    # The comparison rejects NaN too, because NaN is not smaller than any number.
    tokens, attempts, seconds = result.get("tokens") or 0, result.get("attempts") or 0, result.get("seconds") or 0
    return abs(tokens) < LARGEST_NUMBER and abs(attempts) < LARGEST_NUMBER and abs(seconds) < LARGEST_NUMBER


def to_line(result: Mapping[str, Any]) -> bytes:
    """Return a result as a line of JSON."""
    try:
        return to_json(result).encode() + b"\n"
    except UnicodeEncodeError:  # a text has a lone surrogate (half a character), which must be escaped
        return json.dumps(result).encode() + b"\n"


@dataclass
class Tally:
    """Counts of results.

    Attributes:
        executions: for each record in input order, the hash of the execution that has computed its result; 0 if the
            record has no result.
        results, errors, tokens: number of results, of results with an error, and of generated tokens.
        by_glidein: number of results by GlideId.
    """

    executions: array[int]
    results: int = 0
    errors: int = 0
    tokens: int = 0
    by_glidein: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, result: Mapping[str, Any]) -> None:
        """Count the result of the record at a position."""
        self.executions[number] = execution_hash(result)
        self.results += 1
        self.errors += result["error"] is not None
        self.tokens += tokens_of(result)
        self.by_glidein[result["glidein"] or ""] += 1


@dataclass(frozen=True)
class ResultIndex:
    """The places in a results.jsonl file where the results of current requests are.

    Attributes:
        offsets: for each record in input order, the offset of the record's last line, in bytes; NO_RESULT if the record
            has no line.
        duplicated: positions in the input, counted from 0, of the records that have more than one line.
        other_lines: number of lines that are not the result of a current request.
        tally: counts of the results. They are right only if each record has at most one line.
    """

    offsets: array[int]
    duplicated: set[int]
    other_lines: int
    tally: Tally

    @property
    def in_order(self) -> bool:
        """Whether the file has exactly one line for each record, in input order, and no other lines."""
        offsets = self.offsets
        ascending = (offsets[n - 1] < offsets[n] for n in range(1, len(offsets)))
        return not (self.duplicated or self.other_lines) and all(ascending)


def index_results(path: Path, index: RequestIndex) -> ResultIndex:
    """Find the line of each record's result in a results.jsonl file.

    If the request of a result was changed or removed, the line is only counted, in `other_lines`.
    """
    offsets, duplicated, other_lines = array("q", [NO_RESULT]) * len(index.fingerprints), set(), 0
    tally = Tally(array("I", [0]) * len(index.fingerprints))
    for offset, _, number, result in _read(path, index):
        if number is None or result is None:
            other_lines += 1
            continue
        if offsets[number] != NO_RESULT:
            duplicated.add(number)
        offsets[number] = offset
        tally.add(number, result)
    return ResultIndex(offsets, duplicated, other_lines, tally)


def numbered_results(path: Path, index: RequestIndex, found: ResultIndex) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the result of each record that has a result. The results come in the order of the lines in results.jsonl.

    Each yielded item is a pair: the record's position in the input, counted from 0, and the result.
    """
    for offset, _, number, result in _read(path, index):
        if number is not None and result is not None and found.offsets[number] == offset:
            yield number, result


def ordered_lines(path: Path, found: ResultIndex) -> Iterator[bytes]:
    """Yield the line of each record that has a result, in input order."""
    with path.open("rb") as file:
        place = 0
        for offset in found.offsets:
            if offset == NO_RESULT:
                continue
            if offset != place:
                file.seek(offset)
            line = file.readline()
            place = offset + len(line)
            yield line


def error_count(path: Path, index: RequestIndex, found: ResultIndex) -> int:
    """Return the number of records whose result is an error."""
    if not found.duplicated:
        return found.tally.errors
    return sum(result["error"] is not None for _, result in numbered_results(path, index, found))


def _read(path: Path, index: RequestIndex) -> Iterator[tuple[int, bytes, int | None, dict[str, Any] | None]]:
    """For each line, yield the line's offset in bytes, the line, the record's position in the input, and the result.

    The position is None if the line is not the result of a current request. The result is None if the line is not a
    valid result.
    """
    offset = guess = 0
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            result = _parse(line)
            number = index.records.number(result["custom_id"], guess) if result is not None else None
            guess = guess if number is None else number + 1  # the results of a job are usually in input order
            yield offset, line, number if number is not None and index.unchanged[number] else None, result
            offset += len(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        result = decoded(line) if line.endswith(b"\n") else None
        if isinstance(result, dict) and is_valid(result):
            return result
    return None


# ---- results of requests that have changed -------------------------------------------------------


def move_superseded(path: Path, index: RequestIndex, found: ResultIndex, aside: Path) -> int:
    """Move the outdated, repeated and invalid lines to the file `aside`. Return the number of moved lines.

    If a record has several lines, the last line stays. A moved line becomes a JSON object. For a valid result, the
    object has the keys `result` and `request` (fingerprint of the request). For an invalid line, it has the key `line`.
    """
    if not (found.duplicated or found.other_lines):
        return 0
    moved = 0
    with aside.open("ab") as aside_file, publishing(path, 0o666) as kept:
        for offset, line, number, result in _read(path, index):
            if number is not None and found.offsets[number] == offset:
                kept.write(line)
                continue
            if result is None:
                content: dict[str, Any] = {"line": line.decode("utf-8", "replace")}
            else:
                request = index.superseded(result["custom_id"])
                content = {"request": request or _fingerprint(index, number), "result": result}
            aside_file.write(to_line(content))
            moved += 1
        aside_file.flush()
        # Flush the moved lines to disk before the old file is replaced, because no other file has these lines.
        os.fsync(aside_file.fileno())
    return moved


def _fingerprint(index: RequestIndex, number: int | None) -> str | None:
    return None if number is None else f"{index.fingerprints[number]:016x}"


def restore(path: Path, index: RequestIndex, found: ResultIndex, aside: Path) -> int:
    """Copy results from the file `aside` back to the file `path`. Return the number of copied results.

    A result is copied if both of these conditions hold:

    - The request of the result is current again.
    - The file `path` has no result for this request.
    """
    present = bytearray(offset != NO_RESULT for offset in found.offsets)
    restored = 0
    with path.open("ab") as file:
        for content in read_lines(aside):
            result = content.get("result")
            if not isinstance(result, dict) or not is_valid(result):
                continue
            number = index.records.number(result["custom_id"])
            if number is not None and not present[number] and content.get("request") == _fingerprint(index, number):
                file.write(to_line(result))
                present[number] = True
                restored += 1
        file.flush()
        os.fsync(file.fileno())
    return restored


def drop_torn_line(path: Path) -> None:
    """Remove an incomplete line from the end of a file.

    A killed driver may leave such a line. The result in this line is not lost, because the job is still in the queue,
    and the job's output has the complete line.
    """
    with path.open("r+b") as file:
        end = offset = file.seek(0, os.SEEK_END)
        while offset > 0:
            start = max(0, offset - BLOCK)
            file.seek(start)
            last = file.read(offset - start).rfind(b"\n")
            if last >= 0:
                offset = start + last + 1
                break
            offset = start
        if offset < end:
            file.truncate(offset)
