"""Results that a later run finds in its folder: of a finished, extended, changed or different sweep."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest

from glide.errors import InputError
from glide.sweep import results as module
from glide.sweep.requests import requests_file
from glide.sweep.status import EMPTY_SUMMARY, sweep_status
from tests import results_rig
from tests.results_rig import (
    EVERY,
    THREE,
    answer,
    finished,
    have,
    keep,
    lines_of,
    make,
    snapshot,
    store,
    superseded,
    texts_of,
    unsent,
)

# These fixtures are shared by the modules about results.
sweep, begin = results_rig.sweep, results_rig.begin


def test_rerun_of_finished_sweep_changes_no_file(sweep, begin):
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


def test_invalid_summary_file_is_rewritten(sweep, begin):
    finished(begin(sweep))
    for content in ("", "[]", '{"prompts": 3}', '{"makespan_s": "x"}'):
        (sweep.out / "summary.json").write_text(content)
        assert begin(sweep).finished_summary()["prompts"]["kind"] == {"records": 3, "errors": 0, "accuracy": 2 / 3}
        assert json.loads((sweep.out / "summary.json").read_text())["tokens"] == 12


def test_option_named_again_moves_only_result_files_aside(sweep, begin):
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
def test_sweep_does_not_change_results_of_another_sweep(sweep, begin, tmp_path, changes, end):
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


def test_option_named_again_moves_no_folder_without_results(sweep, begin, tmp_path):
    begin(sweep, "first")
    other = make(tmp_path, name="other", model="other")
    assert begin(replace(other, source=tmp_path / "t.yaml"), "second", again=True).run == "second"
    assert not sweep.out.with_name("out.1").exists()


def test_unknown_sweep_results_are_neither_used_nor_deleted(sweep, begin):
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
def test_undoing_a_sweep_change_restores_old_results(sweep, begin, tmp_path, changes, missing, end):
    results = begin(sweep)
    keep(results, *EVERY, text="old")
    late = [answer(results, name, "late") for name in EVERY]
    if end:
        results.finish({**EMPTY_SUMMARY})
    changed = make(tmp_path, **changes)
    results = begin(changed)
    assert unsent(results) == missing and results.resumed == 6 - len(missing)
    still = [each["custom_id"] for name, each in zip(EVERY, late, strict=True) if name not in missing]
    assert all(results.key(each) for each in still)
    assert all(results.key(each["custom_id"]) for each in late) == (not missing)
    store(results, *late)  # of a job that asked what was asked before
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


def test_results_of_earlier_version_stay_valid(sweep, begin):
    """Earlier versions have written the fingerprints of requests as JSON lines."""
    results = begin(sweep)
    keep(results, *EVERY, text="old")
    results.finish({**EMPTY_SUMMARY})
    for prompt, fingerprints in sweep.fingerprints.items():
        path = requests_file(sweep.out, prompt)
        pairs = zip(sweep.records, fingerprints, strict=True)
        rows = [json.dumps({"custom_id": each.custom_id, "request": f"{request:016x}"}) for each, request in pairs]
        path.with_suffix(".jsonl").write_text("\n".join(rows) + "\n")
        path.unlink()
    results = begin(sweep)
    assert (results.resumed, unsent(results), results.notes) == (6, [], [])
    assert requests_file(sweep.out, "plain").exists() and texts_of(results, "plain")["a"] == "old"
