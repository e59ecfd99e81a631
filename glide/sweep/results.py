"""Store the results of a sweep on disk. Results are appended when they arrive, and put in input order at the end."""

from __future__ import annotations

import json
import os
import secrets
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from glide.config import SUMMARY
from glide.errors import GlideError
from glide.sweep import lines, outputs, requests, retry_marks
from glide.sweep.done import DoneRecords
from glide.sweep.history import HistoryWriter
from glide.sweep.job_ids import JobIds, Place
from glide.sweep.lines import FIELDS, ResultIndex
from glide.sweep.out import (
    Lock,
    RunState,
    cell_name,
    history_file,
    internal_path,
    known_cells,
    make_folders,
    read_state,
    results_file,
    superseded_file,
    write_state,
)
from glide.sweep.outage import FULL
from glide.sweep.prepare import Sweep
from glide.sweep.record_set import RecordSet
from glide.sweep.requests import NO_RESULT, RequestIndex, requests_file
from glide.sweep.status import EMPTY_SUMMARY, is_correct, read_summary
from glide.sweep.work import Work
from glide.system import publish, publishing

MOST_ERROR_LINES = 1000  # maximum number of errors that are printed at the end of a sweep


class Results(Work[Place]):
    """The pending records of a sweep, and its results in `out/<cell>/results.jsonl`.

    If an old job sends a result with an old id (glide.sweep.job_ids), the result is ignored. The key of a record is its
    cell and its position in the input.

    Attributes:
        run: value of the attribute GlideRun of the sweep's jobs.
        job_ids: the ids that records have in jobs.
        abandoned_run: GlideRun of the sweep's old jobs, which the driver has to remove; None if there are no old jobs.
        first_cell, first_number: the index of a cell, and the position of a record. `pending` begins its search there.
            In all earlier cells, all records have a result. In this cell, all earlier records have a result.
        retry_marks: marks of the records that are run again after an error, by cell and position in the input.
        notes: lines for the user, for example about results that were moved or restored.
    """

    def __init__(self, sweep: Sweep, lock: Lock, indexes: dict[str, RequestIndex], state: RunState):
        batch = None if sweep.file.batch == "auto" else sweep.file.batch
        pack = None if sweep.file.pack == "auto" else sweep.file.pack * (batch or 1)
        super().__init__(sweep.template, sweep.file.glideins, pack, batch)
        self.sweep = sweep
        self.lock = lock
        self.indexes = indexes
        self.state = state
        self.retry_marks: dict[Place, str] = {}
        self.job_ids = JobIds(sweep.records, sweep.fingerprints, self.retry_marks)
        self.done: DoneRecords = DoneRecords(indexes, len(sweep.records))
        self.run = state.run
        self.abandoned_run: str | None = None
        self.cell_names = list(indexes)
        self.first_cell = self.first_number = 0
        self.history = HistoryWriter(history_file(sweep.out))
        self.notes: list[str] = []
        if not lock.has_locks:
            self.notes.append(f"{sweep.out} is on a file system without locks; make sure that no second sweep uses it")

    def close(self) -> None:
        """Release the lock of `out`."""
        self.lock.close()

    @property
    def total(self) -> int:
        return self.sweep.total

    def pending(self, in_flight: Collection[Place]) -> Iterator[dict[str, Any]]:
        records = self.sweep.records
        while self.first_cell < len(self.cell_names):
            cell = self.cell_names[self.first_cell]
            self.first_number = next(self.done.missing(cell, self.first_number), len(records))
            if self.first_number < len(records):
                break
            self.first_cell, self.first_number = self.first_cell + 1, 0
        start = self.first_number
        for cell in self.cell_names[self.first_cell :]:
            for number in self.done.missing(cell, start):
                if (cell, number) not in in_flight:
                    record = records[number]
                    job_id = self.job_ids.format(cell, number, record.custom_id)
                    yield {**self.sweep.request(cell, record), "custom_id": job_id}
            start = 0

    def key(self, record: str) -> Place | None:
        return self.job_ids.locate(record)

    def path(self, cell: str) -> Path:
        return results_file(self.sweep.out, cell)

    # ---- results of earlier drivers --------------------------------------------------------------

    def load(self, retry: bool, only: str | None) -> None:
        """Read the results in `out`. Count valid results, move other lines aside, and mark records that must run again.

        Args:
            retry: whether records with an error run again. Records marked by an earlier driver always run again.
            only: the type of error to which `retry` applies. None means that `retry` applies to all errors.
        """
        sweep, out = self.sweep, self.sweep.out
        make_folders(out, self.indexes)
        moved = sum(self._move_removed_cell(cell) for cell in known_cells(out) if cell not in self.indexes)
        found = {}
        for cell, index in self.indexes.items():
            lines.drop_torn_line(self.path(cell))
            found[cell] = lines.index_results(self.path(cell), index)
        self.retry_marks.clear()
        self.retry_marks |= {
            (cell, number): mark
            for cell, custom_id, mark in retry_marks.read(out)
            if cell in found and (number := self.sweep.records.number(custom_id)) is not None
            and found[cell].offsets[number] != NO_RESULT and number not in found[cell].duplicated
        }  # fmt: skip
        # A record with a mark must run again. A record with two result lines has already run again. So delete its mark
        # on disk now, and its older line later. If the older line were deleted first, a crash could leave the mark.
        # Then the next driver would run the record again without need.
        self._write_retry_marks()
        restored = 0
        for cell, index in self.indexes.items():
            if gone := lines.move_superseded(self.path(cell), index, found[cell], superseded_file(out, cell)):
                moved += gone
                found[cell] = lines.index_results(self.path(cell), index)
            if not index.up_to_date:
                requests.write(requests_file(out, cell), index)
            self.indexes[cell] = index.all_current()
            restored += self._count_found(cell, found[cell], secrets.token_hex(2) if retry else "", only)
        self._write_retry_marks()
        self.resumed = len(self.done)
        if retry and not self.retry_marks:
            self.notes.append(f"no record has an error{f' of type {only}' if only else ''}")
        aside = internal_path(out, "superseded")
        if moved:
            self.notes.append(f"moved {moved} results that no longer count for {sweep.source} to {aside}")
        if restored:
            self.notes.append(f"brought {restored} results back from {aside}: their requests are current again")
        self._update_state(self.state.finished and self.state.digest == sweep.digest and self.finished)

    def _count_found(self, cell: str, found: ResultIndex, mark: str, only: str | None) -> int:
        """Restore and count a cell's results. Return the number of restored results.

        If `mark` is not empty, the records with an error get this mark, and are run again. `only` is as in `load`.
        """
        path, index, restored = self.path(cell), self.indexes[cell], 0
        if NO_RESULT in found.offsets and (aside := superseded_file(self.sweep.out, cell)).exists():
            restored = lines.restore(path, index, found, aside)
            found = lines.index_results(path, index)
        simple = not (mark or self.retry_marks or found.duplicated or found.other_lines)
        if simple:
            self.done.fill(cell, found.tally.executions, found.tally.results)
            self.errors, self.tokens = self.errors + found.tally.errors, self.tokens + found.tally.tokens
            self.by_glidein = dict(found.tally.by_glidein + Counter(self.by_glidein))
        for number, result in () if simple else lines.numbered_results(path, index, found):
            error = result.get("error")
            if mark and error is not None and only in (None, error["type"]):
                self.retry_marks.setdefault((cell, number), mark)
            if (cell, number) not in self.retry_marks:
                self.count((cell, number), result)
        return restored

    def _move_removed_cell(self, cell: str) -> int:
        """Move the results of a cell that the sweep file no longer has. Return the number of moved lines."""
        out = self.sweep.out
        path, old_requests = results_file(out, cell), requests_file(out, cell)
        index = requests.compare(old_requests, RecordSet.of(()), array("Q"))
        moved = lines.move_superseded(path, index, lines.index_results(path, index), superseded_file(out, cell))
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder is not empty
            for folder in (path.parent, *path.parent.parents):
                if folder == out or out not in folder.parents:
                    break
                folder.rmdir()
        old_requests.unlink()
        return moved

    def _write_retry_marks(self) -> None:
        ids = self.sweep.records
        retry_marks.write(self.sweep.out, {(c, ids[n].custom_id): mark for (c, n), mark in self.retry_marks.items()})

    def _update_state(self, finished: bool) -> None:
        sweep = self.sweep
        state = RunState(sweep.file.name, str(sweep.source.absolute()), self.run, sweep.digest, finished)
        if state != read_state(sweep.out):
            write_state(sweep.out, state)
        self.state = state

    # ---- new results -----------------------------------------------------------------------------

    def deliver(self, results: Mapping[Place, dict[str, Any]]) -> None:
        """Append results to their files, and flush the files to disk. If an error occurs, no result is appended."""
        added: dict[str, list[bytes]] = {}
        for (cell, _), result in results.items():
            kept = {**dict.fromkeys(FIELDS), **result}  # the common fields come first, then the engine's fields
            line = lines.to_line({**kept, "custom_id": self.job_ids.custom_id(result["custom_id"])})
            added.setdefault(cell, []).append(line)
        sizes: dict[Path, int] = {}
        try:
            for cell, content in added.items():
                path = self.path(cell)
                with path.open("ab") as file:
                    sizes[path] = file.tell()
                    file.writelines(content)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            for path, size in sizes.items():
                with suppress(OSError):  # some files cannot be truncated, for example device files
                    os.truncate(path, size)
            raise self.write_error(error) from None

    def write_error(self, error: OSError) -> Exception:
        """If the disk is full, return `error`, so that the driver waits. For other errors, return a GlideError."""
        error.filename = error.filename or str(self.sweep.out)
        message = f"{error.filename}: {error.strerror}; fix this, then run: glide sweep resume {self.sweep.source}"
        return error if error.errno in FULL else GlideError(message)

    def note_wave(self, sizes: Sequence[int], reason: str) -> None:
        """Write the sizes of a wave's jobs and the reason for these sizes to `wave.json`, for `glide sweep status`."""
        wave = json.dumps({"sizes": list(sizes), "reason": reason}) + "\n"
        publish(internal_path(self.sweep.out, "wave.json"), wave, 0o666, durable=False)

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Put each cell's results in input order, score them, and write summary.json.

        Raises:
            GlideError: results have disappeared from a file, or a file cannot be written.
        """
        self.retry_marks.clear()  # every record has its final result, so no record needs to run again
        self._write_retry_marks()  # first delete the marks on disk: after a crash, a mark makes a record run again
        try:
            cells = {cell: self._order_and_score(cell) for cell in self.sweep.cells}
            complete_summary = {**summary, "prompts": cells}
            publish(self.sweep.out / SUMMARY, json.dumps(complete_summary) + "\n", 0o666)
            self._update_state(True)
        except OSError as error:
            raise self.write_error(error) from None
        return complete_summary

    def _order_and_score(self, cell: str) -> dict[str, Any]:
        path, records = self.path(cell), self.sweep.records
        found = lines.index_results(path, self.indexes[cell])
        if missing := found.offsets.count(NO_RESULT):
            raise GlideError(f"{path}: {missing} results have disappeared; run: glide sweep resume {self.sweep.source}")
        correct, errors = 0, lines.error_count(path, self.indexes[cell], found)
        expect = self.sweep.file.expect
        if expect or not found.in_order:
            with nullcontext() if found.in_order else publishing(path, 0o666) as file:
                for number, line in enumerate(lines.ordered_lines(path, found)):
                    if expect:
                        correct += is_correct(json.loads(line), self.sweep, records[number])
                    if file is not None:
                        file.write(line)
        form = self.sweep.file.out.format
        if form != "jsonl":
            found = lines.index_results(path, self.indexes[cell])
            answered = outputs.answered_in_order(records, lines.ordered_lines(path, found))
            outputs.write(path.parent, form, answered, self.sweep.template.model)
        accuracy = correct / len(records) if expect else None
        return {"records": len(records), "errors": errors, "accuracy": accuracy}

    def finished_summary(self) -> dict[str, Any]:
        """Return the summary of a finished sweep. If summary.json is missing or outdated, first write the summary."""
        known = read_summary(self.sweep.out)
        if known is not None and self.state.finished and known["prompts"].keys() == self.indexes.keys():
            return known
        return self.finish(known or {"name": self.sweep.file.name, **EMPTY_SUMMARY, "tokens": self.tokens})

    def error_lines(self) -> list[str]:
        """Return one line for each record that has an error, but at most MOST_ERROR_LINES."""
        found: list[str] = []
        for cell, index in self.indexes.items() if self.errors else ():
            indexed = lines.index_results(self.path(cell), index)
            for _, result in lines.numbered_results(self.path(cell), index, indexed):
                if (error := result["error"]) and len(found) < MOST_ERROR_LINES:
                    place = cell_name(self.sweep.model, cell)
                    found.append(f"{place}{place and ': '}{result['custom_id']}: {error['type']}: {error['message']}")
        more = [f"… and {self.errors - len(found)} more; they are in results.jsonl"] if self.errors > len(found) else []
        return found + more
