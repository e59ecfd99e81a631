"""Manage the folder of a sweep (`out`). Only one driver at a time may use the folder. Old results can be moved aside.

`out` contains:

- `summary.json`
- one folder for each cell; if the sweep has neither prompts nor variants, `out` itself is the folder of the only cell
- the folder `.glide`

If the sweep file has `models`, `out` contains a folder for each model. Each of these folders has the content above.
Then `out` itself contains `summary.json` for all models, and a folder `.glide` with `lock`, `check` and `driver`.

The folder of a cell contains:

- `results.jsonl`
- `output.jsonl` and `errors.jsonl`, if the sweep file asks for the format of OpenAI's Batch API
- `results.parquet`, if the sweep file asks for Parquet

The folder `.glide` contains:

- `run.json`: the sweep that the results belong to.
- `requests`: fingerprints of the requests that the results belong to.
- `superseded`: results whose requests have changed.
- `retry.jsonl`: records that are run again because their result is an error.
- `parts`: input and output files of jobs.
- `check`: what the check of a large input has found.
- `driver`: output of a driver that runs as a job.
- `wave.json`: sizes of the jobs that were submitted last.
- `history.jsonl`: the driver's observations.
- `lock`: the file that the running driver locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO

from glide.config import REPORT, SUMMARY
from glide.errors import InputError
from glide.protocol.json_lines import read_lines
from glide.system import publish, sync_folder

FLAT = ":"  # stands for the slash between the parts of a cell's name; no part contains this character
# If the sweep file asks for another format, glide also writes these files. They are in the folder of results.jsonl.
OUTPUT, ERRORS, PARQUET = "output.jsonl", "errors.jsonl", "results.parquet"
LOCK_SECONDS = 1.0  # maximum wait for the lock, in seconds; `glide sweep status` may hold the lock for a moment
INTERNAL = ".glide"
LOCK = "lock"
STATE = "run.json"


@dataclass(frozen=True)
class RunState:
    """The sweep that the results in a folder belong to. `run.json` holds these attributes.

    Attributes:
        name: name of the sweep.
        source: absolute path of the sweep file.
        run: value of the attribute GlideRun in the ads of the sweep's jobs.
        digest: value of `Sweep.digest` when a driver was last started.
        finished: whether every record has a result, the results are in order, and summary.json is about these results.
    """

    name: str
    source: str
    run: str
    digest: str
    finished: bool


def internal_path(out: Path, name: str) -> Path:
    """Return the path of the file or folder with this name in `out/.glide`."""
    return out / INTERNAL / name


def cell_name(*values: str) -> str:
    """Return the name of a combination of values of a sweep's axes. An empty value stands for a missing axis."""
    return "/".join(filter(None, values))


def flat(cell: str) -> str:
    """Return the name of a cell without slashes, for the names of files and the ids of records in jobs."""
    return cell.replace("/", FLAT)


def cell_of(flat_name: str) -> str:
    """Return the cell for a name that `flat` has returned."""
    return flat_name.replace(FLAT, "/")


def results_file(out: Path, cell: str) -> Path:
    return out / cell / "results.jsonl"


def history_file(out: Path) -> Path:
    return internal_path(out, "history.jsonl")


def read_state(out: Path) -> RunState | None:
    """Return the content of `run.json`, or None if the file is missing or invalid."""
    content = next(read_lines(internal_path(out, STATE)), {})
    try:
        state = RunState(**content)
    except TypeError:
        return None
    texts = (state.name, state.source, state.run, state.digest)
    return state if all(isinstance(text, str) for text in texts) and isinstance(state.finished, bool) else None


def write_state(out: Path, state: RunState) -> None:
    publish(internal_path(out, STATE), json.dumps(asdict(state)) + "\n", 0o666)


def make_folders(out: Path, cells: Collection[str]) -> None:
    """Create the folders and the empty results files of a sweep, and flush them to disk.

    Raises:
        InputError: a folder or file cannot be created or written.
    """
    internal = [internal_path(out, name) for name in ("parts", "requests", "superseded")]
    folders = [*internal, *(out / cell for cell in cells)]
    folders += [parent for cell in cells for parent in (out / cell).parents if out in parent.parents]
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for cell in cells:
            if not results_file(out, cell).exists():
                results_file(out, cell).touch()
        for folder in {out.parent, out, out / INTERNAL, *folders}:
            sync_folder(folder)
    except OSError as error:
        raise unwritable(out, error) from None


def unwritable(out: Path, error: OSError) -> InputError:
    """Return the InputError for an `out` that cannot be written."""
    return InputError(f"{error.filename or out}: {error.strerror}; `out` must name a folder that you can write")


class Lock:
    """The lock of `out`. Only the driver that holds the lock may write to `out`.

    The kernel releases the lock when the driver's process ends, even if the process is killed.

    Attributes:
        has_locks: whether the file system supports locks. A Lustre file system may have no locks.

    Raises:
        InputError: another driver holds the lock, or the folder cannot be written.
    """

    def __init__(self, out: Path):
        path = internal_path(out, LOCK)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+", encoding="utf-8")  # open for writing, because exclusive locks on NFS need this
        except OSError as error:
            raise unwritable(out, error) from None
        deadline = time.monotonic() + LOCK_SECONDS
        self.has_locks = True
        while not self._try_lock():
            if time.monotonic() > deadline:
                who = _holder(self.file)
                self.file.close()
                raise InputError(f"{out} is in use by {who}; wait until this process ends, or name another `out`")
            time.sleep(0.05)
        self.file.seek(0)
        self.file.truncate()
        self.file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        self.file.flush()

    def _try_lock(self) -> bool:
        """Try to get the lock, and return True. If another process holds the lock, return False.

        If the file system does not support locks, also return True.
        """
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            self.has_locks = False
        return True

    def close(self) -> None:
        self.file.close()


def holder(out: Path) -> str | None:
    """Return the process and the host of the driver that holds the lock of `out`, or None if the lock is free."""
    try:
        with internal_path(out, LOCK).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(file)
    except OSError:
        pass
    return None


def _holder(file: IO[str]) -> str:
    """Read a process id and a host from the lock file. Return both as text, or "another driver" if this fails."""
    file.seek(0)
    try:
        content = json.loads(file.read())
        return f"process {int(content['pid'])} on {content['host']!s:.80}"
    except (ValueError, TypeError, KeyError):
        return "another driver"


def move_aside(out: Path, cells: Collection[str], model: str = "") -> Path | None:
    """Move a sweep's results and the sweep's files in `.glide` to a new folder beside `out`.

    All other files in `out` stay there. For example, `out` may contain the folder of a different sweep.

    Args:
        cells: names of the sweep's cells. The function moves the results of these cells, and of all cells
            that have a file in `.glide/requests`.
        model: name of the model, if `out` is the folder of one model within a sweep's folder. In this case, the results
            go to NEW/MODEL. NEW is a folder beside the sweep's folder, and MODEL is the name of the model.

    Returns:
        The new folder. If `out` has no results, nothing is moved, `run.json` is deleted, and the return value is None.

    Raises:
        InputError: the files cannot be moved.
    """
    found = sorted({*known_cells(out), *(cell for cell in cells if results_file(out, cell).exists())})
    to_move = [results_file(out, cell) for cell in found] + [out / SUMMARY, out / REPORT]
    to_move += [out / cell / name for cell in found for name in (OUTPUT, ERRORS, PARQUET)]
    to_move += [path for path in (out / INTERNAL).iterdir() if path.name not in (LOCK, STATE)]
    # Move run.json last. This file names the sweep that wrote the other files. If the move is interrupted, the
    # remaining files still need run.json.
    to_move = [path for path in [*to_move, internal_path(out, STATE)] if path.exists()]
    if not any(has_lines(path) for path in (*(results_file(out, p) for p in found), *superseded_files(out))):
        internal_path(out, STATE).unlink(missing_ok=True)
        return None
    aside = out
    try:
        aside = _new_folder_beside(out, model)
        for path in to_move:
            target = aside / path.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        for folder in {path.parent for path in to_move} | {out}:
            sync_folder(folder)
            sync_folder(aside / folder.relative_to(out))
        for folder in {out.parent, aside.parent, aside.parent.parent if model else aside.parent}:
            sync_folder(folder)
    except OSError as error:
        problem = f"{error.filename or aside}: {error.strerror}"
        raise InputError(f"{out}: its results cannot be moved aside: {problem}; name another `out`") from None
    return aside


def _new_folder_beside(out: Path, model: str) -> Path:
    whole = out.parent if model else out
    for number in count(1):
        aside = whole.with_name(f"{whole.name}.{number}") / model
        with suppress(FileExistsError):
            aside.mkdir(parents=bool(model))
            return aside
    raise AssertionError  # never reached, but type checkers need this line


def has_lines(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def superseded_file(out: Path, cell: str) -> Path:
    return internal_path(out, "superseded") / f"{flat(cell)}.jsonl"


def superseded_files(out: Path) -> list[Path]:
    return sorted(internal_path(out, "superseded").glob("*.jsonl"))


def known_cells(out: Path) -> list[str]:
    """Return the cells that have results in `out`, including cells that the sweep file no longer has."""
    return sorted(cell_of(path.name.removesuffix(".bin")) for path in internal_path(out, "requests").glob("*.bin"))
