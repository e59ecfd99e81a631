"""workflows/soak: when its faults happen, what counts as growth, and a short run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import eventually

SCRIPTS = Path(__file__).resolve().parents[1] / "workflows" / "soak"


@pytest.fixture(autouse=True)
def scripts(workflow) -> None:
    workflow("soak")


@pytest.mark.parametrize("minutes", [3, 60, 600])
def test_each_kind_of_fault_happens_between_quiet_times(minutes):
    from faults import QUIET_SECONDS, schedule

    found = schedule(60 * minutes)
    counts = Counter(fault.name for fault in found)
    assert set(counts) == {"glidein", "schedd", "site", "clock ahead", "clock back", "disk"}
    assert [fault.second for fault in found] == sorted(fault.second for fault in found)
    assert found[0].second >= QUIET_SECONDS and found[-1].second <= 60 * minutes - QUIET_SECONDS
    order = [fault.name for fault in found if fault.name.startswith("clock")]
    assert order == ["clock ahead", "clock back"]
    if minutes == 60:
        assert counts["glidein"] >= 170 and counts["schedd"] == 5


@pytest.mark.parametrize(("each_hour", "spike"), [(0.0, 0.0), (5.0, 0.0), (5.0, 900.0), (-5.0, 0.0)])
def test_growth_is_the_slope_after_the_warm_up(each_hour, spike):
    from samples import Sample, growth

    def value(second: float) -> float:
        steady = 100 + each_hour * second / 3600 + (spike if 1200 <= second < 1300 else 0)
        return 10 * second if second < 600 else steady

    samples = [Sample(second, "factory", "memory", value(second)) for second in range(0, 3600, 10)]
    assert growth(samples) == pytest.approx(each_hour, rel=0.3, abs=0.01)  # a spike changes the mean, not the slope


def test_growing_processes_and_large_logs_are_problems():
    from samples import Sample, problem_of

    def found(subject: str, kind: str, last: float) -> str:
        values = {second: 40 + (last - 40) * second / 3600 for second in range(0, 3601, 10)}
        return problem_of(subject, kind, [Sample(second, subject, kind, value) for second, value in values.items()])

    assert found("factory", "memory", 40.3) == "" and "memory of factory grows by" in found("factory", "memory", 41.0)
    assert found("condor_schedd", "memory", 80) == found("pool", "files", 80) == ""
    assert found("GLIDE_HOME", "logs", 59) == "" and found("GLIDE_HOME", "files", 7000) == ""
    assert found("GLIDE_HOME", "logs", 70) == "logs of GLIDE_HOME: 70 MB, which is too much"


def test_short_run_has_no_growth():
    from samples import Sample, growth

    assert growth([Sample(second, "factory", "memory", second) for second in range(0, 700, 10)]) is None


def test_samples_count_files_and_logs(tmp_path):
    from samples import of_folder

    (tmp_path / "left" / "out").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    for name, size in {"left/out/a.log": 5_000_000, "kept/SchedLog": 1_000_000, "kept/state": 10}.items():
        (tmp_path / name).write_bytes(bytes(size))
    found = {sample.kind: sample.value for sample in of_folder(0, "home", tmp_path, [tmp_path / "left"])}
    assert found == {"files": 2, "logs": 1.0}


@pytest.mark.pool
@pytest.mark.soak
def test_three_minutes_of_faults_lose_nothing(tmp_path):
    command = [sys.executable, SCRIPTS / "run.py", "--minutes", "3", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    found = json.loads((tmp_path / "soak.json").read_text())
    assert done.returncode == 0 and found["data"]["problems"] == [], done.stderr
    assert found["data"]["sweeps"]["records"] > 0 and found["data"]["calls"] > 100


@pytest.mark.pool
@pytest.mark.soak
def test_interrupted_soak_leaves_nothing_mounted(tmp_path):
    """A sweep that still ran kept its disk from being unmounted."""
    command = [sys.executable, SCRIPTS / "run.py", "--minutes", "3", "--out", tmp_path / "out"]
    (tmp_path / "own").mkdir()
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path / "own")}) as soak:
        eventually(lambda: list(tmp_path.glob("own/glide-soak-*/sweeps/*/out/*")), "a sweep runs", 120)
        soak.terminate()
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert list((tmp_path / "own").iterdir()) == []
