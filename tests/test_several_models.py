"""Models as an axis of a sweep: each has its results, one summary and one report compare them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from glide.errors import CondorError, InputError
from glide.report.sweep.page import PAGE
from glide.sweep import run
from glide.sweep.combined import by_cell, combined_progress, combined_summary
from glide.sweep.driver import Progress
from glide.sweep.models import prepare_model
from glide.sweep.opening import opened
from glide.sweep.prepare import prepare
from glide.sweep.results import Results
from glide.sweep.status import EMPTY_SUMMARY
from glide.vocabulary import Exit
from tests.conftest import SweepFolder, eventually

pool_test = pytest.mark.pool
RECORDS = [{"custom_id": f"r{number}", "text": f"text {number}"} for number in range(40)]
IDS = [record["custom_id"] for record in RECORDS]
SMALL = {"engine": "noop", "options": {"record_seconds": 0.002}}
LARGE = {"engine": "noop", "options": {"record_seconds": 0.004}}
AXES: dict[str, Any] = {
    "prompts": {"plain": "{text}", "kind": "Please: {text}", "loud": "{text}!"},
    "variants": {"greedy": {"temperature": 0}, "hot": {"temperature": 1}},
}


def contents(sweep: SweepFolder) -> dict[str, tuple[bytes, int]]:
    """The content and the time of change of each file with results."""
    return {
        str(path.relative_to(sweep.out)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sweep.out.rglob("results.jsonl")
    }


# ---- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ({"a": SMALL, "report": SMALL}, r"models\.report: the folder report is for the sweep"),
        ({"a": SMALL, "b/c": SMALL}, r"models\.b/c: .*pattern"),
        ({"a": SMALL, "b": {"engine": "nop"}}, r"models\.b\.engine: .*'nop'"),
        ({"a": SMALL, "b": {"engine": "transformers", "path": "none"}}, r"models\.b\.path: .* not a folder"),
        ({}, "models: .*at least 1"),
    ],
)  # fmt: skip
def test_wrong_models_are_refused_with_their_place(sweep: SweepFolder, models, problem):
    with pytest.raises(InputError, match=problem):
        prepare(sweep.write(RECORDS, models=models).file)


def test_model_and_models_exclude_each_other(sweep: SweepFolder):
    both = {"model": {"name": "b", "engine": "noop"}, "models": {"a": SMALL}}
    neither = {"model": None, "models": None}
    for keys in (both, neither):
        with pytest.raises(InputError, match="give `model`, or `models`"):
            prepare(sweep.write(RECORDS, **keys).file)


def test_models_share_records_and_differ_in_requests(sweep: SweepFolder):
    small, large = prepare(sweep.write(RECORDS, models={"small": SMALL, "large": LARGE}, **AXES).file)
    assert small.records is large.records and len(small.records) == len(RECORDS)
    assert [small.template.model, large.template.model] == ["small", "large"]  # unless a model has another `name`
    assert [small.out, large.out] == [sweep.out / "small", sweep.out / "large"]
    assert list(small.cells) == list(large.cells)
    for cell in small.cells:
        assert not set(small.fingerprints[cell]) & set(large.fingerprints[cell])


def test_fingerprints_of_a_model_do_not_depend_on_other_models(sweep: SweepFolder):
    small, _ = prepare(sweep.write(RECORDS, models={"small": SMALL, "large": LARGE}, **AXES).file)
    (alone,) = prepare(sweep.write(RECORDS, models={"small": SMALL}, **AXES).file)
    (single,) = prepare(sweep.write(RECORDS, model={"name": "small", **SMALL}, **AXES).file)
    assert small.fingerprints == alone.fingerprints == single.fingerprints


def test_template_of_one_model_is_chosen_by_name(sweep: SweepFolder):
    file = sweep.write(RECORDS, models={"small": SMALL, "large": LARGE}).file
    assert prepare_model(file, "large").model == "large"
    for wrong in ("", "huge"):
        with pytest.raises(InputError, match=r"sweep.yaml:\d+: models: .*sweep.yaml:small or .*sweep.yaml:large"):
            prepare_model(file, wrong)


# ---- what is combined ----------------------------------------------------------------------------


def test_cells_of_a_sweep_are_named_after_model_and_cell():
    assert by_cell({"a": {"x/y": 1, "z": 2}, "b": {"": 3}}) == {"a/x/y": 1, "a/z": 2, "b": 3}
    assert by_cell({"": {"x": 1}}) == {"x": 1}


def test_progress_of_models_is_added_up():
    parts = {
        "a": Progress(10, 4, 1, {"Warm": 2}, 2, 1, "4 records a job", ""),
        "b": Progress(10, 0, 0, {"Warm": 1, "Loading": 1}, 0, 3, "", "held"),
    }
    whole = combined_progress(parts)
    assert (whole.total, whole.done, whole.errors, whole.running, whole.idle) == (20, 4, 1, 2, 4)
    assert whole.lanes == {"Loading": 1, "Warm": 3}
    assert (whole.wave, whole.problem) == ("a: 4 records a job", "b: held")


def test_summaries_of_models_are_added_up():
    part = {**EMPTY_SUMMARY, "name": "s", "jobs": 2, "tokens": 5, "rejected": 1, "rejected_by": {"g": 1}}
    score = {"records": 3, "errors": 0, "accuracy": None}
    models = {
        "a": {**part, "makespan_s": 4.0, "glideins": [{"id": "g", "records": 3}], "prompts": {"p": score}},
        "b": {**part, "makespan_s": 6.0, "glideins": [{"id": "h", "records": 3}], "prompts": {"p": score}},
    }
    whole = combined_summary("s", models, 7.0, 5.0)
    assert (whole["makespan_s"], whole["warm_makespan_s"], whole["jobs"], whole["tokens"]) == (7.0, 5.0, 4, 10)
    assert [each["id"] for each in whole["glideins"]] == ["g", "h"]
    assert whole["prompts"] == {"a/p": score, "b/p": score}
    assert (whole["rejected"], whole["rejected_by"]) == (2, {"g": 2})


def test_model_whose_driver_cannot_start_leaves_no_jobs_of_others(sweep: SweepFolder, monkeypatch):
    stopped: list[str] = []

    class Started:
        def limit_glideins(self, most: int) -> None: ...

        def stop(self, reason: str) -> None:
            stopped.append(reason)

    def driver(results: Results, access_point: object) -> Started:
        if results.sweep.model == "large":
            raise CondorError("the access point does not answer")
        return Started()

    monkeypatch.setattr(run, "AccessPoint", lambda: None)
    monkeypatch.setattr(run, "_driver", driver)
    models = prepare(sweep.write(RECORDS, models={"small": SMALL, "large": LARGE}, glideins=2).file)
    with opened(models, "run") as results, pytest.raises(CondorError, match="does not answer"):
        run.drive(results, lambda progress: None)
    assert stopped == ["the sweep was stopped"]


# ---- real runs -----------------------------------------------------------------------------------


@pool_test
def test_third_model_computes_a_third_more_and_nothing_else(factory: Path, sweep: SweepFolder):
    models = {"small": SMALL, "large": LARGE}
    sweep.write(RECORDS, models=models, glideins=2, expect="text", **AXES)
    ran = sweep.run()
    assert ran.returncode == Exit.OK, ran.stderr
    before = contents(sweep)
    assert len(before) == 12 and set(sweep.summary["prompts"]) == {str(Path(name).parent) for name in before}
    for model in models:
        assert [each["custom_id"] for each in sweep.results(f"{model}/kind/hot")] == IDS
        assert {each["text"] for each in sweep.results(f"{model}/loud/greedy")} == {f"{r['text']}!" for r in RECORDS}
    # The same models run again at once compute nothing; neither does the report.
    assert "all 480 records have a result" in sweep.run().stderr
    report = json.loads(sweep.run("report", "--json").stdout)["report"]
    assert {name: (each["done"], each["errors"]) for name, each in report["models"].items()} == {
        "small": (240, 0), "large": (240, 0),
    }  # fmt: skip
    assert report["accuracy"]["small/plain/hot"]["accuracy"] == 1.0
    assert report["accuracy"]["large/loud/hot"]["accuracy"] == 0.0
    page = Path(report["page"]).read_text()
    for model in models:
        assert f'href="{model}/{PAGE}"' in page and (sweep.out / "report" / model / PAGE).exists()
    assert (sweep.out / "report" / "speed.png").exists() and (sweep.out / "report" / "accuracy.png").exists()
    assert contents(sweep) == before

    sweep.write(RECORDS, models={**models, "third": SMALL}, glideins=2, expect="text", **AXES)
    assert json.loads(sweep.run("status", "--json").stdout)["state"] == "interrupted"
    ran = sweep.run("resume")
    assert ran.returncode == Exit.OK, ran.stderr
    assert "resumed: 480 of 720 records have a result" in ran.stderr
    after = contents(sweep)
    assert len(after) == 18 and {name: after[name] for name in before} == before
    assert sweep.summary["recomputed"] == 0 and len(sweep.summary["prompts"]) == 18
    third = json.loads((sweep.out / "third" / "summary.json").read_text())
    assert sum(glidein["records"] for glidein in third["glideins"]) == 240
    status = json.loads(sweep.run("status", "--json").stdout)
    assert status["state"] == "finished" and set(status["done"].values()) == {40} and len(status["done"]) == 18


@pool_test
def test_models_share_one_glidein_one_after_the_other(factory: Path, sweep: SweepFolder):
    sweep.write(RECORDS, models={"small": SMALL, "large": LARGE}, glideins=1)
    ran = sweep.run()
    assert ran.returncode == Exit.OK, ran.stderr
    times = {}
    for model in ("small", "large"):
        lines = (sweep.out / model / ".glide" / "history.jsonl").read_text().splitlines()
        at = [float(event["at"]) for event in map(json.loads, lines) if "at" in event]
        times[model] = min(at), max(at)
    assert times["small"][1] <= times["large"][0]


@pool_test
def test_failing_model_does_not_stop_the_others(factory: Path, sweep: SweepFolder):
    broken = {"engine": "noop", "options": {"crash_in": "Loading"}}
    sweep.write(RECORDS, models={"broken": broken, "small": SMALL}, glideins=2)
    ran = sweep.run()
    assert ran.returncode == Exit.FAILED and "could not load broken" in ran.stderr
    assert len(sweep.results("small/plain")) == len(RECORDS)
    before = contents(sweep)["small/plain/results.jsonl"]
    sweep.write(RECORDS, models={"broken": LARGE, "small": SMALL}, glideins=2)
    assert sweep.run().returncode == Exit.OK
    assert contents(sweep)["small/plain/results.jsonl"] == before
    assert len(sweep.results("broken/plain")) == len(RECORDS)


@pool_test
def test_killed_driver_of_several_models_resumes_all_of_them(factory: Path, sweep: SweepFolder):
    slow = {"engine": "noop", "options": {"record_seconds": 0.1}}
    models = {"a": slow, "b": {**slow, "name": "other"}}
    sweep.write(RECORDS, models=models, glideins=2, pack=4)
    process = sweep.start()
    started = [sweep.out / model / "plain" / "results.jsonl" for model in models]
    eventually(lambda: all(path.exists() and path.stat().st_size for path in started), "both have results")
    os.kill(process.pid, signal.SIGSTOP)  # the driver must not finish while the other commands run
    second = sweep.run()
    assert second.returncode == Exit.INPUT and f"is in use by process {process.pid}" in second.stderr
    assert json.loads(sweep.run("status", "--json").stdout)["state"] == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    ran = sweep.run("resume")
    assert ran.returncode == Exit.OK, ran.stderr
    assert sweep.summary["recomputed"] == 0
    for model in models:
        assert [each["custom_id"] for each in sweep.results(f"{model}/plain")] == [
            each["custom_id"] for each in RECORDS
        ]
    again = sweep.run("run", "--again")
    assert again.returncode == Exit.OK, again.stderr
    for model in models:
        assert (sweep.out.with_name("results.1") / model / "plain" / "results.jsonl").exists()
        assert len(sweep.results(f"{model}/plain")) == len(RECORDS)
