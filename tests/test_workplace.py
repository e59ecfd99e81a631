"""Runs share a pool and a factory that the first of them has started, and none is left without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from glide.condor import EmbeddedPool
from glide.vocabulary import Exit
from tests.conftest import eventually


def start(folder: Path, home: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    """A sweep of 20 records where no pool is configured."""
    records = "".join(json.dumps({"custom_id": f"r{number}", "text": str(number)}) + "\n" for number in range(20))
    (folder / "records.jsonl").write_text(records)
    sweep = {
        "name": name, "model": {"name": name, "engine": "noop", "options": {"record_seconds": seconds}},
        "records": "records.jsonl", "prompts": {"plain": "{text}"}, "out": str(folder / name), "glideins": 1,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(sweep))
    environment = {key: value for key, value in os.environ.items() if key != "CONDOR_CONFIG"} | {
        "GLIDE_HOME": str(home)
    }
    command = [sys.executable, "-m", "glide", "sweep", "run", str(folder / f"{name}.yaml")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.pool
def test_shared_factory_outlives_sweep_that_started_it(tmp_path):
    home = tmp_path / "home"
    site = home / "factory" / "local"
    pool = EmbeddedPool(home)

    def factory() -> str:
        lock = site / "lock"
        return lock.read_text().strip() if lock.exists() else ""

    def results(name: str) -> int:
        path = tmp_path / name / "plain" / "results.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    runs = []
    try:
        runs.append(start(tmp_path, home, "first", 0.1))
        eventually(factory, "a factory runs")
        runs.append(start(tmp_path, home, "second", 0.7))
        outcome = runs[0].communicate()
        assert runs[0].returncode == Exit.OK, outcome
        before = factory()
        assert Path(f"/proc/{before}").exists() and runs[1].poll() is None, "the second needs it"
        eventually(lambda: results("second") > 0, "the second has results")
        os.kill(int(before), signal.SIGKILL)
        pool.tool("condor_rm", "-constraint", "GlideEntry =!= undefined && GlideRun =?= undefined")
        _, errors = runs[1].communicate()
        assert runs[1].returncode == Exit.OK, errors
        assert "the factory of site local has ended" in errors and factory() != before
        assert results("second") == 20
        eventually(lambda: not pool.processes(), "the last one leaves nothing")
    finally:
        for run in runs:
            run.kill()
        pool.down()
