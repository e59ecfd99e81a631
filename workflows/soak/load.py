"""The work during the soak: sweeps of two users, one after the other, and live calls. It counts what gets lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import yaml

from glide.bench.api_server import ApiServer
from glide.system import ending_with_us

MOST_TRIES = 20  # number of times that a sweep is run again if it has ended with an error, for example on a full disk
RETRY_SECONDS = 5.0  # seconds before a sweep or a call is tried again
CALL_TRIES = 60  # number of times that a call is tried again if the server asks for it


class SweepLoop(threading.Thread):
    """Runs sweeps of one user, and checks that each has exactly one result of each record.

    Args:
        folder: folder for the sweeps. Each finished and correct sweep is deleted.
        model: `model` of the sweep files.
        records: number of records of a sweep.
        environment: environment of the command `glide`.

    Attributes:
        counts: numbers of sweeps, records, attempts of records, and runs that were continued after an error.
        problems: what is wrong. Empty if nothing is.
    """

    def __init__(self, user: str, folder: Path, model: Mapping[str, Any], records: int, environment: Mapping[str, str]):
        super().__init__(name=user, daemon=True)
        self.user = user
        self.folder = folder
        self.model = model
        self.records = records
        self.environment = environment
        self.ended = threading.Event()
        self.stopped = threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def stop(self) -> None:
        """End the loop now, and the sweep that runs."""
        self.ended.set()
        self.stopped.set()
        while self.is_alive():
            if self.process:
                self.process.kill()
            self.join(0.5)

    def run(self) -> None:
        number = 0
        while not self.ended.is_set():
            number += 1
            folder = self.folder / f"{self.user}-{number}"
            folder.mkdir(parents=True)
            try:
                self._run_sweep(folder)
            except (OSError, ValueError, KeyError) as error:
                self.problems.append(f"{folder.name}: {error!r}")
                return

    def _run_sweep(self, folder: Path) -> None:
        lines = [json.dumps({"custom_id": str(each), "text": f"text {each}"}) for each in range(self.records)]
        write(folder / "records.jsonl", "\n".join(lines))
        content = {
            "name": folder.name, "model": dict(self.model), "records": "records.jsonl", "prompts": {"plain": "{text}"},
            "out": str(folder / "out"), "accounting_group_user": self.user, "generate": {"max_tokens": 4},
        }  # fmt: skip
        write(folder / "sweep.yaml", yaml.safe_dump(content))
        command = [sys.executable, "-m", "glide", "sweep", "run", str(folder / "sweep.yaml")]
        output = ""
        for _ in range(MOST_TRIES):
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
                errors="replace", preexec_fn=ending_with_us(),
            )  # fmt: skip
            _, output = self.process.communicate()
            if self.process.returncode == 0:
                return self._check(folder)
            self.counts["continued runs"] += 1
            if self.stopped.wait(RETRY_SECONDS):
                return
        self.problems.append(f"{folder.name}: {output.strip().splitlines()[-1:]}")

    def _check(self, folder: Path) -> None:
        text = (folder / "out" / "plain" / "results.jsonl").read_text("utf-8")
        results = list(map(json.loads, text.splitlines()))
        seen = Counter(result["custom_id"] for result in results)
        wrong = [result for result in results if result["error"]]
        if set(seen) != set(map(str, range(self.records))) or max(seen.values()) > 1 or wrong:
            missing = self.records - len(seen)
            self.problems.append(f"{folder.name}: {missing} missing, {len(results) - len(seen)} twice, {wrong[:1]}")
            return
        self.counts["sweeps"] += 1
        self.counts["records"] += len(results)
        self.counts["begun again"] += sum(result["attempts"] - 1 for result in results)
        shutil.rmtree(folder)


class LiveLoop(threading.Thread):
    """Sends live calls, one after the other, and checks that each is answered.

    Attributes:
        seconds: the time of each call.
        retries: number of answers that asked the client to try again.
        problems: what is wrong. Empty if nothing is.
    """

    def __init__(self, server: ApiServer, model: str):
        super().__init__(name=f"calls of {model}", daemon=True)
        self.server = server
        self.model = model
        self.ended = threading.Event()
        self.seconds: list[float] = []
        self.retries = 0
        self.problems: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            began = time.monotonic()
            try:
                self._call(f"call {len(self.seconds)}")
            except (OSError, KeyError, ValueError) as error:
                self.problems.append(f"call {len(self.seconds)} of {self.model}: {error!r}")
            self.seconds.append(time.monotonic() - began)
            time.sleep(0.1)

    def _call(self, prompt: str) -> None:
        for _ in range(CALL_TRIES):
            try:
                answer = self.server.ask("/completions", {"model": self.model, "prompt": prompt, "max_tokens": 4})
                if not isinstance(answer["choices"][0]["text"], str):
                    raise ValueError(f"the answer has no text: {answer}")
                return
            except HTTPError as error:
                if "Retry-After" not in error.headers:
                    raise OSError(f"{error.code} {error.read().decode(errors='replace')}") from None
                self.retries += 1
                time.sleep(RETRY_SECONDS)
        raise OSError("the server has asked to try again too often")


def write(path: Path, text: str) -> None:
    """Write a file. While the disk is full, try again."""
    while True:
        try:
            path.write_text(text, "utf-8")
            return
        except OSError:
            time.sleep(1.0)
