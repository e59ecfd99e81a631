"""`glide serve` on a real pool: batches from upload to download, and kills of the server, of a glidein and a schedd."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from glide.bench.api_server import ApiServer
from glide.condor import EmbeddedPool
from glide.vocabulary import Exit, Job, Machine
from tests.conftest import eventually, factory_of
from tests.serve_rig import ask, at_once
from tests.test_outage import without_schedd

pytestmark = pytest.mark.pool


class Command(ApiServer):
    """A `glide serve` with one model of the noop engine."""

    def __init__(self, folder: Path, *options: str, **model: Any):
        spec = {"name": "echo", "engine": "noop", **model}
        file = folder / "echo.yaml"
        file.write_text(yaml.safe_dump({"name": "echo", "model": spec, "glideins": 2}))
        super().__init__("--model", file, *options)

    def client(self, **options: Any) -> openai.OpenAI:
        key = options.pop("api_key", None) or self.token
        return openai.OpenAI(base_url=self.url, api_key=key, **{"max_retries": 5, "timeout": 120, **options})


@pytest.fixture
def command(own_pool: EmbeddedPool, tmp_path: Path) -> Iterator[Any]:
    """Start `glide serve` beside a factory of its own."""
    running: list[Command] = []

    def begin(*options: str, **model: Any) -> Command:
        running.append(Command(tmp_path, *options, **model))
        return running[-1]

    with factory_of(own_pool):
        yield begin
        for each in running:
            each.stop()


def rows(count: int, **body: Any) -> bytes:
    lines = (
        {
            "custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "echo", "messages": [{"role": "user", "content": f"text {number}"}], **body},
        }
        for number in range(count)
    )  # fmt: skip
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def begin_batch(client: openai.OpenAI, content: bytes) -> Any:
    file = client.files.create(file=("in.jsonl", BytesIO(content)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "a test"}
    )  # fmt: skip


def ended(client: openai.OpenAI, batch: Any) -> Any:
    """Wait until a batch has ended."""

    def found() -> Any:
        now = client.batches.retrieve(batch.id)
        return now.status in ("completed", "failed", "cancelled") and now

    return eventually(found, "the batch has ended", 120)


def answers(client: openai.OpenAI, file: str) -> dict[str, str]:
    """The texts in an output file, by custom_id."""
    lines = map(json.loads, client.files.content(file).text.splitlines())
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def test_batch_runs_from_upload_to_download(command):
    running = command(options={"raise_on": "text 7"})
    client = running.client()
    batch = ended(client, begin_batch(client, rows(40)))
    assert (batch.status, batch.model, batch.metadata) == ("completed", "echo", {"for": "a test"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (40, 39, 1)
    assert answers(client, batch.output_file_id) == {f"r{n}": f"text {n}" for n in range(40) if n != 7}
    (error,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
    assert error["custom_id"] == "r7" and error["response"]["body"]["error"]["type"] == "Poisoned"
    assert [each.id for each in client.batches.list()] == [batch.id]
    assert len(list(client.files.list())) == 3
    client.files.delete(batch.output_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.output_file_id)


def test_wrong_batch_names_its_lines(command):
    client = command().client()
    content = rows(2) + b'{"custom_id": "x"}\n' + rows(1, model="other").replace(b"r0", b"y") + b"nonsense\n"
    content += rows(1, model=["echo"]).replace(b"r0", b"z")
    batch = ended(client, begin_batch(client, content))
    assert batch.status == "failed" and batch.output_file_id is None
    assert [(each.line, each.message.partition(";")[0]) for each in batch.errors.data] == [
        (3, "not an object with custom_id, method, url and body"), (4, "no model 'other'"),
        (5, "not JSON: Expecting value: line 1 column 1 (char 0)"), (6, "no model \"['echo']\""),
    ]  # fmt: skip
    twice = ended(client, begin_batch(client, rows(2).replace(b"r1", b"r0")))
    assert twice.status == "failed" and twice.errors.data[0].line == 2
    with pytest.raises(openai.NotFoundError):
        no_file = "file-" + "0" * 24
        client.batches.create(input_file_id=no_file, endpoint="/v1/chat/completions", completion_window="24h")


def test_batch_is_accounted_to_its_user(command, own_pool, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("the-token bob\n")
    tokens.chmod(0o600)
    client = command("--token-file", str(tokens), options={"record_seconds": 0.5}).client(api_key="the-token")
    batch = begin_batch(client, rows(40))
    jobs = f'regexp("^{batch.id}", {Job.RUN})'
    users = eventually(
        lambda: own_pool.tool("condor_q", "-allusers", "-constraint", jobs, "-af", "AcctGroupUser"), "its jobs"
    )
    assert set(users.split()) == {"bob"}
    client.batches.cancel(batch.id)
    assert ended(client, batch).status == "cancelled"


def test_live_call_gets_a_lane_although_a_sweep_uses_all(command, own_pool, sweep):
    options = {"record_seconds": 0.05}
    model = {"name": "echo", "engine": "noop", "options": options}
    records = [{"custom_id": str(number), "text": f"text {number}"} for number in range(3500)]
    process = sweep.write(records, model=model, accounting_group_user="ada", glideins=4).start()
    lanes = ("condor_status", "-constraint", f'{Machine.MODEL} == "echo" && State == "Claimed"', "-af", "Name")
    eventually(lambda: len(own_pool.tool(*lanes).split()) == 8, "the sweep uses all lanes for which the pool has room")
    assert ask(command(options=options).client(), "now") == "now"
    assert process.poll() is None, "the call was answered only after the sweep"
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert sorted(int(result["custom_id"]) for result in sweep.results()) == list(range(3500))


def test_cancelled_batch_keeps_its_answers(command, own_pool):
    running = command(options={"record_seconds": 0.05})
    client = running.client()
    batch = begin_batch(client, rows(1000))
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 20, "some answers")
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    texts = answers(client, batch.output_file_id)
    assert 20 < len(texts) < 1000 and all(texts[name] == f"text {name[1:]}" for name in texts)
    eventually(lambda: batch.id not in own_pool.tool("condor_q", "-allusers", "-af", Job.RUN), "its jobs are gone")
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_killed_server_continues_batches_and_calls(command):
    running = command(options={"record_seconds": 0.02})
    client = running.client()
    batch = begin_batch(client, rows(600))
    eventually(lambda: client.batches.retrieve(batch.id).status == "in_progress", "the batch runs")
    assert ask(client, "before") == "before"
    running.process.send_signal(signal.SIGKILL)
    running.process.wait()
    with pytest.raises(openai.APIConnectionError):
        ask(running.client(max_retries=0), "while it is down")
    running.start()
    began = time.monotonic()
    assert ask(running.client(), "after") == "after"
    assert time.monotonic() - began < 30, "the lane did not connect again"
    batch = ended(running.client(), batch)
    assert batch.status == "completed" and batch.request_counts.completed == 600


def test_calls_survive_kills_of_glideins(command, own_pool):
    running = command(options={"record_seconds": 0.3, "parallel": 8})
    client = running.client()
    ask(client, "the first lane is connected")

    def call(number: int) -> Any:
        if number == 16:
            return [kill_a_glidein(own_pool) for _ in range(2)]
        return [ask(client, f"call {number} {each}") for each in range(12)]

    *texts, _ = at_once(call, 17)
    assert texts == [[f"call {number} {each}" for each in range(12)] for number in range(16)]


def kill_a_glidein(pool: EmbeddedPool) -> None:
    """Kill a glidein. All its processes end with its master."""
    time.sleep(1.0)
    for master in pool.glidein_masters()[:1]:
        master.send(signal.SIGKILL)


def test_calls_and_batches_survive_a_restart_of_the_schedd(command, own_pool):
    running = command(options={"record_seconds": 0.05})
    client = running.client()
    assert ask(client, "before") == "before"
    batch = begin_batch(client, rows(400))
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 20, "some answers")
    with without_schedd(own_pool):
        assert ask(client, "without a schedd") == "without a schedd"
    assert ask(client, "after") == "after"
    batch = ended(client, batch)
    assert batch.status == "completed" and batch.request_counts.completed == 400
    assert answers(client, batch.output_file_id) == {f"r{number}": f"text {number}" for number in range(400)}


def test_second_server_and_wrong_files_are_refused(command, own_pool, tmp_path):
    command()
    second = subprocess.run(
        [sys.executable, "-m", "glide", "serve", "--model", str(tmp_path / "echo.yaml"), "--port", "0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert second.returncode == Exit.INPUT and "is in use by process" in second.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: x\nmodel: {name: x, engine: nope}\n")
    third = subprocess.run(
        [sys.executable, "-m", "glide", "serve", "--model", str(wrong)], capture_output=True, text=True
    )  # fmt: skip
    assert third.returncode == Exit.INPUT and f"{wrong}:2: model.engine: no engine 'nope'" in third.stderr
