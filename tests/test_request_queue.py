"""The queue that sends records to a service: shared requests, failures, and what it reports."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from email.message import Message
from typing import Any

import pytest

from glide.protocol import frames
from glide.server import result_channel
from glide.server.engine_process import encoded
from glide.server.engines import Completion, EngineRecord, openai_api
from glide.server.engines.http_client import NoResponse, Response
from glide.server.engines.request_queue import RequestQueue, Target
from glide.server.result_channel import FLUSH_SIZE, ResultChannel
from tests.conftest import eventually

GREEDY = {"max_new_tokens": 4}


class Service:
    """Answers requests in place of an HTTP client. `answer` gets the prompts of a request."""

    def __init__(self, answer: Callable[[list[str]], tuple[int, Any]]):
        self.answer = answer
        self.requests: list[list[str]] = []
        self.bodies: list[Any] = []
        self.in_flight = self.most = 0
        self.lock = threading.Lock()
        self.running: list[str] = []  # the prompts in flight

    def send(self, method: str, path: str, seconds: float, body: Any, cancellation: Any, on_block: Any) -> Response:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        with self.lock:
            self.requests.append(prompts)
            self.bodies.append(body)
            self.in_flight += len(prompts)
            self.running += prompts
            self.most = max(self.most, self.in_flight)
        try:
            if "hang" in prompts:
                cancellation.event.wait(30)
                raise NoResponse("cancelled")
            status, content = self.answer(prompts)
            return Response(status, Message(), json.dumps(content))
        finally:
            with self.lock:
                self.in_flight -= len(prompts)
                for prompt in prompts:
                    self.running.remove(prompt)


class Reports:
    """Collects what a queue reports, in its order."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.outcomes: dict[int, Completion] = {}
        self.times: Counter[int] = Counter()
        self.changed = threading.Condition()

    def started(self, keys: Sequence[int]) -> None:
        with self.changed:
            assert not self.running & set(keys)
            self.running |= set(keys)

    def paused(self, keys: Sequence[int]) -> None:
        with self.changed:
            self.running -= set(keys)

    def done(self, key: int, completion: Completion) -> None:
        with self.changed:
            self.times[key] += 1
            self.running -= {key}
            self.outcomes[key] = completion
            self.changed.notify()

    def wait(self, count: int) -> dict[int, Completion]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.outcomes) >= count, 30)
        assert set(self.times.values()) == {1} and not self.running
        return self.outcomes


def echo(prompts: list[str]) -> tuple[int, Any]:
    """Answer with the prompts, in the reverse order."""
    choices = [{"index": number, "text": prompt, "finish_reason": "stop"} for number, prompt in enumerate(prompts)]
    return 200, {"choices": choices[::-1], "usage": {"prompt_tokens": 1, "completion_tokens": len(prompts)}}


def queue(
    service: Service, reports: Reports, prompts: int = 8, parallel: int = 4, most: int = 32, **more: Any
) -> RequestQueue:
    target = Target(service, "m", False, "", parallel, prompts, most, 10.0, 0, **more)  # type: ignore[arg-type]
    return RequestQueue(target, reports)


def records(count: int, generate: dict[str, Any] = GREEDY) -> list[EngineRecord]:
    return [EngineRecord(number, f"text {number}", generate) for number in range(count)]


def test_short_answers_share_requests_and_keep_their_order():
    service, reports = Service(echo), Reports()
    queue(service, reports).submit(records(100))
    found = reports.wait(100)
    assert all(found[number].text == f"text {number}" for number in range(100))
    assert max(map(len, service.requests)) == 8 and sum(map(len, service.requests)) == 100
    assert service.most <= 32
    # The service counts only the tokens of all prompts together.
    assert found[0].tokens is None and "usage" not in found[0].extra


def test_long_answers_get_requests_of_their_own():
    service, reports = Service(echo), Reports()
    queue(service, reports).submit(records(9, {"max_new_tokens": 500}))
    assert reports.wait(9)[0].extra["usage"] == {"prompt_tokens": 1, "completion_tokens": 1}
    assert {len(each) for each in service.requests} == {1}


def test_failing_request_is_divided_until_the_bad_record_is_alone():
    service, reports = (
        Service(lambda prompts: (400, {"error": "no"}) if "text 5" in prompts else echo(prompts)),
        Reports(),
    )
    queue(service, reports, prompts=16).submit(records(40))
    found = reports.wait(40)
    assert [number for number, each in found.items() if each.error] == [5]
    assert found[5].error == {"type": "Refused", "message": "400 no"}


def test_records_with_different_adapters_are_kept_apart():
    """vLLM on CPUs and llama.cpp compute some requests wrongly while they compute others with another adapter."""
    mixed = False

    def answer(prompts: list[str]) -> tuple[int, Any]:
        nonlocal mixed
        time.sleep(0.005)
        with service.lock:
            mixed = mixed or len({each.split()[0] for each in service.running}) > 1
        return (400, {"error": "no"}) if "base 7" in prompts else echo(prompts)

    service, reports = Service(answer), Reports()
    names = ("a", "base", "b")
    texts = [f"{names[number % 3]} {number}" for number in range(200)]
    sent = [
        EngineRecord(number, text, GREEDY, adapter="" if text.startswith("base") else text[0])
        for number, text in enumerate(texts)
    ]
    fields = {"": {"cache_prompt": False}, "a": {"lora": 0}, "b": {"lora": 1}}
    asking = queue(service, reports, adapter_fields=fields)
    for start in range(0, 200, 20):
        asking.submit(sent[start : start + 20])
    found = reports.wait(200)
    assert [number for number, each in found.items() if each.error] == [7]
    assert [found[number].text for number in range(200) if number != 7] == [t for t in texts if t != "base 7"]
    assert not mixed
    for body, (first, *_) in zip(service.bodies, service.requests, strict=True):
        wanted = fields[first.split()[0].replace("base", "")]
        assert wanted.items() <= body.items()


def test_late_request_is_divided_and_only_the_hanging_record_fails():
    service, reports = Service(echo), Reports()
    asking = queue(service, reports, prompts=16, parallel=2)
    asking.submit([*records(15), EngineRecord(15, "hang", GREEDY)])

    def is_done() -> bool:
        asking.cancel(sorted(reports.running), [])
        return len(reports.outcomes) == 16

    eventually(is_done, "all records have an outcome")
    found = reports.wait(16)
    assert {number for number, each in found.items() if each.error} <= {*range(16)} and found[15].error
    assert found[15].error["type"] == "RecordTimeout"


def test_unwanted_records_end_without_an_answer():
    service, reports = Service(echo), Reports()
    asking = queue(service, reports, prompts=1, parallel=1)
    asking.submit([EngineRecord(100, "hang", GREEDY), *records(5)])
    eventually(lambda: service.requests == [["hang"]], "the first request runs")
    asking.cancel([], [0, 1, 2, 3, 4, 100])
    found = reports.wait(6)
    assert {each.error["type"] for each in found.values() if each.error} == {"RecordTimeout"} and len(found) == 6
    assert service.requests == [["hang"]]


def test_fewer_prompts_are_in_flight_after_the_limit_was_lowered():
    gate = threading.Event()

    def answer(prompts: list[str]) -> tuple[int, Any]:
        gate.wait(30)
        return echo(prompts)

    service, reports = Service(answer), Reports()
    asking = queue(service, reports, prompts=1, parallel=32, most=32)
    asking.limit_to(3)
    asking.submit(records(50))
    assert asking.in_flight == 3
    gate.set()
    reports.wait(50)
    assert asking.most == 32


# ---- what an API's answer becomes ----------------------------------------------------------------


def test_options_that_are_equal_only_for_python_do_not_share_a_request():
    def record(value: Any) -> EngineRecord:
        return EngineRecord(0, "text", {"max_new_tokens": 4, "logprobs": value})

    assert openai_api.can_share(record(1), record(1), chat=False, counts=True)
    assert not openai_api.can_share(record(1), record(True), chat=False, counts=True)
    assert not openai_api.can_share(record(0), record(False), chat=False, counts=True)
    assert not openai_api.can_share(record(1), record(1), chat=True, counts=True)


def test_choices_and_tokens_belong_to_their_prompts():
    def choice(index: int, text: str, *tokens: int) -> dict[str, Any]:
        return {"index": index, "text": text, "token_ids": list(tokens), "prompt_token_ids": [1, 2, index]}

    sampled = {"n": 2, "temperature": 1.0}
    answer = {"choices": [choice(3, "d", 1, 2), choice(0, "a", 1), choice(2, "c"), choice(1, "b", 1)], "usage": {}}
    first, second = openai_api.completions([EngineRecord(0, "p", sampled), EngineRecord(1, "q", sampled)], answer)
    assert (first.text, second.text) == ("a", "c")
    assert [each["text"] for each in second.extra["choices"]] == ["c", "d"]
    assert [each["index"] for each in second.extra["choices"]] == [0, 1]
    assert second.extra["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert not any("token_ids" in each for each in second.extra["choices"])
    with pytest.raises(ValueError):
        openai_api.completions([EngineRecord(0, "p"), EngineRecord(1, "q")], {"choices": [choice(0, "a")]})


def test_answer_without_usage_has_unknown_tokens():
    (found,) = openai_api.completions([EngineRecord(0, "p")], {"choices": [{"text": "a"}]})
    assert found.tokens is None and "usage" not in found.extra


def test_embeddings_are_sorted_by_their_index():
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    (found,) = openai_api.completions([EngineRecord(0, ["p", "q"], task="embed")], {"data": data})
    assert found.extra["embeddings"] == [[1.0], [2.0]]
    first, second = openai_api.completions([EngineRecord(n, "p", task="embed") for n in (0, 1)], {"data": data})
    assert (first.extra["embedding"], second.extra["embedding"]) == ([1.0], [2.0])


# ---- the way to the model server -----------------------------------------------------------------


@pytest.fixture
def channel():
    """A result channel, and the model server's end of its connection."""
    ours, theirs = socket.socketpair()

    def encode(completion: Completion, seconds: float) -> tuple[str, bool]:
        return encoded({"text": completion.text, "error": None, "seconds": seconds})

    yield ResultChannel(theirs, encode, dict), ours
    ours.close()
    theirs.close()


def test_outcomes_are_sent_before_later_starts(channel):
    reports, server = channel
    reports.received([1, 2])
    reports.started([1])
    assert frames.receive(server) == {"started": [1]}
    reports.done(1, Completion("a", 1))
    reports.started([2])
    first, second = frames.receive(server), frames.receive(server)
    assert [key for key, _, _ in first["done"]] == [1] and second == {"started": [2]}
    assert first["busy"] > 0


def test_last_outcome_of_an_engine_is_sent_at_once(channel, monkeypatch):
    monkeypatch.setattr(result_channel, "FLUSH_SECONDS", 3600)
    reports, server = channel
    server.settimeout(30)
    reports.received([1, 2])
    reports.done(1, Completion("a", 1))
    reports.done(2, Completion("b", 1))
    assert [key for key, _, _ in frames.receive(server)["done"]] == [1, 2]


def test_large_results_are_sent_in_several_messages(channel):
    reports, server = channel
    reports.received(range(3))
    for key in range(3):
        reports.done(key, Completion("x" * FLUSH_SIZE, 1))
    messages = []
    while sum(len(each["done"]) for each in messages) < 3:
        messages.append(frames.receive(server))
    assert len(messages) == 3
    seconds = [json.loads(text)["seconds"] for each in messages for _, text, _ in each["done"]]
    assert sum(seconds) == pytest.approx(sum(each["busy"] for each in messages), rel=1e-3)


def test_live_record_with_another_adapter_does_not_wait_for_all_others():
    def slow(prompts: list[str]) -> tuple[int, Any]:
        time.sleep(0.02)
        return echo(prompts)

    service, reports = Service(slow), Reports()
    fields = {"": {}, "a": {"lora": 1}}
    asking = queue(service, reports, prompts=1, parallel=2, most=2, adapter_fields=fields)
    asking.submit(records(60))
    asking.submit([EngineRecord(100, "live", GREEDY, adapter="a", live=True)])
    with reports.changed:
        assert reports.changed.wait_for(lambda: 100 in reports.outcomes, 30)
        assert len(reports.outcomes) < 30
    assert len(reports.wait(61)) == 61
