"""The common parts of the three experiments: services, and clients that send them requests.

A service is a glidein's model server with its own engine. A local service has the model. The engine of a remote
service passes each request on to its own endpoint (endpoint.py). A client is an HTCondor job on a lane of a service
(client.py). Live services are local services behind `glide serve`, and their clients are ordinary processes.
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
from http import HTTPStatus
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import yaml
from endpoint import NAME as REMOTE
from endpoint import NOTHING

from glide import resources
from glide.bench.api_server import ApiServer
from glide.bench.rig import Rig, rig
from glide.condor import AccessPoint
from glide.condor.access_point import job_file_value
from glide.errors import CondorError
from glide.glidein.configuration import ANY_PROGRAM
from glide.system import ending_with_us
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "promptverify" / "model"
CLAIMS = HERE.parent / "promptverify" / "claims.jsonl"
LIVE = "live"  # name of the model behind `glide serve`
TIME_LIMIT = 600.0  # time limit of each wait in an experiment, in seconds
# The job file of a client. It is like the job file of an invocation job, but runs client.py.
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


class Clients:
    """Client jobs of one cluster. While they are in the queue, the factory starts their services.

    Args:
        services: number of services for the clients.
        prompts: the prompts of each client's requests.
        defaults: fields that all requests have, such as `generate`.
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

    def wait_for_lanes(self) -> None:
        """Wait until each client has its lane."""
        wait_until(lambda: bool(self._queued()) and self._ready == self.count, "clients have no lanes", 0.25)

    def run(self) -> list[dict[str, Any]]:
        """Let all clients begin together, and return their measurements."""
        (self.folder / "go").touch()
        wait_until(lambda: not self._queued(), "clients have not ended", 0.25)
        return [json.loads((self.folder / f"client-{n}.json").read_text("utf-8")) for n in range(self.count)]

    def remove(self) -> None:
        """Remove the client jobs from the queue."""
        self.access_point.remove(f"ClusterId == {self.cluster}", "measured")

    @property
    def _ready(self) -> int:
        return len(list(self.folder.glob("ready-*")))

    def _queued(self) -> list[dict[str, Any]]:
        jobs = self.access_point.jobs(f"ClusterId == {self.cluster}", ["HoldReason"])
        for job in jobs:
            if job["JobStatus"] == JobStatus.HELD:
                errors = "".join(path.read_text("utf-8") for path in self.folder.glob("*.err"))
                raise CondorError(f"a client is held: {job.get('HoldReason')}; its error output:\n{errors}")
        return jobs


class LiveClients:
    """Client processes of `glide serve`. They can send requests as soon as all services are connected to it.

    Args:
        server: the server, which has one model with the name LIVE.
        services: number of glideins that may serve the model.
        prompts: the prompts of each client's requests.
        defaults: fields that all requests have, such as `max_tokens`.
    """

    def __init__(self, bench: Rig, server: ApiServer, services: int, prompts: Sequence[Sequence[str]], **defaults: Any):
        self.folder = _folder(bench, "clients")
        self.server = server
        self.services = services
        requests = {"prompts": prompts, "defaults": {"model": LIVE, **defaults}}
        (self.folder / "requests.json").write_text(json.dumps(requests), "utf-8")
        environment = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": server.token}
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "client.py"), str(self.folder), str(number)], env=environment,
                cwd=self.folder, preexec_fn=ending_with_us(),
            )
            for number in range(len(prompts))
        ]  # fmt: skip

    def wait_for_lanes(self) -> None:
        """Wait until all services are connected, and each client is ready."""
        wait_until(self._have_all_lanes, "services are not connected", 0.25)
        wait_until(lambda: len(list(self.folder.glob("ready-*"))) == len(self.processes), "clients are not ready", 0.25)

    def _have_all_lanes(self) -> bool:
        if self._lanes < self.services:
            # An engine that serves one request at a time gets at most two calls, so this number needs all services.
            prompts = ["first"] * (2 * self.services)
            try:
                self.server.ask("/completions", {"model": LIVE, "prompt": prompts})
            except HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE:  # else no service is connected yet
                    raise
        return self._lanes == self.services

    @property
    def _lanes(self) -> int:
        return self.server.ask("/glide/status")["models"][LIVE]["lanes"]

    def run(self) -> list[dict[str, Any]]:
        """Let all clients begin together, and return their measurements."""
        (self.folder / "go").touch()
        codes = [process.wait() for process in self.processes]
        if any(codes) or self._lanes != self.services:
            raise CondorError(f"clients of glide serve have exit codes {codes}, and {self._lanes} lanes are connected")
        return [json.loads((self.folder / f"client-{n}.json").read_text("utf-8")) for n in range(len(codes))]


class InvocationJobs:
    """Invocation jobs, as glide uses them. A job carries all records of one client to the server together.

    Args:
        services: number of services for the jobs.
        prompts: the prompts of each job's records.
        defaults: fields that all records have, such as `generate`.
    """

    def __init__(
        self, bench: Rig, template: Template, services: int, prompts: Sequence[Sequence[str]], **defaults: Any
    ):
        self.folder = _folder(bench, "jobs")
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
        """Wait for all results.

        Returns:
            The seconds from the submission to the last result, and the seconds of each job in its server.
        """
        mine = f"ClusterId == {self.cluster}"
        done = f"{mine} && JobStatus == {JobStatus.COMPLETED}"
        wait_until(lambda: len(self.access_point.jobs(done, ["ProcId"])) == self.count, "jobs have not ended", 0.1)
        seconds = time.monotonic() - self.began
        self.access_point.retrieve(mine)
        self.access_point.remove(mine, "gathered")
        results = [line for path in self.folder.glob("result-*.jsonl") for line in path.read_text("utf-8").splitlines()]
        answered = {each["custom_id"] for each in map(json.loads, results) if each.get("error", "") is None}
        if len(answered) != self.records:
            raise CondorError(f"only {len(answered)} of {self.records} records have a result; see {self.folder}")
        outputs = [path.read_text("utf-8") for path in self.folder.glob("*.err")]
        spans = [re.search(r"served from (\S+) to (\S+) s", output) for output in outputs]
        return seconds, [float(span[2]) - float(span[1]) for span in spans if span]


def _macros(template: Template, services: int, requests: int) -> dict[str, str]:
    return {
        f"My.{Job.TEMPLATE}": job_file_value(template.digest), f"My.{Job.MODEL}": job_file_value(template.model),
        f"My.{Job.SPEC}": job_file_value(template.to_json()), f"My.{Job.WANTED}": str(services),
        f"My.{Job.RECORDS}": str(requests), f"My.{Job.TIMED}": "true",
    }  # fmt: skip


def _folder(bench: Rig, kind: str) -> Path:
    folder = bench.folder / f"{kind}-{time.monotonic_ns()}"
    folder.mkdir()
    return folder


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
    """A statement of the paper, the result of this experiment, and whether the statement is true for this result."""

    theirs: str
    here: str
    holds: bool

    def __str__(self) -> str:
        return f"The paper: {self.theirs}. Here this is {'true' if self.holds else 'not true'}: {self.here}."


def as_notes(claims: Sequence[Claim]) -> list[str]:
    """Return the claims as notes. Claims that are not true here come first."""
    return [str(claim) for claim in sorted(claims, key=lambda claim: claim.holds)]


def report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
