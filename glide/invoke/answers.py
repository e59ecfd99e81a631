"""What a job's output says, checked: it was written on a node, where anybody's code may have been at work.

A line is a result for a record that the job carries, with the types that a result has, or it is rejected. Of several
results for one record the first counts. A file or line that is longer than the job's records justify is a flood, and
is not read further.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

FREE_BYTES = 1 << 20  # of an output beside its results: what its lane says of records begun, a line each second
MOST_BYTES = 512 << 20  # of any job's output
LARGEST_COUNT = 10**9  # of tokens, attempts or seconds
NAME_LENGTH = 1000  # characters of a glidein's name or an error's type
MESSAGE_LENGTH = 1_000_000  # characters of an error's message


@dataclass
class Answers:
    """What an output has.

    Attributes:
        results: one for each record that is answered, by id.
        begun: how many records the lane had begun.
        rejected: lines that are no valid results, and `reason` is what is wrong with the first.
        flood: whether it is longer than it may be.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: int = 0
    rejected: int = 0
    reason: str = ""
    flood: bool = False

    def reject(self, reason: str) -> None:
        self.rejected += 1
        self.reason = self.reason or reason


class Rejected(ValueError):
    """A line that is no valid result; the message says why."""


def limit(records: int, answer_bytes: int) -> int:
    """Bytes that the output of a job with so many records may have, where a result may have `answer_bytes`."""
    return min(MOST_BYTES, FREE_BYTES + records * answer_bytes)


def read(
    path: Path, ids: Collection[str], answer_bytes: int, complaint: Callable[[dict[str, Any]], str] = lambda result: ""
) -> Answers:
    """Read an output, which is empty when it does not exist; a last line without its end is still being written.

    Args:
        ids: of the records that the job carries.
        answer_bytes: the longest line that a result may be.
        complaint: what else is wrong with a result; empty where nothing is.
    """
    answers = Answers()
    with suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
        for line in _lines(file, answer_bytes, limit(len(ids), answer_bytes)):
            if line is None:
                answers.flood = True
                answers.reject("the output is longer than its records justify")
                break
            try:
                _take(line, ids, answers, complaint)
            except Rejected as wrong:
                answers.reject(str(wrong))
    return answers


def _lines(file: BinaryIO, longest: int, most: int) -> Iterator[bytes | None]:
    """Whole lines that are not blank; None, and no more, where a line or all of them are too long."""
    total = 0
    while line := file.readline(longest + 1):
        total += len(line)
        if total > most or len(line) > longest:
            yield None
            return
        if line.endswith(b"\n") and not line.isspace():
            yield line


def _take(line: bytes, ids: Collection[str], answers: Answers, complaint: Callable[[dict[str, Any]], str]) -> None:
    try:
        content = json.loads(line.decode(), parse_constant=_no_constant)
        if not isinstance(content, dict):
            raise Rejected("a line is no JSON object")
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeError:
        raise Rejected("a text is not valid Unicode") from None
    except (ValueError, RecursionError):
        raise Rejected("a line is no JSON object") from None
    if "custom_id" not in content:
        if not _is_count(content.get("begun")):
            raise Rejected("a line is neither a result nor a count of records begun")
        answers.begun = max(answers.begun, min(content["begun"], len(ids)))
        return
    name = content["custom_id"]
    if not isinstance(name, str) or name not in ids:
        raise Rejected("a result for a record that the job does not carry")
    if wrong := problem(content) or complaint(content):
        raise Rejected(f"a result whose {wrong}")
    answers.results.setdefault(name, content)  # another one was streamed twice, or computed again after a restart


def problem(result: dict[str, Any]) -> str:
    """What is wrong with the fields that every result has; empty where nothing is."""
    text, error = result.get("text"), result.get("error")
    if error is not None and not _is_error(error):
        return "`error` is not null or {type, message}"
    if not (isinstance(text, str) or (text is None and error is not None)):
        return "`text` is not a string"
    if not _is_count(result.get("tokens")):
        return "`tokens` is not a count"
    seconds = result.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < LARGEST_COUNT:
        return "`seconds` is not a number of seconds"
    if not _is_count(result.get("attempts")):
        return "`attempts` is not a count"
    glidein = result.get("glidein")
    if not isinstance(glidein, str) or len(glidein) > NAME_LENGTH:
        return "`glidein` is not a name"
    return ""


def _is_error(error: object) -> bool:
    if not isinstance(error, dict) or error.keys() != {"type", "message"}:
        return False
    lengths = {"type": NAME_LENGTH, "message": MESSAGE_LENGTH}
    return all(isinstance(error[name], str) and len(error[name]) <= most for name, most in lengths.items())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_COUNT


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
