"""Read rows from CSV, TSV, Parquet and Arrow files, and from folders that the Python library `datasets` has written."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from glide.errors import InputError
from glide.sweep.text_files import COMPRESSED, Row, UnusableRow, duplicate, lines_of, opened

DATASET_STATE = "state.json"  # a folder with this file was written by the library `datasets` (save_to_disk)


def csv_rows(path: Path, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a cell may be longer than csv's default limit of 131072 characters
    # Without `strict`, a quote that is never closed would put the rest of the file into one cell, and raise no error.
    table = csv.reader(lines_of(path), strict=True, delimiter=delimiter)
    try:
        names = next(table, [])
        _check_columns(path, names)
        for cells in table:
            if len(cells) == len(names):
                yield table.line_num, dict(zip(names, cells, strict=True)), None
            elif cells:
                why = f"{len(cells)} cells for {len(names)} columns; a text with a comma needs quotes around it"
                yield table.line_num, UnusableRow(why), None
    except csv.Error as error:
        raise InputError(f"{path}:{table.line_num}: not CSV: {error}") from None


def tsv_rows(path: Path) -> Iterator[Row]:
    return csv_rows(path, "\t")


def _check_columns(path: Path, names: list[str]) -> None:
    """Raise InputError if two columns have the same name, or if the file seems to use a different delimiter."""
    if (name := duplicate(names)) is not None:
        raise InputError(f"{path}:1: column {name!r:.40} is given twice; remove or rename one")
    if len(names) == 1 and (sign := next((sign for sign in ";\t|" if sign in names[0]), None)):
        raise InputError(
            f"{path}:1: only one column, {names[0]!r:.80}: {sign!r} does not separate columns here; "
            "a .csv file needs commas, a .tsv file needs tabs"
        )


def parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: pyarrow is needed to read Parquet; run: pip install 'glide[parquet]'") from None
    try:
        path.stat()  # if the file is missing, the error of `stat` is clearer than pyarrow's error
        with _seekable(path) as source, parquet.ParquetFile(source) as file:
            _check_columns(path, file.schema_arrow.names)
            yield from _batch_rows(file.iter_batches())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ArrowException, ValueError) as error:
        raise InputError(f"{path}: not Parquet: {' '.join(str(error).split())}") from None


@contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    """Yield a file, or a temporary file with its decompressed content. Readers of Parquet jump to and fro in a file."""
    if path.suffix.lower() not in COMPRESSED:
        yield path
        return
    with opened(path) as source, tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(source, unpacked)
        unpacked.seek(0)
        yield unpacked


def arrow_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow file.

    The file may have Arrow's stream format or Arrow's file format. The library `datasets` writes the stream format.
    """
    try:
        from pyarrow import ArrowException, ArrowInvalid, ipc, memory_map
    except ImportError:
        raise InputError(f"{path}: pyarrow is needed to read Arrow; run: pip install 'glide[parquet]'") from None
    try:
        with memory_map(str(path)) as source:
            try:
                batches: Iterable[Any] = ipc.open_stream(source)
            except ArrowInvalid:
                file = ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            yield from _batch_rows(batches)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ArrowException, ValueError) as error:
        raise InputError(f"{path}: not Arrow: {' '.join(str(error).split())}") from None


def _batch_rows(batches: Iterable[Any]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, _json_row(row), None


def dataset_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a folder that the library `datasets` has written."""
    try:
        state = json.loads((folder / DATASET_STATE).read_bytes())
        names = [str(each["filename"]) for each in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder / DATASET_STATE}: not the state of a dataset: {error}") from None
    if state.get("_indices_files"):
        raise InputError(f"{folder}: a selection of a dataset; write it with flatten_indices().save_to_disk(FOLDER)")
    if any(Path(name).name != name for name in names):
        raise InputError(f"{folder / DATASET_STATE}: names a file outside the folder")
    return [folder / name for name in names]


def _json_row(row: dict[str, Any]) -> Any:
    """Return a row with only JSON's types. Dates and decimals become text. Other types give an UnusableRow."""
    try:
        # In tables, NaN stands for a missing value.
        return json.loads(json.dumps(row, default=_as_text), parse_constant=lambda name: None)
    except TypeError as error:
        return UnusableRow(str(error))


def _as_text(value: Any) -> str:
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{value!r:.40} is neither text nor a number; cast its column to text")
