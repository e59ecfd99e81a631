"""Read records from JSON lines, files of the FEVER dataset, CSV, TSV and Parquet. Fill the records into prompts."""

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

MOST_PROBLEMS = 20  # maximum number of problems reported for a file; further problems are usually of the same kind
# The keys are labels in FEVER's files. The values are the labels that prompts and models use instead.
FEVER_LABELS = {"SUPPORTS": "SUPPORTED", "REFUTES": "REFUTED"}


@dataclass(frozen=True)
class Record:
    """A record, with its id, all its fields (including `custom_id`), and its line number in the file."""

    custom_id: str
    fields: dict[str, Any]
    line: int


def read(path: Path) -> list[Record]:
    """Read a file of records. The suffix gives the format: .jsonl, .ndjson or .json (JSON lines), .csv, .tsv, .parquet.

    Raises:
        InputError: the file cannot be read; or a line is not a record, has no custom_id, or has the custom_id of an
            earlier line. The error lists the first MOST_PROBLEMS of these lines, each with its problem.
    """
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix)
    if path.is_dir():
        raise InputError(f"{path}: is a directory; run `cat DIR/* >FILE`, and set `records: FILE` in the sweep file")
    if suffix in _COMPRESSED:
        raise InputError(f"{path}: is compressed; unpack it first: {_COMPRESSED[suffix]} {path.name}")
    if reader is None:
        known = ", ".join(_READERS)
        raise InputError(f"{path}: unknown format {path.suffix or '(no suffix)'}; records can be read from {known}")
    records: list[Record] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for line, row in reader(path):
        record = _record(row, line)
        if isinstance(record, str):
            problems.append(f"{path}:{line}: {record}")
        elif record.custom_id in seen:
            problems.append(f"{path}:{line}: custom_id {record.custom_id!r} is also in line {seen[record.custom_id]}")
        else:
            seen[record.custom_id] = line
            records.append(record)
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"{path}: … and {len(problems) - MOST_PROBLEMS} more"]
    if problems:
        raise InputError(*problems)
    if not records:
        raise InputError(f"{path}: the file has no records")
    return records


def _record(row: Any, line: int) -> Record | str:
    """Return the record of a row, or the problem of the row as text."""
    if isinstance(row, UnusableRecord):
        return str(row)
    if not isinstance(row, dict):
        return "not a JSON object"
    if _is_fever(row):
        row = _fever(row)
    if _is_batch(row):
        return "requests of OpenAI's Batch API are not supported; write their text into a field that a prompt names"
    custom_id = row.get("custom_id")
    if isinstance(custom_id, (int, float)) and not isinstance(custom_id, bool):
        return f"custom_id {custom_id} is a number; write it as text, in quotes"
    if not isinstance(custom_id, str) or not custom_id:
        has = f"; it has {', '.join(sorted(row))}" if row and "custom_id" not in row else ""
        return f"no custom_id (a non-empty text, unique in the file), and not a line of FEVER's files{has:.200}"
    return Record(custom_id, row, line)


def _is_batch(row: dict[str, Any]) -> bool:
    """Return whether a row is a line of a file for OpenAI's Batch API."""
    return {"method", "url", "body"} <= row.keys() and isinstance(row["body"], dict)


def _is_fever(row: dict[str, Any]) -> bool:
    """Return whether a row is from FEVER.

    The evidence of such a row is a list of groups. A group is a list of [annotation, evidence, page, sentence].
    """
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
    """Return the fields of the record that a row of FEVER's files describes. FEVER's test files have no labels."""
    places = {
        f"{page}:{sentence}" for group in row["evidence"] for _, _, page, sentence, *_ in group if page is not None
    }
    evidence = "; ".join(sorted(place.replace("_", " ") for place in places))
    fields = {**row, "custom_id": str(row["id"]), "evidence": evidence}
    if isinstance(row.get("label"), str):
        fields["label"] = FEVER_LABELS.get(row["label"], row["label"])
    return fields


# ---- formats: for each line, a reader yields the line's number, and its content or an UnusableRecord


class UnusableRecord(Exception):
    """The error for a line that holds no record. The message is the reason."""


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without its byte order mark. The file may be larger than memory.

    Only a newline character ends a line. Other characters that Python may accept as line ends can be part of a text.
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
            raise InputError(f"{path}:{number}: a JSON array; write one object per line: jq -c '.[]' {path.name}")
        if first and line.strip() == "{":
            raise InputError(f"{path}:{number}: an object on several lines; write one per line: jq -c . {path.name}")
        first = False
        yield number, _json(line)


def _json(line: str) -> Any:
    try:
        value = json.loads(line, object_pairs_hook=_reject_duplicate_keys)
        if "\\u" in line:  # check for a lone surrogate, which only an escape sequence can produce
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnusableRecord as error:
        return error
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        return UnusableRecord(f"{half!r} is half a character (a lone surrogate); complete or remove it")
    except RecursionError:
        return UnusableRecord("not JSON: nested too deeply")
    except ValueError as error:
        return UnusableRecord(f"not JSON: {error}")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raise UnusableRecord if a key occurs twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise UnusableRecord(f"{_duplicate(key for key, _ in pairs)!r:.40} is given twice; remove or rename one")
    return fields


def _duplicate(names: Iterable[str]) -> str | None:
    """Return a name that occurs more than once, or None if all names are different."""
    name, times = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
    return name if times > 1 else None


def _csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)  # a cell may be longer than csv's default limit of 131072 characters
    # Without `strict`, a quote that is never closed would put the rest of the file into one cell, and raise no error.
    rows = csv.reader(_lines(path), strict=True, delimiter=delimiter)
    try:
        names = next(rows, [])
        _check_columns(path, names)
        for cells in rows:
            if len(cells) == len(names):
                yield rows.line_num, dict(zip(names, cells, strict=True))
            elif cells:
                why = f"{len(cells)} cells for {len(names)} columns; a text with a comma needs quotes around it"
                yield rows.line_num, UnusableRecord(why)
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not CSV: {error}") from None


def _check_columns(path: Path, names: list[str]) -> None:
    """Raise InputError if two columns have the same name, or if the file seems to use a different delimiter."""
    if (name := _duplicate(names)) is not None:
        raise InputError(f"{path}:1: column {name!r:.40} is given twice; remove or rename one")
    if len(names) == 1 and (sign := next((sign for sign in ";\t|" if sign in names[0]), None)):
        raise InputError(
            f"{path}:1: only one column, {names[0]!r:.80}: {sign!r} does not separate columns here; "
            "a .csv file needs commas, a .tsv file needs tabs"
        )


def _tsv(path: Path) -> Iterator[tuple[int, Any]]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: pyarrow is needed to read Parquet; run: pip install 'glide[parquet]'") from None
    try:
        path.stat()  # if the file is missing, the error of `stat` is clearer than pyarrow's error
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, _json_row(row)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ArrowException, ValueError) as error:
        raise InputError(f"{path}: not Parquet: {' '.join(str(error).split())}") from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_lines, ".csv": _csv, ".tsv": _tsv,
    ".parquet": _parquet,
}  # fmt: skip
_COMPRESSED = {".gz": "gunzip -k", ".zst": "unzstd", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zip": "unzip"}


def _json_row(row: dict[str, Any]) -> Any:
    """Return a row with only JSON's types. Dates and decimals become text. Other types give an UnusableRecord."""
    try:
        return json.loads(json.dumps(row, default=_as_text))
    except TypeError as error:
        return UnusableRecord(str(error))


def _as_text(value: Any) -> str:
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{value!r:.40} is neither text nor a number; cast its column to text")


# ---- prompts -------------------------------------------------------------------------------------


def render(prompt: str, fields: dict[str, Any]) -> str:
    """Fill a record's fields into a prompt. Braces in the values of fields are not interpreted."""
    parts = []
    for text, name in _pieces(prompt):
        parts.append(text)
        if name is not None:
            parts.append(_text(fields[name]))
    return "".join(parts)


@lru_cache(64)
def _pieces(prompt: str) -> list[tuple[str, str | None]]:
    """Split a prompt into pairs (text, field name).

    The field comes directly after the text. If no field comes after the text, the field name is None.
    """
    return [(text, name) for text, name, _, _ in string.Formatter().parse(prompt)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check_fields(source: str, records: Iterable[Record], names: Iterable[str], why: str) -> list[str]:
    """Check that each record has these fields, and that no field is null.

    Args:
        source: name of the file of the records, for the message.
        names: names of the fields.
        why: a sentence that says what uses the field, such as "prompt p uses this field". The message contains this
            sentence: "no field 'claim', but prompt p uses this field".

    Returns:
        A list with the first problem. It is empty if there is no problem.
    """
    for record in records:
        for name in names:
            if name not in record.fields:
                has = ", ".join(sorted(record.fields))
                return [f"{source}:{record.line}: no field {name!r}, but {why}; the record has {has}"]
            if record.fields[name] is None:
                return [f'{source}:{record.line}: field {name!r} is null, but {why}; give it a value, "" for none']
    return []


def check_prompts(source: str, records: list[Record], prompts: dict[str, str]) -> list[str]:
    """Check that each record has the fields that the prompts name. Return at most one problem for each prompt."""
    problems = []
    for name, prompt in prompts.items():
        problems += check_fields(source, records, prompt_fields(prompt), f"prompt {name} uses this field")
    return problems
