"""When a driver looks again."""

from __future__ import annotations

import pytest

from glide.condor import AccessPoint
from glide.invoke.jobs import RunJobs, RunSpec
from glide.sweep.calls import Calls
from glide.sweep.driver import Driver
from glide.template import Template
from glide.vocabulary import Exit
from tests.conftest import eventually


@pytest.mark.pool
@pytest.mark.parametrize("full", [False, True])
def test_new_call_wakes_driver_unless_lanes_are_full(pool, tmp_path, full):
    calls = Calls(Template("m", "noop"), 1)
    waiting = Driver(calls, RunJobs(RunSpec("waiting", calls.template, tmp_path, 1), AccessPoint()))
    waiting.lanes_full = full
    calls.add({"prompt": ""})
    waiting.wait()
    assert calls.new_work.is_set() == full  # it was for that, or it is still to be seen


@pytest.mark.pool
def test_stopped_sweep_resumes_without_recomputation(factory, access_point, sweep):
    records = [{"custom_id": f"r{each}", "text": f"text {each}"} for each in range(200)]
    model = {"name": "stopped", "engine": "noop", "options": {"record_seconds": 0.05}}
    process = sweep.write(records, model=model, name="stopped", pack=20).start()
    results = sweep.out / "plain" / "results.jsonl"
    eventually(lambda: results.exists() and results.read_text().count("\n") > 20, "results come in")
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == Exit.INTERRUPTED, errors
    assert "glide sweep resume" in errors
    assert not access_point.jobs('regexp("^stopped-", GlideRun) && JobStatus != 3', ["ClusterId"])
    done = sweep.run("resume")
    assert done.returncode == Exit.OK, done.stderr
    assert [result["custom_id"] for result in sweep.results()] == [record["custom_id"] for record in records]
    assert sweep.summary["recomputed"] == 0
    assert not list((sweep.out / ".glide" / "parts").iterdir())
