"""A small sweep, the results that a driver stores for it, and what is then on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from glide.config import SweepFile
from glide.sweep import formats, reading
from glide.sweep.job_ids import Place
from glide.sweep.opening import opened
from glide.sweep.prepare import Sweep
from glide.sweep.records import Record, RecordFormat
from glide.sweep.results import Results
from glide.sweep.status import EMPTY_SUMMARY
from glide.template import Template

THREE = (("a", "a"), ("b", "b"), ("c/d", "c/d"))
LABELS = {"a": "yes", "b": "no", "c/d": "yes"}
EVERY = [f"{prompt}/{record}" for prompt in ("plain", "kind") for record in ("a", "b", "c/d")]


def read_records(path: Path, id_field: str | None = None, form: str | None = None) -> list[Record]:
    """The records of a file as the check sees them; read from disk again, they must be the same."""
    seen: list[Record] = []
    sources = formats.files(path)
    again = reading.read(path, sources, RecordFormat(id_field, form, len(sources) > 1), seen.append)
    assert [(each.custom_id, each.fields, each.request) for each in again] == [
        (each.custom_id, each.fields, each.request) for each in seen
    ]
    assert [again.number(each.custom_id) for each in seen] == list(range(len(seen)))
    return seen


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make(tmp_path)


def make(tmp_path: Path, records: Iterable[tuple[str, str]] = THREE, model: str = "m", **changes) -> Sweep:
    """Records, each with its text, under two prompts."""
    content = {
        "name": "s",
        "model": {"name": model, "engine": "noop"},
        "records": "r.jsonl",
        "prompts": {"plain": "{text}", "kind": "Please: {text}"},
        "expect": "label",
        "out": str(tmp_path / "out"),
    } | changes
    rows = [
        Record(name, {"custom_id": name, "text": text, "label": LABELS.get(name, "")}, line)
        for line, (name, text) in enumerate(records, 1)
    ]
    return Sweep.of(tmp_path / "s.yaml", SweepFile.model_validate(content), rows, Template(model, "noop"))


@pytest.fixture
def begin() -> Iterator[Callable[..., Results]]:
    """As glide.sweep.opening.opened, by a driver after whose end the next one comes."""
    with ExitStack() as last:

        def begin(sweep: Sweep, run: str = "run", **how) -> Results:
            last.close()
            (results,) = last.enter_context(opened([sweep], run, **how))
            return results

        yield begin


def answer(results: Results, name: str, text: str | None = "yes", **fields) -> dict:
    """What a lane's client writes."""
    prompt, _, custom_id = name.partition("/")
    job_id = results.job_ids.format(prompt, results.sweep.records.number(custom_id), custom_id)
    return {
        "custom_id": job_id, "text": text, "tokens": 2,
        "error": None, "glidein": "here-1.0", "attempts": 1, "seconds": 0.5,
    } | fields  # fmt: skip


def store(results: Results, *answers: dict) -> None:
    """What a driver does with the answers in a job's output."""
    results.store((results.key(each["custom_id"]), each) for each in answers)


def keep(results: Results, *names: str, **fields) -> None:
    store(results, *(answer(results, name, **fields) for name in names))


def finished(results: Results, **fields) -> Results:
    keep(results, *unsent(results), **fields)
    results.finish({**EMPTY_SUMMARY, "name": "s"})
    return results


def plain(results: Results, place: Place | None) -> str:
    """The cell and the custom_id of a record."""
    cell, number = place or ("", 0)
    return f"{cell}/{results.sweep.records[number].custom_id}"


def unsent(results: Results) -> list[str]:
    return [plain(results, results.key(request["custom_id"])) for request in results.pending(())]


def have(results: Results) -> set[str]:
    return {plain(results, place) for place in results.done}


def lines_of(results: Results, prompt: str) -> list[dict]:
    """By newline alone: a text may hold Unicode's other line ends."""
    return [json.loads(line) for line in results.path(prompt).read_text().split("\n") if line]


def texts_of(results: Results, prompt: str) -> dict[str, str]:
    return {line["custom_id"]: line["text"] for line in lines_of(results, prompt)}


def superseded(sweep: Sweep, prompt: str) -> list[dict]:
    path = sweep.out / ".glide" / "superseded" / f"{prompt}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }
