"""Measure the rate of one engine, without a pool: `python -m glide.bench.engine_run SETTINGS`.

The settings and the result are JSON. The engine runs on the cores that this process may use.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glide.server.engines import Completion, EngineRecord, build
from glide.template import Template


class Outcomes:
    """The outcomes that a concurrent engine reports."""

    def __init__(self) -> None:
        self.found: dict[int, Completion] = {}
        self._changed = threading.Condition()

    def started(self, keys: Sequence[int]) -> None:
        """Do nothing, because a benchmark needs no starts."""

    def paused(self, keys: Sequence[int]) -> None:
        """Do nothing, because a benchmark needs no pauses."""

    def done(self, key: int, completion: Completion) -> None:
        with self._changed:
            self.found[key] = completion
            self._changed.notify()

    def wait(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self.found) >= count)


def run(engine: Any, records: Sequence[EngineRecord], outcomes: Outcomes) -> dict[int, Completion]:
    """Serve records, as an engine process does, and return their outcomes by key.

    Args:
        outcomes: object that collects the outcomes. It must be the same object in all calls.
    """
    outcomes.found = {}
    if hasattr(engine, "submit"):
        engine.submit(records, outcomes)
        outcomes.wait(len(records))
        return outcomes.found
    for start in range(0, len(records), engine.window):
        for call in engine.plan(records[start : start + engine.window]):
            for record, completion in zip(call, engine.call(call), strict=True):
                outcomes.done(record.key, completion)
    return outcomes.found


def main() -> None:
    settings = json.loads(sys.argv[1])
    template = Template("bench", settings["engine"], settings["path"], options=settings["options"])
    python = settings.get("python") or sys.executable
    engine: Any = build(template, python=python)
    engine.prepare()
    started = time.monotonic()
    engine.load(settings["path"], lambda state: None)
    warm = time.monotonic() - started
    prompts = json.loads(Path(settings["prompts"]).read_text("utf-8"))
    records = [EngineRecord(number, prompt, settings["generate"]) for number, prompt in enumerate(prompts)]
    outcomes = Outcomes()
    run(engine, records[: settings["trial"]], outcomes)
    rates = []
    for _ in range(settings["repeat"]):
        started = time.monotonic()
        found = run(engine, records, outcomes)
        rates.append(len(records) / (time.monotonic() - started))
    texts = [found[number].text for number in range(len(records))]
    errors = [each.error for each in found.values() if each.error is not None]
    result = {
        "rates": rates,
        "warm_s": warm,
        "texts": texts,
        "errors": len(errors),
        "megabytes": engine.describe().get("megabytes"),
    }
    Path(settings["result"]).write_text(json.dumps(result), "utf-8")
    os._exit(0)  # the keeper of this process ends the engine's program


if __name__ == "__main__":
    main()
