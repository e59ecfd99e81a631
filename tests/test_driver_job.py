"""A driver as a job of the access point: it outlives its terminal and its own death, and condor_rm stops it."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from glide.condor import EmbeddedPool
from glide.sweep.out import holder
from glide.vocabulary import Exit, Job
from tests.conftest import SweepFolder, eventually, factory_of

pytestmark = pytest.mark.pool
RECORDS = [{"custom_id": f"r{number}", "text": str(number)} for number in range(60)]
SLOW = {"model": {"name": "slow", "engine": "noop", "options": {"record_seconds": 0.2}}, "pack": 5}


def driver_pid(sweep: SweepFolder) -> int:
    """The process that holds the sweep's lock; 0 if there is none, or if it has not written its number yet."""
    found = re.match(r"process (\d+) ", holder(sweep.out) or "")
    return int(found[1]) if found else 0


def count(sweep: SweepFolder) -> int:
    path = sweep.out / "plain" / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def queue(pool: EmbeddedPool, *attributes: str) -> list[str]:
    """Attributes of the jobs that belong to sweeps: drivers and invocation jobs."""
    constraint = f"{Job.SWEEP} =!= undefined || {Job.RUN} =!= undefined"
    return pool.tool("condor_q", "-allusers", "-constraint", constraint, "-af", *attributes).split("\n")[:-1]


def test_submitted_sweep_survives_its_driver(own_pool: EmbeddedPool, sweep: SweepFolder):
    sweep.write(RECORDS, **SLOW)
    submitted = sweep.run("submit", "--json")
    assert submitted.returncode == Exit.OK, submitted.stderr
    job = json.loads(submitted.stdout)["job"]
    first = eventually(lambda: driver_pid(sweep), "the driver runs")  # and waits, as nothing serves its jobs yet
    again = sweep.run("submit")
    assert again.returncode == Exit.INPUT and f"job {job} already runs this sweep" in again.stderr
    other = sweep.run("run")
    assert other.returncode == Exit.INPUT and f"is in use by process {first}" in other.stderr
    assert str(sweep.file) in queue(own_pool, Job.SWEEP)
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: (pid := driver_pid(sweep)) != first and pid, "HTCondor has started it again")
    with factory_of(own_pool):
        eventually(lambda: count(sweep), "there are results")
        os.kill(second, signal.SIGKILL)
        eventually(lambda: not queue(own_pool, "ClusterId"), "the sweep has finished")
    assert own_pool.tool("condor_history", job, "-af", "NumJobStarts").split() == ["3"]
    assert sorted(result["custom_id"] for result in sweep.results()) == sorted(row["custom_id"] for row in RECORDS)
    assert sweep.summary["recomputed"] == 0
    said = (sweep.out / ".glide" / "driver" / "driver.err").read_text()
    assert "60/60" in said or "all 60 records have a result" in said  # the latter if none was left for the last driver


def test_condor_rm_stops_submitted_sweep(pool: EmbeddedPool, factory: Path, sweep: SweepFolder):
    sweep.write(RECORDS, **SLOW)
    job = json.loads(sweep.run("submit", "--json").stdout)["job"]
    eventually(lambda: count(sweep), "there are results")
    pool.tool("condor_rm", job)
    eventually(lambda: not queue(pool, "ClusterId"), "neither the driver nor its jobs are left")
    assert not driver_pid(sweep) and 0 < len(sweep.results()) < 60
    assert sweep.run("resume").returncode == Exit.OK and len(sweep.results()) == 60


def test_failing_driver_is_held_with_a_reason(pool: EmbeddedPool, factory: Path, sweep: SweepFolder):
    sweep.write(RECORDS, **SLOW)
    job = json.loads(sweep.run("submit", "--json").stdout)["job"]
    eventually(lambda: driver_pid(sweep), "the driver runs")
    pool.tool("condor_hold", job)
    eventually(lambda: not driver_pid(sweep), "it has stopped")
    (sweep.folder / "records.jsonl").write_text("not JSON\n")
    pool.tool("condor_release", job)
    reason = eventually(
        lambda: [line for line in queue(pool, "JobStatus", "HoldReason") if "driver.err names" in line], "it is held"
    )
    assert reason[0].startswith("5 the sweep failed")
    assert "records.jsonl:1: not JSON" in (sweep.out / ".glide" / "driver" / "driver.err").read_text()
    pool.tool("condor_rm", job)
    eventually(lambda: not queue(pool, "ClusterId"), "nothing is left")


def test_submission_without_a_pool_is_refused(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CONDOR_CONFIG", raising=False)
    monkeypatch.setenv("GLIDE_HOME", str(sweep.folder / "home"))
    sweep.write(RECORDS)
    refused = sweep.run("submit")
    assert refused.returncode == Exit.INPUT and "glide pool up" in refused.stderr
