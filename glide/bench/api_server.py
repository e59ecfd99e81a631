"""Run `glide serve` as a command, for benchmarks, workflows and tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from glide.condor import home
from glide.errors import GlideError
from glide.system import ending_with_us


class ApiServer:
    """A `glide serve` that runs as a command, with the state in GLIDE_HOME. A `with` block stops it at its end.

    Args:
        options: options of the command, without --port.

    Attributes:
        port: the port that it listens on. Each start uses the same.
        process: the running command.

    Raises:
        GlideError: the command has not started.
    """

    def __init__(self, *options: str | Path):
        self.options = options
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start the command, and wait until it listens."""
        command = [sys.executable, "-m", "glide", "serve", *map(str, self.options), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=ending_with_us(signal.SIGTERM))
        assert self.process.stdout is not None
        port = self.process.stdout.readline().decode().rpartition(":")[2].partition("/")[0]
        if not port.isdigit():
            self.stop()
            raise GlideError("glide serve has not started; its error is above")
        self.port = int(port)

    @property
    def url(self) -> str:
        """Address of the API, as OPENAI_BASE_URL needs it."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def token_file(self) -> Path:
        """File with the token of this account, if the options name no other file."""
        return home() / "serve" / "token"

    @property
    def token(self) -> str:
        """The token of this account."""
        return self.token_file.read_text("utf-8").split()[0]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request, and return the JSON of its answer.

        Args:
            path: path of the endpoint, below `/v1`.
            body: the body of a POST request; None for a GET request.

        Raises:
            OSError: the server does not answer, or the answer is an error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """End the command, and wait for its end."""
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> ApiServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
