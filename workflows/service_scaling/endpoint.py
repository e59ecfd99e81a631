"""`endpoint.py LATENCY [MODEL]`: a service outside the pool. It prints the URL of its OpenAI-compatible endpoint.

The service computes one inference at a time, and all later requests wait. MODEL is the folder of the model. Without
MODEL, the service answers "ok" to each prompt. It delays each request and each answer by LATENCY seconds. `/times`
returns four sums over all requests since the last call of `/times`: the number of requests, and the seconds of service
(waiting, reading and writing), of inference, and of latency.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from glide.server.engines import EngineRecord
from glide.server.engines.transformers import Transformers
from glide.template import Template

NAME = "remote"  # name of the model that the endpoint serves
OPTIONS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch": 1, "batching": "static"}
GENERATE = {"max_new_tokens": 4, "do_sample": False}
NOTHING = {"requests": 0, "service": 0.0, "inference": 0.0, "latency": 0.0}


class Endpoint(ThreadingHTTPServer):
    """A server with one thread for each connection, and one inference at a time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, latency: float, infer: Callable[[str], str]):
        super().__init__(("127.0.0.1", 0), Conversation)
        self.latency = latency
        self.infer = infer
        self.inferring, self.counting = threading.Lock(), threading.Lock()
        self.times = dict(NOTHING)

    def count(self, **times: float) -> None:
        with self.counting:
            for name, value in times.items():
                self.times[name] += value

    def counted(self) -> dict[str, float]:
        with self.counting:
            times, self.times = self.times, dict(NOTHING)
        return times


class Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Send head and body of an answer in one packet, because a second packet waits until the first is acknowledged.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Endpoint

    def do_GET(self) -> None:
        self.answer(self.server.counted() if self.path == "/times" else {"data": [{"id": NAME}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sent = time.perf_counter()
        time.sleep(self.server.latency)
        came = time.perf_counter()
        prompt = json.loads(body)["prompt"]
        with self.server.inferring:
            began = time.perf_counter()
            text = self.server.infer(prompt)
            inference = time.perf_counter() - began
        answer = {"choices": [{"text": text}], "usage": {"completion_tokens": 0}}
        done = time.perf_counter()
        time.sleep(self.server.latency)
        latency = came - sent + time.perf_counter() - done
        self.server.count(requests=1, service=done - came - inference, inference=inference, latency=latency)
        self.answer(answer)

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def model(folder: str) -> Callable[[str], str]:
    """Load a model with glide's transformers engine, and return a function that generates the text of a prompt."""
    engine = Transformers(Template(NAME, "transformers", folder), Transformers.Options(**OPTIONS))
    engine.prepare()
    engine.load(folder, lambda state: None)

    def infer(prompt: str) -> str:
        record = EngineRecord(0, prompt, GENERATE)
        ((planned,),) = engine.plan([record])
        (completion,) = engine.call([planned])
        return completion.text or ""

    return infer


def main(latency: float, folder: str = "") -> None:
    endpoint = Endpoint(latency, model(folder) if folder else lambda prompt: "ok")
    print(f"http://127.0.0.1:{endpoint.server_address[1]}", flush=True)
    endpoint.serve_forever()


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
