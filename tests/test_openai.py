"""The openai engine against a small service on a real socket, one that can be slow, busy, broken and rude."""

from __future__ import annotations

import json
import socket
from collections import Counter
from email.utils import formatdate

import pytest

from glide.errors import TemplateError
from glide.server.engines import Completion, EngineRecord, openai_api
from glide.server.engines.openai import OpenAI
from glide.server.engines.responses import LONGEST_PAUSE, backoff, retry_after
from glide.template import Template
from glide.vocabulary import Machine, State
from tests import openai_service
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, command, entry
from tests.openai_service import HANG, RESET, engine, errors, records, says
from tests.server_rig import assert_exactly_once, failure

# These fixtures are shared by both modules about the openai engine.
service, serve = openai_service.service, openai_service.serve


# ---- becoming ready ------------------------------------------------------------------------------


def test_model_server_waits_until_service_is_ready(service, serve):
    service.unready = [says(503, "loading"), RESET, *[says(404)] * 999]
    server = serve()
    eventually(lambda: len(service.asked) > 3, "the service is asked again")
    assert server.now()[Machine.STATE] == State.LOADING
    service.unready.clear()
    server.reached(State.WARM)
    assert {path for _, path, _ in service.asked} == {"/v1/models"}
    (result,) = server.call(records(1)).results()
    assert (result["text"], result["tokens"], result["error"]) == ("says 0", 3, None)


@pytest.mark.parametrize(
    "unready, options, words",
    [
        ([says(503, "loading weights")] * 99, {}, "503 loading weights"),
        ([HANG] * 9, {"request_seconds": 1.0}, "no answer within 1 s"),
        ([RESET] * 99, {}, "Error"),
        ([], {"model": "unheard-of"}, "no model unheard-of; it has m, other"),
    ],
    ids=["busy", "hanging", "resetting", "another-model"],
)
def test_readiness_timeout_error_includes_last_http_response(service, unready, options, words):
    service.unready = unready
    alone = OpenAI(Template("m", "openai"), OpenAI.Options(url=service.url, ready_seconds=1.2, **options))
    with pytest.raises(TemplateError) as refused:
        alone.prepare()
        alone.load(None, lambda state: None)
    for part in (service.url, "1.2 s", words):
        assert part in str(refused.value)


def test_model_server_says_why_openai_service_is_unreachable(service, serve):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody listens, and nobody else gets the port
        nobody = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        words = failure(serve(url=nobody, ready_seconds=1.0))
    assert (
        nobody in words and "not ready within 1 s" in words and "ConnectionRefusedError" in words and "\n" not in words
    )


# ---- records -------------------------------------------------------------------------------------


def test_each_record_is_answered_once_despite_unreliable_service(service, serve):
    ways = [[says(429, retry_after="1")], [says(500)], [says(503), says(502)], [RESET], [HANG], [says(429), RESET]]
    service.troubles = {f"says {n * 7}": list(way) for n, way in enumerate(ways)}
    server = serve(parallel=8, request_seconds=3.0)
    server.reached(State.WARM)
    sent = records(60)
    results = server.call(sent).results()
    assert_exactly_once(results, sent)
    assert errors(results) == {}
    assert {result["custom_id"]: result["text"] for result in results} == {r["custom_id"]: r["prompt"] for r in sent}
    assert set(service.served.values()) == {1}
    assert service.connections < len(sent)


def test_record_refused_by_service_is_not_sent_again(service, serve):
    service.troubles["says 5"] = [says(400, "this prompt is too long")] * 9
    server = serve(parallel=8)
    server.reached(State.WARM)
    results = server.call(records(16)).results()
    assert errors(results) == {"r5": {"type": "Refused", "message": "400 this prompt is too long"}}
    assert [len(service.times(f"says {n}")) for n in range(16)] == [1] * 16


def test_record_without_answer_gets_error_after_retries(service, serve):
    service.troubles = {"says 0": [says(500, "out of memory")] * 9, "says 1": [RESET] * 9}
    server = serve(parallel=4, retries=1)
    server.reached(State.WARM)
    found = errors(server.call(records(8)).results())
    assert {name: error["type"] for name, error in found.items()} == {"r0": "NoAnswer", "r1": "NoAnswer"}
    assert found["r0"]["message"] == "no completion after 2 tries; last answer: 500 out of memory"
    assert [len(service.times(f"says {n}")) for n in range(8)] == [2, 2, 1, 1, 1, 1, 1, 1]


def test_record_timeout_cancels_only_its_own_request(service, serve):
    service.troubles["says 2"] = [HANG]
    server = serve(parallel=4)
    server.reached(State.WARM)
    pid = server.engine
    sent = [{**record, "timeout": 3} for record in records(8)]
    results = server.call(sent).results()
    assert_exactly_once(results, sent)
    assert {name: error["type"] for name, error in errors(results).items()} == {"r2": "RecordTimeout"}
    assert [len(service.times(f"says {n}")) for n in range(8)] == [1] * 8
    eventually(lambda: service.given_up == 1, "the service is hung up on")
    assert errors(server.call(records(8)).results()) == {}
    assert server.engine == pid


def test_rate_limited_service_serves_all_records(service):
    service.rate = 20.0
    calls = [[EngineRecord(n, f"says {n}") for n in range(first, first + 4)] for first in (0, 4, 8)]
    asking = engine(service, parallel=4)
    assert [asking.call(call) for call in calls] == [[answered(r.prompt) for r in call] for call in calls]
    assert set(service.served.values()) == {1}


def test_busy_answer_of_service_delays_all_requests(service):
    service.troubles = {"busy": [says(429, retry_after="2")], "broken": [says(503)]}
    assert engine(service).call([EngineRecord(0, "busy"), EngineRecord(1, "broken")]) == [
        answered("busy"), answered("broken")
    ]  # fmt: skip
    refused = service.times("busy")[0]
    assert service.times("busy")[1] - refused >= 2 and service.times("broken")[1] - refused >= 2


@pytest.mark.parametrize(
    "body, words",
    [("<html>sign in</html>", "200 <html>"), ('{"choices": []}', "choices"), ("[]", "200"),
     ('{"choices": [{"message": {"content": ["a"]}}]}', "content")],
)  # fmt: skip
def test_answer_without_completion_becomes_bad_answer_error(service, body, words):
    service.troubles["p"] = [(200, body)]
    (outcome,) = engine(service).call([EngineRecord(0, "p")])
    assert outcome.error["type"] == "BadAnswer" and words in outcome.error["message"]


def answered(text: str) -> Completion:
    """The outcome that the service's answer gives."""
    return Completion(text, 3, {"usage": {"prompt_tokens": 0, "completion_tokens": 3}, "finish_reason": "stop"})


# ---- what is asked -------------------------------------------------------------------------------


def test_chat_sends_system_message_and_accepts_empty_content(service):
    asking = engine(service, model="other", system="Be brief.")
    assert asking.call([EngineRecord(0, "", {"max_new_tokens": 4, "do_sample": False})]) == [answered("")]
    (_, path, body) = service.asked[-1]
    assert path == "/v1/chat/completions"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}]
    assert body == {"model": "other", "messages": messages, "max_tokens": 4, "temperature": 0}


def test_prompt_is_sent_unchanged_if_chat_is_off(service):
    assert engine(service, chat=False).call([EngineRecord(0, "Once upon")]) == [answered("Once upon")]
    assert service.asked[-1][1:] == ("/v1/completions", {"model": "m", "prompt": "Once upon", "temperature": 0})


@pytest.mark.parametrize(
    "generate, asked",
    [
        # Greedy, as on the transformers engine, unless sampling is asked for.
        ({}, {"temperature": 0}),
        ({"max_new_tokens": 4}, {"max_tokens": 4, "temperature": 0}),
        ({"top_p": 1, "seed": 1}, {"top_p": 1, "seed": 1, "temperature": 0}),
        ({"top_p": 0.9, "seed": 1}, {"top_p": 0.9, "seed": 1}),
        ({"do_sample": None, "temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 1, "n": 4, "top_k": None}, {"temperature": 1, "n": 4}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0}),
        ({"do_sample": True}, {}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True, "stop": "\n"}, {"stop": "\n"}),
        ({"do_sample": True, "stop_strings": ["a", "b"]}, {"stop": ["a", "b"]}),
    ],
)
def test_generate_options_are_translated_to_openai_names(generate, asked):
    assert openai_api.options(generate, chat=True) == asked


@pytest.mark.parametrize(
    "chat, generate, asked",
    [
        (True, {"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        (True, {"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        (False, {"logprobs": 3}, {"logprobs": 3}),
        (False, {"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        (False, {"logprobs": True}, {"logprobs": 0}),
        (True, {"logprobs": False}, {}),
    ],
)
def test_logprobs_options_are_translated_for_each_openai_endpoint(chat, generate, asked):
    assert openai_api.options(generate, chat) == {**asked, "temperature": 0}


def test_record_with_unknown_option_fails_before_any_request(service):
    bad, good = engine(service).call([EngineRecord(0, "bad", {"num_beams": 2}), EngineRecord(1, "good")])
    assert bad.error["type"] == "UnknownOption" and "num_beams" in bad.error["message"]
    assert good == answered("good")
    assert service.times("bad") == []


# ---- pauses --------------------------------------------------------------------------------------


def test_retry_after_header_accepts_seconds_or_date():
    now = 1_700_000_000.0
    assert retry_after("7", now) == 7 and retry_after("1.5", now) == 1.5
    assert retry_after(formatdate(now + 30, usegmt=True), now) == 30
    assert [retry_after(rubbish, now) for rubbish in ("", "soon", "Mon, 99 Foo 2026")] == [0, 0, 0]


def test_backoff_grows_and_respects_retry_after_header():
    assert backoff(0) < backoff(2) < backoff(4) < backoff(6)
    assert backoff(0, requested=20) == 20
    for requested in (0.0, 1e9, float("inf"), float("nan"), -1e9):
        assert backoff(5000, requested) == LONGEST_PAUSE


# ---- beside glideins -----------------------------------------------------------------------------


@pytest.mark.pool
def test_external_service_and_glideins_share_one_sweep(own_pool, service, sweep, tmp_path):
    model = {"name": "m", "engine": "noop", "options": {"record_seconds": 0.02}}
    service.rate = 40
    service.unready = [says(503)] * 3
    for number in range(0, 400, 50):
        service.troubles[f"text {number}"] = [says(429, retry_after="1"), says(500)]
    options = {"model": "m", "chat": False, "parallel": 2}
    missing = {"url": "http://127.0.0.1:1/v1", "ready_seconds": 1}
    factory = FactoryProcess(
        tmp_path, "services",
        entry("remote", max_glideins=1, service={"serves": "m", "options": {**options, "url": service.url}}),
        entry("absent", max_glideins=1, service={"serves": "m", "options": missing}),
        entry("nodes", max_glideins=1),
    )  # fmt: skip
    factory.start()
    try:
        sweep.write([{"custom_id": str(n), "text": f"text {n}"} for n in range(400)], model=model, glideins=3, pack=10)
        assert sweep.run().returncode == 0
        results = sweep.results()
        assert [result["text"] for result in results] == [f"text {n}" for n in range(400)]
        by_entry = Counter(result["glidein"].partition("-")[0] for result in results)
        assert set(by_entry) == {"remote", "nodes"} and min(by_entry.values()) > 10, by_entry
        assert set(service.served.values()) == {1}, "no record is paid for twice"
        told = json.loads(command("factory", "status", "--json").stdout)
        (site,) = (site for site in told["sites"] if site["site"] == "services")
        (absent,) = (each for each in site["entries"] if each["entry"] == "absent")
        assert "127.0.0.1:1" in absent["last_failure"]["reason"] and "1 s" in absent["last_failure"]["reason"]
    finally:
        factory.stop()
