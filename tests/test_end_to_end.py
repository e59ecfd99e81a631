"""From a sweep file to results, through factory, glidein, matching and spool of a real pool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from glide.bench.origin import origin
from glide.condor import EmbeddedPool, processes
from glide.files.listing import MANIFEST
from glide.system import files_below
from glide.vocabulary import Exit, JobStatus, State
from tests.conftest import SweepFolder, eventually
from tests.models import tiny_llama

pytestmark = pytest.mark.pool

SUBMIT_TEMPLATES = Path(__file__).resolve().parent.parent / "submit_templates"
ODD_TEXTS = [
    "", " ", "plain text", "plain text",
    "🙂🙃 and 👩‍👩‍👧‍👦", "שלום עולם", "السلام عليكم ورحمة الله", "{braces} {{and}} }more{",
    "two\nlines\n\n", "\ttab\r\n", "x" * 2000, "a longer claim, with words in it. " * 12, 'quotes " and \\ slashes',
    "null\u0000byte", "\u2028line separator", "plain text",
]  # fmt: skip


def noop_records(count: int) -> list[dict[str, str]]:
    return [{"custom_id": f"r{number}", "text": f"text {number}"} for number in range(count)]


def greedy(model: Path, texts: list[str], new_tokens: int) -> list[str]:
    """What plain transformers generates, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    answers = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        output = loaded.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def engines(pool: EmbeddedPool) -> list[processes.Process]:
    """The engine processes of model servers."""
    found = []
    for process in pool.processes():
        with suppress(FileNotFoundError):  # it has ended meanwhile
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            if b"glide.server.engine_process" in words and b"keeper.py" not in words:
                found.append(process)
    return found


def glide(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "glide", *arguments], capture_output=True, text=True)


def results_so_far(sweep: SweepFolder) -> int:
    path = sweep.out / "plain" / "results.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.models
def test_sweep_texts_match_plain_transformers_for_unusual_input(factory, sweep: SweepFolder):
    model = sweep.folder / "model"
    tiny_llama(model, context=4096)
    records = [{"custom_id": f"odd-{number}", "text": text} for number, text in enumerate(ODD_TEXTS * 3)]
    prompts = {"plain": "{text}", "wrapped": "Claim: {text}\nIn {{braces}}. Verdict:"}
    sweep.write(
        records, prompts=prompts, glideins=2, generate={"max_new_tokens": 4, "do_sample": False},
        model={"name": "tiny", "engine": "transformers", "path": "model", "options": {"dtype": "float32", "batch": 5}},
    )  # fmt: skip
    done = sweep.run()
    assert done.returncode == Exit.OK, done.stderr
    for prompt, template in prompts.items():
        results = sweep.results(prompt)
        assert [result["custom_id"] for result in results] == [record["custom_id"] for record in records]
        expected = greedy(model, [template.format(text=record["text"]) for record in records], 4)
        assert [result["text"] for result in results] == expected
        assert all(result["error"] is None and result["glidein"].startswith("here-") for result in results)


def test_model_at_url_is_fetched_once_per_host(factory, pool, sweep: SweepFolder):
    model = sweep.folder / "model"
    model.mkdir()
    for name, size in (("config.json", 300), ("model.safetensors", 3_000_000)):
        (model / name).write_bytes(os.urandom(size))
    (model / MANIFEST).write_text(glide("template", "files", str(model)).stdout)
    with origin(model) as source:
        far = {"name": "far", "engine": "noop", "path": source.url, "options": {"record_seconds": 0.3}}
        process = sweep.write(noop_records(3000), glideins=2, pack=2, model=far).start()

        def warm() -> int:
            return sum(" far Warm" in words.read_text() for words in files_below(pool.home / "factory", "*.out"))

        # Work for minutes: the factory removes a glidein that still loads when nobody has work for it any more.
        eventually(lambda: warm() == 2 or process.poll() is not None, "both glideins have loaded the model")
        eventually(lambda: results_so_far(sweep) or process.poll() is not None, "there are results")
        process.terminate()
        _, errors = process.communicate()
        assert process.returncode == Exit.INTERRUPTED, errors
        sent = {name: count for name, count in source.sent.items() if name != MANIFEST}
    assert sent == {path.name: path.stat().st_size for path in model.iterdir() if path.name != MANIFEST}
    assert {(result["custom_id"], result["text"]) for result in sweep.results()} < {
        (record["custom_id"], record["text"]) for record in noop_records(3000)
    }


def test_model_url_without_files_fails_before_submission(sweep: SweepFolder, tmp_path):
    with origin(tmp_path) as source:
        sweep.write(noop_records(2), model={"name": "gone", "engine": "noop", "path": source.url})
        done = sweep.run()
    assert done.returncode == Exit.INPUT
    (line,) = done.stderr.strip().splitlines()
    assert "sweep.yaml:" in line and source.url in line and "glide template files" in line


def test_condor_status_shows_loading_before_warm(factory, pool, sweep: SweepFolder):
    sweep.write(noop_records(4), model={"name": "slow", "engine": "noop", "options": {"load_seconds": 4}})
    process = sweep.start()
    seen: set[str] = set()

    def warm() -> bool:
        lines = pool.tool("condor_status", "-af", "Name", "GlideModel", "GlideState").splitlines()
        seen.update(line.split()[2] for line in lines if " slow " in line)
        return State.WARM in seen

    eventually(warm, "a lane of the model is Warm")
    assert process.wait() == Exit.OK
    assert State.LOADING in seen


def test_status_explains_why_job_without_glidein_is_idle(factory, access_point):
    job = 'executable = /bin/true\nMy.GlideModel = "ghost-model"\nMy.GlideTemplate = "0123"\n'
    job += "requirements = TARGET.GlideTemplate =?= MY.GlideTemplate\nqueue 1\n"
    cluster = access_point.submit(job)
    try:

        def mine() -> list[dict[str, Any]]:
            told = json.loads(glide("status", "--json").stdout)
            return [demand for demand in told["queue"] if demand["model"] == "ghost-model"]

        (demand,) = eventually(mine, "status shows the job")
        assert demand["idle"] == 1
        assert "no glidein has ghost-model" in demand["why_idle"]
        assert access_point.jobs(f"ClusterId == {cluster}", ["JobStatus"])[0]["JobStatus"] == JobStatus.IDLE
    finally:
        access_point.remove(f"ClusterId == {cluster}", "test over")


def test_device_hours_and_costs_are_reported(factory, access_point, sweep: SweepFolder):
    model = {"name": "paid", "engine": "noop", "options": {"record_seconds": 0.02}}
    done = sweep.write(noop_records(300), model=model, glideins=1).run()
    assert done.returncode == Exit.OK, done.stderr
    (used,) = json.loads(glide("sweep", "report", str(sweep.file), "--json").stdout)["report"]["usage"].values()
    hours = used["device_hours"]
    assert hours["productive"] > 300 * 0.02 / 3600 / 2  # one core, whose two lanes share the engine
    assert used["cost"] == pytest.approx(3.6 * sum(hours.values()))

    def mine() -> list[dict]:
        (site,) = json.loads(glide("status", "--json").stdout)["sites"]
        rows = [row for row in site["usage"]["rows"] if row["model"] == "paid" and row["user"] == access_point.user]
        return [row for row in rows if row["device_hours"]["productive"]]

    (row,) = eventually(mine, "the factory has accounted for it")
    assert row["entry"] == "here" and row["cost"] == pytest.approx(3.6 * sum(row["device_hours"].values()), abs=1e-3)
    assert "paid" in glide("status").stdout


def test_sweep_stops_with_reason_if_model_cannot_load(factory, sweep: SweepFolder):
    model = {"name": "corrupt", "engine": "noop", "options": {"crash_in": "Loading"}}
    process = sweep.write(noop_records(3), model=model).start()

    def failures() -> list[str]:
        told = json.loads(glide("status", "--json").stdout)
        return [demand["why_idle"] for demand in told["queue"] if "could not be loaded" in demand["why_idle"]]

    eventually(lambda: failures() or process.poll() is not None, "status shows the failure, or the sweep has ended")
    _, errors = process.communicate()
    assert process.returncode == Exit.FAILED
    assert "glideins could not load corrupt: here-" in errors and "SIGSEGV" in errors


def test_missing_model_folder_stops_sweep_with_reason(factory, sweep: SweepFolder):
    model = sweep.folder / "model"
    model.mkdir()
    (model / "weights").write_text("of a model")
    sweep.write(noop_records(3), model={"name": "gone", "engine": "noop", "path": "model"})
    process = sweep.start()
    eventually(lambda: (sweep.out / ".glide" / "run.json").exists(), "the sweep has been checked")
    shutil.rmtree(model)
    _, errors = process.communicate()
    assert process.returncode == Exit.FAILED
    assert "is not in that folder on this node: the access point answered 404 Not Found" in errors


def test_sweep_reports_signal_that_kills_loading_engine(factory, pool, sweep: SweepFolder):
    sweep.write(noop_records(3), model={"name": "killed", "engine": "noop", "options": {"load_seconds": 600}})
    others = {engine.pid for engine in engines(pool)}
    process = sweep.start()
    while process.poll() is None:  # wherever it is tried: on an idle glidein first, and then on new ones
        for engine in engines(pool):
            if engine.pid not in others:
                engine.send(signal.SIGKILL)
        time.sleep(0.5)
    _, errors = process.communicate()
    assert process.returncode == Exit.FAILED
    assert "signal 9" in errors and "memory" in errors


def test_wrong_input_is_reported_before_submission(pool, access_point, sweep: SweepFolder):
    sweep.write(noop_records(2), prompts={"plain": "{text}", "typo": "{txet}"})
    (sweep.folder / "records.jsonl").write_text(
        '{"custom_id": "a", "text": "x"}\n{"custom_id": "a", "text": "y"}\nnot json\n{"text": "no id"}\n'
    )
    done = sweep.run()
    assert done.returncode == Exit.INPUT
    lines = done.stderr.strip().splitlines()
    assert len([line for line in lines if "records.jsonl:2:" in line and "line 1" in line]) == 1
    assert len([line for line in lines if "records.jsonl:3:" in line and "not JSON" in line]) == 1
    assert len([line for line in lines if "records.jsonl:4:" in line and "custom_id" in line]) == 1
    assert len([line for line in lines if "records.jsonl:1:" in line and "no field 'txet'" in line]) == 1
    assert len(lines) == 4
    run = json.dumps(f"{yaml.safe_load(sweep.file.read_text())['name']}-")
    assert access_point.jobs(f"substr(GlideRun, 0, size({run})) == {run}", ["ClusterId"]) == []


def test_killed_glidein_master_neither_loses_nor_repeats_records(factory, pool, sweep: SweepFolder):
    count = 600
    model = {"name": "doomed", "engine": "noop", "options": {"record_seconds": 0.02}}
    process = sweep.write(noop_records(count), model=model, glideins=2).start()
    eventually(lambda: results_so_far(sweep) > 30 or process.poll() is not None, "results come in")
    pool.glidein_masters()[0].send(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == Exit.OK, errors
    results = sweep.results()
    assert [result["custom_id"] for result in results] == [f"r{number}" for number in range(count)]
    assert all(result["text"] == f"text {result['custom_id'][1:]}" for result in results)


def test_sweep_resumes_after_killed_driver(factory, sweep: SweepFolder):
    model = {"name": "resumed", "engine": "noop", "options": {"record_seconds": 0.02}}
    sweep.write(noop_records(400), model=model)
    process = sweep.start()
    eventually(lambda: results_so_far(sweep) > 30, "results come in")
    process.kill()
    process.wait()
    kept = results_so_far(sweep)
    done = sweep.run("resume")
    assert done.returncode == Exit.OK, done.stderr
    assert f"resumed: {kept} of 400" in done.stderr
    assert [result["custom_id"] for result in sweep.results()] == [f"r{number}" for number in range(400)]
    assert sweep.summary["recomputed"] == 0


def test_jobs_of_handwritten_submit_file_return_results(factory, sweep: SweepFolder, collector):
    # A warm lane first: a hand-written job names the digest that condor_status shows.
    keeper = sweep.write(noop_records(2), model={"name": "shared", "engine": "noop"}).start()
    assert keeper.wait() == Exit.OK
    (lane, *_) = eventually(lambda: collector.lanes(["GlideTemplate"], 'GlideModel == "shared"'), "a lane has it")
    (sweep.folder / "records-0.jsonl").write_text('{"custom_id": "hand", "prompt": "written"}\n')
    template = (SUBMIT_TEMPLATES / "invocation.sub").read_text()
    (sweep.folder / "invocation.sub").write_text(f"digest = {lane['GlideTemplate']}\nmodel = shared\n{template}")
    submitted = glide("submit", str(sweep.folder / "invocation.sub"), "--watch")
    assert submitted.returncode == Exit.OK, submitted.stderr
    gathered = glide("gather", submitted.stdout.strip(), "--to", str(sweep.folder / "home"))
    assert gathered.returncode == Exit.OK, gathered.stderr
    (result,) = [json.loads(line) for line in (sweep.folder / "home" / "result-0.jsonl").read_text().splitlines()]
    assert (result["custom_id"], result["text"], result["error"]) == ("hand", "written", None)
    again = glide("gather", submitted.stdout.strip(), "--to", str(sweep.folder / "home"))
    assert again.returncode == Exit.INPUT and "gathered already" in again.stderr


def test_streamed_results_survive_killed_node(factory, pool, sweep: SweepFolder):
    count = 600
    model = {"name": "streamed", "engine": "noop", "options": {"record_seconds": 0.02}}
    process = sweep.write(noop_records(count), model=model, pack=count).start()
    eventually(lambda: results_so_far(sweep) > 30 or process.poll() is not None, "results of the only job come in")
    kept = results_so_far(sweep)
    assert kept < count and process.poll() is None
    for master in pool.glidein_masters():
        master.send(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == Exit.OK, errors
    results = sweep.results()
    assert [result["custom_id"] for result in results] == [f"r{number}" for number in range(count)]
    assert sum(result["attempts"] == 1 for result in results) >= kept
    assert sum(result["attempts"] > 1 for result in results) > 0
    assert sweep.summary["recomputed"] == 0 and sweep.summary["evictions"] > 0
