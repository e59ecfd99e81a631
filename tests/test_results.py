"""Results on disk: each id once, whatever happened to the driver in between."""

from __future__ import annotations

import errno
import fcntl
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from glide.config import SweepFile
from glide.errors import GlideError, InputError
from glide.sweep import results as module
from glide.sweep.lines import BLOCK, FIELDS, drop_torn_line
from glide.sweep.outage import is_temporary
from glide.sweep.prepare import Sweep
from glide.sweep.records import Record
from glide.sweep.results import Results
from glide.sweep.status import EMPTY_SUMMARY, current_results, sweep_status
from glide.template import Template

THREE = (("a", "a"), ("b", "b"), ("c/d", "c/d"))
LABELS = {"a": "yes", "b": "no", "c/d": "yes"}
EVERY = [f"{prompt}/{record}" for prompt in ("plain", "kind") for record in ("a", "b", "c/d")]


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
    return Sweep(tmp_path / "s.yaml", SweepFile.model_validate(content), rows, Template(model, "noop"))


@pytest.fixture
def begin() -> Iterator[Callable[..., Results]]:
    """As glide.sweep.results.open_results, by a driver after whose end the next one comes."""
    last: list[Results] = []

    def begin(sweep: Sweep, run: str = "run", **how) -> Results:
        for results in last:
            results.close()
        last[:] = [module.open_results(sweep, run, **how)]
        return last[0]

    yield begin
    for results in last:
        results.close()


def answer(results: Results, name: str, text: str | None = "yes", **fields) -> dict:
    """What a lane's client writes."""
    prompt, _, custom_id = name.partition("/")
    return {
        "custom_id": results.wire_id(prompt, results.sweep.numbers[custom_id]), "text": text, "tokens": 2,
        "error": None, "glidein": "here-1.0", "attempts": 1, "seconds": 0.5,
    } | fields  # fmt: skip


def keep(results: Results, *names: str, **fields) -> None:
    results.store([answer(results, name, **fields) for name in names])


def finished(results: Results, **fields) -> Results:
    keep(results, *unsent(results), **fields)
    results.finish({**EMPTY_SUMMARY, "name": "s"})
    return results


def plain(wire_id: str) -> str:
    """An id on the wire without its fingerprint."""
    return wire_id.rpartition("#")[0]


def unsent(results: Results) -> list[str]:
    return [plain(request["custom_id"]) for request in results.pending(())]


def have(results: Results) -> set[str]:
    return set(map(plain, results.done))


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


# ---- what comes ----------------------------------------------------------------------------------


def test_result_is_stored_under_prompt_and_custom_id(sweep, begin):
    results = begin(sweep)
    results.store([answer(results, "plain/a"), answer(results, "kind/c/d", "ö\u2028\n")])
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["a"]
    (line,) = lines_of(results, "kind")
    assert (line["custom_id"], line["text"]) == ("c/d", "ö\u2028\n")
    assert list(line) == list(FIELDS)


def test_pending_excludes_records_with_result_or_job(sweep, begin):
    results = begin(sweep)

    def left(*on_their_way: str) -> list[str]:
        ids = {answer(results, name)["custom_id"] for name in on_their_way}
        return [plain(request["custom_id"]) for request in results.pending(ids)]

    assert left() == EVERY
    keep(results, "plain/a", "plain/c/d")
    assert left("plain/b", "kind/b") == ["kind/a", "kind/c/d"] and results.done_prefix == 1
    assert left() == ["plain/b", "kind/a", "kind/b", "kind/c/d"]  # their jobs were lost
    keep(results, "plain/b", "kind/c/d")
    assert left() == ["kind/a", "kind/b"] and results.done_prefix == 3


def test_extra_result_fields_of_engine_are_kept(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", scores={"yes": 0.75, "no": 0.25})
    (line,) = lines_of(results, "plain")
    assert list(line) == [*FIELDS, "scores"] and line["scores"] == {"yes": 0.75, "no": 0.25}


def test_recomputed_result_is_counted_but_not_stored(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", text="first")
    keep(results, "plain/a", text="second", attempts=2)
    keep(results, "plain/b")
    keep(results, "plain/b", text="3rd", seconds=0.7)
    keep(results, "plain/a", text="third", glidein="there-2.0")
    assert results.recomputed == 3
    assert texts_of(results, "plain") == {"a": "first", "b": "yes"} and len(lines_of(results, "plain")) == 2
    assert have(results) == {"plain/a", "plain/b"}


def test_copy_of_result_does_not_count_as_recomputation(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a")
    keep(results, "plain/a", "plain/a")
    assert results.recomputed == 0
    results = begin(sweep, "again", resume=True)
    keep(results, "plain/a")
    assert results.recomputed == 0 and len(lines_of(results, "plain")) == 1
    keep(results, "plain/a", attempts=2)  # a computation is still told from a copy
    assert results.recomputed == 1


def test_same_record_under_two_prompts_gives_two_results(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", "kind/a")
    assert (results.recomputed, len(results.done)) == (0, 2)


def test_results_count_errors_tokens_and_glideins(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", attempts=2)
    keep(results, "plain/b", text=None, error={"type": "PromptTooLong", "message": "600 tokens"}, tokens=0)
    keep(results, "kind/a", glidein="there-2.0")
    assert (results.errors, results.tokens) == (1, 4)
    assert results.by_glidein == {"here-1.0": 2, "there-2.0": 1}
    assert results.error_lines() == ["plain: b: PromptTooLong: 600 tokens"]


@pytest.mark.parametrize("wire_id", ["", "x", "plain/a", "../x", "plain/../../x#0", "plain/zz#0", "nope/a#0", "/", "#"])
def test_result_with_unknown_id_is_not_stored(sweep, begin, wire_id):
    results = begin(sweep)
    results.store([answer(results, "plain/a") | {"custom_id": wire_id}])
    assert not results.done and not lines_of(results, "plain")
    assert {path.name for path in sweep.out.parent.iterdir()} == {"out"}


def test_result_text_with_lone_surrogate_is_stored(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", text="\ud83d")
    assert texts_of(results, "plain") == {"a": "\ud83d"}


def test_full_disk_stores_all_results_or_none(sweep, begin, monkeypatch):
    results = begin(sweep)
    path = Results.path
    with monkeypatch.context() as patched:
        patched.setattr(
            Results, "path", lambda self, prompt: Path("/dev/full") if prompt == "kind" else path(self, prompt)
        )
        with pytest.raises(OSError, match="No space left on device") as full:
            keep(results, "plain/a", "kind/a")
    assert is_temporary(full.value), "the driver waits"
    assert results.path("plain").read_bytes() == b"" and not results.done and not results.tokens
    keep(results, "plain/a", "kind/a")
    assert have(results) == {"plain/a", "kind/a"} and results.recomputed == 0
    assert [results.path(prompt).read_text().count("\n") for prompt in ("plain", "kind")] == [1, 1]


# ---- the next driver -----------------------------------------------------------------------------


def test_next_driver_finds_results_of_previous_driver(sweep, begin):
    results = begin(sweep, "first")
    keep(results, "plain/a")
    keep(results, "kind/b", attempts=3)
    results = begin(sweep, "second", resume=True)
    assert have(results) == {"plain/a", "kind/b"}
    assert (results.resumed, results.tokens, results.notes) == (2, 4, [])
    assert results.run == "first"


def test_incomplete_last_result_is_dropped_and_recomputed(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", "plain/b")
    whole = results.path("plain").read_bytes()
    for cut in (1, 2, 40, len(whole.splitlines()[1])):
        results.path("plain").write_bytes(whole[:-cut])
        again = begin(sweep, resume=True)
        assert have(again) == {"plain/a"}, cut
        keep(again, "plain/b")
        assert again.recomputed == 0
        assert [line["custom_id"] for line in lines_of(again, "plain")] == ["a", "b"]


def test_incomplete_line_longer_than_block_is_dropped(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", "plain/b", text="x" * 3 * BLOCK)
    whole = results.path("plain").read_bytes()
    first = whole.index(b"\n") + 1
    for end in (first, first + 1, first + BLOCK, len(whole) - 1):
        results.path("plain").write_bytes(whole[:end])
        drop_torn_line(results.path("plain"))
        assert results.path("plain").read_bytes() == whole[:first]
    results.path("plain").write_bytes(whole[: first - 1])
    drop_torn_line(results.path("plain"))
    assert results.path("plain").read_bytes() == b""


def test_result_line_ending_within_character_is_dropped(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", text="🦉")
    content = results.path("plain").read_bytes()
    results.path("plain").write_bytes(content[: content.index("🦉".encode()) + 2])
    assert not begin(sweep, resume=True).done
    assert results.path("plain").read_bytes() == b""


NONSENSE = (
    b'{"custom_id": "../x"}', b'{"custom_id": 7}', b"[]", b"null", b"{", b"\xff\xfe", b"", b"[" * 100_000,
    b'{"custom_id": "b", "tokens": "x"}', b'{"custom_id": "b", "error": []}', b'{"custom_id": "b", "text": 5}',
    b'{"custom_id": "b", "seconds": 1e999}', b'{"custom_id": "gone", "text": "t"}',
)  # fmt: skip


def test_invalid_result_lines_are_ignored_and_moved_aside(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", "plain/c/d")
    path = results.path("plain")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, *(line + b"\n" for line in NONSENSE), second, first.replace(b"yes", b"dup")]))
    assert sweep_status(sweep).done == {"plain": 2, "kind": 0}
    results = begin(sweep, resume=True)
    assert have(results) == {"plain/a", "plain/c/d"}
    assert texts_of(results, "plain") == {"c/d": "yes", "a": "dup"}  # the last one counts
    assert len(superseded(sweep, "plain")) == len(NONSENSE) + 1
    assert finished(results).finished
    assert {record.custom_id for record, _ in current_results(sweep, "plain")} == {"a", "b", "c/d"}


def test_disappeared_results_raise_error_that_suggests_resume(sweep, begin):
    results = begin(sweep)
    keep(results, *EVERY)
    results.path("plain").write_bytes(b"")
    with pytest.raises(GlideError, match="3 results have disappeared; run: glide sweep resume"):
        results.finish({})
    assert unsent(begin(sweep, resume=True)) == EVERY[:3]


def test_resume_and_retry_in_new_folder_are_refused(sweep, begin):
    for retry in (False, True):
        with pytest.raises(InputError, match="nothing to resume"):
            begin(sweep, resume=True, retry=retry)
    assert not sweep.out.exists()


@pytest.mark.parametrize("state", ["", "{}", "[]", "null", '{"finished": false}', '{"fini', '{"name": 3}'])
def test_results_are_matched_to_requests_despite_invalid_state(sweep, begin, tmp_path, state):
    keep(begin(sweep, "first"), "plain/a")
    (sweep.out / ".glide" / "run.json").write_text(state)
    assert have(begin(sweep, "second")) == {"plain/a"}
    (sweep.out / ".glide" / "run.json").write_text(state)
    with pytest.raises(InputError, match="results of an unknown sweep"):
        begin(make(tmp_path, model="other"))


def test_impossible_output_folder_is_reported_with_its_setting(tmp_path, begin):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*: Not a directory; `out` must name a folder"):
        begin(make(tmp_path, out=str(tmp_path / "file" / "out")))


# ---- finished, and what a changed file makes of it -----------------------------------------------


def test_finished_sweep_is_left_unchanged(sweep, begin):
    finished(begin(sweep, "first"))
    before = snapshot(sweep.out)
    for resume in (False, True):
        results = begin(sweep, "second", resume=resume)
        assert results.finished and results.finished_summary()["prompts"]["plain"]["records"] == 3
        assert not results.notes
    assert snapshot(sweep.out) == before
    assert sweep_status(sweep).state == "running"  # this process has it
    results.close()
    assert sweep_status(sweep).state == "finished" and sweep_status(sweep).done == {"plain": 3, "kind": 3}


def test_invalid_summary_is_written_again(sweep, begin):
    finished(begin(sweep))
    for content in ("", "[]", '{"prompts": 3}', '{"makespan_s": "x"}'):
        (sweep.out / "summary.json").write_text(content)
        assert begin(sweep).finished_summary()["prompts"]["kind"] == {"records": 3, "errors": 0, "accuracy": 2 / 3}
        assert json.loads((sweep.out / "summary.json").read_text())["tokens"] == 12


def test_again_moves_only_its_own_results_aside(sweep, begin):
    finished(begin(sweep, "first"))
    (sweep.out / "notes.txt").write_text("mine")
    (sweep.out / "kind" / ".glide").mkdir()  # of a sweep whose `out` is that folder
    old = snapshot(sweep.out / "plain")
    for number in (1, 2):
        results = begin(sweep, "second", again=True)
        aside = sweep.out.with_name(f"out.{number}")
        assert (results.run, results.resumed, unsent(results)) == ("second", 0, EVERY)
        assert str(aside) in results.notes[0] and snapshot(aside / "plain") == old
        assert json.loads((aside / "summary.json").read_text())["name"] == "s"
        finished(results)
        old = snapshot(sweep.out / "plain")
    assert (sweep.out / "notes.txt").read_text() == "mine" and (sweep.out / "kind" / ".glide").is_dir()
    assert begin(sweep).abandoned_run is None
    results = begin(make(sweep.source.parent, prompts={"plain": "{text}", "new": "{text}"}))
    assert begin(results.sweep, "third", again=True).abandoned_run == "second"


@pytest.mark.parametrize("changes", [
    {"name": "other", "model": "other"}, {"name": "other"}, {"source": "t.yaml", "model": "other"},
    {"name": "other", "source": "t.yaml"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("end", [False, True])
def test_results_of_another_sweep_are_left_unchanged(sweep, begin, tmp_path, changes, end):
    results = begin(sweep)
    keep(results, "plain/a")
    if end:
        finished(results)
    before = snapshot(sweep.out)
    changes = dict(changes)
    source = changes.pop("source", None)
    other = make(tmp_path, **changes)
    other = replace(other, source=tmp_path / source) if source else other
    if changes == {"name": "other"} and not source:  # renamed in its file
        assert have(begin(other)) == have(results)
        return
    for how in ({}, {"resume": True}, {"resume": True, "retry": True}):
        with pytest.raises(InputError, match=r"results of another sweep, s \(.*s.yaml\); name another `out`, or move"):
            begin(other, "other", **how)
    with pytest.raises(InputError, match="results of another sweep"):
        sweep_status(other)
    assert snapshot(sweep.out) == before
    assert not begin(other, "other", again=True).done
    assert snapshot(tmp_path / "out.1") == before


def test_again_without_old_results_creates_no_extra_folder(sweep, begin, tmp_path):
    begin(sweep, "first")
    other = make(tmp_path, name="other", model="other")
    assert begin(replace(other, source=tmp_path / "t.yaml"), "second", again=True).run == "second"
    assert not sweep.out.with_name("out.1").exists()


def test_results_of_unknown_sweep_are_refused_unchanged(sweep, begin):
    (sweep.out / "plain").mkdir(parents=True)
    (sweep.out / "plain" / "results.jsonl").write_text('{"custom_id": "a", "text": "mine"}\n')
    with pytest.raises(InputError, match="results of an unknown sweep"):
        begin(sweep)
    assert not begin(sweep, again=True).done
    assert "mine" in (sweep.out.with_name("out.1") / "plain" / "results.jsonl").read_text()


def test_moved_sweep_file_keeps_its_results(sweep, begin, tmp_path):
    keep(begin(sweep), "plain/a")
    assert have(begin(replace(sweep, source=tmp_path / "elsewhere" / "s.yaml"))) == {"plain/a"}


@pytest.mark.parametrize("end", [False, True])
def test_extended_sweep_computes_only_missing_results(sweep, begin, tmp_path, end):
    results = begin(sweep, "first")
    keep(results, "plain/a", "kind/b", text="old")
    if end:
        finished(results, text="old")
    more = {"records": [*THREE[:1], ("new", "new"), *THREE[1:]], "prompts": {**sweep.file.prompts, "third": "3 {text}"}}
    grown = make(tmp_path, **more)
    results.close()
    assert sweep_status(grown).state == ("changed" if end else "interrupted")
    results = begin(grown, "second")
    assert (results.run, results.resumed) == ("first", 6 if end else 2) and not results.notes
    assert sweep_status(grown).state == "running"
    third = ["third/a", "third/new", "third/b", "third/c/d"]
    if end:
        assert unsent(results) == ["plain/new", "kind/new", *third]
        results.close()
        assert sweep_status(grown).state == "interrupted"
    results = finished(begin(grown), text="new")
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["a", "new", "b", "c/d"]
    assert texts_of(results, "plain")["a"] == "old" and texts_of(results, "plain")["new"] == "new"
    assert json.loads((grown.out / "summary.json").read_text())["prompts"].keys() == {"plain", "kind", "third"}


@pytest.mark.parametrize("changes, missing", [
    ({"records": [("a", "A"), *THREE[1:]]}, ["plain/a", "kind/a"]),
    ({"prompts": {"plain": "{text}!", "kind": "Please: {text}"}}, EVERY[:3]),
    ({"generate": {"max_new_tokens": 9}}, EVERY),
    ({"model": "other"}, EVERY),
    ({"timeout": 5.0, "glideins": 7, "expect": None}, []),
], ids=["text", "prompt", "generate", "model", "nothing of the request"])  # fmt: skip
@pytest.mark.parametrize("end", [False, True])
def test_undone_change_restores_result_of_request(sweep, begin, tmp_path, changes, missing, end):
    results = begin(sweep)
    keep(results, *EVERY, text="old")
    late = [answer(results, name, "late") for name in EVERY]
    if end:
        results.finish({**EMPTY_SUMMARY})
    changed = make(tmp_path, **changes)
    results = begin(changed)
    assert unsent(results) == missing and results.resumed == 6 - len(missing)
    assert results.are_current([each["custom_id"] for each in late if plain(each["custom_id"]) not in missing])
    assert results.are_current([each["custom_id"] for each in late]) == (not missing)
    results.store(late)  # of a job that asked what was asked before
    assert unsent(results) == missing
    assert sum(len(superseded(sweep, prompt)) for prompt in sweep.file.prompts) == len(missing)
    assert bool(results.notes) == bool(missing)
    results = finished(results, text="new")
    for name in EVERY:
        prompt, _, custom_id = name.partition("/")
        assert texts_of(results, prompt)[custom_id] == ("new" if name in missing else "old")
    back = begin(sweep)
    assert not unsent(back) and set(texts_of(back, "plain").values()) == {"old"}
    assert len(begin(changed).done) == 6  # and so does the other


def test_results_of_removed_records_can_be_restored(sweep, begin, tmp_path):
    finished(begin(sweep), text="old")
    less = make(tmp_path, records=THREE[1:], prompts={"plain": "{text}"})
    results = begin(less)
    assert results.finished and "moved 4 results" in results.notes[0]
    assert results.finished_summary()["prompts"] == {"plain": {"records": 2, "errors": 0, "accuracy": 0.0}}
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["b", "c/d"]
    assert not (sweep.out / "kind").exists()
    assert [line["result"]["text"] for line in superseded(sweep, "kind")] == ["old"] * 3
    results = begin(sweep)
    assert results.finished and "brought 4 results back" in results.notes[0]
    assert results.finished_summary()["prompts"].keys() == {"plain", "kind"}
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["a", "b", "c/d"]


def test_results_follow_changed_record_order(sweep, begin, tmp_path):
    finished(begin(sweep))
    turned = make(tmp_path, records=THREE[::-1])
    results = begin(turned)
    assert results.finished and not results.notes
    results.finished_summary()
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["c/d", "b", "a"]


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("fails", [1, 2, 3, 4, 5, 6, 7])
def test_crash_while_moving_old_results_loses_none(sweep, begin, tmp_path, monkeypatch, fails, end):
    """Whatever is published last before the crash: afterwards all is as without it."""
    keep(begin(sweep), *EVERY, text="old")
    if end:
        finished(begin(sweep))
    changed = make(tmp_path, records=[("a", "A"), *THREE[1:]], prompts={"plain": "{text}", "third": "3 {text}"})
    real, left = module.requests.publishing, fails

    def crash(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("crash")
        return real(*arguments, **options)

    for place in ("requests", "lines", "system"):
        monkeypatch.setattr(f"glide.{'system' if place == 'system' else f'sweep.{place}'}.publishing", crash)
    with pytest.raises(RuntimeError) if fails <= 5 else nullcontext():
        begin(changed)
    monkeypatch.undo()
    results = begin(changed)
    assert unsent(results) == ["plain/a", "third/a", "third/b", "third/c/d"]
    assert texts_of(results, "plain") == {"b": "old", "c/d": "old"}
    results = begin(sweep)
    assert not unsent(results)
    assert texts_of(results, "kind") == texts_of(results, "plain") == {"a": "old", "b": "old", "c/d": "old"}


# ---- errors that are run again -------------------------------------------------------------------


def with_errors(results: Results) -> Results:
    keep(results, "plain/a", text=None, error={"type": "Slow", "message": "1"})
    keep(results, "kind/b", text=None, error={"type": "Bad", "message": "2"})
    return finished(results, text="old")


@pytest.mark.parametrize("only, again", [(None, {"plain/a", "kind/b"}), ("Slow", {"plain/a"}), ("Else", set())])
def test_retry_recomputes_only_records_with_errors(sweep, begin, only, again):
    with_errors(begin(sweep))
    results = begin(sweep, resume=True, retry=True, only=only)
    assert set(unsent(results)) == again and results.resumed == 6 - len(again)
    assert [len(lines_of(results, prompt)) for prompt in ("plain", "kind")] == [3, 3]
    assert (results.notes == []) == bool(again)
    results = finished(results, text="new")
    for name, error in (("plain/a", "Slow"), ("kind/b", "Bad")):
        prompt, _, custom_id = name.partition("/")
        (line,) = [line for line in lines_of(results, prompt) if line["custom_id"] == custom_id]
        assert (line["text"], line["error"]) == ("new", None) if name in again else line["error"]["type"] == error
    assert sum(each["errors"] for each in results.finished_summary()["prompts"].values()) == 2 - len(again)
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["a", "b", "c/d"]


def test_interrupted_retry_loses_nothing_and_can_resume(sweep, begin):
    before = with_errors(begin(sweep))
    old = answer(before, "plain/a", text=None, error={"type": "Slow", "message": "1"})
    results = begin(sweep, resume=True, retry=True)
    results.store([old])  # a copy, of a job that was not removed
    assert set(unsent(results)) == {"plain/a", "kind/b"} and not results.are_current([old["custom_id"]])
    results = begin(sweep)
    assert set(unsent(results)) == {"plain/a", "kind/b"}
    assert sweep_status(sweep).errors == {"plain": 1, "kind": 1}
    keep(results, "plain/a", text=None, error={"type": "Slow", "message": "1"})  # the very same again
    assert len(lines_of(results, "plain")) == 4
    results = begin(sweep, resume=True)
    assert unsent(results) == ["kind/b"] and results.errors == 1
    assert {line["custom_id"]: line["error"] for line in lines_of(results, "kind")}["b"]["type"] == "Bad"
    results.close()
    assert sweep_status(sweep).state == "interrupted"
    finished(begin(sweep, resume=True), text="new")
    assert [line["text"] for line in lines_of(results, "kind")] == ["old", "new", "old"]
    assert begin(sweep).finished and begin(sweep).errors == 1
    assert set(unsent(begin(sweep, resume=True, retry=True))) == {"plain/a"}


def test_request_that_changed_during_retry_is_recomputed(sweep, begin, tmp_path):
    with_errors(begin(sweep))
    begin(sweep, resume=True, retry=True)
    changed = make(tmp_path, records=[("a", "A"), *THREE[1:]])
    results = begin(changed)
    assert set(unsent(results)) == {"plain/a", "kind/a", "kind/b"}
    finished(results, text="new")
    assert not unsent(begin(changed)) and begin(changed).errors == 0


# ---- the end -------------------------------------------------------------------------------------


def test_finished_results_are_in_input_order(sweep, begin):
    results = begin(sweep)
    keep(results, *reversed(EVERY))
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["c/d", "b", "a"]
    results.finish({})
    for prompt in ("plain", "kind"):
        assert [line["custom_id"] for line in lines_of(results, prompt)] == ["a", "b", "c/d"]


def test_accuracy_ignores_whitespace_around_result_text(sweep, begin):
    results = begin(sweep)
    for name, text in (("plain/a", " yes\n"), ("plain/b", "nope"), ("plain/c/d", "yes"), ("kind/a", "no")):
        keep(results, name, text=text)
    keep(results, "kind/b", text="no")
    keep(results, "kind/c/d", text=None, error={"type": "EngineDied", "message": ""})
    summary = results.finish({"name": "s"})
    assert summary["prompts"] == {
        "plain": {"records": 3, "errors": 0, "accuracy": pytest.approx(2 / 3)},
        "kind": {"records": 3, "errors": 1, "accuracy": pytest.approx(1 / 3)},
    }
    assert json.loads((sweep.out / "summary.json").read_text()) == summary


def test_sweep_without_expected_field_has_no_accuracy(tmp_path, begin):
    results = begin(make(tmp_path, expect=None))
    keep(results, *EVERY)
    assert {part["accuracy"] for part in results.finish({})["prompts"].values()} == {None}


@pytest.mark.parametrize("name", ["summary.new", "results.jsonl", "a.b-c_d", "report"])
def test_unusual_prompt_names_can_be_finished(tmp_path, begin, name):
    results = begin(make(tmp_path, prompts={name: "{text}"}))
    assert json.loads(json.dumps(finished(results).finished_summary()["prompts"][name]["records"])) == 3


# ---- one driver ----------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from glide.sweep.out import Lock
lock = Lock(Path(sys.argv[1]))
print("mine", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other_driver(sweep) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder."""
    words = [sys.executable, "-c", HOLD, str(sweep.out)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_second_driver_is_refused_while_first_runs(sweep, begin, other_driver):
    holder = f"process {other_driver.pid} on {socket.gethostname()}"
    for how in ({}, {"again": True}):
        with pytest.raises(InputError, match=f"{sweep.out} is in use by {holder}; wait until it ends"):
            begin(sweep, **how)
    assert (sweep_status(sweep).state, sweep_status(sweep).driver) == ("running", holder)
    other_driver.kill()
    other_driver.wait()
    assert sweep_status(sweep).state == "new"
    assert not begin(sweep).done


def test_file_system_without_locks_causes_note(sweep, begin, monkeypatch):
    def refused(*_) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # as Lustre, mounted without `flock`

    monkeypatch.setattr(fcntl, "flock", refused)
    assert "without locks" in begin(sweep).notes[0]
