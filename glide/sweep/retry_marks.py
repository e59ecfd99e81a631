"""Store the marks of records that are run again because their result is an error, in `.glide/retry.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from glide.protocol.json_lines import read_lines
from glide.sweep import lines
from glide.sweep.out import internal_path
from glide.system import publishing, sync_folder

MARKS = "retry.jsonl"


def read(out: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the cell, the custom_id and the mark of each record that is run again."""
    for line in read_lines(internal_path(out, MARKS)):
        cell, custom_id, mark = line.get("prompt"), line.get("custom_id"), line.get("mark")
        if isinstance(cell, str) and isinstance(custom_id, str) and isinstance(mark, str):
            yield cell, custom_id, mark


def write(out: Path, marks: Mapping[tuple[str, str], str]) -> None:
    """Replace the marks.

    Args:
        marks: the marks, by cell and custom_id. If there are none, the file is deleted.
    """
    path = internal_path(out, MARKS)
    if not marks:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
        return
    with publishing(path, 0o666) as file:
        for (cell, custom_id), mark in marks.items():
            file.write(lines.to_line({"prompt": cell, "custom_id": custom_id, "mark": mark}))
