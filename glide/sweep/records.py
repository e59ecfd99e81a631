"""Turn the rows of input files into records. Each record has a unique custom_id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glide.errors import InputError
from glide.sweep import batch_api, formats
from glide.sweep.batch_api import BatchRequest
from glide.sweep.text_files import UnusableRow

MOST_PROBLEMS = 20  # maximum number of problems reported for a file; further problems are usually of the same kind
LINE = "line"  # with this value of the key `id`, the custom_id of a record is the number of its line
# The keys are labels in FEVER's files. The values are the labels that prompts and models use instead.
FEVER_LABELS = {"SUPPORTS": "SUPPORTED", "REFUTES": "REFUTED"}


@dataclass(frozen=True, slots=True)
class Record:
    """A record.

    Attributes:
        custom_id: the record's id.
        fields: all fields, including `custom_id`.
        line: number of the record's line in its file, or of its row.
        source: the file.
        request: the record's own request, if the record is a line of OpenAI's Batch API; else None.
    """

    custom_id: str
    fields: dict[str, Any]
    line: int
    source: Path = Path()
    request: BatchRequest | None = None

    @property
    def place(self) -> str:
        """The record's file and line, as text."""
        return f"{self.source}:{self.line}"


def read(path: Path, id_field: str | None = None, form: str | None = None) -> list[Record]:
    """Read the records of a file, a folder or a glob (glide.sweep.formats).

    Args:
        path: the file, the folder or the glob.
        id_field: name of the field that holds the custom_id; LINE for the number of the line; None for `custom_id`.
        form: "openai" if each record must be a line of OpenAI's Batch API; None if it may be any record.

    Raises:
        InputError: a file cannot be read; or a line is not a record, has no custom_id, or has the custom_id of an
            earlier line. The error lists the first MOST_PROBLEMS of these lines, each with its problem.
    """
    records: list[Record] = []
    problems: list[str] = []
    seen: dict[str, Record] = {}
    sources = formats.files(path)
    for source in sources:
        for line, row in formats.rows(source):
            record = _record(row, line, source, id_field, form, len(sources) > 1)
            if isinstance(record, str):
                problems.append(f"{source}:{line}: {record}")
            elif record.custom_id in seen:
                first = seen[record.custom_id]
                where = f"line {first.line}" if first.source == source else first.place
                problems.append(f"{source}:{line}: custom_id {record.custom_id!r} is also in {where}")
            else:
                seen[record.custom_id] = record
                records.append(record)
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"{path}: … and {len(problems) - MOST_PROBLEMS} more"]
    if problems:
        raise InputError(*problems)
    if not records:
        raise InputError(f"{path}: the file has no records" if len(sources) == 1 else f"{path}: no file has records")
    return records


def _record(row: Any, line: int, source: Path, id_field: str | None, form: str | None, several: bool) -> Record | str:
    """Return the record of a row, or the problem of the row as text.

    Args:
        several: whether there is more than one file. Then a custom_id that is a line's number also names the file.
    """
    if isinstance(row, UnusableRow):
        return str(row)
    if not isinstance(row, dict):
        return "not a JSON object"
    if id_field is None and _is_fever(row):
        row = _fever(row)
    if id_field == LINE:
        row = {**row, "custom_id": f"{source.name}:{line}" if several else str(line)}
    elif id_field is not None:
        if not _is_id(row.get(id_field)):
            has = ", ".join(sorted(row))
            return f"field {id_field!r} holds no id (a non-empty text or a whole number); the record has {has:.200}"
        row = {**row, "custom_id": str(row[id_field])}
    custom_id = row.get("custom_id")
    if isinstance(custom_id, (int, float)) and not isinstance(custom_id, bool):
        return f"custom_id {custom_id} is a number; write it as text, in quotes, or set `id: custom_id`"
    if not isinstance(custom_id, str) or not custom_id:
        has = f"; it has {', '.join(sorted(row)):.200}; set `id: FIELD`, or `id: line` to number the lines"
        own = has if row and "custom_id" not in row else ""
        return f"no custom_id (a non-empty text, unique in the file), and not a line of FEVER's files{own}"
    request = None
    if form == "openai" or batch_api.is_request(row):
        try:
            request = batch_api.request_of(row)
        except ValueError as error:
            return str(error)
    return Record(custom_id, row, line, source, request)


def _is_id(value: Any) -> bool:
    return (isinstance(value, str) and bool(value)) or (isinstance(value, int) and not isinstance(value, bool))


def _is_fever(row: dict[str, Any]) -> bool:
    """Return whether a row is from FEVER.

    The evidence of such a row is a list of groups. Each group is a list of references. A
    reference is a list that begins with four elements: annotation, evidence, page and sentence number.
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
