"""Measure what `glide serve` adds to an engine: the time of a call, and the throughput of many calls at once.

The same engine is called directly, in a process of its own, in the same run. With one client, each client pauses after
an answer, so that no call profits from the one before.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from glide.bench.api_server import ApiServer
from glide.bench.rig import rig
from glide.bench.sticky import make_model
from glide.errors import GlideError

CLIENTS = 64
# The noop engine serves up to 16 records in calls of 0.1 s. The model of the transformers engine has 44 M parameters.
NOOP = {"record_seconds": 0.1, "parallel": 16}
SIZES = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8,
}  # fmt: skip
PAUSE_SECONDS = 0.02  # seconds between two calls of a single client
START_SECONDS = 120.0  # time limit until the server's first answer, in seconds


def serve(repeat: int) -> dict[str, Any]:
    """Compare calls of `glide serve` with direct calls of its engine, for the engines noop and transformers."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), **SIZES)
        return {"noop": _compare(repeat), "transformers": _compare(repeat, folder, calls=30, burst=256)}


def _compare(
    repeat: int, model: str = "", calls: int = 60, burst: int = 640, clients: int = CLIENTS, max_tokens: int = 16
) -> dict[str, Any]:  # fmt: skip
    """Compare calls of `glide serve` with direct calls of its engine.

    Args:
        model: folder of a model for the engine `transformers`; empty for the engine `noop`.
        calls: number of calls of the single client.
        burst: number of calls of all clients together.
        clients: number of clients at the same time.
        max_tokens: maximum number of tokens of an answer.
    """
    spec: dict[str, Any] = {"engine": "noop", "path": None, "options": NOOP}
    if model:
        spec = {"engine": "transformers", "path": str(Path(model).absolute()), "options": {"dtype": "float32"}}
    generate = {"max_tokens": max_tokens, "temperature": 0}
    with rig(cores=2) as bench, _engine(spec) as engine, _server(bench.folder, spec) as server:
        runs = []
        for number in range(repeat):
            single, many = (
                [f"call {number} {each} of a benchmark" for each in range(count)] for count in (calls, burst)
            )
            direct = engine(prompts=single, generate=generate, clients=1, pause=PAUSE_SECONDS)
            through = server(single, generate, 1, PAUSE_SECONDS)
            full = engine(prompts=many, generate=generate, clients=clients, pause=0.0)
            served = server(many, generate, clients, 0.0)
            added = sorted(1000 * (each - direct["median"]) for each in through["times"])
            runs.append({
                "call_ms": round(1000 * direct["median"], 2), "added_ms": round(median(added), 2),
                "added_95_ms": round(added[int(0.95 * len(added))], 2), "engine_calls_per_s": round(full["rate"], 1),
                "served_calls_per_s": round(served["rate"], 1), "share": round(served["rate"] / full["rate"], 3),
            })  # fmt: skip
            print(f"bench: {runs[-1]}", file=sys.stderr)
    return {name: median(run[name] for run in runs) for name in runs[0]} | {"clients": clients, "runs": runs}


@contextmanager
def _engine(spec: dict[str, Any]) -> Iterator[Any]:
    """Provide a function that measures direct calls of the engine."""
    command = [sys.executable, "-m", "glide.bench.engine_calls", json.dumps(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # HTCondor sets the same for a glidein that requests one CPU
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def measure(**settings: Any) -> dict[str, Any]:
        stdin.write(json.dumps(settings) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    try:
        if not stdout.readline():
            raise GlideError("the engine cannot be loaded; its error is above")
        yield measure
    finally:
        process.kill()
        process.wait()
        stdin.close()
        stdout.close()


@contextmanager
def _server(folder: Path, spec: dict[str, Any]) -> Iterator[Any]:
    """Start `glide serve`, and provide a function that measures its calls."""
    model = {name: value for name, value in spec.items() if value is not None}
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump({"name": "bench", "model": {"name": "bench", **model}}), "utf-8")
    with ApiServer("--model", file) as server:
        port, token = server.port, server.token

        def measure(prompts: list[str], generate: dict[str, Any], clients: int, pause: float) -> dict[str, Any]:
            return asyncio.run(_calls(port, token, prompts, generate, clients, pause))

        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                measure(["first"], {}, 1, 0.0)
                break
            except GlideError:
                if time.monotonic() > deadline:
                    raise
        yield measure


async def _calls(
    port: int, token: str, prompts: list[str], generate: dict[str, Any], clients: int, pause: float
) -> dict[str, Any]:
    """Send completions from several clients at the same time. Return their rate, and the time of each call in seconds.

    Each client has one connection, and sends its next request when it has the answer.
    """
    waiting, times = iter(prompts), list[float]()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for prompt in waiting:
            body = json.dumps({"model": "bench", "prompt": prompt, **generate}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            started = time.monotonic()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            content = await reader.readexactly(length)
            times.append(time.monotonic() - started)
            if b" 200 " not in answer.partition(b"\r\n")[0]:
                raise GlideError(f"glide serve has answered: {content[:300].decode(errors='replace')}")
            await asyncio.sleep(pause)
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    return {"rate": len(prompts) / (time.monotonic() - began), "times": times}
