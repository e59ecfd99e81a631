"""Read rows from JSON lines and from JSON arrays. The files may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glide.errors import InputError
from glide.protocol.json_lines import decoded
from glide.sweep.text_files import Row, UnusableRow, duplicate, places_of


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the objects of a file with one object per line, or with one array of objects."""
    lines = places_of(path)
    for number, line, offset in lines:
        start = line.strip()
        if not start:
            continue
        if start[0] == "[":
            yield from _array_rows(path, number, line, ((place, text) for place, text, _ in lines))
            return
        if start == "{":
            raise InputError(f"{path}:{number}: an object on several lines; write one per line: jq -c . {path.name}")
        yield number, json_row(line), offset
        break
    for number, line, offset in lines:
        if line.strip():
            yield number, json_row(line), offset


def _array_rows(path: Path, number: int, line: str, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    """Yield the elements of a JSON array, which may be larger than memory. Each element must fit into memory.

    Args:
        number: number of the line with which the array begins.
        line: the text of this line.
        lines: the lines after it.
    """
    text = line.lstrip()[1:]
    expected = "value"  # what may come next: "value" or "comma"
    while True:
        text = text.lstrip()
        if not text:
            following = next(lines, None)
            if following is None:
                raise InputError(f"{path}:{number}: the JSON array has no end; the file may be incomplete")
            number, text = following
        elif text[0] == "]":
            rest = [number] if text[1:].strip() else [place for place, line in lines if line.strip()]
            if rest:
                raise InputError(f"{path}:{rest[0]}: text after the end of the JSON array")
            return
        elif expected == "comma":
            if text[0] != ",":
                raise InputError(f"{path}:{number}: no comma between two elements of the JSON array")
            text, expected = text[1:], "value"
        else:
            first = number
            value, text, number = _element(path, text, number, lines)
            yield first, value, None
            expected = "comma"


def _element(path: Path, text: str, number: int, lines: Iterator[tuple[int, str]]) -> tuple[Any, str, int]:
    """Decode the first element of a text. Add lines to the text until the element is complete.

    First add one line, then two lines, then four lines, and so on. So a long element is decoded only a few times.

    Returns:
        The element, the rest of the text, and the number of the last line that was read.
    """
    first, more = number, 1
    while True:
        try:
            value, end = _DECODER.raw_decode(text)
            return _without_half_characters(value, text[:end]), text[end:], number
        except UnusableRow as error:
            raise InputError(f"{path}:{first}: {error}") from None
        except RecursionError:
            raise InputError(f"{path}:{first}: not JSON: nested too deeply") from None
        except ValueError as error:
            added = [line for _, line in zip(range(more), lines, strict=False)]
            if not added:
                raise InputError(f"{path}:{first}: not JSON: {error}") from None
            text, number, more = text + "".join(entry[1] for entry in added), added[-1][0], 2 * more


def json_row(line: str) -> Any:
    """Return the content of a line of JSON, or an UnusableRow."""
    try:
        return _without_half_characters(decoded(line, _DECODER), line)
    except UnusableRow as error:
        return error
    except RecursionError:
        return UnusableRow("not JSON: nested too deeply")
    except ValueError as error:
        return UnusableRow(f"not JSON: {error}")


def _without_half_characters(value: Any, text: str) -> Any:
    """Return the value. Raise UnusableRow if it has a lone surrogate, which only an escape sequence can produce."""
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end]
            raise UnusableRow(f"{half!r} is half a character (a lone surrogate); complete or remove it") from None
    return value


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raise UnusableRow if a key occurs twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise UnusableRow(f"{duplicate(key for key, _ in pairs)!r:.40} is given twice; remove or rename one")
    return fields


def _reject_constant(name: str) -> Any:
    raise UnusableRow(f"not JSON: {name} is no number; write null, or a text in quotes")


_DECODER = json.JSONDecoder(object_pairs_hook=_reject_duplicate_keys, parse_constant=_reject_constant)
