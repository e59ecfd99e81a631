"""Turn the rows of input files into records. Each record has a unique custom_id."""

from __future__ import annotations

from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glide.sweep import batch_api
from glide.sweep.batch_api import BatchRequest
from glide.sweep.json_rows import json_row
from glide.sweep.text_files import UnusableRow

LINE = "line"  # with this value of the key `id`, the custom_id of a record is the number of its line
# The keys are labels in FEVER's files. The values are the labels that prompts and models use instead.
FEVER_LABELS = {"SUPPORTS": "SUPPORTED", "REFUTES": "REFUTED"}


@dataclass(frozen=True, slots=True)
class Record:
    """A record.

    Attributes:
        custom_id: the record's id.
        fields: all fields, including `custom_id`.
        line: number of the record's line in its file. If the file has no lines (Parquet), number of the record's row.
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


@dataclass(frozen=True)
class RecordFormat:
    """How the rows of a sweep's input become records.

    Attributes:
        id_field: name of the field that holds the custom_id; LINE for the number of the line; None for `custom_id`.
        form: "openai" if each record must be a line of OpenAI's Batch API; None if it may be any record.
        several: whether there is more than one file. Then a custom_id that is a line's number also names the file.
    """

    id_field: str | None = None
    form: str | None = None
    several: bool = False

    def record(self, row: Any, line: int, source: Path) -> Record | str:
        """Return the record of a row, or the problem of the row as text."""
        return _record(row, line, source, self.id_field, self.form, self.several)

    def parse(self, source: Path, line: bytes) -> Record:
        """Return the record of a line of JSON that has been checked before. Its line number is not known: it is 0.

        Raises:
            ValueError: the line has changed.
        """
        record = self.record(json_row(line.removeprefix(BOM_UTF8).decode("utf-8")), 0, source)
        if isinstance(record, str):
            raise ValueError(record)
        return record


def own_request(fields: dict[str, Any]) -> BatchRequest | None:
    """Return the request in the fields of a record that has been checked before; None if it brings no request."""
    return batch_api.request_of(fields) if batch_api.is_request(fields) else None


def _record(row: Any, line: int, source: Path, id_field: str | None, form: str | None, several: bool) -> Record | str:
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
