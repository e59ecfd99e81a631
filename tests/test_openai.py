"""The openai engine against a small service on a real socket, one that can be slow, busy, broken and rude."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glide.errors import TemplateError
from glide.server.engines import Completion, EngineRecord
from glide.server.engines.openai import KEYS, LONGEST_PAUSE, OpenAI, api_options, backoff, retry_after
from glide.template import Template
from glide.vocabulary import Machine, State
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, command, entry
from tests.server_rig import assert_exactly_once, failure

HANG, RESET = "HANG", "RESET"
KEY = "sk-0123456789abcdef"


class Service(ThreadingHTTPServer):
    """Serves the model "m": each prompt comes back, after the troubles that are laid out for it.

    A trouble is what `says` returns, HANG, or RESET.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.key = ""  # what it demands
        self.unready: list[Any] = []  # what it answers at first when asked for its models
        self.troubles: dict[str, list[Any]] = {}  # by prompt
        self.asked: list[tuple[float, str, dict[str, Any]]] = []  # when, path, body
        self.served: Counter[str] = Counter()  # prompts, by how often they were answered well
        self.connections = self.given_up = 0
        self.rate = 0.0  # requests per second above which it says 429; 0 for any
        self.free_at = 0.0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def trouble(self, path: str, prompt: str) -> Any:
        with self.lock:
            troubles = self.unready if path.endswith("/models") else self.troubles.get(prompt, [])
            if troubles:
                return troubles.pop(0)
            if self.rate and not path.endswith("/models"):
                if time.monotonic() < self.free_at:
                    return says(429)
                self.free_at = time.monotonic() + 1 / self.rate
            return None

    def times(self, prompt: str) -> list[float]:
        """When it was asked for this."""
        return [when for when, _, body in self.asked if prompt_of(body) == prompt]

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is part of the game."""


class Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        self.respond({})

    def do_POST(self) -> None:
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, body: dict[str, Any]) -> None:
        prompt = prompt_of(body)
        self.server.asked.append((time.monotonic(), self.path, body))
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.send(*says(401, f"no such key: {self.headers['Authorization']}"))
        trouble = self.server.trouble(self.path, prompt)
        if trouble == HANG:
            if self.connection.recv(1) == b"":  # the other side has hung up
                self.server.given_up += 1
            self.close_connection = True
        elif trouble == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.connection.close()
        elif trouble:
            self.send(*trouble)
        elif self.path == "/v1/models":
            self.send(200, json.dumps({"data": [{"id": "m"}, {"id": "other"}]}))
        else:
            self.server.served[prompt] += 1
            text = {"message": {"content": prompt or None}} if "messages" in body else {"text": prompt}
            self.send(200, json.dumps({"choices": [text], "usage": {"completion_tokens": 3}}))

    def send(self, status: int, body: str, retry_after: str = "") -> None:
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


def says(status: int, message: str = "trouble", retry_after: str = "") -> tuple[int, str, str]:
    """An error as these services word it."""
    return status, json.dumps({"error": {"message": message}}), retry_after


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"] if "messages" in body else body.get("prompt", "")


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.shutdown()
    service.server_close()


@pytest.fixture
def serve(service: Service, start):
    """Start a model server for the service: for a sweep's, or for an entry's."""

    def serve(is_entrys: bool = False, **options: Any):
        options = {"url": service.url, "ready_seconds": 30.0, **options}
        return start(Template("m", "noop", service=options) if is_entrys else Template("m", "openai", options=options))

    return serve


def engine(service: Service, **options: Any) -> OpenAI:
    """The engine alone, loaded."""
    engine = OpenAI(Template("m", "noop", service={}), OpenAI.Options(url=service.url, ready_seconds=10.0, **options))
    engine.prepare()
    engine.load(None, lambda state: None)
    return engine


def records(count: int) -> list[dict[str, Any]]:
    return [{"custom_id": f"r{n}", "prompt": f"says {n}"} for n in range(count)]


def errors(results: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    return {result["custom_id"]: result["error"] for result in results if result["error"] is not None}


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Put a key where glideins' keys lie, and return its name."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def keyed(key: str = KEY, mode: int = 0o600) -> str:
        path = KEYS.expanduser() / "key"
        path.parent.mkdir(parents=True)
        path.write_text(key + "\n")
        path.chmod(mode)
        return path.name

    return keyed


# ---- becoming ready ------------------------------------------------------------------------------


def test_server_waits_until_service_is_ready(service, serve):
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
def test_unready_service_error_includes_last_answer(service, unready, options, words):
    service.unready = unready
    alone = OpenAI(Template("m", "openai"), OpenAI.Options(url=service.url, ready_seconds=1.2, **options))
    with pytest.raises(TemplateError) as refused:
        alone.prepare()
        alone.load(None, lambda state: None)
    for part in (service.url, "1.2 s", words):
        assert part in str(refused.value)


def test_model_server_fails_with_reason_without_service(service, serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    words = failure(serve(url=nobody, ready_seconds=1.0))
    assert nobody in words and "not ready within 1 s" in words and "ConnectError" in words and "\n" not in words


# ---- the key -------------------------------------------------------------------------------------


def test_refused_key_is_not_retried_or_logged(service, serve, keyed):
    service.key = "another"
    server = serve(is_entrys=True, key_file=keyed(), ready_seconds=600.0)
    words = failure(server)
    assert service.url in words and "401" in words and "Bearer [key]" in words and "~/.glide/keys/key" in words
    assert len(service.asked) == 1
    assert KEY not in server.log.read_text()


def test_key_reaches_only_the_service(service, serve, keyed):
    service.key = KEY
    service.troubles["says 1"] = [says(400, f"bad request with {KEY}")]
    server = serve(is_entrys=True, key_file=keyed())
    states = server.states()
    told = [next(states)]
    while told[-1][Machine.STATE] != State.WARM:
        told.append(next(states))
    results = server.call(records(3)).results()
    assert set(errors(results)) == {"r1"} and "[key]" in errors(results)["r1"]["message"]
    told += [server.now(), *results]
    assert KEY not in json.dumps(told)
    assert KEY not in server.log.read_text()
    for process in (server.process.pid, server.engine):
        for seen in ("cmdline", "environ"):
            assert KEY.encode() not in Path(f"/proc/{process}/{seen}").read_bytes()


@pytest.mark.parametrize(
    "key, mode, words",
    [(KEY, 0o640, "mode 640"), (KEY, 0o604, "mode 604"), ("", 0o600, "does not hold a key"),
     (f"{KEY}\n{KEY}", 0o600, "does not hold a key"), (f"{KEY}é", 0o600, "does not hold a key")],
)  # fmt: skip
def test_unprotected_or_invalid_key_file_is_refused(service, keyed, key, mode, words):
    with pytest.raises(TemplateError, match=words) as refused:
        engine(service, key_file=keyed(key, mode))
    assert KEY not in str(refused.value)
    assert service.asked == []


def test_missing_key_file_is_refused(service, keyed):
    with pytest.raises(TemplateError, match="nokey: No such file"):
        engine(service, key_file="nokey")


@pytest.mark.parametrize("name", ["/etc/passwd", "../tokens.d/glidein", "..", ".", "a/b", "~"])
def test_key_file_outside_its_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"name of a file in ~/\.glide/keys"):
        OpenAI.Options(url="http://h", key_file=name)


def test_key_file_in_sweep_is_refused_on_node(service, serve, keyed):
    assert "key_file is for the `service` of a site's entry" in failure(serve(key_file=keyed()))
    assert service.asked == []


# ---- records -------------------------------------------------------------------------------------


def test_unreliable_service_answers_each_record_once(service, serve):
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


def test_refused_record_fails_alone_without_retries(service, serve):
    service.troubles["says 5"] = [says(400, "this prompt is too long")] * 9
    server = serve(parallel=8)
    server.reached(State.WARM)
    results = server.call(records(16)).results()
    assert errors(results) == {"r5": {"type": "Refused", "message": "400 this prompt is too long"}}
    assert [len(service.times(f"says {n}")) for n in range(16)] == [1] * 16


def test_unanswered_record_gets_typed_error_after_retries(service, serve):
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
    assert [asking.call(call) for call in calls] == [[Completion(r.prompt, 3) for r in call] for call in calls]
    assert set(service.served.values()) == {1}


def test_busy_answer_delays_other_requests_too(service):
    service.troubles = {"busy": [says(429, retry_after="2")], "broken": [says(503)]}
    assert engine(service).call([EngineRecord(0, "busy"), EngineRecord(1, "broken")]) == [
        Completion("busy", 3), Completion("broken", 3)
    ]  # fmt: skip
    refused = service.times("busy")[0]
    assert service.times("busy")[1] - refused >= 2 and service.times("broken")[1] - refused >= 2


@pytest.mark.parametrize(
    "body, words",
    [("<html>sign in</html>", "200 <html>"), ('{"choices": []}', "choices"), ("[]", "200"),
     ('{"choices": [{"message": {"content": ["a"]}}]}', "content")],
)  # fmt: skip
def test_answer_without_completion_is_bad_answer_error(service, body, words):
    service.troubles["p"] = [(200, body)]
    (outcome,) = engine(service).call([EngineRecord(0, "p")])
    assert outcome.error["type"] == "BadAnswer" and words in outcome.error["message"]


# ---- what is asked -------------------------------------------------------------------------------


def test_chat_sends_system_message_and_accepts_empty_content(service):
    asking = engine(service, model="other", system="Be brief.")
    assert asking.call([EngineRecord(0, "", {"max_new_tokens": 4, "do_sample": False})]) == [Completion("", 3)]
    (_, path, body) = service.asked[-1]
    assert path == "/v1/chat/completions"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}]
    assert body == {"model": "other", "messages": messages, "max_tokens": 4, "temperature": 0}


def test_prompt_is_sent_unchanged_without_chat(service):
    assert engine(service, chat=False).call([EngineRecord(0, "Once upon")]) == [Completion("Once upon", 3)]
    assert service.asked[-1][1:] == ("/v1/completions", {"model": "m", "prompt": "Once upon", "temperature": 0})


@pytest.mark.parametrize(
    "generate, asked",
    [
        # Greedy, as on the transformers engine, unless sampling is asked for.
        ({}, {"temperature": 0}),
        ({"max_new_tokens": 4}, {"max_tokens": 4, "temperature": 0}),
        ({"top_p": 0.9, "seed": 1}, {"top_p": 0.9, "seed": 1, "temperature": 0}),
        ({"do_sample": None, "temperature": 0.7}, {"temperature": 0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0}),
        ({"do_sample": True}, {}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True, "stop": "\n"}, {"stop": "\n"}),
        ({"do_sample": True, "stop_strings": ["a", "b"]}, {"stop": ["a", "b"]}),
    ],
)
def test_generate_options_get_openai_names(generate, asked):
    assert api_options(generate) == asked


def test_unknown_option_fails_its_record_without_request(service):
    bad, good = engine(service).call([EngineRecord(0, "bad", {"num_beams": 2}), EngineRecord(1, "good")])
    assert bad.error["type"] == "UnknownOption" and "num_beams" in bad.error["message"]
    assert good == Completion("good", 3)
    assert service.times("bad") == []


# ---- pauses --------------------------------------------------------------------------------------


def test_retry_after_header_accepts_seconds_or_date():
    now = 1_700_000_000.0
    assert retry_after("7", now) == 7 and retry_after("1.5", now) == 1.5
    assert retry_after(formatdate(now + 30, usegmt=True), now) == 30
    assert [retry_after(rubbish, now) for rubbish in ("", "soon", "Mon, 99 Foo 2026")] == [0, 0, 0]


def test_backoff_grows_and_obeys_retry_after():
    assert backoff(0) < backoff(2) < backoff(4) < backoff(6)
    assert backoff(0, requested=20) == 20
    for requested in (0.0, 1e9, float("inf"), float("nan"), -1e9):
        assert backoff(5000, requested) == LONGEST_PAUSE


# ---- beside glideins -----------------------------------------------------------------------------


@pytest.mark.pool
def test_service_shares_sweep_and_missing_service_is_reported(own_pool, service, sweep, tmp_path):
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
