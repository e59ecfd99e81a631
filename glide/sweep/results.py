"""The results of a sweep on disk: appended as they come, each id once, in input order when finished."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glide.config import SUMMARY
from glide.errors import InputError
from glide.invoke.carriers import read_results
from glide.sweep.history import History
from glide.sweep.prepare import Sweep
from glide.sweep.records import Record
from glide.sweep.work import Work
from glide.system import publish

FIELDS = ("custom_id", "text", "tokens", "error", "glidein", "attempts", "seconds")


class Results(Work):
    """A sweep's work: out/<prompt>/results.jsonl, and the little that says whose they are (out/.glide/run.json).

    A record's id on the wire is "prompt/custom_id".

    Attributes:
        run: the GlideRun of the jobs that bring them.
    """

    def __init__(self, sweep: Sweep, run: str):
        batch, pack = sweep.file.batch, sweep.file.pack
        fixed = None if pack == "auto" else pack * (1 if batch == "auto" else batch)
        super().__init__(sweep.template, sweep.file.glideins, fixed)
        self.sweep = sweep
        self.run = run
        self.settled = 0  # so many records at the beginning have a result: no wave looks at them again
        self.history = History(history_file(sweep))
        known = {record.custom_id for record in sweep.records}
        for prompt in sweep.file.prompts:
            path = self.path(prompt)
            path.parent.mkdir(parents=True, exist_ok=True)
            for result in read_results(path):
                if result["custom_id"] in known:
                    self.count(f"{prompt}/{result['custom_id']}", result)
            _drop_torn_line(path)
        self.found = len(self.have)
        _write(self.state_file, {"run": run, "digest": sweep.digest, "finished": False})

    @property
    def total(self) -> int:
        return self.sweep.total

    def unsent(self, on_their_way: Collection[str]) -> Iterator[dict[str, Any]]:
        prompts, records = list(self.sweep.file.prompts), self.sweep.records
        for number in range(self.settled, len(prompts) * len(records)):
            prompt, record = prompts[number // len(records)], records[number % len(records)]
            wire_id = f"{prompt}/{record.custom_id}"
            if wire_id in self.have:
                self.settled += number == self.settled
            elif wire_id not in on_their_way:
                yield self.sweep.request(prompt, record)

    @property
    def state_file(self) -> Path:
        return state_file(self.sweep)

    def path(self, prompt: str) -> Path:
        return self.sweep.out / prompt / "results.jsonl"

    def keep(self, results: Iterable[dict[str, Any]]) -> None:
        """Make results durable; a copy of one that is there is left out, and another computation of it counted."""
        lines: dict[str, list[str]] = {}
        for result in self.news(results):
            prompt, _, custom_id = result["custom_id"].partition("/")
            kept = {**dict.fromkeys(FIELDS), **result, "custom_id": custom_id}  # these first, then the engine's own
            lines.setdefault(prompt, []).append(json.dumps(kept, ensure_ascii=False) + "\n")
        for prompt, added in lines.items():
            with self.path(prompt).open("a", encoding="utf-8") as file:
                file.writelines(added)
                file.flush()
                os.fsync(file.fileno())

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Put each prompt's results in input order, score them, and write summary.json."""
        summary["prompts"] = {prompt: self._order_and_score(prompt) for prompt in self.sweep.file.prompts}
        _write(self.sweep.out / SUMMARY, summary)
        _write(self.state_file, {**json.loads(self.state_file.read_text("utf-8")), "finished": True})
        return summary

    def _order_and_score(self, prompt: str) -> dict[str, Any]:
        lines = {result["custom_id"]: result for result in read_results(self.path(prompt))}
        ordered = self.path(prompt).with_suffix(".ordered")
        right = errors = 0
        with ordered.open("w", encoding="utf-8") as file:
            for record in self.sweep.records:
                result = lines[record.custom_id]
                errors += result["error"] is not None
                right += is_right(result, self.sweep, record)
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        ordered.replace(self.path(prompt))
        accuracy = right / len(self.sweep.records) if self.sweep.file.expect else None
        return {"records": len(self.sweep.records), "errors": errors, "accuracy": accuracy}

    def note_wave(self, sizes: Sequence[int], reason: str) -> None:
        """Leave word, for `glide sweep status`, of how many records the jobs carry and why."""
        _write(self.sweep.out / ".glide" / "wave.json", {"sizes": list(sizes), "reason": reason})

    def error_lines(self) -> list[str]:
        """The records that have an error, and which."""
        return [
            f"{prompt}: {result['custom_id']}: {result['error']['type']}: {result['error']['message']}"
            for prompt in self.sweep.file.prompts
            for result in read_results(self.path(prompt))
            if result["error"] is not None
        ]


def state_file(sweep: Sweep) -> Path:
    return sweep.out / ".glide" / "run.json"


def history_file(sweep: Sweep) -> Path:
    return sweep.out / ".glide" / "history.jsonl"


def is_right(result: Mapping[str, Any], sweep: Sweep, record: Record) -> bool:
    """Whether a record's result is what the sweep expects of it."""
    expected = record.fields.get(sweep.file.expect or "")
    return result["text"] is not None and result["text"].strip() == str(expected).strip()


def begin(sweep: Sweep, new_run: str, resume: bool) -> Results:
    """Open the results: those of an unfinished run of the same sweep, else fresh ones.

    Raises:
        InputError: `out` holds an unfinished run of another sweep, or there is nothing to resume.
    """
    unfinished = _unfinished(sweep)
    if unfinished:
        run, digest = unfinished
        if digest != sweep.digest:
            raise InputError(
                f"{sweep.source}: {sweep.out} holds an unfinished run of another sweep"
                f" (model, prompts or records differ); name another `out`, or delete that folder"
            )
        return Results(sweep, run)
    if resume:
        raise InputError(f"{sweep.source}: nothing to resume in {sweep.out}; start with `glide sweep run`")
    for prompt in sweep.file.prompts:
        (sweep.out / prompt / "results.jsonl").unlink(missing_ok=True)
    for path in (history_file(sweep), sweep.out / SUMMARY):  # an earlier run's would be taken for this one's
        path.unlink(missing_ok=True)
    return Results(sweep, new_run)


def _unfinished(sweep: Sweep) -> tuple[str, str] | None:
    """The unfinished run in `out` and the digest of its sweep; None when there is none, or no sense in its file."""
    try:
        state = json.loads(state_file(sweep).read_text("utf-8"))
        return None if state["finished"] else (state["run"], state["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _drop_torn_line(path: Path) -> None:
    """A driver killed while it wrote may have left half a line; the job with the whole one is still queued."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, json.dumps(content) + "\n", 0o666)
