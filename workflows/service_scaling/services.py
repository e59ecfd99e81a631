"""The services of the three experiments, and what these experiments have in common with each other.

A service is a glidein's model server with its own engine. A local service has the model. The engine of a remote
service passes each request on to its own endpoint (endpoint.py). Live services are local services behind `glide serve`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import yaml
from endpoint import NAME as REMOTE
from endpoint import NOTHING

from glide.bench.api_server import ApiServer
from glide.bench.rig import Rig, rig
from glide.errors import CondorError
from glide.glidein.configuration import ANY_PROGRAM
from glide.report.experiment import Comparison, Experiment
from glide.system import ending_with_us
from glide.template import Template

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "promptverify" / "model"
CLAIMS = HERE.parent / "promptverify" / "claims.jsonl"
LIVE = "live"  # name of the model behind `glide serve`
TIME_LIMIT = 600.0  # time limit of each wait in an experiment, in seconds


@contextmanager
def services(count: int, lanes: int = 1, urls: Sequence[str] = (), **remote: Any) -> Iterator[Rig]:
    """Start a pool for `count` local services, and one remote service for each URL.

    The services themselves start as soon as clients are submitted.

    Args:
        lanes: number of lanes of each service. Each lane can have one client at a time.
        urls: addresses of the endpoints of the remote services.
        remote: further options of the remote services' engine.
    """
    common: dict[str, Any] = {
        "lanes": lanes, "request": {"memory": 400, "disk": 100}, "idle_seconds": 3600, "submits_per_cycle": 100,
        "knobs": ANY_PROGRAM,  # allows lanes to run client.py, which is not glide's own program
        "breaker": {"failures": 100},  # so all services start at once, not only three before one is warm
        "cache": {"folder": "$_CONDOR_SCRATCH_DIR/cache"},  # a cache for each glidein, as on separate hosts
    }  # fmt: skip
    places = [
        {"name": f"remote-{number}", "max_glideins": 1,
         "service": {"serves": REMOTE, "options": {"url": f"{url}/v1", "chat": False, **remote}}}
        for number, url in enumerate(urls)
    ]  # fmt: skip
    if count:
        places.append({"name": "bench", "max_glideins": count})
    with rig(cores=count + len(urls), entries=places, **common) as bench:
        yield bench


@contextmanager
def live_services(count: int, template: Template) -> Iterator[tuple[Rig, ApiServer]]:
    """Start a pool for `count` local services of a model with the name LIVE, and `glide serve` in front of them."""
    with services(count) as bench:
        file = bench.folder / "live.yaml"
        model = {"name": LIVE, "engine": template.engine, "options": dict(template.options)}
        model |= {"path": template.path} if template.path else {}
        file.write_text(yaml.safe_dump({"name": LIVE, "model": model, "glideins": count}), "utf-8")
        with ApiServer("--model", file) as server:
            yield bench, server


def wait_until(condition: Callable[[], bool], problem: str, pause: float = 0.05) -> None:
    """Wait until a condition holds.

    Args:
        problem: text of the error if the condition does not hold in time.
        pause: seconds between two checks.

    Raises:
        CondorError: the condition does not hold within TIME_LIMIT.
    """
    deadline = time.monotonic() + TIME_LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise CondorError(f"{problem} after {TIME_LIMIT:.0f} s")
        time.sleep(pause)


class Endpoints:
    """Services outside the pool. Each service is a process."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]):
        self.urls = [_line(process) for process in processes]

    def times(self) -> dict[str, float]:
        """Return the times of all requests since the last call, summed over all endpoints (see endpoint.py)."""
        sums = dict(NOTHING)
        for url in self.urls:
            with urllib.request.urlopen(f"{url}/times") as answer:
                for name, seconds in json.load(answer).items():
                    sums[name] += seconds
        return sums


@contextmanager
def endpoints(count: int, latency: float, model: Path | None) -> Iterator[Endpoints]:
    """Start `count` endpoints and wait until they are ready. Stop them at the end of the `with` block."""
    command = [sys.executable, str(HERE / "endpoint.py"), str(latency), *([str(model)] if model else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # HTCondor sets the same value for glideins
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdout=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                    preexec_fn=ending_with_us(),
                )
            )
        yield Endpoints(processes)
    finally:
        for process in processes:
            process.terminate()
            process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline().strip()):
        raise CondorError("an endpoint did not start; see its output above")
    return line


def claims(count: int) -> list[str]:
    """Return `count` prompts for the verifier. If the file has fewer claims, claims are used again."""
    with CLAIMS.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [f"Claim: {each['claim']}\nEvidence: {each['evidence']}\nVerdict:" for each in islice(cycle(found), count)]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, the result of this experiment in words, and the number that decides if it is true."""

    theirs: str
    here: str
    number: Comparison

    def __str__(self) -> str:
        return f"The paper: {self.theirs}. Here this is {'true' if self.number.met else 'not true'}: {self.here}."


def record(claims: Sequence[Claim], experiment: Experiment) -> None:
    """Add the claims to an experiment, as its first notes. Claims that are not true here come first."""
    experiment.compared += [claim.number for claim in claims]
    experiment.notes[:0] = [str(claim) for claim in sorted(claims, key=lambda claim: claim.number.met)]


def report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
