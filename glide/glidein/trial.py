"""Materialise a template once, here, in a server of its own that is thrown away: does it load, how long, how large?"""

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
from glide.server.settings import Settings
from glide.server.supply import SupplySettings
from glide.template import Template
from glide.vocabulary import Machine, State

PHASES = {
    "fetch": Machine.FETCH_SECONDS, "import": Machine.IMPORT_SECONDS, "load": Machine.LOAD_SECONDS,
    "warm": Machine.WARM_SECONDS,
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """What came of it: seconds by phase, the most memory in MB, the GPU's name, and why it failed, if it did."""

    seconds: dict[str, float]
    megabytes: float
    gpu: str
    failure: str
    log: str


def trial(template: Template, cache: Path, watch: Callable[[str], None] = lambda state: None) -> Trial:
    """Load a template and forget it, but for its files; `watch` is told each state as it is reached."""
    with tempfile.TemporaryDirectory(prefix="glide-trial-") as name:
        folder = Path(name)
        (folder / "template.json").write_text(template.to_json(), "utf-8")
        (folder / "server.json").write_text(Settings(SupplySettings(str(cache))).to_json(), "utf-8")
        paths = [folder / name for name in ("server.json", "template.json", "door", "log")]
        with zipfile.ZipFile(io.BytesIO(bundle())) as code:  # as nodes have it, for other Pythons than ours too
            code.extractall(folder / "code")
        environment = {**os.environ, "PYTHONPATH": str(folder / "code")}
        server = subprocess.Popen([sys.executable, "-m", "glide.server", *map(str, paths)], env=environment)
        try:
            ad: dict[str, Any] = {}
            for ad in _states(server, folder / "door"):
                watch(ad[Machine.STATE])
                if ad[Machine.STATE] in (State.WARM, State.FAILED):
                    break
            seconds = {phase: ad.get(attribute, 0.0) for phase, attribute in PHASES.items()}
            failure = ad.get(Machine.FAILURE, "") if ad.get(Machine.STATE) != State.WARM else ""
            failure = failure if ad else "the server ended"
            log = (folder / "log").read_text("utf-8", "replace") if (folder / "log").exists() else ""
            return Trial(seconds, _most_memory(server.pid), ad.get(Machine.GPU_NAME, ""), failure, log)
        finally:
            server.terminate()
            server.wait()


def _states(server: subprocess.Popen, door: Path) -> Iterator[dict[str, Any]]:
    while not door.exists():
        if server.poll() is not None:
            return
        time.sleep(0.02)
    port, cookie = door.read_text("utf-8").split()
    with socket.create_connection(("127.0.0.1", int(port))) as visit, visit.makefile() as lines:
        visit.sendall(f"{cookie}\nwatch\n".encode())
        ad: dict[str, Any] = {}
        for line in lines:
            name, equals, value = line.partition(" = ")
            if equals:
                ad[name] = json.loads(value)
            else:
                yield ad
                ad = {}


def _most_memory(server: int) -> float:
    """MB that the engine has had at most: the server's child, or what a container's runtime has started."""
    most = 0.0
    with suppress(OSError, StopIteration):
        for child in Path(f"/proc/{server}/task/{server}/children").read_text("utf-8").split():
            most = max(most, _peak(int(child)), _most_memory(int(child)))
    return most


def _peak(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
