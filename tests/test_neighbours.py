"""The comparison with neighbours: all systems give the same texts, and one that is missing is named."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent / "workflows" / "peers" / "run.py"


def test_each_system_is_compared_with_its_own_engine(workflow):
    workflow("peers")
    run = importlib.import_module("run")
    systems = {each.name: each for each in run.SYSTEMS}
    seconds = {"glide": 6.0, run.ENGINE.name: 4.0, run.PROCESSES.name: 8.0, "Dask": 9.0, "glide, vLLM": 10.0}
    summary = {"warm_makespan_s": 1.0, "jobs": 1}
    more = {"total_s": 20.0, "versions": {}, "engines": {"a": 1.0}, "summary": summary}
    cases = {run.Case(systems[name], 60): [{"makespan_s": each, **more}] for name, each in seconds.items()}
    rows = {row[0]: [str(cell) for cell in row[3:5]] for row in run.account(cases, [], 0.0).rows}
    assert rows["glide"] == ["1.00×", "1.50×"] and rows["Dask"] == ["1.50×", "1.12×"]
    assert rows["glide, vLLM"] == ["1.00×", ""] and rows["two plain processes"] == ["1.33×", ""]


@pytest.mark.pool
@pytest.mark.models
@pytest.mark.soak
def test_systems_with_vllm_give_the_texts_of_plain_transformers(tmp_path):
    names = ("two plain processes", "glide, vLLM", "vLLM run-batch", "datatrove InferenceRunner, vLLM")
    options = ["--repeat", "1", "--records", "60", "--out", tmp_path, "--only", *names]
    ran = subprocess.run([sys.executable, RUN, *options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = json.loads((tmp_path / "peers.json").read_text())
    assert [row[:2] for row in told["rows"]] == [[name, "60"] for name in names]
    runs = [run for case in told["data"]["cases"] for run in case["runs"]]
    assert [run["records"] for run in runs] == [60] * 4 and len({run["digest"] for run in runs}) == 1
    assert all(run["total_s"] > run["makespan_s"] > 0 for run in runs)


@pytest.mark.pool
@pytest.mark.soak
def test_benchmark_skips_compared_systems_that_are_not_installed(tmp_path):
    names = ("glide", "two plain processes", "TaskVine functions")
    options = ["--repeat", "1", "--records", "60", "--taskvine", sys.executable, "--out", tmp_path, "--only", *names]
    ran = subprocess.run([sys.executable, RUN, *options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = json.loads((tmp_path / "peers.json").read_text())
    assert [row[:2] for row in told["rows"]] == [["glide", "60"], ["two plain processes", "60"]]
    runs = [run for case in told["data"]["cases"] for run in case["runs"]]
    assert [run["records"] for run in runs] == [60, 60] and len({run["digest"] for run in runs}) == 1
    assert all(run["total_s"] > run["makespan_s"] > 0 for run in runs)
    (missing,) = [note for note in told["notes"] if "left out" in note]
    assert missing.startswith("TaskVine functions was left out: ") and "--taskvine" in missing
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
