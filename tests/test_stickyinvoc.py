"""The experiments of workflows/stickyinvoc: one of them at a tiny scale on two real pools, and what they conclude."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glide.server.engines.noop import PACE_VARIABLE, Noop
from glide.template import Template

FOLDER = Path(__file__).resolve().parents[1] / "workflows" / "stickyinvoc"
COMMANDS = ("rq1", "rq2", "rq3", "rq4", "rq5")
TINY = "import rq5; rq5.TRACES = {'low': ((0, 2), (4, 1))}; rq5.SECONDS = {'low': 6.0}; rq5.main()"


@pytest.fixture
def experiments(workflow):
    """The experiments' modules can be imported while this lasts."""
    workflow("stickyinvoc")


@pytest.mark.pool
def test_experiment_that_removes_nodes_writes_all_result_files(tmp_path: Path):
    words = [sys.executable, "-c", TINY, "--traces", "low", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"rq5.json", "rq5.md", "rq5.png"}
    told = json.loads((tmp_path / "rq5.json").read_text())
    (run,) = told["data"]["low"]
    assert run["finished"] and run["records"] == run["done"][-1][1] == 4 * 7.5 + 2 * 5
    lost = {node["class"]: node["leave_s"] is not None for node in run["nodes"]}
    assert not lost["fast"] and lost.get("slow", True)  # it may have been taken before it was there
    assert told["compared"][0]["here"] and told["notes"]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_experiment_command_docstring_is_a_question(experiments, name: str):
    command = importlib.import_module(name)
    assert command.__doc__.startswith(f"{name.upper()}: ") and command.__doc__.endswith("?") and callable(command.main)


def test_noop_engine_is_slowed_by_pace_variable(monkeypatch):
    options = Noop.Options(load_seconds=1.0, record_seconds=0.5)
    assert Noop(Template("fake", "noop"), options).options == options
    monkeypatch.setenv(PACE_VARIABLE, "3")
    slow = Noop(Template("fake", "noop"), options).options
    assert (slow.load_seconds, slow.record_seconds) == (3.0, 1.5)


def test_time_share_with_first_curve_higher_is_computed(experiments):
    from rq4 import share_ahead

    ahead, behind = [(0.0, 0.0), (1.0, 10.0), (5.0, 50.0)], [(0.0, 0.0), (2.0, 9.0), (5.0, 40.0)]
    assert share_ahead(ahead, behind) == 1.0
    assert share_ahead(behind, ahead) == 0.0
    assert 0.0 < share_ahead(ahead, [(0.0, 0.0), (3.0, 20.0), (5.0, 20.0)]) < 1.0


def test_explained_variance_is_one_for_proportional_data(experiments):
    from rq5 import explained

    there = np.arange(1.0, 20.0)
    assert explained(there, 3 * there) == pytest.approx(1.0)
    assert explained(there, there**2) < 0.95


def test_relative_range_of_times_is_computed_per_repetition(experiments):
    from rq3 import spread

    times = {"one": {1: [11.0, 20.0], 100: [10.0, 20.0]}}
    assert spread(times, "one").runs == pytest.approx((10.0, 0.0))
