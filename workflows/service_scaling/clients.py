"""Groups of clients that send requests to services, and the same requests in invocation jobs.

A client is the program client.py. It runs as an HTCondor job on a lane, or as an ordinary process that uses `glide
serve`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from services import HERE, LIVE, wait_until

from glide import resources
from glide.bench.api_server import ApiServer
from glide.bench.rig import Rig
from glide.condor import AccessPoint
from glide.condor.access_point import job_file_value
from glide.errors import CondorError
from glide.system import ending_with_us
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

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


class ClientGroup:
    """Clients that begin at the same moment.

    Attributes:
        folder: folder with their requests and their measurements.
        count: number of clients.
    """

    def __init__(self, bench: Rig, prompts: Sequence[Sequence[str]], defaults: Mapping[str, Any]):
        self.folder = _folder(bench, "clients")
        self.count = len(prompts)
        (self.folder / "requests.json").write_text(json.dumps({"prompts": prompts, "defaults": defaults}), "utf-8")

    @property
    def ready(self) -> int:
        """Number of clients that wait for the beginning."""
        return len(list(self.folder.glob("ready-*")))

    def begin(self) -> None:
        """Let all clients begin."""
        (self.folder / "go").touch()

    def measurements(self) -> list[dict[str, Any]]:
        """Return the measurements of each client. All must have ended."""
        return [json.loads((self.folder / f"client-{n}.json").read_text("utf-8")) for n in range(self.count)]


class Clients(ClientGroup):
    """Client jobs of one cluster. While they are in the queue, the factory starts their services.

    Args:
        services: number of services for the clients.
        prompts: the prompts of each client's requests.
        defaults: fields that all requests have, such as `generate`.
    """

    def __init__(
        self, bench: Rig, template: Template, services: int, prompts: Sequence[Sequence[str]], **defaults: Any
    ):
        super().__init__(bench, prompts, defaults)
        macros = {"folder": str(self.folder), **_macros(template, services, max(1, len(prompts[0])))}
        self.access_point = AccessPoint()
        self.cluster = self.access_point.submit(f"{CLIENT}\nqueue {self.count}\n", macros)

    def wait_for_lanes(self) -> None:
        """Wait until each client has its lane."""
        wait_until(lambda: bool(self._queued()) and self.ready == self.count, "clients have no lanes", 0.25)

    def run(self) -> list[dict[str, Any]]:
        """Let all clients begin together, and return their measurements."""
        self.begin()
        wait_until(lambda: not self._queued(), "clients have not ended", 0.25)
        return self.measurements()

    def remove(self) -> None:
        """Remove the client jobs from the queue."""
        self.access_point.remove(f"ClusterId == {self.cluster}", "measured")

    def _queued(self) -> list[dict[str, Any]]:
        jobs = self.access_point.jobs(f"ClusterId == {self.cluster}", ["HoldReason"])
        for job in jobs:
            if job["JobStatus"] == JobStatus.HELD:
                errors = "".join(path.read_text("utf-8") for path in self.folder.glob("*.err"))
                raise CondorError(f"a client is held: {job.get('HoldReason')}; its error output:\n{errors}")
        return jobs


class LiveClients(ClientGroup):
    """Client processes of `glide serve`. They can send requests as soon as all services are connected to it.

    Args:
        server: the server, which has one model with the name LIVE.
        services: number of glideins that may serve the model.
        prompts: the prompts of each client's requests.
        defaults: fields that all requests have, such as `max_tokens`.
    """

    def __init__(self, bench: Rig, server: ApiServer, services: int, prompts: Sequence[Sequence[str]], **defaults: Any):
        super().__init__(bench, prompts, {"model": LIVE, **defaults})
        self.server = server
        self.services = services
        environment = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": server.token}
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "client.py"), str(self.folder), str(number)], env=environment,
                cwd=self.folder, preexec_fn=ending_with_us(),
            )
            for number in range(self.count)
        ]  # fmt: skip

    def wait_for_lanes(self) -> None:
        """Wait until all services are connected, and each client is ready."""
        wait_until(self._have_all_lanes, "services are not connected", 0.25)
        wait_until(lambda: self.ready == self.count, "clients are not ready", 0.25)

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
        self.begin()
        codes = [process.wait() for process in self.processes]
        if any(codes) or self._lanes != self.services:
            raise CondorError(f"clients of glide serve have exit codes {codes}, and {self._lanes} lanes are connected")
        return self.measurements()


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
