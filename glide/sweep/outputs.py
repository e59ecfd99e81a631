"""Write the results of a finished sweep in the format of OpenAI's Batch API, or as a Parquet file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from glide.config.sweep import OutFormat
from glide.errors import InputError
from glide.sweep import batch_api
from glide.sweep.batch_api import CHAT, COMPLETIONS, BatchRequest
from glide.sweep.lines import to_line
from glide.sweep.out import ERRORS, OUTPUT, PARQUET
from glide.sweep.records import Record
from glide.system import publishing

ROWS = 4096  # number of results in each row group of a Parquet file
# Fields of a result that have a column. Other fields of results share one column, as JSON text.
COLUMNS = (
    "custom_id",
    "text",
    "tokens",
    "error",
    "glidein",
    "attempts",
    "seconds",
    "finish_reason",
    "usage",
    "embedding",
)

Answered = Iterable[tuple[Record, Mapping[str, Any]]]


def check_format(form: OutFormat) -> None:
    """Raise InputError if a package for the format is missing."""
    if form == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError("pyarrow is needed to write Parquet; run: pip install 'glide[parquet]'") from None


def write(folder: Path, form: OutFormat, answered: Answered, model: str) -> None:
    """Write the further files of a cell.

    Args:
        folder: folder for the files.
        form: the format.
        answered: each record and its result, in input order.
        model: name of the model, for answers to requests that name none.

    Raises:
        OSError: a file cannot be written.
    """
    if form == "openai":
        write_answers(folder / OUTPUT, folder / ERRORS, answered, model)
    elif form == "parquet":
        _write_parquet(folder / PARQUET, answered)


def write_answers(output: Path, errors: Path, answered: Answered, model: str) -> None:
    """Write answers as OpenAI's Batch API does: successful ones to `output`, and others to `errors`."""
    created = int(time.time())
    with publishing(output, 0o666) as good, publishing(errors, 0o666) as bad:
        for record, result in answered:
            line = batch_api.answer(record.custom_id, _request(record, result), result, model, created)
            (bad if result.get("error") is not None else good).write(to_line(line))


def _request(record: Record, result: Mapping[str, Any]) -> BatchRequest:
    """Return the record's own request. If the record has no request, return an empty request.

    If the result contains a message, the url of the empty request is CHAT. Otherwise, the url is COMPLETIONS.
    """
    if record.request is not None:
        return record.request
    choice = (result.get("choices") or [{}])[0]
    return BatchRequest(CHAT if "message" in choice else COMPLETIONS, "", "")


def _write_parquet(path: Path, answered: Answered) -> None:
    import pyarrow
    from pyarrow import parquet

    error = pyarrow.struct([("type", pyarrow.string()), ("message", pyarrow.string())])
    usage = pyarrow.struct([("prompt_tokens", pyarrow.int64()), ("completion_tokens", pyarrow.int64())])
    types = {
        "custom_id": pyarrow.string(), "text": pyarrow.string(), "tokens": pyarrow.int64(), "error": error,
        "glidein": pyarrow.string(), "attempts": pyarrow.int64(), "seconds": pyarrow.float64(),
        "finish_reason": pyarrow.string(), "usage": usage, "embedding": pyarrow.list_(pyarrow.float32()),
        "other": pyarrow.string(),
    }  # fmt: skip
    schema = pyarrow.schema(list(types.items()))
    rows = map(_row, answered)
    with publishing(path, 0o666) as file, parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def _row(item: tuple[Record, Mapping[str, Any]]) -> dict[str, Any]:
    _, result = item
    other = {name: value for name, value in result.items() if name not in COLUMNS}
    row = {name: result.get(name) for name in COLUMNS}
    row["text"] = None if row["text"] is None else row["text"].encode("utf-8", "replace").decode()
    return {**row, "other": json.dumps(other) if other else None}


def answered_in_order(records: Iterable[Record], lines: Iterable[bytes]) -> Answered:
    """Yield each record with its result. Both are in input order.

    Args:
        lines: the line of each record's result.
    """
    for record, line in zip(records, lines, strict=True):
        yield record, json.loads(line)
