"""Read the status of a sweep from its folder, without changing the folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glide.config import SUMMARY
from glide.errors import InputError
from glide.protocol.json_lines import read_lines
from glide.sweep import lines, requests
from glide.sweep.out import RunState, has_lines, holder, read_state, results_file
from glide.sweep.prepare import Sweep
from glide.sweep.records import Record
from glide.sweep.requests import RequestIndex, requests_file

# Only a driver computes these entries of summary.json. If all results already exist, no driver runs. Then all entries
# except `tokens` get the values below.
EMPTY_SUMMARY = {
    "makespan_s": 0.0, "warm_makespan_s": 0.0, "jobs": 0, "evictions": 0, "recomputed": 0, "lost_in_flight": 0,
    "resumed": 0, "tokens": 0, "glideins": [],
}  # fmt: skip


@dataclass(frozen=True)
class SweepStatus:
    """The status of a sweep.

    Attributes:
        state: new, running, interrupted, finished or changed. A sweep is changed if it had finished, and its file now
            has new requests.
        driver: process and host of the running driver; None if no driver runs.
        done: for each cell, the number of results, including results with an error.
        errors: for each cell, the number of results with an error.
    """

    state: str
    driver: str | None
    done: dict[str, int]
    errors: dict[str, int]


def sweep_status(sweep: Sweep) -> SweepStatus:
    """Return the status of a sweep, read from its folder.

    Raises:
        InputError: the folder holds another sweep's results.
    """
    state, driver = read_state(sweep.out), holder(sweep.out)
    indexes = {cell: request_index(sweep, cell) for cell in sweep.cells}
    if state is not None:
        check_same_sweep(sweep, state, indexes)
    done, errors = {}, {}
    for cell in sweep.cells:
        done[cell] = errors[cell] = 0
        for _, result in current_results(sweep, cell, indexes[cell]):
            done[cell] += 1
            errors[cell] += result.get("error") is not None
    finished = state is not None and state.finished
    if driver:
        state_name = "running"
    elif finished:
        state_name = "finished" if sum(done.values()) == sweep.total else "changed"
    else:
        state_name = "interrupted" if state else "new"
    return SweepStatus(state_name, driver, done, errors)


def current_results(sweep: Sweep, cell: str, index: RequestIndex | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """For one cell, yield the position of each record that has a current result, and this result.

    A result is current if its request has not changed. If the folder has no fingerprints of the cell's requests, each
    result with the id of a record is current. A driver may write results at the same time.
    """
    path, index = results_file(sweep.out, cell), index or request_index(sweep, cell)
    if not requests_file(sweep.out, cell).exists():
        index = replace(index, unchanged=bytearray(b"\1") * len(index.fingerprints))
    yield from lines.numbered_results(path, index, lines.index_results(path, index))


def request_index(sweep: Sweep, cell: str) -> RequestIndex:
    """For one cell, compare the current requests with the requests of the stored results."""
    return requests.compare(requests_file(sweep.out, cell), sweep.records, sweep.fingerprints[cell])


def is_correct(result: Mapping[str, Any], sweep: Sweep, record: Record) -> bool:
    """Return whether a result's text equals the field that `expect` names. White space at the ends is ignored."""
    expected, text = record.fields.get(sweep.file.expect or ""), result.get("text")
    return text is not None and text.strip() == str(expected).strip()


def check_same_sweep(sweep: Sweep, state: RunState | None, indexes: Mapping[str, RequestIndex]) -> None:
    """Raise InputError if `out` holds results of another sweep.

    The sweep counts as the same in each of these cases:

    - The name of the sweep and the path of the sweep file are the same.
    - The name or the path is the same, and at least one request is unchanged.
    - `run.json` is missing or invalid, and at least one request is unchanged.

    Args:
        state: content of `run.json`; None if the file is missing or invalid.
        indexes: the requests of each cell, by cell.
    """
    same_name = state is not None and state.name == sweep.file.name
    same_source = state is not None and state.source == str(sweep.source.absolute())
    known = any(any(each.unchanged) for each in indexes.values())
    if (same_name and same_source) or (known and (same_name or same_source or state is None)):
        return
    if state is None and not any(has_lines(results_file(sweep.out, cell)) for cell in indexes):
        return
    whose = f"the results of another sweep, {state.name} ({state.source})" if state else "results of an unknown sweep"
    raise InputError(
        f"{sweep.source}: {sweep.out} holds {whose}; name another `out`, or move them aside: glide sweep run --again"
    )


def read_summary(out: Path) -> dict[str, Any] | None:
    """Return the content of summary.json in a folder, or None if the file is missing or invalid."""
    known = next(read_lines(out / SUMMARY), {})  # `Results.finish` writes the file as one line
    if any(type(known.get(name)) is not type(value) for name, value in EMPTY_SUMMARY.items()):
        return None
    if not _are_cell_summaries(known.get("prompts")):
        return None
    sound = all(type(glidein) is dict and type(glidein.get("records")) is int for glidein in known["glideins"])
    return known if sound else None


def _are_cell_summaries(cells: Any) -> bool:
    """Return whether `cells` is a dict in which each value is the summary of a cell."""
    return isinstance(cells, dict) and all(
        isinstance(each, dict) and isinstance(each.get("records"), int) and isinstance(each.get("errors"), int)
        and isinstance(each.get("accuracy"), (int, float, type(None))) and "accuracy" in each
        for each in cells.values()
    )  # fmt: skip
