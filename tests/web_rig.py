"""`glide web` of a test's own, and a browser for it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from glide.config import SiteFile
from glide.factory.snapshot import Snapshot
from glide.report.reasons import QueueView as Site
from glide.report.status import document
from glide.web.snapshot_cache import PoolView

ROUTES = ("/", "/status.json", "/entry/here", "/entry/here.json", "/run?name=x", "/run.json?name=x", "/metrics",
          "/static/style.css", "/nowhere")  # fmt: skip
HOSTILE = "\"'><script>window.taken = 1</script><img src=x onerror='window.taken = 1'>"


class WebProcess:
    """The command, started on a free port; as a context manager, it does not outlive it.

    Args:
        environment: of the pool that it looks at, where that is not the one in force.
        token: shown with each question.
    """

    def __init__(self, log: Path, *options: str, environment: Mapping[str, str] | None = None, token: str = ""):
        self.log = log
        self.shown = {"Authorization": f"Bearer {token}"} if token else {}
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "glide", "web", "--port", "0", *options],
                stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip
        assert self.process.stdout
        first = self.process.stdout.readline()
        assert first.startswith("glide web: http://"), (first, log.read_text())
        self.url = first.split()[-1].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])

    def ask(self, path: str, method: str = "GET", headers: Mapping[str, str] = {}) -> tuple[int, dict[str, str], str]:
        """Status, headers and body of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, headers={**self.shown, **headers})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body

    def page(self, path: str = "/") -> str:
        status, _, body = self.ask(path)
        assert status == 200, (status, body)
        return body

    def json(self, path: str = "/status.json") -> Any:
        return json.loads(self.page(path))

    def snapshot_time(self) -> float:
        """The Unix time of the snapshot of the pool that the pages show."""
        ages = [line for line in self.page("/metrics").splitlines() if line.startswith("glide_view_age_seconds")]
        return time.time() - float(ages[0].split()[-1])

    def stop(self) -> str:
        """End it as an admin would, and return all that it has said."""
        self.process.terminate()
        output, _ = self.process.communicate()
        assert self.process.returncode == 0, self.log.read_text()
        return f"{self.url}\n{output}{self.log.read_text()}"

    def __enter__(self) -> WebProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def names_itself(pipe: Connection) -> None:
    """A worker whose snapshots have its process ID as the user."""
    while True:
        pipe.recv()
        snapshot = Snapshot(user=str(os.getpid()), now=time.time())
        pipe.send((snapshot, document(snapshot)))


def stumbles(pipe: Connection) -> None:
    """In place of the process that looks: its first answer is none."""
    for answer in (7, (Snapshot(now=1.0), document(Snapshot()))):
        pipe.recv()
        pipe.send(answer)


def view_of(snapshot: Snapshot, *sites: SiteFile) -> PoolView:
    """What pages and metrics show of a look like this, as the process that looks would tell it."""
    return PoolView().updated((snapshot, document(snapshot, [Site(site) for site in sites])))


def hangs(pipe: Connection) -> None:
    """Does not answer, as a call of the bindings to a daemon that is stopped."""
    pipe.recv()
    pipe.recv()
