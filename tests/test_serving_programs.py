"""Real serving programs in glideins on a real pool: the same texts as the transformers engine, and clean ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from glide.bench.gguf_file import write_gguf
from glide.condor import Collector
from glide.template import Template
from glide.vocabulary import Machine
from tests.conftest import eventually
from tests.server_rig import failure

pytestmark = [pytest.mark.pool, pytest.mark.models]

VERIFIER = Path(__file__).resolve().parents[1] / "workflows" / "promptverify"
PROMPT = "Claim: {claim}\nEvidence: {evidence}\nVerdict:"
GENERATE = {"max_new_tokens": 4, "do_sample": False}
FLOAT32 = ["--cache-type-k", "f32", "--cache-type-v", "f32"]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    """The folder of the tiny verifier as a GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(VERIFIER / "model", folder / "tiny-verifier-f32.gguf")
    return folder


def claims(count: int) -> list[dict[str, Any]]:
    lines = (VERIFIER / "claims.jsonl").read_text().splitlines()[-count:]
    return [json.loads(line) for line in lines]


def models(gguf: Path) -> dict[str, dict[str, Any]]:
    return {
        "reference": {
            "engine": "transformers", "path": str(VERIFIER / "model"), "options": {"dtype": "float32"},
        },
        "llamacpp": {
            "engine": "server", "path": str(gguf), "options": {"program": "llamacpp", "args": FLOAT32},
        },
        "serve": {
            "engine": "server", "path": str(VERIFIER / "model"), "options": {"program": "transformers"},
        },
    }  # fmt: skip


def processes_of(folder: str) -> list[int]:
    """Return the processes of the glidein that runs in a folder, condor_master included."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"={folder}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def test_programs_give_the_texts_of_the_transformers_engine(factory, sweep, gguf):
    records = claims(2000)
    done = sweep.write(
        records, models=models(gguf), prompts={"plain": PROMPT}, generate=GENERATE, expect="label", glideins=3
    ).run()
    assert done.returncode == 0, done.stderr
    results = {name: read(sweep, name) for name in models(gguf)}
    assert [len(each) for each in results.values()] == [2000] * 3
    texts = {name: [each["text"] for each in lines] for name, lines in results.items()}
    assert texts["llamacpp"] == texts["reference"]
    assert texts["serve"] == texts["reference"]
    # `transformers serve` counts the tokens of each answer, as the transformers engine does.
    assert [each["usage"] for each in results["serve"]] == [each["usage"] for each in results["reference"]]
    assert {each["finish_reason"] for each in results["llamacpp"]} == {"stop"}


def read(sweep, model: str) -> list[dict[str, Any]]:
    path = sweep.out / model / "plain" / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_glidein_leaves_no_program_and_loses_no_record(factory, sweep, gguf):
    """The glidein's processes are killed without warning, as on a node that loses its power."""
    prompts = {f"p{number}": f"{number}. {PROMPT}" for number in range(2)}
    sweep.write(claims(1500), model=models(gguf)["llamacpp"] | {"name": "llama-killed"}, prompts=prompts,
                generate=GENERATE, glideins=1)  # fmt: skip
    run = sweep.start()
    file = sweep.out / "p0" / "results.jsonl"
    eventually(lambda: file.exists() and file.read_text().count("\n") > 50, "the first results")
    (lane, *_) = Collector().lanes([Machine.SOCKET], f'{Machine.MODEL} == "llama-killed"')
    folder = str(Path(lane[Machine.SOCKET]).parents[1])
    victims = processes_of(folder)
    commands = [Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0") for each in victims]
    (program,) = (words for words in commands if any(word.endswith(b"xllamacpp_server.py") for word in words))
    # The glidein has one of the machine's cores, so the program gets one thread.
    assert program[program.index(b"--threads") + 1] == b"1"
    for process in victims:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    eventually(lambda: not processes_of(folder), "nothing of the glidein is left", budget=20)
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    for prompt in prompts:
        results = sweep.results(prompt)
        assert [each["custom_id"] for each in results] == [each["custom_id"] for each in claims(1500)]
        assert all(each["error"] is None for each in results)


def test_model_that_llamacpp_cannot_load_is_reported(start, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but not a model")
    reason = failure(start(Template.of_folder("m", "server", tmp_path, {"program": "llamacpp"})))
    assert "llamacpp exited with code 1" in reason and "failed to load model" in reason


def test_status_shows_why_a_program_failed(factory, sweep, tmp_path):
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "broken.gguf").write_bytes(b"GGUF, but not a model")
    model = {"name": "broken", "engine": "server", "path": str(tmp_path / "gguf"), "options": {"program": "llamacpp"}}
    sweep.write(claims(5), model=model, prompts={"plain": PROMPT}, generate=GENERATE).start()
    status = [sys.executable, "-m", "glide", "status"]
    words = ("llamacpp exited with code 1", "failed to load model")

    def shows() -> bool:
        told = subprocess.run(status, capture_output=True, text=True).stdout
        return all(each in " ".join(told.split()) for each in words)

    eventually(shows, "the reason in `glide status`")


@pytest.mark.soak
def test_commands_of_the_serving_example_run(tmp_path):
    """Run the README's commands in a copy of the example. The sweep starts its own pool and factory."""
    shutil.copytree(VERIFIER.parent, tmp_path / "workflows", ignore=shutil.ignore_patterns("results", "env", "gguf"))
    readme = (tmp_path / "workflows" / "serving" / "README.md").read_text()
    commands = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)[0]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CONDOR", "_CONDOR"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GLIDE_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    try:
        done = subprocess.run(
            ["bash", "-euxc", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
    finally:
        subprocess.run(["glide", "pool", "down"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warm" in done.stdout + done.stderr or "warm" in done.stdout
    summary = json.loads((tmp_path / "results" / "serving-llamacpp" / "summary.json").read_text())
    assert summary["prompts"]["plain"] == {
        "records": 3000,
        "errors": 0,
        "accuracy": summary["prompts"]["plain"]["accuracy"],
    }
