"""The kit for a machine with a GPU, on CPU cores with a tiny model; and what it packs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "workflows" / "gpu"


@pytest.mark.pool
@pytest.mark.models
def test_kit_runs_all_its_steps_on_cpu_cores(tmp_path: Path):
    words = [sys.executable, str(FOLDER / "kit.py"), "run", str(tmp_path), "--tiny"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "gpu.json").read_text())
    values = {(step, what.split(",")[0]): value for step, what, value, _ in told["data"]["values"]}
    assert {step for step, _ in values} == {
        "model", "transformers alone", "RQ1", "RQ3", "recovery", "transformers, one glidein",
    }  # fmt: skip
    assert values["RQ1", "create-destroy"] > values["RQ1", "StickyInvoc"]
    assert all("vLLM is not installed" in note for note in told["notes"]), told["notes"]
    assert len(told["data"]["steps"]) == 5 and (tmp_path / "gpu.png").stat().st_size > 10_000


def test_kit_needs_a_gpu_unless_it_is_tried(tmp_path: Path):
    words = [sys.executable, str(FOLDER / "kit.py"), "run", str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 2 and "no CUDA GPU; with --tiny" in done.stderr


def test_plan_takes_ten_minutes_and_is_the_one_in_the_readme(workflow):
    workflow("gpu")
    plan = importlib.import_module("measure").PLAN
    assert sum(step.seconds for step in plan) == 600
    rows = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert [float(row.split("|")[2]) for row in rows] == [step.seconds for step in plan]


def test_packed_packages_are_those_of_the_project(workflow):
    workflow("gpu")
    kit = importlib.import_module("kit")
    packages = kit.packages(FOLDER.parents[1])
    assert any(name.startswith("htcondor") for name in packages)
    assert not any(name.startswith(kit.GIVEN) for name in packages)  # the machine has its own
