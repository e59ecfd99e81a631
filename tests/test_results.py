"""Results on disk: each id once, whatever happened to the driver in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glide.config import SweepFile
from glide.errors import InputError
from glide.sweep.prepare import Sweep
from glide.sweep.records import Record
from glide.sweep.results import FIELDS, Results, begin
from glide.template import Template


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make(tmp_path)


def make(tmp_path: Path, **changes) -> Sweep:
    """Three records under two prompts."""
    content = {
        "name": "s",
        "model": {"name": "m", "engine": "noop"},
        "records": "r.jsonl",
        "prompts": {"plain": "{text}", "kind": "Please: {text}"},
        "expect": "label",
        "out": str(tmp_path / "out"),
    } | changes
    records = [
        Record(name, {"custom_id": name, "text": name, "label": label}, line)
        for line, (name, label) in enumerate([("a", "yes"), ("b", "no"), ("c/d", "yes")], 1)
    ]
    return Sweep(tmp_path / "s.yaml", SweepFile.model_validate(content), records, Template("m", "noop"))


def answer(wire_id: str, text: str | None = "yes", **fields) -> dict:
    """What a lane's client writes."""
    return {
        "custom_id": wire_id, "text": text, "tokens": 2, "error": None, "glidein": "here-1.0", "attempts": 1,
        "seconds": 0.5,
    } | fields  # fmt: skip


EVERY = [f"{prompt}/{record}" for prompt in ("plain", "kind") for record in ("a", "b", "c/d")]


def lines_of(results: Results, prompt: str) -> list[dict]:
    """By newline alone: a text may hold Unicode's other line ends."""
    return [json.loads(line) for line in results.path(prompt).read_text().split("\n") if line]


def test_each_result_goes_to_its_prompts_file_under_the_records_own_id(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer("plain/a"), answer("kind/c/d", "ö\u2028\n")])
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["a"]
    (line,) = lines_of(results, "kind")
    assert (line["custom_id"], line["text"]) == ("c/d", "ö\u2028\n")
    assert list(line) == list(FIELDS)


def test_what_is_to_be_sent_is_what_has_neither_a_result_nor_a_job_and_what_is_done_first_is_not_looked_at_again(sweep):
    results = begin(sweep, "run", resume=False)

    def unsent(*on_their_way: str) -> list[str]:
        return [request["custom_id"] for request in results.unsent(on_their_way)]

    assert unsent() == EVERY
    results.keep([answer("plain/a"), answer("plain/c/d")])
    assert unsent("plain/b", "kind/b") == ["kind/a", "kind/c/d"] and results.settled == 1
    assert unsent() == ["plain/b", "kind/a", "kind/b", "kind/c/d"]  # their jobs were lost
    results.keep([answer("plain/b"), answer("kind/c/d")])
    assert unsent() == ["kind/a", "kind/b"] and results.settled == 3


def test_what_an_engine_adds_to_a_result_is_kept(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer("plain/a", scores={"yes": 0.75, "no": 0.25})])
    (line,) = lines_of(results, "plain")
    assert list(line) == [*FIELDS, "scores"] and line["scores"] == {"yes": 0.75, "no": 0.25}


def test_a_result_computed_again_is_counted_and_not_kept(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer("plain/a", "first")])
    results.keep([answer("plain/a", "second", attempts=2), answer("plain/b"), answer("plain/b", "3rd", seconds=0.7)])
    results.keep([answer("plain/a", "third", glidein="there-2.0")])
    assert results.recomputed == 3
    assert [(line["custom_id"], line["text"]) for line in lines_of(results, "plain")] == [("a", "first"), ("b", "yes")]
    assert set(results.have) == {"plain/a", "plain/b"}


def test_a_copy_of_a_result_is_no_computation(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer("plain/a")])
    results.keep([answer("plain/a"), answer("plain/a")])
    begin(sweep, "again", resume=True).keep([answer("plain/a")])
    assert results.recomputed == 0
    assert len(lines_of(results, "plain")) == 1


def test_after_a_restart_a_computation_is_still_told_from_a_copy(sweep):
    begin(sweep, "run", resume=False).keep([answer("plain/a")])
    results = begin(sweep, "again", resume=True)
    results.keep([answer("plain/a"), answer("plain/a", attempts=2)])
    assert results.recomputed == 1


def test_the_same_record_under_two_prompts_is_two_results(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer("plain/a"), answer("kind/a")])
    assert (results.recomputed, len(results.have)) == (0, 2)


def test_what_was_computed_is_counted(sweep):
    results = begin(sweep, "run", resume=False)
    error = {"type": "PromptTooLong", "message": "600 tokens"}
    results.keep([answer("plain/a", attempts=2), answer("plain/b", None, error=error, tokens=0)])
    results.keep([answer("kind/a", glidein="there-2.0")])
    assert (results.errors, results.tokens) == (1, 4)
    assert results.by_glidein == {"here-1.0": 2, "there-2.0": 1}
    assert results.error_lines() == ["plain: b: PromptTooLong: 600 tokens"]


def test_the_next_driver_finds_what_the_last_one_kept(sweep):
    begin(sweep, "first", resume=False).keep([answer("plain/a"), answer("kind/b", attempts=3)])
    results = begin(sweep, "second", resume=True)
    assert set(results.have) == {"plain/a", "kind/b"}
    assert (results.found, results.tokens) == (2, 4)
    assert results.run == "first"


def test_a_torn_last_line_is_dropped_and_its_record_done_again(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer("plain/a"), answer("plain/b")])
    whole = results.path("plain").read_bytes()
    for cut in (1, 2, 40, len(whole.splitlines()[1])):
        results.path("plain").write_bytes(whole[:-cut])
        again = begin(sweep, "again", resume=True)
        assert set(again.have) == {"plain/a"}, cut
        again.keep([answer("plain/b")])
        assert again.recomputed == 0
        assert [line["custom_id"] for line in lines_of(again, "plain")] == ["a", "b"]


def test_a_character_torn_in_two_is_dropped_too(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer("plain/a", "🦉")])
    content = results.path("plain").read_bytes()
    results.path("plain").write_bytes(content[: content.index("🦉".encode()) + 2])
    assert not begin(sweep, "again", resume=True).have
    assert results.path("plain").read_bytes() == b""


def test_another_sweeps_unfinished_results_are_not_touched(sweep, tmp_path):
    begin(sweep, "run", resume=False).keep([answer("plain/a")])
    other = make(tmp_path, prompts={"plain": "{text}!"})
    for resume in (False, True):
        with pytest.raises(InputError, match="unfinished run of another sweep"):
            begin(other, "other", resume=resume)
    assert set(begin(sweep, "run", resume=True).have) == {"plain/a"}


def test_there_is_nothing_to_resume_in_a_fresh_folder_or_after_the_end(sweep):
    with pytest.raises(InputError, match="nothing to resume"):
        begin(sweep, "run", resume=True)
    results = begin(sweep, "run", resume=False)
    results.keep(map(answer, EVERY))
    results.finish({})
    with pytest.raises(InputError, match="nothing to resume"):
        begin(sweep, "run", resume=True)


def test_a_finished_sweep_begins_afresh(sweep):
    results = begin(sweep, "first", resume=False)
    results.keep(map(answer, EVERY))
    results.finish({})
    again = begin(sweep, "second", resume=False)
    assert (len(again.have), again.found, again.run) == (0, 0, "second")


def test_finished_results_are_in_input_order(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer(wire_id) for wire_id in reversed(EVERY)])
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["c/d", "b", "a"]
    results.finish({})
    for prompt in ("plain", "kind"):
        assert [line["custom_id"] for line in lines_of(results, prompt)] == ["a", "b", "c/d"]


def test_accuracy_counts_texts_that_are_the_expected_but_for_space_around(sweep):
    results = begin(sweep, "run", resume=False)
    results.keep([answer("plain/a", " yes\n"), answer("plain/b", "nope"), answer("plain/c/d", "yes")])
    error = {"type": "EngineDied", "message": ""}
    results.keep([answer("kind/a", "no"), answer("kind/b", "no"), answer("kind/c/d", None, error=error)])
    summary = results.finish({"name": "s"})
    assert summary["prompts"] == {
        "plain": {"records": 3, "errors": 0, "accuracy": pytest.approx(2 / 3)},
        "kind": {"records": 3, "errors": 1, "accuracy": pytest.approx(1 / 3)},
    }
    assert json.loads((sweep.out / "summary.json").read_text()) == summary


def test_without_an_expected_field_there_is_no_accuracy(tmp_path):
    sweep = make(tmp_path, expect=None)
    results = begin(sweep, "run", resume=False)
    results.keep(map(answer, EVERY))
    assert {part["accuracy"] for part in results.finish({})["prompts"].values()} == {None}


@pytest.mark.parametrize("name", ["summary.new", "results.jsonl", "a.b-c_d"])
def test_any_prompts_name_that_is_accepted_can_be_finished(tmp_path, name):
    sweep = make(tmp_path, prompts={name: "{text}"})
    results = begin(sweep, "run", resume=False)
    results.keep([answer(f"{name}/{record.custom_id}") for record in sweep.records])
    assert results.finish({})["prompts"][name]["records"] == 3


@pytest.mark.parametrize("state", ["", "{}", "[]", "null", '{"finished": false}', '{"fini'])
def test_a_state_that_makes_no_sense_is_none(sweep, state):
    begin(sweep, "first", resume=False).state_file.write_text(state)
    with pytest.raises(InputError, match="nothing to resume"):
        begin(sweep, "second", resume=True)
    assert begin(sweep, "second", resume=False).run == "second"
