"""The results of a sweep on disk: appended as they come, each id once, in input order when finished."""

from __future__ import annotations

import json
import os
import secrets
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from glide.config import SUMMARY
from glide.errors import GlideError, InputError
from glide.invoke.carriers import read_lines
from glide.sweep import lines, requests
from glide.sweep.history import History
from glide.sweep.lines import FIELDS, Found
from glide.sweep.out import (
    Lock,
    RunState,
    history_file,
    known_prompts,
    make_folders,
    move_aside,
    own,
    read_state,
    results_file,
    superseded_file,
    unwritable,
    write_state,
)
from glide.sweep.outage import FULL
from glide.sweep.prepare import Sweep
from glide.sweep.requests import NONE, Asked, requests_file
from glide.sweep.standing import AT_REST, asked_by, check_whose, is_right, read_summary
from glide.sweep.work import Work
from glide.system import publish, publishing, sync_folder


class Results(Work):
    """A sweep's work: `out/<prompt>/results.jsonl`, and what says whose they are and what they answer.

    A record's id on the wire is "prompt/custom_id#fingerprint", so that what was asked before the sweep file has
    changed is no answer to what is asked now. A record whose error is run again has a mark behind that.

    Attributes:
        run: the GlideRun of the jobs that bring results.
        abandoned: that of the jobs whose results nobody waits for any more.
        notes: what the user is to know of what was found.
    """

    def __init__(self, sweep: Sweep, lock: Lock, asked: dict[str, Asked], state: RunState):
        batch, pack = sweep.file.batch, sweep.file.pack
        fixed = None if pack == "auto" else pack * (1 if batch == "auto" else batch)
        super().__init__(sweep.template, sweep.file.glideins, fixed)
        self.sweep = sweep
        self.lock = lock
        self.asked = asked
        self.state = state
        self.run = state.run
        self.abandoned: str | None = None
        self.settled = 0  # so many records at the beginning have a result: no wave looks at them again
        self.history = History(history_file(sweep.out))
        self.retried: dict[tuple[str, int], str] = {}  # marks of the records whose error is run again
        self.notes: list[str] = []
        if not lock.locks:
            self.notes.append(f"{sweep.out} is on a file system without locks: let no second sweep use it")

    def close(self) -> None:
        """Let others work in `out`."""
        self.lock.close()

    @property
    def total(self) -> int:
        return self.sweep.total

    def unsent(self, on_their_way: Collection[str]) -> Iterator[dict[str, Any]]:
        prompts, records = list(self.sweep.file.prompts), self.sweep.records
        for position in range(self.settled, len(prompts) * len(records)):
            prompt, number = prompts[position // len(records)], position % len(records)
            wire_id = self.wire_id(prompt, number)
            if wire_id in self.have:
                self.settled += position == self.settled
            elif wire_id not in on_their_way:
                yield {**self.sweep.request(prompt, records[number]), "custom_id": wire_id}

    def wants(self, records: Collection[str]) -> bool:
        return all(self._record(wire_id) is not None for wire_id in records)

    def wire_id(self, prompt: str, number: int) -> str:
        custom_id, fingerprint = self.sweep.records[number].custom_id, self.asked[prompt].prints[number]
        return f"{prompt}/{custom_id}#{fingerprint:016x}{self.retried.get((prompt, number), '')}"

    def _record(self, wire_id: str) -> tuple[str, int] | None:
        """The prompt and the record's number; None when this is no request that is made now."""
        prompt, _, rest = wire_id.partition("/")
        number = self.asked[prompt].ids.get(rest.rpartition("#")[0]) if prompt in self.asked else None
        return None if number is None or self.wire_id(prompt, number) != wire_id else (prompt, number)

    def path(self, prompt: str) -> Path:
        return results_file(self.sweep.out, prompt)

    # ---- what is there when a driver begins ------------------------------------------------------

    def load(self, retry: bool, only: str | None) -> None:
        """Sort what lies in `out`: what counts, what is run again, and what answers nothing any more.

        Args:
            retry: whether records with an error are run again, beside those that are being so.
            only: those with an error of this type alone.
        """
        sweep, out = self.sweep, self.sweep.out
        make_folders(out, self.asked)
        moved = sum(self._put_away(prompt) for prompt in known_prompts(out) if prompt not in self.asked)
        found = {}
        for prompt, asked in self.asked.items():
            lines.drop_torn_line(self.path(prompt))
            found[prompt] = lines.find(self.path(prompt), asked)
        self.retried = {
            (prompt, number): mark
            for prompt, custom_id, mark in _read_retried(out)
            if prompt in found and (number := self.asked[prompt].ids.get(custom_id)) is not None
            and found[prompt].places[number] != NONE and number not in found[prompt].twice
        }  # fmt: skip
        self._write_retried()  # before the older one of two results goes: then nothing else says that both are there
        restored = 0
        for prompt, asked in self.asked.items():
            if gone := lines.tidy(self.path(prompt), asked, found[prompt], superseded_file(out, prompt)):
                moved += gone
                found[prompt] = lines.find(self.path(prompt), asked)
            if not asked.written:
                requests.write(requests_file(out, prompt), asked)
            self.asked[prompt] = replace(asked, same=bytearray(b"\1") * len(asked.prints), before={}, written=True)
            restored += self._count_found(prompt, found[prompt], secrets.token_hex(2) if retry else "", only)
        self._write_retried()
        self.found = len(self.have)
        if retry and not self.retried:
            self.notes.append(f"no record has an error{f' of type {only}' if only else ''}")
        if moved:
            self.notes.append(
                f"moved {moved} results that answer nothing in {sweep.source} to {own(out, 'superseded')}"
            )
        if restored:
            self.notes.append(f"brought {restored} results back that had been moved to {own(out, 'superseded')}")
        finished = self.state.finished and self.state.digest == sweep.digest and self.finished
        self._note_state(finished)

    def _count_found(self, prompt: str, found: Found, mark: str, only: str | None) -> int:
        """Count a prompt's results, and mark those to be run again; return how many were brought back."""
        path, asked = self.path(prompt), self.asked[prompt]
        restored = 0
        if NONE in found.places and (aside := superseded_file(self.sweep.out, prompt)).exists():
            restored = lines.restore(path, asked, found, aside)
            found = lines.find(path, asked)
        for number, result in lines.answers(path, asked, found):
            error = result.get("error")
            if mark and error is not None and only in (None, error["type"]):
                self.retried.setdefault((prompt, number), mark)
            if (prompt, number) not in self.retried:
                self.count(self.wire_id(prompt, number), result)
        return restored

    def _put_away(self, prompt: str) -> int:
        """Move the results of a prompt that the sweep file no longer has; return their number."""
        out = self.sweep.out
        path, asked_file = results_file(out, prompt), requests_file(out, prompt)
        asked = requests.compare(asked_file, {}, array("Q"))
        moved = lines.tidy(path, asked, lines.find(path, asked), superseded_file(out, prompt))
        path.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            path.parent.rmdir()
        asked_file.unlink()
        return moved

    def _write_retried(self) -> None:
        path = own(self.sweep.out, "retry.jsonl")
        if not self.retried:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
            return
        with publishing(path, 0o666) as file:
            for (prompt, number), mark in self.retried.items():
                custom_id = self.sweep.records[number].custom_id
                file.write(lines.to_line({"prompt": prompt, "custom_id": custom_id, "mark": mark}))

    def _note_state(self, finished: bool) -> None:
        sweep = self.sweep
        state = RunState(sweep.file.name, str(sweep.source.absolute()), self.run, sweep.digest, finished)
        if state != read_state(sweep.out):
            write_state(sweep.out, state)
        self.state = state

    # ---- what comes ------------------------------------------------------------------------------

    def keep(self, results: Iterable[dict[str, Any]]) -> None:
        super().keep(filter(None, map(self._checked, results)))

    def store(self, results: Collection[dict[str, Any]]) -> None:
        """Append results and flush them to disk: all of them, or, where that fails, none."""
        added: dict[Path, list[bytes]] = {}
        for result in results:
            prompt, number = self._record(result["custom_id"]) or ("", 0)
            kept = {**dict.fromkeys(FIELDS), **result}  # these first, then the engine's own
            line = lines.to_line({**kept, "custom_id": self.sweep.records[number].custom_id})
            added.setdefault(self.path(prompt), []).append(line)
        sizes: dict[Path, int] = {}
        try:
            for path, content in added.items():
                with path.open("ab") as file:
                    sizes[path] = file.tell()
                    file.writelines(content)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            for path, size in sizes.items():
                with suppress(OSError):  # a device
                    os.truncate(path, size)
            raise self._stuck(error) from None

    def _stuck(self, error: OSError) -> Exception:
        """What is raised for this error: itself where the disk is full, which the driver waits out."""
        error.filename = error.filename or str(self.sweep.out)
        mend = f"{error.filename}: {error.strerror}; mend that, then: glide sweep resume {self.sweep.source}"
        return error if error.errno in FULL else GlideError(mend)

    def _checked(self, result: dict[str, Any]) -> dict[str, Any] | None:
        """A result as it may be kept; None when it is of no request that is made now."""
        if self._record(result["custom_id"]) is None:
            return None
        if lines.is_sound(result):
            return result
        error = {"type": "BadResult", "message": "what its node sent is no result; is its glide another version?"}
        glidein = result.get("glidein")
        return {"custom_id": result["custom_id"], "error": error, "glidein": glidein if _is_text(glidein) else None}

    def note_wave(self, sizes: Sequence[int], reason: str) -> None:
        """Leave word, for `glide sweep status`, of how many records the jobs carry and why."""
        wave = json.dumps({"sizes": list(sizes), "reason": reason}) + "\n"
        publish(own(self.sweep.out, "wave.json"), wave, 0o666, durable=False)

    # ---- the end ---------------------------------------------------------------------------------

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Put each prompt's results in input order, score them, and write summary.json.

        Raises:
            GlideError: results are gone that were there, or cannot be written.
        """
        self.retried.clear()
        self._write_retried()  # first: of two results in a file, nothing says any more that the first one counts
        try:
            prompts = {prompt: self._order_and_score(prompt) for prompt in self.sweep.file.prompts}
            whole = {**summary, "prompts": prompts}
            publish(self.sweep.out / SUMMARY, json.dumps(whole) + "\n", 0o666)
            self._note_state(True)
        except OSError as error:
            raise self._stuck(error) from None
        return whole

    def _order_and_score(self, prompt: str) -> dict[str, Any]:
        path, records = self.path(prompt), self.sweep.records
        found = lines.find(path, self.asked[prompt])
        if missing := found.places.count(NONE):
            raise GlideError(
                f"{path}: {missing} results that were there are gone; run: glide sweep resume {self.sweep.source}"
            )
        right = errors = 0
        with nullcontext() if found.in_order else publishing(path, 0o666) as file:
            for record, (line, result) in zip(records, lines.ordered(path, found), strict=True):
                errors += result.get("error") is not None
                right += is_right(result, self.sweep, record)
                if file is not None:
                    file.write(line)
        accuracy = right / len(records) if self.sweep.file.expect else None
        return {"records": len(records), "errors": errors, "accuracy": accuracy}

    def at_rest(self) -> dict[str, Any]:
        """The summary of a sweep that misses nothing: the one that is there, or what can be said without a driver."""
        known = read_summary(self.sweep)
        if known is not None and self.state.finished and known["prompts"].keys() == self.asked.keys():
            return known
        return self.finish(known or {"name": self.sweep.file.name, **AT_REST, "tokens": self.tokens})

    def error_lines(self) -> list[str]:
        """The records that have an error, and which."""
        if not self.errors:
            return []
        return [
            f"{prompt}: {result['custom_id']}: {result['error']['type']}: {result['error']['message']}"
            for prompt, asked in self.asked.items()
            for _, result in lines.answers(self.path(prompt), asked, lines.find(self.path(prompt), asked))
            if result.get("error") is not None
        ]


def begin(
    sweep: Sweep, new_run: str, *, resume: bool = False, again: bool = False, retry: bool = False,
    only: str | None = None,
) -> Results:  # fmt: skip
    """Open a sweep's results: those that are there, or fresh ones. Nobody else may, until they are closed.

    Args:
        new_run: the GlideRun of a sweep that begins.
        resume: whether there must be results.
        again: move results that are there aside, and begin afresh.
        retry, only: as Results.load.

    Raises:
        InputError: `out` holds another sweep's results, is in use or cannot be written, or there is nothing to resume.
    """
    out = sweep.out
    if resume and not own(out, "run.json").exists() and not known_prompts(out):
        raise InputError(f"{sweep.source}: no results in {out}, nothing to go on with; start with `glide sweep run`")
    lock = Lock(out)
    try:
        abandoned = aside = None
        if again:
            before = read_state(out)
            aside = move_aside(out, sweep.file.prompts)
            abandoned = before.run if before and not before.finished else None
        state = read_state(out)
        asked = {prompt: asked_by(sweep, prompt) for prompt in sweep.file.prompts}
        check_whose(sweep, state, asked)
        state = state or RunState(sweep.file.name, str(sweep.source.absolute()), new_run, sweep.digest, False)
        results = Results(sweep, lock, asked, state)
        results.abandoned = abandoned
        if aside:
            results.notes.append(f"the results that were in {out} are in {aside} now")
        results.load(retry, only)
        return results
    except OSError as error:
        lock.close()
        raise unwritable(out, error) from None
    except BaseException:
        lock.close()
        raise


def _read_retried(out: Path) -> Iterator[tuple[str, str, str]]:
    for line in read_lines(own(out, "retry.jsonl")):
        content = (line.get("prompt"), line.get("custom_id"), line.get("mark"))
        if all(map(_is_text, content)):
            yield content  # type: ignore[misc]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
