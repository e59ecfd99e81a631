"""Results on disk: each id once, in the order of the input, with the counts that a summary reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glide.sweep.lines import FIELDS
from glide.sweep.outage import is_temporary
from glide.sweep.results import Results
from tests import results_rig
from tests.results_rig import EVERY, answer, finished, have, keep, lines_of, make, plain, store, texts_of

# These fixtures are shared by the modules about results.
sweep, begin = results_rig.sweep, results_rig.begin


# ---- storing -------------------------------------------------------------------------------------


def test_result_is_stored_under_prompt_and_custom_id(sweep, begin):
    results = begin(sweep)
    store(results, answer(results, "plain/a"), answer(results, "kind/c/d", "ö\u2028\n"))
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["a"]
    (line,) = lines_of(results, "kind")
    assert (line["custom_id"], line["text"]) == ("c/d", "ö\u2028\n")
    assert list(line) == list(FIELDS)


def test_pending_records_have_neither_result_nor_job(sweep, begin):
    results = begin(sweep)

    def left(*on_their_way: str) -> list[str]:
        places = {results.key(answer(results, name)["custom_id"]) for name in on_their_way}
        return [plain(results, results.key(request["custom_id"])) for request in results.pending(places)]

    assert left() == EVERY
    keep(results, "plain/a", "plain/c/d")
    assert left("plain/b", "kind/b") == ["kind/a", "kind/c/d"]
    assert left() == ["plain/b", "kind/a", "kind/b", "kind/c/d"]  # their jobs were lost
    keep(results, "plain/b", "kind/c/d")
    assert left() == ["kind/a", "kind/b"] and (results.first_cell, results.first_number) == (1, 0)


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


def test_errors_and_tokens_in_results_are_counted(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", attempts=2)
    keep(results, "plain/b", text=None, error={"type": "PromptTooLong", "message": "600 tokens"}, tokens=0)
    keep(results, "kind/a", glidein="there-2.0")
    assert (results.errors, results.tokens) == (1, 4)
    assert results.by_glidein == {"here-1.0": 2, "there-2.0": 1}
    assert results.error_lines() == ["plain: b: PromptTooLong: 600 tokens"]


@pytest.mark.parametrize(
    "wire_id",
    ["", "x", "plain/a", "../x", "plain/../../x#0", "plain/zz#0", "nope/a#0", "/", "#", "plain/0/#", "plain/-1/x#0"],
)
def test_result_with_unknown_id_is_not_stored(sweep, begin, wire_id):
    results = begin(sweep)
    store(results, answer(results, "plain/a") | {"custom_id": wire_id})
    assert not results.done and not lines_of(results, "plain")
    assert {path.name for path in sweep.out.parent.iterdir()} == {"out"}


def test_result_text_with_lone_surrogate_is_stored(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", text="\ud83d")
    assert texts_of(results, "plain") == {"a": "\ud83d"}


def test_write_to_full_disk_stores_all_or_nothing(sweep, begin, monkeypatch):
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


# ---- a finished sweep ----------------------------------------------------------------------------


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


def test_sweep_without_expect_key_reports_no_accuracy(tmp_path, begin):
    results = begin(make(tmp_path, expect=None))
    keep(results, *EVERY)
    assert {part["accuracy"] for part in results.finish({})["prompts"].values()} == {None}


@pytest.mark.parametrize("name", ["summary.new", "results.jsonl", "a.b-c_d", "report"])
def test_sweep_with_unusual_prompt_name_can_finish(tmp_path, begin, name):
    results = begin(make(tmp_path, prompts={name: "{text}"}))
    assert json.loads(json.dumps(finished(results).finished_summary()["prompts"][name]["records"])) == 3
