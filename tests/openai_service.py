"""A small service with OpenAI's interface on a real socket, one that can be slow, busy, broken and rude."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from glide.server.engines import Completion, EngineRecord
from glide.server.engines.openai import OpenAI
from glide.template import Template

HANG, RESET = "HANG", "RESET"


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


class Alone:
    """The engine alone, loaded."""

    def __init__(self, service: Service, **options: Any):
        options = {"url": service.url, "ready_seconds": 10.0, **options}
        self.engine = OpenAI(Template("m", "noop", service={}), OpenAI.Options(**options))
        self.engine.prepare()
        self.engine.load(None, lambda state: None)
        self.outcomes: dict[int, Completion] = {}
        self.arrived = threading.Condition()

    def started(self, keys: Sequence[int]) -> None:
        """Nothing here needs the starts."""

    def done(self, key: int, completion: Completion) -> None:
        with self.arrived:
            self.outcomes[key] = completion
            self.arrived.notify()

    def call(self, records: Sequence[EngineRecord]) -> list[Completion]:
        """Serve records, and return their outcomes in order."""
        self.engine.submit(records, self)
        keys = [record.key for record in records]
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.outcomes.keys() >= set(keys), 60)
        return [self.outcomes.pop(key) for key in keys]


def engine(service: Service, **options: Any) -> Alone:
    return Alone(service, **options)


def records(count: int) -> list[dict[str, Any]]:
    return [{"custom_id": f"r{n}", "prompt": f"says {n}"} for n in range(count)]


def errors(results: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    return {result["custom_id"]: result["error"] for result in results if result["error"] is not None}
