"""The lines of a results.jsonl: which of them answer what is asked now, and what becomes of the others.

A file has one line for a record, or two while its error is run again: the last one counts. Files may be larger than
memory, so they are read line by line, and only the places of lines are kept.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glide.invoke.carriers import read_lines
from glide.sweep.requests import NONE, Asked
from glide.system import publishing

BLOCK = 1 << 16
# Of each field what it may be; an engine may add fields of its own.
KINDS: dict[str, tuple[type, ...]] = {
    "custom_id": (str,), "text": (str, type(None)), "tokens": (int, type(None)), "error": (dict, type(None)),
    "glidein": (str, type(None)), "attempts": (int, type(None)), "seconds": (int, float, type(None)),
}  # fmt: skip
FIELDS = tuple(KINDS)
MOST = 1e12  # of any number in a result


def is_sound(result: Mapping[str, Any]) -> bool:
    """Whether a result has the fields that it must have, each of its kind."""
    if not all(isinstance(result.get(name), kinds) for name, kinds in KINDS.items()):
        return False
    error = result.get("error")
    if error is not None and not all(isinstance(error.get(name), str) for name in ("type", "message")):
        return False
    return all(abs(result.get(name) or 0) < MOST for name in ("tokens", "attempts", "seconds"))  # NaN is not


def to_line(result: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(result, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, which only an escape can write
        return json.dumps(result).encode() + b"\n"


@dataclass(frozen=True)
class Found:
    """The lines of a file that answer what is asked.

    Attributes:
        places: for each record where its line begins, NONE for a record without one.
        twice: the numbers of records that have more than one.
        others: lines that are no result of what is asked.
    """

    places: array[int]
    twice: set[int]
    others: int

    @property
    def in_order(self) -> bool:
        """Whether there is nothing but a line for each record, in their order."""
        places = self.places
        return not (self.twice or self.others) and all(places[n - 1] < places[n] for n in range(1, len(places)))


def find(path: Path, asked: Asked) -> Found:
    places, twice, others = array("q", [NONE]) * len(asked.prints), set(), 0
    for place, _, number, _ in _read(path, asked):
        if number is None:
            others += 1
            continue
        if places[number] != NONE:
            twice.add(number)
        places[number] = place
    return Found(places, twice, others)


def answers(path: Path, asked: Asked, found: Found) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records' numbers with their results, as they come in the file."""
    for place, _, number, result in _read(path, asked):
        if number is not None and result is not None and found.places[number] == place:
            yield number, result


def ordered(path: Path, found: Found) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines and results of all records that have one, in the records' order."""
    with path.open("rb") as file:
        for place in found.places:
            if place != NONE:
                file.seek(place)
                line = file.readline()
                yield line, json.loads(line)


def _read(path: Path, asked: Asked) -> Iterator[tuple[int, bytes, int | None, dict[str, Any] | None]]:
    """Each line with its place, the number of the record that it answers, and the result, if it is one."""
    place = 0
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            result = _parse(line)
            number = asked.ids.get(result["custom_id"]) if result is not None else None
            yield place, line, number if number is not None and asked.same[number] else None, result
            place += len(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        result = json.loads(line) if line.endswith(b"\n") else None
        if isinstance(result, dict) and is_sound(result):
            return result
    return None


# ---- what answers nothing ------------------------------------------------------------------------


def tidy(path: Path, asked: Asked, found: Found, aside: Path) -> int:
    """Move the lines that count for nothing to the file `aside`, and return their number.

    A line there has the fingerprint of the `request` that its `result` answers; what is no result is a `line`.
    """
    if not (found.twice or found.others):
        return 0
    moved = 0
    with aside.open("ab") as others, publishing(path, 0o666) as kept:
        for place, line, number, result in _read(path, asked):
            if number is not None and found.places[number] == place:
                kept.write(line)
                continue
            if result is None:
                content: dict[str, Any] = {"line": line.decode("utf-8", "replace")}
            else:
                request = asked.before.get(result["custom_id"])
                content = {"request": request or _print(asked, number), "result": result}
            others.write(to_line(content))
            moved += 1
        others.flush()
        os.fsync(others.fileno())  # before the file that has them, too, is replaced
    return moved


def _print(asked: Asked, number: int | None) -> str | None:
    return None if number is None else f"{asked.prints[number]:016x}"


def restore(path: Path, asked: Asked, found: Found, aside: Path) -> int:
    """Bring back what answers a request that is made again, and return how many results that are."""
    here = bytearray(place != NONE for place in found.places)
    restored = 0
    with path.open("ab") as file:
        for content in read_lines(aside):
            result = content.get("result")
            if not isinstance(result, dict) or not is_sound(result):
                continue
            number = asked.ids.get(result["custom_id"])
            if number is not None and not here[number] and content.get("request") == _print(asked, number):
                file.write(to_line(result))
                here[number] = True
                restored += 1
        file.flush()
        os.fsync(file.fileno())
    return restored


def drop_torn_line(path: Path) -> None:
    """Remove half a line from the end: a driver that was killed has left it; its job with the whole one is queued."""
    with path.open("r+b") as file:
        end = place = file.seek(0, os.SEEK_END)
        while place > 0:
            start = max(0, place - BLOCK)
            file.seek(start)
            last = file.read(place - start).rfind(b"\n")
            if last >= 0:
                place = start + last + 1
                break
            place = start
        if place < end:
            file.truncate(place)
