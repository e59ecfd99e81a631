"""Read records: JSON lines, FEVER's own files, CSV, Parquet; and fill them into prompts."""

from __future__ import annotations

import csv
import json
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
    """Read a file of records by its suffix: .jsonl and .json, .csv, .parquet.

    Raises:
        InputError: what can't be read, and each line without JSON, without a custom_id, or with one that
            an earlier line has.
    """
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
        ".jsonl": _json_lines, ".json": _json_lines, ".csv": _csv, ".parquet": _parquet,
    }  # fmt: skip
    reader = readers.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: records are read from {', '.join(readers)}; {path.suffix or 'no suffix'} is unknown")
    records: list[Record] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    try:
        for line, row in reader(path):
            record = _record(row, line)
            if isinstance(record, str):
                problems.append(f"{path}:{line}: {record}")
            elif record.custom_id in seen:
                problems.append(f"{path}:{line}: custom_id {record.custom_id!r} is line {seen[record.custom_id]}'s too")
            else:
                seen[record.custom_id] = line
                records.append(record)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"{path}: … and {len(problems) - MOST_PROBLEMS} more"]
    if problems:
        raise InputError(*problems)
    if not records:
        raise InputError(f"{path}: no records in it")
    return records


def _record(row: Any, line: int) -> Record | str:
    """The record, or what is wrong with it."""
    if isinstance(row, ValueError):
        return f"not JSON: {row}"
    if not isinstance(row, dict):
        return "not a JSON object"
    if isinstance(row.get("evidence"), list) and "claim" in row and "custom_id" not in row:
        row = _fever(row)
    custom_id = row.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return "no custom_id (a non-empty string, unique in the file)"
    return Record(custom_id, row, line)


def _fever(row: dict[str, Any]) -> dict[str, Any]:
    """A line of FEVER's own files: evidence is lists of [annotation, evidence, page, sentence] references."""
    references = {
        f"{reference[2]}:{reference[3]}"
        for group in row["evidence"]
        for reference in group
        if isinstance(reference, list) and len(reference) >= 4 and reference[2] is not None
    }
    evidence = "; ".join(sorted(reference.replace("_", " ") for reference in references))
    label = FEVER_LABELS.get(row.get("label", ""), row.get("label"))
    return {**row, "custom_id": str(row.get("id", "")), "evidence": evidence, "label": label}


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    yield number, error


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield rows.line_num, dict(row)


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install 'glide[parquet]'") from None
    try:
        yield from enumerate(parquet.read_table(path).to_pylist(), 1)
    except ArrowInvalid as error:
        raise InputError(f"{path}: not Parquet: {error}") from None


# ---- prompts -------------------------------------------------------------------------------------


def render(prompt: str, fields: dict[str, Any]) -> str:
    """Put a record's fields into a prompt; braces in the fields stay what they are."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(prompt):
        parts.append(text)
        if name is not None:
            parts.append(_text(fields[name]))
    return "".join(parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check_fields(source: str, records: Iterable[Record], names: Iterable[str], why: str) -> list[str]:
    """A problem for the first record that lacks one of the fields, or none."""
    for record in records:
        for name in names:
            if name not in record.fields:
                has = ", ".join(sorted(record.fields))
                return [f"{source}:{record.line}: no field {name!r}, which {why}; it has {has}"]
    return []


def check_prompts(source: str, records: list[Record], prompts: dict[str, str]) -> list[str]:
    """A problem for each prompt that names a field which some record lacks."""
    problems = []
    for name, prompt in prompts.items():
        problems += check_fields(source, records, prompt_fields(prompt), f"prompt {name} names")
    return problems
