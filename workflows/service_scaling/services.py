"""What the three experiments stand on: services, and clients that ask them.

A service is a glidein's model server with an engine of its own. A local one has the model; a remote one's engine
passes each request on to an endpoint (endpoint.py) that is beside it alone.
A client is an HTCondor job on a lane of a service (client.py).
"""

from __future__ import annotations

import json
import os
import re
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

from endpoint import NAME as REMOTE
from endpoint import NOTHING

from glide import resources
from glide.bench.rig import Rig, rig
from glide.condor import AccessPoint
from glide.condor.access_point import value
from glide.errors import CondorError
from glide.glidein.configuration import ANY_PROGRAM
from glide.system import end_with_parent
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "promptverify" / "model"
CLAIMS = HERE.parent / "promptverify" / "claims.jsonl"
BUDGET = 600.0  # seconds that anything may take before an experiment gives up
# As invocation jobs have it, but for what they run.
CLIENT = f"""
    universe = vanilla
    executable = {sys.executable}
    transfer_executable = false
    arguments = {HERE / "client.py"} $(folder) $(Process)
    transfer_output_files = client-$(Process).json
    should_transfer_files = yes
    initialdir = $(folder)
    error = client-$(Process).err
    on_exit_hold = ExitCode != 0
    requirements = TARGET.{Machine.TEMPLATE} =?= MY.{Job.TEMPLATE} && TARGET.{Machine.STATE} =?= "{State.WARM}"
    request_cpus = 1
    request_memory = 1
    request_disk = 1
"""


@contextmanager
def services(count: int, lanes: int = 1, urls: Sequence[str] = (), **remote: Any) -> Iterator[Rig]:
    """A pool that may have so many local services, and one remote one for each URL; they come when they are asked for.

    Args:
        lanes: of each, and so its clients at once.
        remote: options of the remote ones' engine.
    """
    common: dict[str, Any] = {
        "lanes": lanes, "request": {"memory": 400, "disk": 100}, "idle_seconds": 3600, "submits_per_cycle": 100,
        "knobs": ANY_PROGRAM,  # clients are programs of their own
        "breaker": {"failures": 100},  # else three of them come first, and the others when one of these is warm
        "cache": {"folder": "$_CONDOR_SCRATCH_DIR/cache"},  # one for each, as on hosts of their own
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


class Clients:
    """Client jobs of one cluster; with them in the queue, their services come up.

    Args:
        services: that are to be there for them.
        prompts: a list of requests for each client.
        defaults: what all requests have in common, such as `generate`.
    """

    def __init__(
        self, bench: Rig, template: Template, services: int, prompts: Sequence[Sequence[str]], **defaults: Any
    ):
        self.folder = _folder(bench, "clients")
        self.count = len(prompts)
        (self.folder / "requests.json").write_text(json.dumps({"prompts": prompts, "defaults": defaults}), "utf-8")
        macros = {"folder": str(self.folder), **_macros(template, services, max(1, len(prompts[0])))}
        self.access_point = AccessPoint()
        self.cluster = self.access_point.submit(f"{CLIENT}\nqueue {self.count}\n", macros)

    def gather(self) -> None:
        """Wait until each has its lane."""
        until(lambda: bool(self._queued()) and self._ready == self.count, "clients have lanes", 0.25)

    def run(self) -> list[dict[str, Any]]:
        """Let them begin all at once, and return what they have measured."""
        (self.folder / "go").touch()
        until(lambda: not self._queued(), "clients end", 0.25)
        return [json.loads((self.folder / f"client-{n}.json").read_text("utf-8")) for n in range(self.count)]

    def remove(self) -> None:
        """They are not needed any more."""
        self.access_point.remove(f"ClusterId == {self.cluster}", "measured")

    @property
    def _ready(self) -> int:
        return len(list(self.folder.glob("ready-*")))

    def _queued(self) -> list[dict[str, Any]]:
        jobs = self.access_point.jobs(f"ClusterId == {self.cluster}", ["HoldReason"])
        for job in jobs:
            if job["JobStatus"] == JobStatus.HELD:
                words = "".join(path.read_text("utf-8") for path in self.folder.glob("*.err"))
                raise CondorError(f"a client is held: {job.get('HoldReason')}\n{words}")
        return jobs


class Carriers:
    """glide's own way: invocation jobs, each with all the records of a client, which are in the server at once."""

    def __init__(
        self, bench: Rig, template: Template, services: int, prompts: Sequence[Sequence[str]], **defaults: Any
    ):
        self.folder = _folder(bench, "carriers")
        self.count, self.records = len(prompts), sum(map(len, prompts))
        for number, mine in enumerate(prompts):
            lines = [defaults, *({"custom_id": f"{number}-{at}", "prompt": prompt} for at, prompt in enumerate(mine))]
            (self.folder / f"records-{number}.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines), "utf-8"
            )
        macros = {"initialdir": str(self.folder), "digest": template.digest, "model": template.model,
                  **_macros(template, services, len(prompts[0]))}  # fmt: skip
        text = resources.find("submit_templates", "invocation.sub").read_text("utf-8").rsplit("\nqueue", 1)[0]
        self.access_point = AccessPoint()
        self.began = time.monotonic()
        self.cluster = self.access_point.submit(f"{text}\nqueue {self.count}\n", macros, spool=True)

    def run(self) -> tuple[float, list[float]]:
        """Wait until all have their results: seconds since they were submitted, and those of each in its server."""
        mine = f"ClusterId == {self.cluster}"
        done = f"{mine} && JobStatus == {JobStatus.COMPLETED}"
        until(lambda: len(self.access_point.jobs(done, ["ProcId"])) == self.count, "invocation jobs end", 0.1)
        seconds = time.monotonic() - self.began
        self.access_point.retrieve(mine)
        self.access_point.remove(mine, "gathered")
        results = [line for path in self.folder.glob("result-*.jsonl") for line in path.read_text("utf-8").splitlines()]
        answered = {each["custom_id"] for each in map(json.loads, results) if each.get("error", "") is None}
        if len(answered) != self.records:
            raise CondorError(f"{len(answered)} of {self.records} records were answered; {self.folder}")
        words = [path.read_text("utf-8") for path in self.folder.glob("*.err")]
        spans = [re.search(r"served from (\S+) to (\S+) s", said) for said in words]
        return seconds, [float(span[2]) - float(span[1]) for span in spans if span]


def _macros(template: Template, services: int, requests: int) -> dict[str, str]:
    return {
        f"My.{Job.TEMPLATE}": value(template.digest), f"My.{Job.MODEL}": value(template.model),
        f"My.{Job.SPEC}": value(template.to_json()), f"My.{Job.WANTED}": str(services),
        f"My.{Job.RECORDS}": str(requests), f"My.{Job.TIMED}": "true",
    }  # fmt: skip


def _folder(bench: Rig, kind: str) -> Path:
    folder = bench.folder / f"{kind}-{time.monotonic_ns()}"
    folder.mkdir()
    return folder


def until(condition: Callable[[], bool], what: str, pause: float = 0.05) -> None:
    """Wait for it; CondorError when it does not come."""
    deadline = time.monotonic() + BUDGET
    while not condition():
        if time.monotonic() > deadline:
            raise CondorError(f"not within {BUDGET:.0f} s: {what}")
        time.sleep(pause)


class Endpoints:
    """Services elsewhere, a process each."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]):
        self.urls = [_line(process) for process in processes]

    def times(self) -> dict[str, float]:
        """What the requests since the last call took, in sum over all endpoints (endpoint.py)."""
        sums = dict(NOTHING)
        for url in self.urls:
            with urllib.request.urlopen(f"{url}/times") as answer:
                for name, seconds in json.load(answer).items():
                    sums[name] += seconds
        return sums


@contextmanager
def endpoints(count: int, latency: float, model: Path | None) -> Iterator[Endpoints]:
    """So many of them, each ready."""
    words = [sys.executable, str(HERE / "endpoint.py"), str(latency), *([str(model)] if model else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as HTCondor sets it for glideins
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            processes.append(
                subprocess.Popen(
                    words,
                    env=environment,
                    stdout=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                    preexec_fn=end_with_parent,
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
        raise CondorError("an endpoint did not start; its words are above")
    return line


def claims(count: int) -> list[str]:
    """So many prompts for the verifier, again from the first where there are fewer claims."""
    with CLAIMS.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [f"Claim: {each['claim']}\nEvidence: {each['evidence']}\nVerdict:" for each in islice(cycle(found), count)]


@dataclass(frozen=True)
class Claim:
    """What the paper says, what is seen here, and whether that is the same."""

    theirs: str
    here: str
    holds: bool

    def __str__(self) -> str:
        return f"Theirs: {self.theirs}. Here {'too' if self.holds else 'not'}: {self.here}."


def told(claims: Sequence[Claim]) -> list[str]:
    """As notes, those first that do not hold here."""
    return [str(claim) for claim in sorted(claims, key=lambda claim: claim.holds)]


def say(words: str) -> None:
    """A line of progress."""
    print(words, file=sys.stderr, flush=True)
