"""Read an invocation job's output, and check it, because any code on the node may have written to the output.

A valid line is a result for one of the job's records, or the number of records that the model server has begun. A line
with this number may also contain the number of records that the job keeps. All other lines are rejected. If a record
has several results, the first one counts.

There is a maximum length for a line, and a maximum length for the whole output. If a line or the output is longer, the
rest of the output is not read.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from glide.protocol.json_lines import decoded
from glide.protocol.request import is_deeper
from glide.protocol.result import is_count, problem
from glide.system import open_regular

# Maximum size of all lines that are not results, in bytes. Such a line contains the number of records that the model
# server has begun. The server may write up to four such lines each second.
FREE_BYTES = 1 << 20
MOST_BYTES = 512 << 20  # maximum size of any job's output, in bytes
# Error numbers when a path is no regular file. `open_regular` itself raises errors without a number.
NOT_A_FILE = (None, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM)
MOST_NESTED = 100  # maximum depth of arrays and objects in a line; Python cannot write a value with 1,000 levels
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # the JSON escape of a surrogate, which is only half of a character


@dataclass
class OutputContent:
    """The valid content of a job's output.

    Attributes:
        results: the valid results, by record id. A record without a valid result is missing.
        begun: number of records that the model server has begun, according to the output.
        kept: number of records, from the start of the job's input, that the job keeps. The job gives back the other
            records, so it will never send these to an engine. None if the job keeps all its records.
        asked: smallest number of records that the driver has asked the job to keep, according to the job's answers.
        rejected: number of invalid lines.
        reason: problem of the first invalid line; empty if all lines are valid.
        too_long: whether a line or the whole output is longer than allowed.
        end: number of bytes up to the end of the last complete line.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: int = 0
    kept: int | None = None
    asked: int | None = None
    rejected: int = 0
    reason: str = ""
    too_long: bool = False
    end: int = 0

    def add(self, other: OutputContent) -> None:
        """Add the content of another file with the same job's output. `end` stays as it is."""
        self.results = {**other.results, **self.results}
        self.begun = max(self.begun, other.begun)
        if other.kept is not None and (self.kept is None or other.kept < self.kept):
            self.kept, self.asked = other.kept, other.asked
        self.rejected += other.rejected
        self.reason = self.reason or other.reason
        self.too_long |= other.too_long

    def reject(self, reason: str) -> None:
        """Count an invalid line. Keep the reason if this is the first invalid line."""
        self.rejected += 1
        self.reason = self.reason or reason


class RejectedResult(ValueError):
    """The error for a line that is not valid. The message is the reason."""


def output_limit(records: int, max_result_bytes: int) -> int:
    """Return the maximum size of a job's output, in bytes.

    Args:
        records: number of records in the job.
        max_result_bytes: maximum length of one result's line, in bytes.
    """
    return min(MOST_BYTES, FREE_BYTES + records * max_result_bytes)


def read(
    path: Path, ids: Collection[str], max_result_bytes: int,
    check_result: Callable[[dict[str, Any]], str] = lambda result: "", start: int = 0,
) -> OutputContent:  # fmt: skip
    """Read a job's output. If there is no regular file, or if it has several names, this counts as an empty output.

    A last line without "\\n" is incomplete, so it is ignored.

    Args:
        path: path of the output file.
        ids: ids of the job's records.
        max_result_bytes: maximum length of one result's line, in bytes.
        check_result: a function with further checks of a result. The function returns what is wrong, or an empty text
            if the result is valid.
        start: number of bytes at the beginning of the output that are left out, because they were read before.
    """
    answers = OutputContent(end=start)
    try:
        opened = open_regular(path, follow=False)
    except FileNotFoundError:
        return answers
    except OSError as error:
        if error.errno not in NOT_A_FILE:
            raise
        return answers  # code on the node may have replaced the file
    with opened as file:
        if os.fstat(file.fileno()).st_nlink > 1:  # code on the node may change it under its other name
            return answers
        file.seek(start)
        for line in _lines(file, max_result_bytes, output_limit(len(ids), max_result_bytes), start):
            answers.end = file.tell() if line is not None else answers.end
            if line is None:
                answers.too_long = True
                answers.reject("the output is longer than its records allow")
                break
            try:
                _read_line(line, ids, answers, check_result)
            except RejectedResult as wrong:
                answers.reject(str(wrong))
    return answers


def _lines(file: IO[bytes], longest: int, most: int, total: int) -> Iterator[bytes | None]:
    """Yield the complete lines that are not blank. If a line or the file is too long, yield None and stop.

    Args:
        longest: maximum length of a line, in bytes.
        most: maximum length of the file, in bytes.
        total: number of bytes before the file's position.
    """
    while line := file.readline(longest + 1):
        total += len(line)
        if total > most or len(line) > longest:
            yield None
            return
        if line.endswith(b"\n") and not line.isspace():
            yield line


def _read_line(
    line: bytes, ids: Collection[str], answers: OutputContent, check_result: Callable[[dict[str, Any]], str]
) -> None:
    """Add the content of a line to `answers`. Raise RejectedResult if the line is invalid."""
    try:
        content = decoded(line, _DECODER)
        if not isinstance(content, dict):
            raise RejectedResult("a line is not a JSON object")
        if line.count(b"[") + line.count(b"{") > MOST_NESTED and is_deeper(content, MOST_NESTED):
            raise RejectedResult(f"a line has more than {MOST_NESTED} levels of arrays and objects")
        if SURROGATE.search(line):
            json.dumps(content, ensure_ascii=False).encode()  # `encode` fails if a surrogate has no partner
    except UnicodeError:
        raise RejectedResult("a text is not valid Unicode") from None
    except (ValueError, RecursionError):
        raise RejectedResult("a line is not a JSON object") from None
    if "custom_id" not in content:
        begun: Any = content.get("begun")
        kept: Any = content.get("kept", len(ids))
        asked: Any = content.get("asked", kept)
        if not is_count(begun):
            raise RejectedResult("a line is neither a result nor the number of records that the engine has received")
        if not is_count(kept) or not is_count(asked):
            raise RejectedResult("the number of records that a job keeps is invalid")
        answers.begun = max(answers.begun, min(begun, len(ids)))
        if "kept" in content:
            answers.kept = min(kept, len(ids) if answers.kept is None else answers.kept)
            answers.asked = min(asked, len(ids) if answers.asked is None else answers.asked)
        return
    name = content["custom_id"]
    if not isinstance(name, str) or name not in ids:
        raise RejectedResult("a result is for a record that is not in the job")
    if wrong := problem(content) or check_result(content):
        raise RejectedResult(f"a result is invalid: {wrong}")
    # Ignore a second result of a record. It is a copy, or it was computed after the job had started again.
    answers.results.setdefault(name, content)


def _finite(text: str) -> float:
    """Return the float for a number in JSON text.

    Raises:
        ValueError: the number is too large. Python would make it infinite, and JSON has no infinite numbers.
    """
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)
