"""A sweep's folder: whose results it holds, which driver works in it, and how old results are moved aside.

`out` holds a folder with `results.jsonl` for each prompt, `summary.json`, and `.glide`, where the rest lies:
`run.json` (whose results these are), `requests` (what they answer), `superseded` (results that answer nothing of what
the sweep file says now), `retry.jsonl` (the errors that are being run again), `history.jsonl`, and `lock`.
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

from glide.config import SUMMARY
from glide.errors import InputError
from glide.invoke.carriers import read_lines
from glide.system import publish, sync_folder

LOCK_SECONDS = 1.0  # `glide sweep status` holds the lock for a moment
OWN = ".glide"
LOCK = "lock"
STATE = "run.json"


@dataclass(frozen=True)
class RunState:
    """Whose results a folder holds.

    Attributes:
        name: the sweep's.
        source: the sweep file's absolute path.
        run: GlideRun of the jobs that bring results.
        digest: the sweep's, as it was when a driver last began.
        finished: every record has a result, they are in order, and summary.json is of them.
    """

    name: str
    source: str
    run: str
    digest: str
    finished: bool


def own(out: Path, name: str) -> Path:
    """The path of a file or folder that is glide's own."""
    return out / OWN / name


def results_file(out: Path, prompt: str) -> Path:
    return out / prompt / "results.jsonl"


def history_file(out: Path) -> Path:
    return own(out, "history.jsonl")


def read_state(out: Path) -> RunState | None:
    """Whose results are here; None when nobody says so."""
    content = next(read_lines(own(out, STATE)), {})
    try:
        state = RunState(**content)
    except TypeError:
        return None
    texts = (state.name, state.source, state.run, state.digest)
    return state if all(isinstance(text, str) for text in texts) and isinstance(state.finished, bool) else None


def write_state(out: Path, state: RunState) -> None:
    publish(own(out, STATE), json.dumps(asdict(state)) + "\n", 0o666)


def make_folders(out: Path, prompts: Collection[str]) -> None:
    """Make the folders of a sweep, so that they outlive a crash of this machine.

    Raises:
        InputError: they cannot be made, or written.
    """
    folders = [own(out, "parts"), own(out, "requests"), own(out, "superseded"), *(out / prompt for prompt in prompts)]
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for prompt in prompts:
            if not results_file(out, prompt).exists():
                results_file(out, prompt).touch()
        for folder in {out.parent, out, out / OWN, *folders}:
            sync_folder(folder)
    except OSError as error:
        raise unwritable(out, error) from None


def unwritable(out: Path, error: OSError) -> InputError:
    return InputError(f"{error.filename or out}: {error.strerror}; `out` must name a folder that you can write")


class Lock:
    """The right to write in `out`; the kernel takes it back when its holder ends, however it ends.

    Raises:
        InputError: another driver has it, or the folder cannot be written.
    """

    def __init__(self, out: Path):
        path = own(out, LOCK)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+", encoding="utf-8")  # NFS locks exclusively only what is open for writing
        except OSError as error:
            raise unwritable(out, error) from None
        deadline = time.monotonic() + LOCK_SECONDS
        self.locks = True  # whether the file system has locks: Lustre may lack them
        while not self._taken():
            if time.monotonic() > deadline:
                who = _holder(self.file)
                self.file.close()
                raise InputError(f"{out} is in use by {who}; wait until it ends, or name another `out`")
            time.sleep(0.05)
        self.file.seek(0)
        self.file.truncate()
        self.file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        self.file.flush()

    def _taken(self) -> bool:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            self.locks = False
        return True

    def close(self) -> None:
        self.file.close()


def holder(out: Path) -> str | None:
    """The driver that works in `out`; None when none does."""
    try:
        with own(out, LOCK).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(file)
    except OSError:
        pass
    return None


def _holder(file: IO[str]) -> str:
    """The driver whose words these are."""
    file.seek(0)
    try:
        content = json.loads(file.read())
        return f"process {int(content['pid'])} on {content['host']!s:.80}"
    except (ValueError, TypeError, KeyError):
        return "another driver"


def move_aside(out: Path, prompts: Collection[str]) -> Path | None:
    """Move a sweep's results, and what belongs to them, out of the way; return where to, None if nothing was computed.

    The new folder lies beside `out`. Other files in `out` stay where they are, another sweep's folder among them.

    Args:
        prompts: whose results are moved, beside those that the folder knows itself.

    Raises:
        InputError: they cannot be moved.
    """
    found = sorted({*known_prompts(out), *(prompt for prompt in prompts if results_file(out, prompt).exists())})
    mine = [results_file(out, prompt) for prompt in found] + [out / SUMMARY, out / "report"]
    mine += [path for path in (out / OWN).iterdir() if path.name not in (LOCK, STATE)]
    mine = [path for path in [*mine, own(out, STATE)] if path.exists()]  # the last one says whose they are
    if not any(has_lines(path) for path in (*(results_file(out, p) for p in found), *superseded_files(out))):
        own(out, STATE).unlink(missing_ok=True)
        return None
    aside = out
    try:
        aside = _new_folder_beside(out)
        for path in mine:
            target = aside / path.relative_to(out)
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        for folder in {path.parent for path in mine} | {out, out.parent}:
            sync_folder(folder)
            if folder != out.parent:
                sync_folder(aside / folder.relative_to(out))
    except OSError as error:
        problem = f"{error.filename or aside}: {error.strerror}"
        raise InputError(f"{out}: its results cannot be moved aside: {problem}; name another `out`") from None
    return aside


def _new_folder_beside(out: Path) -> Path:
    for number in count(1):
        aside = out.with_name(f"{out.name}.{number}")
        with suppress(FileExistsError):
            aside.mkdir()
            return aside
    raise AssertionError  # numbers do not end


def has_lines(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def superseded_file(out: Path, prompt: str) -> Path:
    return own(out, "superseded") / f"{prompt}.jsonl"


def superseded_files(out: Path) -> list[Path]:
    return sorted(own(out, "superseded").glob("*.jsonl"))


def known_prompts(out: Path) -> list[str]:
    """The prompts whose results are here, those included that the sweep file no longer has."""
    return sorted(path.name.removesuffix(".jsonl") for path in own(out, "requests").glob("*.jsonl"))
