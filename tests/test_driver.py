"""When a driver looks again, and how it submits a wave."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from glide.condor import AccessPoint
from glide.invoke.jobs import RunJobs, RunSpec
from glide.invoke.pack import Wave
from glide.invoke.part import Part
from glide.sweep import driver
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


class RecordingJobs:
    """Stands in for RunJobs: notes which jobs were submitted together, and which input files were deleted."""

    def __init__(self, full_after: int = 99):
        self.run = RunSpec("noted", Template("m", "noop"), Path("unused"), 1)
        self.access_point = None
        self.submitted: list[list[int]] = []
        self.left: list[int] = []
        self.last: list[bool] = []
        self.discarded = 0
        self.full_after = full_after

    def write(self, records) -> Part:
        if not self.full_after:
            raise OSError(errno.ENOSPC, "no space")
        self.full_after -= 1
        return Part(f"p{self.full_after}", {record["custom_id"] for record in records})

    def submit(self, parts, avoid, pending, last) -> None:
        self.submitted.append([len(part.ids) for part in parts])
        self.left.append(pending)
        self.last.append(last)

    def discard(self, parts) -> None:
        self.discarded += len(list(parts))


def submit_once(jobs: RecordingJobs, monkeypatch) -> None:
    monkeypatch.setattr(driver, "GROUP_RECORDS", 10)
    calls = Calls(Template("m", "noop"), 1)
    for _ in range(23):
        calls.add({"prompt": ""})
    calls.close()
    monkeypatch.setattr(driver, "pack", lambda *_, **__: Wave((4,) * 8, "as the test wants"))
    Driver(calls, jobs)._submit_wave([], [])  # type: ignore[arg-type]


def test_large_wave_is_submitted_in_groups_while_it_is_written(monkeypatch):
    jobs = RecordingJobs()
    submit_once(jobs, monkeypatch)
    assert jobs.submitted == [[4, 4, 4], [4, 4, 3]]
    # Each lane of the last wave is released when its job has ended, whatever group the job was in.
    assert (jobs.left, jobs.last) == ([11, 0], [True, True])
    assert jobs.discarded == 2  # more jobs were planned than there were records


def test_full_disk_discards_only_what_is_not_submitted(monkeypatch):
    jobs = RecordingJobs(full_after=4)
    with pytest.raises(OSError, match="no space"):
        submit_once(jobs, monkeypatch)
    assert jobs.submitted == [[4, 4, 4]] and jobs.discarded == 1
