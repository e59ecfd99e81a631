"""A program that serves a model behind OpenAI's API, and that can fail in every way. It is run as a script."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--port", type=int)
parser.add_argument("--socket", "--uds")
parser.add_argument("--path")
parser.add_argument("--model", "--served-model-name", default="m")
parser.add_argument("--enable-sleep-mode", action="store_true", help="sleep and wake up as vLLM does")
parser.add_argument("--wake-seconds", type=float, default=0.0, help="seconds that waking up takes")
parser.add_argument(
    "--max-model-len", type=int, default=0, help="MB of memory that the program takes while it is awake"
)
parser.add_argument("--start-seconds", type=float, default=0.0)
parser.add_argument("--seconds", type=float, default=0.0, help="duration of a request")
parser.add_argument("--fail", default="", help="start, ready, first: where the program fails")
parser.add_argument("--how", default="exit 3", help="exit N, hang, or signal N")
parser.add_argument("--says", default="", help="last output before the program fails")
parser.add_argument("--poison", default="", help="prompt at which the program fails")
parser.add_argument("--port-taken", help="file; while it does not exist, the program finds its port taken")
parser.add_argument("--orphan", action="store_true", help="start a process that leaves the session and its parent")
parser.add_argument("--counts", action="store_true", help="count generated tokens in /metrics, one each 0.1 s")
parser.add_argument("--busy", help="file for the largest number of requests at the same time")
parser.add_argument("--compiles", type=float, help="seconds to compile a kernel, unless the cache has it")
parser.add_argument("--max-num-batched-tokens", type=int, default=0, help="MB of memory that the program always takes")
# As `vllm serve`, the program gets flags of vLLM that mean nothing here.
options = parser.parse_known_args()[0] if sys.argv[1:2] == ["serve"] else parser.parse_args()
kept = b"k" * (options.max_num_batched_tokens << 20)
weights = b"w" * (options.max_model_len << 20)
asleep = False
in_flight = most = tokens = 0
lock = threading.Lock()
hung = threading.Event()  # a program that hangs answers nobody


def fail(what: str) -> None:
    """Fail if this is the place where the program must fail."""
    if options.fail != what:
        return
    kind, _, number = options.how.replace("=", " ").partition(" ")
    print(f"the program fails on purpose: {what} {options.says}", flush=True)
    if kind == "exit":
        os._exit(int(number))
    if kind == "signal":
        os.kill(os.getpid(), int(number))
    hung.set()
    while True:
        time.sleep(1)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hang_if_hung()
        fail("ready")
        if self.path == "/metrics" and options.counts:
            return self.answer(200, f'vllm:generation_tokens_total{{engine="0"}} {tokens}.0\n')
        if self.path == "/health":
            return self.answer(200, {})
        if self.path != "/v1/models":
            return self.answer(404, {"detail": "Not Found"})
        if self.headers["Authorization"] != f"Bearer {os.environ['OPENAI_API_KEY']}":
            return self.answer(401, {"error": {"message": "wrong key"}})
        self.answer(200, {"data": [{"id": options.model}]})

    def do_POST(self) -> None:
        global in_flight, most, tokens
        self.hang_if_hung()
        if options.enable_sleep_mode and self.path in ("/sleep?level=1", "/wake_up"):
            return self.change_sleep(self.path == "/sleep?level=1")
        if asleep:
            return self.answer(500, {"error": {"message": "the program is asleep"}})
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            in_flight += 1
            most = max(most, in_flight)
            if options.busy:
                Path(options.busy).write_text(str(most))
        fail("first")
        prompt = body.get("prompt", "")
        if options.poison and options.poison in prompt:
            options.fail = "poison"
            fail("poison")
        until = time.monotonic() + options.seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            tokens += 1
        with lock:
            in_flight -= 1
        self.answer(200, {"choices": [{"index": 0, "text": prompt, "finish_reason": "stop"}],
                          "usage": {"prompt_tokens": len(prompt), "completion_tokens": 1}})  # fmt: skip

    def change_sleep(self, sleep: bool) -> None:
        global asleep, weights
        if os.environ.get("VLLM_SERVER_DEV_MODE") != "1":
            return self.answer(404, {"detail": "Not Found"})
        fail("sleep" if sleep else "wake")
        time.sleep(0 if sleep else options.wake_seconds)
        asleep, weights = sleep, b"" if sleep else b"w" * (options.max_model_len << 20)
        self.answer(200, "")

    def hang_if_hung(self) -> None:
        while hung.is_set():
            time.sleep(1)

    def answer(self, status: int, content: Any) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass

    def address_string(self) -> str:
        return "client"


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


class PortServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    if options.how == f"signal {signal.SIGPIPE:d}":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores this signal
    if options.port_taken and not Path(options.port_taken).exists():
        Path(options.port_taken).touch()
        with socket.socket() as holder, socket.socket() as other:
            holder.bind(("127.0.0.1", options.port))
            holder.listen()
            other.bind(("127.0.0.1", options.port))  # raises "Address already in use"
    if options.orphan:
        # The process in between ends at once, so the other one loses its parent.
        subprocess.run([sys.executable, "-c", "import subprocess; subprocess.Popen(['setsid', 'sleep', '600'])"])
    fail("start")
    time.sleep(options.start_seconds)
    if options.compiles is not None:
        kernel = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "ab" / "kernel.so"
        print(f"kernel {'found' if kernel.exists() else 'compiled'}", flush=True)
        if kernel.exists() and "FAKE_REFUSES_KERNEL" in os.environ:
            sys.exit("the kernel does not work here")
        if not kernel.exists():
            time.sleep(options.compiles)
            kernel.parent.mkdir(parents=True)
            kernel.write_bytes(b"machine code" * 1_000_000)
    if options.socket:
        UnixServer(options.socket, Handler).serve_forever()
    PortServer(("127.0.0.1", options.port), Handler).serve_forever()


main()
