"""`glide serve` and the real `openai` package, with real model servers that standing jobs connect."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import threading
import time
from typing import Any

import openai
import pytest

from glide.factory.snapshot import Snapshot
from glide.live.service import LiveService
from glide.report.status import document, tables
from tests.conftest import eventually
from tests.serve_rig import BOB, Serving, ask, at_once, metrics, offered, ready


def restarted(serving: Serving) -> Serving:
    """Start `glide serve` again, at the same port, with the same folder."""
    serving.stop()
    return Serving(serving.folder, serving.models, serving.worker, serving.port)


# ---- what clients see ----------------------------------------------------------------------------


def test_openai_client_lists_models_and_chats(serving):
    client = serving().client()
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").owned_by == "glide"
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("hello", "stop")
    assert answer.model == "echo" and answer.id.startswith("chatcmpl-") and answer.usage is not None


def test_completion_of_several_prompts_keeps_their_order(serving):
    client = serving().client()
    answer = client.completions.create(model="echo", prompt=["b", "a", "c"])
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "b"), (1, "a"), (2, "c")]
    stream = client.completions.create(model="echo", prompt="alone", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "alone"


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_of_several_texts(serving, form):
    answer = serving().client().embeddings.create(model="echo", input=["a", "four"], encoding_format=form)
    vectors = [each.embedding for each in answer.data]
    assert vectors == ([[1.0], [4.0]] if form == "float" else ["AACAPw==", "AACAQA=="])


def test_default_client_decodes_embeddings(serving):
    answer = serving().client().embeddings.create(model="echo", input="abc")
    assert answer.data[0].embedding == [3.0]


def test_header_of_an_answer_names_its_times(serving):
    server = serving(offered(record_seconds=0.2))
    response = server.client().completions.with_raw_response.create(model="echo", prompt="slow")
    times = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    total, engine = float(times["total"]), float(times["engine"])
    assert 1000 * response.elapsed.total_seconds() >= total >= engine >= 200


def test_half_a_character_is_answered(serving):
    assert ask(serving().client(), "half \\ud800") == "half \\ud800"


def test_alternatives_become_choices(serving):
    answer = serving().client().chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "x"}], n=3
    )  # fmt: skip
    assert [choice.message.content for choice in answer.choices] == ["x", "x", "x"]


def test_errors_are_the_types_of_the_client(serving):
    running = serving(offered(raise_on="poison"))
    client = running.client()
    with pytest.raises(openai.NotFoundError, match="no model 'other'; this server has: echo"):
        ask(client, "x", model="other")
    with pytest.raises(openai.AuthenticationError):
        ask(running.client("wrong"), "x")
    with pytest.raises(openai.BadRequestError, match="a message is not an object with a role"):
        client.chat.completions.create(model="echo", messages=[{"text": "x"}])  # type: ignore[list-item]
    with pytest.raises(openai.InternalServerError, match="the prompt contains 'poison'"):
        ask(client, "poison")
    with pytest.raises(openai.NotFoundError):
        client.post("/audio/speech", body={}, cast_to=object)
    assert ask(client, "after all that") == "after all that"


def test_request_that_leaves_ends_on_the_node(serving):
    running = serving(offered(hang_on="hang"))
    with pytest.raises(openai.APITimeoutError):
        ask(running.client(timeout=1), "hang")
    eventually(lambda: 'glide_serve_in_flight{model="echo"} 0.0' in metrics(running), "no call is in flight")
    assert ask(running.client(), "next") == "next"


def test_metrics_count_requests_by_user_and_status(serving):
    running = serving()
    ask(running.client(), "x")
    with pytest.raises(openai.BadRequestError):
        running.client(BOB).completions.create(model="echo", prompt=7)  # type: ignore[call-overload]
    text = metrics(running)
    assert 'glide_serve_requests_total{model="echo",status="200",user="ada"} 1.0' in text
    assert 'glide_serve_requests_total{model="echo",status="400",user="bob"} 1.0' in text


# ---- lanes ---------------------------------------------------------------------------------------


def test_calls_of_a_killed_lane_go_to_another(serving):
    running = serving(offered(record_seconds=0.2, parallel=4), servers=2)
    results = []

    def call(number: int) -> str:
        results.append(number)
        return ask(running.client(), f"call {number}")

    def kill() -> None:
        eventually(lambda: len(results) == 32, "all calls have begun")
        time.sleep(0.3)
        running.worker.servers[0].process.kill()

    answers = at_once(lambda number: kill() if number == 32 else call(number), 33)
    assert answers == [*(f"call {number}" for number in range(32)), None]
    assert "glide_serve_begun_again" in metrics(running)


def test_status_is_shown_by_other_commands(serving, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path))
    running = serving()

    def lines() -> list[Any]:
        return tables(document(Snapshot()))

    eventually(lambda: "glide serve: echo: ready; 0 calls on 1 lanes, 0 waiting" in lines(), "the status")
    running.stop()
    assert lines() == ["no glideins, no jobs"]


def test_idle_model_is_unloaded_and_a_call_loads_it(serving, monkeypatch):
    monkeypatch.setattr("glide.live.model.IDLE_SECONDS", 0.5)
    running = serving(offered(idle_seconds=0.5))
    client = running.client()

    def is_idle() -> bool:
        status = client.get("/glide/status", cast_to=object)["models"]["echo"]  # type: ignore[index]
        return status["state"] == "not loaded; the next call loads it" and status["not_ready_since"] == 0

    for number in range(2):
        eventually(is_idle, "no lane has the model")
        assert len(running.worker.calls) == number
        assert ask(client, "loads it") == "loads it"


def test_lanes_connect_again_after_a_restart(serving):
    running = serving()
    (job,) = [call for call in running.worker.calls if call.process.poll() is None]
    again = restarted(running)
    try:
        assert ask(ready(again).client(), "still there") == "still there"
        assert [call for call in running.worker.calls if call.process.poll() is None] == [job]
    finally:
        again.stop()


def test_call_does_not_wait_for_the_records_of_a_job(serving):
    running = serving(offered(record_seconds=0.05))
    server, digest = running.worker.servers[0], running.models[0].template.digest
    records = [{"custom_id": str(number), "prompt": str(number)} for number in range(80)]
    job = server.call(records, digest)
    server.busy()
    assert ask(running.client(), "a call") == "a call"
    assert job.process.poll() is None, "the call has waited for the job"
    assert len(job.results()) == 80


def test_records_of_a_job_do_not_wait_for_all_calls(serving):
    running = serving(offered(record_seconds=0.05))
    server, digest = running.worker.servers[0], running.models[0].template.digest
    ended = threading.Event()

    def call(number: int) -> Any:
        if number == 4:
            job = server.call([{"custom_id": "r", "prompt": "r"}], digest)
            (result,) = job.results()
            ended.set()
            return result["text"]
        while not ended.is_set():
            ask(running.client(), "again and again")
        return None

    assert at_once(call, 5) == [None] * 4 + ["r"]


def test_dead_engine_does_not_fail_calls(serving):
    running = serving(offered(record_seconds=0.2, parallel=4))
    engine = running.worker.servers[0].engine

    def call(number: int) -> Any:
        if number == 8:
            time.sleep(0.3)
            return os.kill(engine, signal.SIGKILL)
        return ask(running.client(), f"call {number}")

    assert at_once(call, 9) == [*(f"call {number}" for number in range(8)), None]


def test_poisonous_call_gets_an_error_and_others_answers(serving):
    running = serving(offered(record_seconds=0.05, parallel=4, crash_on="poison"))
    answers = at_once(lambda number: ask(running.client(), "poison" if number == 3 else f"call {number}"), 8)
    assert isinstance(answers[3], openai.InternalServerError) and answers[3].code == "EngineDied"
    assert answers[3].response.headers["x-should-retry"] == "false"  # else the client would kill two more engines
    assert [answer for answer in answers if isinstance(answer, str)] == [f"call {n}" for n in range(8) if n != 3]


def test_used_secret_is_refused(serving):
    running = serving()
    job = running.worker.calls[0]
    copy = job.input.with_name("copy.in")
    copy.write_text(job.input.read_text())
    worker = running.worker
    stolen = type(job)(worker.servers[0], running.models[0].template, "copy", job.input.read_text(), "here-9.0")
    worker.calls.append(stolen)
    code, words = stolen.end()
    assert code == 0 and "unknown job, or its secret was already used" in words
    assert ask(running.client(), "x") == "x"


def test_secret_of_a_job_that_has_ended_is_refused(serving):
    running = serving()
    job = running.worker.calls[0]
    job.process.kill()
    eventually(lambda: len(running.worker.calls) > 1 and job.name not in running.identity.uses, "another job")
    copy = type(job)(running.worker.servers[0], running.models[0].template, "copy", job.input.read_text(), "here-9.0")
    running.worker.calls.append(copy)
    code, words = copy.end()
    assert code == 0 and "its job is not in the queue" in words


def test_call_without_any_lane_left_is_refused(serving, monkeypatch):
    monkeypatch.setattr("glide.serve.run.LiveService", functools.partial(LiveService, patience=1.0))
    running = serving(offered(record_seconds=30.0))

    def call(number: int) -> Any:
        if number:
            time.sleep(1.0)
            return running.worker.servers[0].process.kill()
        return ask(running.client(), "its lane is killed")

    (error, _) = at_once(call, 2)
    assert isinstance(error, openai.InternalServerError) and error.code == "model_not_ready"
    assert error.response.status_code == 503 and error.response.headers["Retry-After"] == "5"


def test_other_certificate_is_refused_by_the_node(serving):
    running = serving()
    job = running.worker.calls[0]
    invitation = json.loads(job.input.read_text()) | {"fingerprint": "0" * 64}
    fooled = type(job)(
        running.worker.servers[0], running.models[0].template, "fooled", json.dumps(invitation), "here-9.0"
    )  # fmt: skip
    running.worker.calls.append(fooled)
    assert fooled.process.stderr is not None
    assert "has another certificate than this job's input names" in fooled.process.stderr.readline()


def test_many_calls_of_a_user_do_not_delay_another(serving):
    running = serving(offered(record_seconds=0.2, parallel=4))  # 200 calls take longer than sending them
    began, waited = time.monotonic(), []

    def call(number: int) -> str:
        if number < 200:
            return ask(running.client(), f"call {number}")
        eventually(lambda: 'glide_serve_queued{model="echo"} 0.0' not in metrics(running), "calls wait")
        asked = time.monotonic()
        answer = ask(running.client(BOB), "bob's")
        waited.append((time.monotonic() - asked, time.monotonic() - began))
        return answer

    answers = at_once(call, 201)
    assert answers == [*(f"call {number}" for number in range(200)), "bob's"]
    alone, since = waited[0]
    assert since < time.monotonic() - began and alone < 1.5, "bob's call waited for ada's"
