"""A factory of a test's own, and the command line beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import eventually

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = (ROOT / "submit_templates" / "invocation.sub").read_text()


def entry(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "max_glideins": 3, "request": {"memory": 600, "disk": 100}, "idle_seconds": 60, **changes}


class FactoryProcess:
    """`glide factory run` on a site file of its own; its log is what it says.

    Args:
        environment: of the pool that it works for, where that is not the one in force.
    """

    def __init__(self, folder: Path, name: str, *entries: dict[str, Any], environment: Mapping[str, str] | None = None):
        self.environment = environment
        self.file = folder / f"{name}.yaml"
        self.log = folder / f"{name}.log"
        self.name = name
        self.write(*entries)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, *entries: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump({"site": self.name, "interval": 1, "entries": list(entries)}))

    def start(self, *options: str) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "glide", "factory", "run", *options, "-c", str(self.file)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None
            assert "Traceback" not in self.log.read_text()

    def says(self, words: str) -> str:
        return eventually(lambda: words in self.log.read_text() and self.log.read_text(), f"it says {words}")


def command(*words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line, on the pool in force or another one."""
    return subprocess.run([sys.executable, "-m", "glide", *words], capture_output=True, text=True, env=environment)
