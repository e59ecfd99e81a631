"""Read records: JSON lines, FEVER's own files, CSV, TSV, Parquet; and fill them into prompts."""

from __future__ import annotations

import csv
import json
import string
import sys
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from glide.config import prompt_fields
from glide.errors import InputError

MOST_PROBLEMS = 20  # a file that is wrong throughout is wrong in the same way
# FEVER's own files name the verdicts as verbs; workloads and models name them as findings.
FEVER_LABELS = {"SUPPORTS": "SUPPORTED", "REFUTES": "REFUTED"}


@dataclass(frozen=True)
class Record:
    """One record: its id, its fields, and the line of the file it came from."""

    custom_id: str
    fields: dict[str, Any]
    line: int


def read(path: Path) -> list[Record]:
    """Read a file of records by its suffix: .jsonl, .ndjson and .json, .csv, .tsv, .parquet.

    Raises:
        InputError: what can't be read, and each line that is no record, is without a custom_id, or has one that
            an earlier line has.
    """
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix)
    if path.is_dir():
        raise InputError(f"{path}: is a directory; name one file, and join the parts of a set before: cat DIR/* >FILE")
    if suffix in _COMPRESSED:
        raise InputError(f"{path}: is compressed; unpack it first: {_COMPRESSED[suffix]} {path.name}")
    if reader is None:
        known = ", ".join(_READERS)
        raise InputError(f"{path}: records are read from {known}; {path.suffix or 'no suffix'} is unknown")
    records: list[Record] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for line, row in reader(path):
        record = _record(row, line)
        if isinstance(record, str):
            problems.append(f"{path}:{line}: {record}")
        elif record.custom_id in seen:
            problems.append(f"{path}:{line}: custom_id {record.custom_id!r} is line {seen[record.custom_id]}'s too")
        else:
            seen[record.custom_id] = line
            records.append(record)
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"{path}: … and {len(problems) - MOST_PROBLEMS} more"]
    if problems:
        raise InputError(*problems)
    if not records:
        raise InputError(f"{path}: no records in it")
    return records


def _record(row: Any, line: int) -> Record | str:
    """The record, or what is wrong with it."""
    if isinstance(row, Unusable):
        return str(row)
    if not isinstance(row, dict):
        return "not a JSON object"
    if _is_fever(row):
        row = _fever(row)
    if _is_batch(row):
        return "a request of OpenAI's Batch API, which is not read yet; write its text into a field that a prompt names"
    custom_id = row.get("custom_id")
    if isinstance(custom_id, (int, float)) and not isinstance(custom_id, bool):
        return f"custom_id {custom_id} is a number; write it as a text"
    if not isinstance(custom_id, str) or not custom_id:
        has = f"; it has {', '.join(sorted(row))}" if row and "custom_id" not in row else ""
        return f"no custom_id (a non-empty text, unique in the file), and not one of FEVER's own lines{has:.200}"
    return Record(custom_id, row, line)


def _is_batch(row: dict[str, Any]) -> bool:
    """Whether this is a line of a file for OpenAI's Batch API."""
    return {"method", "url", "body"} <= row.keys() and isinstance(row["body"], dict)


def _is_fever(row: dict[str, Any]) -> bool:
    """Whether this is a line of FEVER's own files: evidence is groups of [annotation, evidence, page, sentence]."""
    groups = row.get("evidence")
    return (
        "custom_id" not in row
        and "claim" in row
        and isinstance(row.get("id"), (int, str))
        and isinstance(groups, list)
        and all(isinstance(group, list) for group in groups)
        and all(isinstance(reference, list) and len(reference) >= 4 for group in groups for reference in group)
    )


def _fever(row: dict[str, Any]) -> dict[str, Any]:
    """A line of FEVER's own files with the fields that other records have; its test files have no label."""
    places = {
        f"{page}:{sentence}" for group in row["evidence"] for _, _, page, sentence, *_ in group if page is not None
    }
    evidence = "; ".join(sorted(place.replace("_", " ") for place in places))
    fields = {**row, "custom_id": str(row["id"]), "evidence": evidence}
    if isinstance(row.get("label"), str):
        fields["label"] = FEVER_LABELS.get(row["label"], row["label"])
    return fields


# ---- formats: each gives line numbers with what the line holds, or with why that is unusable -----


class Unusable(Exception):
    """Why a line holds no record."""


def _lines(path: Path) -> Iterator[str]:
    """A text file's lines, without a byte order mark, one at a time: the file may be larger than memory.

    By "\n" alone: a text may contain what else Python takes for the end of a line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield (line.removeprefix(BOM_UTF8) if number == 1 else line).decode("utf-8")
                except UnicodeDecodeError as error:
                    problem = f"{path}:{number}: not UTF-8: {error.reason}; save the file as UTF-8"
                    raise InputError(problem) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    first = True
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        if first and line.strip()[0] == "[":
            raise InputError(f"{path}:{number}: a JSON array; write one object a line: jq -c '.[]' {path.name}")
        if first and line.strip() == "{":
            raise InputError(f"{path}:{number}: an object on several lines; write each on one: jq -c . {path.name}")
        first = False
        yield number, _json(line)


def _json(line: str) -> Any:
    try:
        value = json.loads(line, object_pairs_hook=_once)
        if "\\u" in line:  # nothing else makes half a character
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except Unusable as error:
        return error
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        return Unusable(f"{half!r} is half a character (a lone surrogate); complete it, or take it out")
    except RecursionError:
        return Unusable("not JSON: nested too deeply")
    except ValueError as error:
        return Unusable(f"not JSON: {error}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of whose keys is there twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Unusable(f"{_twice(key for key, _ in pairs)!r:.40} is there twice; remove or rename one")
    return fields


def _twice(names: Iterable[str]) -> str | None:
    """The name that most often is there more than once, if one is."""
    name, times = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
    return name if times > 1 else None


def _csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)  # documents are longer than the module's 131072 characters
    # strict: a quote that is never closed would silently swallow the rest of the file
    rows = csv.reader(_lines(path), strict=True, delimiter=delimiter)
    try:
        names = next(rows, [])
        _check_columns(path, names)
        for cells in rows:
            if len(cells) == len(names):
                yield rows.line_num, dict(zip(names, cells, strict=True))
            elif cells:
                why = f"{len(cells)} cells for {len(names)} columns; a text with a comma needs quotes around it"
                yield rows.line_num, Unusable(why)
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not CSV: {error}") from None


def _check_columns(path: Path, names: list[str]) -> None:
    """Raise InputError for columns whose cells nobody could name."""
    if (name := _twice(names)) is not None:
        raise InputError(f"{path}:1: column {name!r:.40} is there twice; remove or rename one")
    if len(names) == 1 and (sign := next((sign for sign in ";\t|" if sign in names[0]), None)):
        raise InputError(f"{path}:1: one column, {names[0]!r:.80}; its cells are divided by {sign!r}: use commas")


def _tsv(path: Path) -> Iterator[tuple[int, Any]]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install 'glide[parquet]'") from None
    try:
        path.stat()  # pyarrow's own error for a missing file gives no reason
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, _plain(row)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ArrowException, ValueError) as error:
        raise InputError(f"{path}: not Parquet: {' '.join(str(error).split())}") from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_lines, ".csv": _csv, ".tsv": _tsv,
    ".parquet": _parquet,
}  # fmt: skip
_COMPRESSED = {".gz": "gunzip -k", ".zst": "unzstd", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zip": "unzip"}


def _plain(row: dict[str, Any]) -> Any:
    """A row as if it came from JSON."""
    try:
        return json.loads(json.dumps(row, default=_as_text))
    except TypeError as error:
        return Unusable(str(error))


def _as_text(value: Any) -> str:
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{value!r:.40} is neither text nor a number; cast its column to text")


# ---- prompts -------------------------------------------------------------------------------------


def render(prompt: str, fields: dict[str, Any]) -> str:
    """Put a record's fields into a prompt; braces in the fields stay what they are."""
    parts = []
    for text, name in _pieces(prompt):
        parts.append(text)
        if name is not None:
            parts.append(_text(fields[name]))
    return "".join(parts)


@lru_cache(64)
def _pieces(prompt: str) -> list[tuple[str, str | None]]:
    """A prompt's texts, each with the name of the field behind it."""
    return [(text, name) for text, name, _, _ in string.Formatter().parse(prompt)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check_fields(source: str, records: Iterable[Record], names: Iterable[str], why: str) -> list[str]:
    """A problem for the first record that lacks one of the fields, or has null there; or none."""
    for record in records:
        for name in names:
            if name not in record.fields:
                has = ", ".join(sorted(record.fields))
                return [f"{source}:{record.line}: no field {name!r}, which {why}; it has {has}"]
            if record.fields[name] is None:
                return [f'{source}:{record.line}: field {name!r}, which {why}, is null; give it a value, "" for none']
    return []


def check_prompts(source: str, records: list[Record], prompts: dict[str, str]) -> list[str]:
    """A problem for each prompt that names a field which some record lacks."""
    problems = []
    for name, prompt in prompts.items():
        problems += check_fields(source, records, prompt_fields(prompt), f"prompt {name} names")
    return problems
