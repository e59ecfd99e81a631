"""Measure serving programs: their records per second through glide, and without glide.

All programs serve the same model on the same cores. Without glide, simple clients send lists of prompts or single
prompts, with different numbers of requests in flight. The fastest of these clients is used.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from glide.bench.gguf_file import write_gguf
from glide.bench.rig import Rig, rig
from glide.bench.sticky import make_model
from glide.bench.vllm_environment import vllm_environment
from glide.condor import Collector
from glide.programs import PROGRAMS
from glide.server.engines.http_client import HttpClient, NoResponse
from glide.server.engines.server.engine import counters
from glide.server.engines.server.launch import Launch, RunningProgram, ask_limit, launch
from glide.template import Template
from glide.vocabulary import Machine

CORES = 1  # cores for the program; glide and the clients use the others
# A model of about 4 M parameters. Because of the large initializer range, each prompt gives a different text.
SIZES = {
    "vocab_size": 258, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 5,
    "num_attention_heads": 4, "initializer_range": 0.1,
}  # fmt: skip
# For each kind of answer: the number of records, and the number of new tokens.
KINDS = {"short": (2400, 4), "long": (480, 64)}
CLIENTS = ((1, 32), (16, 4), (64, 8))  # prompts in a request, and requests in flight
SAMPLE_SECONDS = 0.5  # seconds between two samples of the number of prompts in flight
ARGUMENTS: dict[str, list[str]] = {"llamacpp": [], "vllm": ["--dtype", "float32", "--max-model-len", "512"]}
# For each program, the metrics with the number of prompts that it computes, and the number of those that wait in it.
IN_FLIGHT = {
    "llamacpp": ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
}


def serving(repeat: int) -> dict[str, Any]:
    """Measure each program with short and with long answers.

    The first run makes an environment with vLLM's CPU build in glide's cache.

    Args:
        repeat: number of rounds that count. One more round comes first, to start the glidein. Each round measures the
            program without glide, and then with glide. The ratios divide two rates of the same round. Rates and ratios
            are medians.
    """
    pythons = {"llamacpp": sys.executable, "vllm": str(vllm_environment() / "bin" / "python")}
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="glide-bench-model-") as name:
        folder, ggufs = Path(name) / "model", Path(name) / "gguf"
        ggufs.mkdir()
        report["parameters"] = make_model(folder, **SIZES)
        write_gguf(folder, ggufs / "model.gguf")
        for program, python in pythons.items():
            path = ggufs if PROGRAMS[program].needs_file else folder
            request = {"cpus": CORES, "memory": 9000, "disk": 100}
            with rig(cores=CORES, request=request) as bench, _alone(program, path, python) as alone:
                report[program] = {
                    kind: _compare(bench, alone, program, path, python, *numbers, repeat)
                    for kind, numbers in KINDS.items()
                }
    return report


def _compare(
    bench: Rig, alone: RunningProgram, program: str, path: Path, python: str, count: int, tokens: int, repeat: int
) -> dict[str, Any]:
    texts = [
        f"{number:05d} is a number, and this text continues with {number * 7919 % 99991}" for number in range(count)
    ]
    generate = {"max_new_tokens": tokens, "do_sample": False}
    environment = {} if python == sys.executable else {"environment": str(Path(python).parents[1])}
    options = {"program": program, "args": ARGUMENTS[program]}
    model = {"name": "bench", "engine": "server", "path": str(path), "options": options, **environment}
    rounds = []
    limit = ask_limit(alone, PROGRAMS[program]) or PROGRAMS[program].limit
    tried = {each: _client(alone, texts[: count // 4], tokens, *each) for each in CLIENTS}
    best = max(tried, key=lambda each: tried[each])
    for number in range(repeat + 1):
        rate = _client(alone, texts, tokens, *best)
        before = _totals(0)
        with _samples(program, alone) as samples:
            summary = bench.sweep(count, options, texts=texts, generate=generate, model=model, glideins=1)
        served, busy = _totals(before[0] + count)
        assert served - before[0] == count
        if number:  # the first round starts the glidein, and is not measured
            engine = count / (busy - before[1])
            rounds.append((rate, engine, count / summary["warm_makespan_s"], _share_at(limit, samples)))
    theirs, engines, sweeps, at_limit_shares = zip(*rounds, strict=True)
    return {
        "records": count, "new_tokens": tokens, "limit": limit,
        "prompts_per_request_without_glide": best[0], "requests_in_flight_without_glide": best[1],
        "alone_records_per_s": round(median(theirs), 1), "engine_records_per_s": round(median(engines), 1),
        "engine_over_alone": _ratio(engines, theirs), "sweep_over_alone": _ratio(sweeps, theirs),
        "share_of_time_at_limit": round(median(at_limit_shares), 3),
    }  # fmt: skip


def _share_at(limit: int, samples: Sequence[int]) -> float:
    """Return how often the program had enough prompts: the share of samples that are at least `limit`.

    Count only from the first such sample to the last one. Before that, records are still arriving. After it, none wait.
    """
    reached = [number for number, each in enumerate(samples) if each >= limit]
    return len(reached) / (reached[-1] - reached[0] + 1) if reached else 0.0


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(median(mine / other for mine, other in zip(ours, theirs, strict=True)), 3)


def _totals(served: int) -> tuple[int, float]:
    """Return how many records the glidein has served, and the seconds in which its engine had work.

    Args:
        served: wait until the lanes' ads show this number. They show small changes up to 15 s late.
    """
    until = time.monotonic() + 60.0
    while True:
        lanes = Collector().lanes([Machine.SERVED, Machine.BUSY_SECONDS])
        found = max(((lane[Machine.SERVED], lane[Machine.BUSY_SECONDS]) for lane in lanes), default=(0, 0.0))
        if found[0] >= served or time.monotonic() > until:
            return found
        time.sleep(0.5)


@contextmanager
def _samples(program: str, alone: RunningProgram) -> Iterator[list[int]]:
    """Sample the number of prompts in flight in a program that runs in a glidein, during a `with` block."""
    samples: list[int] = []
    ended = threading.Event()
    own = alone.process.process.pid

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            with suppress(NoResponse, OSError, ValueError, LookupError):
                for client in _clients_of_glideins(program, own):
                    found = counters(client.send("GET", "/metrics", 5.0).text)
                    samples.append(sum(int(found[name]) for name in IN_FLIGHT[program]))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


@cache
def _client_of(socket: str, key: str) -> HttpClient:
    return HttpClient("http://127.0.0.1/v1", key, socket, is_local=True)


def _clients_of_glideins(program: str, own: int) -> Iterator[HttpClient]:
    """Yield a client for each process of a program that listens at a Unix socket, except the process `own`."""
    flag = (PROGRAMS[program].socket_arguments or ("",))[0]
    for process in Path("/proc").glob("[0-9]*"):
        if process.name != str(own):
            words = (process / "cmdline").read_text("utf-8", "replace").split("\0")
            if flag in words and words[words.index(flag) + 1].endswith("/api.sock"):
                variables = (process / "environ").read_text("utf-8", "replace").split("\0")
                key = next(each for each in variables if each.startswith("OPENAI_API_KEY="))
                yield _client_of(words[words.index(flag) + 1], key.partition("=")[2])


@contextmanager
def _alone(program: str, path: Path, python: str) -> Iterator[RunningProgram]:
    """Start a program as glide's engine does, but without a pool, in a `with` block."""
    described, args = PROGRAMS[program], ARGUMENTS[program]
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="glide-bench-program-") as folder:
        os.chdir(folder)
        template = Template("bench", "server", str(path))
        plan = Launch(
            described, args, "", "", template, str(path), (), python, 2 * described.limit, described.limit, Path("code")
        )
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(cores)[:CORES])  # the program gets as many threads as this process has cores
        running = launch(plan, lambda state: None)
        os.sched_setaffinity(0, cores)
        try:
            yield running
        finally:
            os.chdir(before)
            os.killpg(running.process.process.pid, signal.SIGTERM)
            running.process.process.wait()


def _client(alone: RunningProgram, texts: Sequence[str], tokens: int, size: int, parallel: int) -> float:
    """Send all texts to a program, and return the records per second."""
    lists = [texts[start : start + size] for start in range(0, len(texts), size)]

    def send(prompts: Sequence[str]) -> None:
        body = {"model": alone.model, "max_tokens": tokens, "temperature": 0}
        answer = alone.http.send("POST", "completions", 600.0, {**body, "prompt": prompts if size > 1 else prompts[0]})
        assert answer.is_success, answer.text

    with ThreadPoolExecutor(parallel) as threads:
        started = time.monotonic()
        list(threads.map(send, lists))
        return len(texts) / (time.monotonic() - started)
