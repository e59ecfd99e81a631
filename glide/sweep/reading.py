"""Read and check the input files of a sweep in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from glide.errors import InputError
from glide.sweep import formats
from glide.sweep.record_set import RecordSet, id_hash
from glide.sweep.records import LINE, Record, RecordFormat

MOST_PROBLEMS = 20  # maximum number of problems reported for a file; further problems are usually of the same kind
REPORTED = 1 << 16  # number of records between two calls of `progress`


def read(
    path: Path,
    sources: Sequence[Path],
    form: RecordFormat,
    visit: Callable[[Record], None] = lambda record: None,
    progress: Callable[[int], None] = lambda count: None,
) -> RecordSet:
    """Read the records of files.

    Args:
        path: the file, the folder or the pattern that the user has named, for messages.
        sources: the files.
        form: how rows become records.
        visit: function that is called with each record.
        progress: function that is called now and then with the number of records so far.

    Raises:
        InputError: a file cannot be read; or a line is not a record, has no custom_id, or has the custom_id of an
            earlier line. The error lists the first MOST_PROBLEMS of these lines, each with its problem.
    """
    records = RecordSet(form.parse)
    problems: list[tuple[int, int, str]] = []
    wrong = 0
    for number, source in enumerate(sources):
        for line, row, offset in formats.rows(source):
            record = form.record(row, line, source)
            if isinstance(record, str):
                wrong += 1
                problems += [(number, line, record)] if wrong <= MOST_PROBLEMS else []
                continue
            records.add(record, None if form.id_field == LINE else offset)
            visit(record)
            if len(records) % REPORTED == 0:
                progress(len(records))
    repeated = _repeated(sources, form, records.equal_ids())
    wrong += len(repeated)
    found = [f"{sources[number]}:{line}: {problem}" for number, line, problem in sorted(problems + repeated)]
    if wrong > MOST_PROBLEMS:
        found[MOST_PROBLEMS:] = [f"{path}: … and {wrong - MOST_PROBLEMS} more"]
    if found:
        raise InputError(*found)
    if not records:
        raise InputError(f"{path}: the file has no records" if len(sources) == 1 else f"{path}: no file has records")
    return records


def _repeated(sources: Sequence[Path], form: RecordFormat, equal: set[int]) -> list[tuple[int, int, str]]:
    """Find each record that has the same custom_id as an earlier record.

    Args:
        equal: hashes of ids that occur more than once. If there are none, the files are not read again.

    Returns:
        For each found record: the index of its file in `sources`, the number of its line, and the problem as text.
    """
    found: list[tuple[int, int, str]] = []
    seen: dict[int, Record] = {}
    for number, source in enumerate(sources if equal else ()):
        for line, row, _ in formats.rows(source):
            record = form.record(row, line, source)
            if isinstance(record, str) or id_hash(record.custom_id) not in equal:
                continue
            first = seen.setdefault(id_hash(record.custom_id), record)
            if first is not record:
                where = f"line {first.line}" if first.source == source else first.place
                problem = f"custom_id {record.custom_id!r} is also in {where}"
                if first.custom_id != record.custom_id:  # the hashes are equal by chance
                    problem = f"custom_id {record.custom_id!r} cannot be told from {first.custom_id!r}; rename one"
                found.append((number, line, problem))
    return found
