"""Keep what the check of a large input has found, so that a resumed sweep need not read its input again.

The files are in `.glide/check` of the sweep's `out`. They count only for the same sweep file, template and input files.
An input file is the same if its path, size, inode and time of change are the same.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.config import SweepFile
from glide.protocol.json_lines import read_lines
from glide.sweep.out import cell_name, flat, internal_path
from glide.sweep.record_set import RecordSet
from glide.sweep.records import RecordFormat
from glide.system import publishing

FORMAT = 1  # is increased when the content of the files or the meaning of a fingerprint changes
LARGE = 100_000  # smaller inputs are checked again, which takes less than two seconds
KEY = "key.json"
# For each model, the fingerprints of the requests in each cell.
Fingerprints = Mapping[str, Mapping[str, "array[int]"]]
# Keys of a sweep file that change neither the records nor their requests.
OTHER_KEYS = {"name", "out", "glideins", "timeout", "batch", "pack"}


def key_of(file: SweepFile, templates: Mapping[str, str], sources: Sequence[Path]) -> str:
    """Return a key for the result of a check. If two checks have the same key, their results are the same.

    Args:
        templates: digests of the templates, by the name of their model.
        sources: the input files.
    """
    states = [path.stat() for path in sources]
    inputs = [
        (str(path.absolute()), state.st_size, state.st_ino, state.st_mtime_ns)
        for path, state in zip(sources, states, strict=True)
    ]
    content = [FORMAT, file.model_dump(mode="json", exclude=OTHER_KEYS), templates, inputs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load(
    out: Path, key: str, form: RecordFormat, models: Sequence[str], cells: Sequence[str]
) -> tuple[RecordSet, Fingerprints, str] | None:
    """Return the records, the fingerprints of the requests, and the digest of the right answers.

    If nothing is kept for this key, or the files are damaged, return None.
    """
    folder = internal_path(out, "check")
    records = RecordSet(form.parse)
    with suppress(OSError, KeyError, TypeError, ValueError):
        known = next(read_lines(folder / KEY), {})
        if known.get("key") != key:
            return None
        count = int(known["records"])
        records.ids, records.offsets = _read(folder / "ids", count), _read(folder / "offsets", count)
        records.firsts = [int(first) for first in known["firsts"]]
        records.places = [Path(place) for place in known["places"]]
        fingerprints = {
            model: {cell: _read(_requests_file(folder, model, cell), count) for cell in cells} for model in models
        }
        return records, fingerprints, str(known["labels"])
    return None


def save(out: Path, key: str, records: RecordSet, fingerprints: Fingerprints, labels: str) -> None:
    """Keep what a check has found. Do nothing if the input is small, or if records are in a temporary file."""
    folder = internal_path(out, "check")
    if len(records) < LARGE or None in records.places or next(read_lines(folder / KEY), {}).get("key") == key:
        return
    folder.mkdir(exist_ok=True)
    # First delete the old key. After a crash, some files may be old or incomplete. Without a key, `load` ignores all
    # files.
    (folder / KEY).unlink(missing_ok=True)
    arrays: dict[Path, Any] = {folder / "ids": records.ids, folder / "offsets": records.offsets}
    for model, cells in fingerprints.items():
        arrays |= {_requests_file(folder, model, cell): each for cell, each in cells.items()}
    for path, content in arrays.items():
        with publishing(path, 0o666) as file:
            content.tofile(file)
    known = {
        "key": key, "records": len(records), "firsts": records.firsts, "labels": labels,
        "places": [str(place.absolute()) for place in records.places if place is not None],
    }  # fmt: skip
    with publishing(folder / KEY, 0o666) as file:
        file.write(json.dumps(known).encode() + b"\n")


def _requests_file(folder: Path, model: str, cell: str) -> Path:
    return folder / f"requests.{flat(cell_name(model, cell))}"


def _read(path: Path, count: int) -> array[int]:
    numbers = array("Q")
    with path.open("rb") as file:
        numbers.fromfile(file, count)
    return numbers
