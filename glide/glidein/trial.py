"""Load a template once in a temporary model server on this machine, to measure the template's time and memory."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glide.glidein.bundle import bundle
from glide.server.engines.server.share import tree_megabytes
from glide.server.settings import ServerSettings
from glide.server.supply import SupplySettings
from glide.template import Template
from glide.vocabulary import Machine, State

PHASES = {
    "fetch": Machine.FETCH_SECONDS, "import": Machine.IMPORT_SECONDS, "load": Machine.LOAD_SECONDS,
    "warm": Machine.WARM_SECONDS,
}  # fmt: skip


@dataclass(frozen=True)
class LoadTrial:
    """The result of loading a template once.

    Attributes:
        seconds: duration of each phase in seconds. The keys are the phases in PHASES.
        megabytes: memory of the engine and its programs in MB.
        gpu: name of the GPU; empty if the engine uses no GPU.
        failure: reason why the template did not load; empty if the template loaded.
        log: text of the model server's log.
    """

    seconds: dict[str, float]
    megabytes: float
    gpu: str
    failure: str
    log: str


def trial(template: Template, cache: Path, on_state: Callable[[str], None] = lambda state: None) -> LoadTrial:
    """Load a template once, and then delete everything except the template's files in the cache.

    Args:
        cache: folder of the cache, in which the template's files stay.
        on_state: called with each state that the model server reports.
    """
    with tempfile.TemporaryDirectory(prefix="glide-trial-") as name:
        folder = Path(name)
        (folder / "template.json").write_text(template.to_json(), "utf-8")
        (folder / "server.json").write_text(ServerSettings(SupplySettings(str(cache))).to_json(), "utf-8")
        paths = [folder / name for name in ("server.json", "template.json", "door", "log")]
        # The engine may run under the Python of the template's environment. This Python cannot import glide from this
        # program's packages. So unpack the part of glide that nodes run.
        with zipfile.ZipFile(io.BytesIO(bundle())) as code:
            code.extractall(folder / "code")
        environment = {**os.environ, "PYTHONPATH": str(folder / "code")}
        server = subprocess.Popen([sys.executable, "-m", "glide.server", *map(str, paths)], env=environment)
        try:
            ad: dict[str, Any] = {}
            for ad in _states(server, folder / "door"):
                on_state(ad[Machine.STATE])
                if ad[Machine.STATE] in (State.WARM, State.FAILED):
                    break
            seconds = {phase: ad.get(attribute, 0.0) for phase, attribute in PHASES.items()}
            failure = ad.get(Machine.FAILURE, "") if ad.get(Machine.STATE) != State.WARM else ""
            failure = failure if ad else "the model server ended before it reported a state"
            log = (folder / "log").read_text("utf-8", "replace") if (folder / "log").exists() else ""
            memory = max(_most_memory(server.pid), tree_megabytes(server.pid))
            return LoadTrial(seconds, memory, ad.get(Machine.GPU_NAME, ""), failure, log)
        finally:
            server.terminate()
            server.wait()


def _states(server: subprocess.Popen, endpoint: Path) -> Iterator[dict[str, Any]]:
    """Connect to a model server, and yield the lane's attributes whenever the server sends them.

    If the server ends before it has an endpoint, yield nothing.
    """
    while not endpoint.exists():
        if server.poll() is not None:
            return
        time.sleep(0.02)
    port, cookie = endpoint.read_text("utf-8").split()
    with socket.create_connection(("127.0.0.1", int(port))) as connection, connection.makefile() as lines:
        connection.sendall(f"{cookie}\nwatch\n".encode())
        ad: dict[str, Any] = {}
        for line in lines:
            name, equals, value = line.partition(" = ")
            if equals:
                ad[name] = json.loads(value)
            else:
                yield ad
                ad = {}


def _most_memory(server: int) -> float:
    """Return the peak memory of the model server's largest descendant process, in MB.

    The largest descendant is the engine. It need not be a child of the server, so all descendants are compared.
    """
    most = 0.0
    with suppress(OSError, StopIteration):
        for child in Path(f"/proc/{server}/task/{server}/children").read_text("utf-8").split():
            most = max(most, _peak(int(child)), _most_memory(int(child)))
    return most


def _peak(process: int) -> float:
    """Return the peak memory of a process, in MB."""
    lines = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
