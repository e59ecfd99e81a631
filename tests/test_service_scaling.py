"""workflows/service_scaling: what the measurements are made of, and the commands, with as little as there can be."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glide.bench.rig import Rig
from glide.template import Template
from glide.vocabulary import SOCKET_VARIABLE, Job, State

SCRIPTS = Path(__file__).resolve().parents[1] / "workflows" / "service_scaling"


COMMANDS = {
    "bt": ("--most", "1", "--engines", "noop", "--load", "0.5"),
    "rt": ("--counts", "1", "--requests", "5"),
}  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, Any]]]:
    """What an experiment leaves, where it leaves all of it; they run side by side, as they mostly wait."""
    folder = tmp_path_factory.mktemp("left")
    started = {
        name: subprocess.Popen(
            [sys.executable, SCRIPTS / f"{name}.py", "--out", folder, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name, options in COMMANDS.items()
    }  # fmt: skip

    def left(name: str) -> dict[str, Any]:
        table, words = started[name].communicate()
        assert started[name].returncode == 0, words
        assert table.strip() == (folder / f"{name}.md").read_text().strip()
        assert (folder / f"{name}.png").stat().st_size > 1000
        return json.loads((folder / f"{name}.json").read_text())

    yield left
    for process in started.values():
        process.send_signal(signal.SIGINT)  # which has no effect on one that has ended
        process.wait()


def test_client_learns_server_and_engine_time_per_request(start, tmp_path):
    server = start(Template("noop", "noop", options={"record_seconds": 0.02}))
    server.reached(State.WARM)
    prompts = [["not mine"], ["one", "two", "three"]]
    (tmp_path / "requests.json").write_text(json.dumps({"prompts": prompts, "defaults": {}}))
    (tmp_path / "job.ad").write_text(f"{Job.TIMED} = true\n")
    (tmp_path / "go").touch()
    environment = {**os.environ, SOCKET_VARIABLE: str(server.door), "_CONDOR_JOB_AD": str(tmp_path / "job.ad")}
    subprocess.run([sys.executable, SCRIPTS / "client.py", tmp_path, "1"], env=environment, cwd=tmp_path, check=True)
    told = json.loads((tmp_path / "client-1.json").read_text())
    assert len(told["took"]) == 3
    for whole, served, engine in told["took"]:
        assert whole > served > engine > 0.01
    assert told["ended"] - told["began"] > sum(took[0] for took in told["took"])


def test_job_without_timing_request_receives_no_timings(start):
    server = start()
    server.reached(State.WARM)
    assert server.call([{"custom_id": "one", "prompt": "one"}]).end() == (0, "")


def test_endpoint_reports_count_and_durations_of_requests():
    endpoint = subprocess.Popen([sys.executable, SCRIPTS / "endpoint.py", "0.005"], stdout=subprocess.PIPE, text=True)
    assert endpoint.stdout is not None
    with endpoint, endpoint.stdout:
        try:
            url = endpoint.stdout.readline().strip()
            assert asked(f"{url}/v1/models")["data"]
            for _ in range(3):
                assert asked(f"{url}/v1/completions", prompt="Well?")["choices"][0]["text"]
            times = asked(f"{url}/times")
            assert times["requests"] == 3 and times["latency"] >= 3 * 2 * 0.005
            assert times["inference"] > 0 and times["service"] > 0
            assert asked(f"{url}/times")["requests"] == 0
        finally:
            endpoint.terminate()


def asked(url: str, **body: Any) -> dict[str, Any]:
    with urllib.request.urlopen(url, json.dumps(body).encode() if body else None) as answer:
        return json.load(answer)


@pytest.mark.pool
def test_experiment_result_contains_startup_seconds_of_service(left):
    told = left("bt")
    (start,) = told["data"]["starts"]
    assert start["init"] >= 0.5 and start["launch"] > 0
    assert [row[:2] for row in told["rows"]] == [["noop", "1"]]


@pytest.mark.pool
def test_response_time_equals_communication_plus_service_plus_inference(left):
    told = left("rt")
    runs = told["data"]["runs"]
    settings = {(run["scaling"], run["where"]) for run in runs}
    assert settings == {(scaling, where) for scaling in ("strong", "weak") for where in ("local", "remote", "live")}
    assert len(told["rows"]) == len(runs) == 6 and {run["requests"] for run in runs} == {5}
    for run in runs:
        assert run["communication"] + run["service"] + run["inference"] == pytest.approx(run["mean"])
        assert min(run["communication"], run["service"]) > 0 <= run["inference"]
        if run["where"] == "remote":
            assert run["communication"] > 2 * run["latency"] > 0


def test_services_hide_latency_if_remote_ones_gain_more_at_each_number(workflow):
    workflow("service_scaling")
    rt, scaling = importlib.import_module("rt"), importlib.import_module("scaling")

    def claim(*local: float) -> Any:
        rates = {("remote", 1): 100.0, ("remote", 2): 150.0, ("local", 1): 200.0}
        found = {
            (scale, where, clients, count): [
                scaling.Run(scale, where, clients, count, 1, *[0.1] * 6, rates.get((where, count), rate))
                for rate in local
            ]
            for where in scaling.WHERE
            for scale, clients, count in (("weak", 1, 1), ("strong", 2, 1), ("strong", 2, 2))
        }
        return list(rt.compare(found, [1, 2]))[-1]

    assert "is true: for 2 clients, 2 remote services answer at 1.50 times" in str(claim(240.0))
    assert "is not true" in str(claim(400.0))
    several = claim(240.0, 600.0, 400.0)
    assert several.number.here.runs == (1.25, 0.5, 0.75) and "is not true" in str(several)


def test_statement_on_inference_time_is_decided_by_the_worst_number_of_clients(workflow):
    workflow("service_scaling")
    it, scaling = importlib.import_module("it"), importlib.import_module("scaling")

    def ratio(inference: float) -> Any:
        found = {
            (scale, where, clients, count): [scaling.Run(scale, where, clients, count, 1, 0, 0, 1, 0.1, 0.2, took, 1)]
            for where in scaling.WHERE
            for scale, clients, count, took in (("weak", 1, 1, 0.7), ("weak", 2, 2, inference), ("strong", 2, 1, 0.7))
        }
        return next(it.compare(found, [1, 2])).number

    assert ratio(0.5).here.median == pytest.approx(2.5) and ratio(0.5).met
    assert ratio(0.3).here.median == pytest.approx(1.5) and not ratio(0.3).met


@pytest.mark.pool
def test_benchmark_measures_total_and_server_seconds_of_jobs(pool, factory, tmp_path, workflow):
    workflow("service_scaling")
    from clients import InvocationJobs

    template = Template("carried", "noop", options={"record_seconds": 0.001})
    jobs = InvocationJobs(Rig(tmp_path, pool, pool), template, 1, [["a", "b"], ["c", "d"]], generate={})
    seconds, served = jobs.run()
    assert jobs.records == 4 and len(served) == 2
    assert seconds > max(served) >= min(served) > 0.001
