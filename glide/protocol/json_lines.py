"""Read and write lines of JSON. Programs append lines to files, so the last line of a file may be incomplete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SPACE = " \t\r\n"  # the characters that JSON accepts around a value
to_json = json.JSONEncoder(ensure_ascii=False).encode  # faster than json.dumps, which makes an encoder in each call


def decoded(line: bytes | str, decoder: json.JSONDecoder = json.JSONDecoder()) -> Any:  # noqa: B008
    """Return the value in a line of JSON. This is faster than json.loads, which also recognises other encodings.

    Raises:
        ValueError: the line is not JSON in UTF-8.
    """
    text = (line if isinstance(line, str) else line.decode()).strip(SPACE)
    value, end = decoder.raw_decode(text)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the results in a file. A missing file counts as empty."""
    return filter(_is_result, read_lines(path))


def _is_result(line: dict[str, Any]) -> bool:
    return isinstance(line.get("custom_id"), str)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line. Skip incomplete and invalid lines. A missing file counts as empty."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                content = json.loads(line) if line.endswith("\n") else None
                if isinstance(content, dict):
                    yield content
