"""Measure calls of one engine, without a pool: `python -m glide.bench.engine_calls SETTINGS`.

The settings are JSON. Each line of standard input is a measurement, and its result is a line of standard output.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import deque
from statistics import median
from typing import Any

from glide.server.engine_process import importing
from glide.server.engines import EngineRecord, build
from glide.template import Template


def measure(engine: Any, prompts: list[str], generate: dict[str, Any], clients: int, pause: float) -> dict[str, float]:
    """Call the engine until all prompts have an answer, with `clients` calls in flight. Return rate and median time.

    Args:
        pause: seconds after each answer until the client makes its next call.
    """
    waiting = deque(EngineRecord(number, prompt, generate) for number, prompt in enumerate(prompts))
    times: list[float] = []
    began = time.monotonic()
    while waiting:
        batch = [waiting.popleft() for _ in range(min(clients, engine.batch, len(waiting)))]
        started = time.monotonic()
        for call in engine.plan(batch):
            engine.call(call)
        times.append(time.monotonic() - started)
        time.sleep(pause)
    return {"rate": len(prompts) / (time.monotonic() - began), "median": median(times)}


def main() -> None:
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # packages may print messages
    settings = json.loads(sys.argv[1])
    template = Template("bench", settings["engine"], settings["path"], options=settings["options"])
    with importing():
        engine: Any = build(template)
        engine.prepare()
    engine.load(settings["path"], lambda state: None)
    gc.freeze()  # as an engine's process does it
    print("{}", file=results, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(engine, **json.loads(line))), file=results, flush=True)


if __name__ == "__main__":
    main()
