"""glide: a sweep on two glideins, with glide's default settings, on an embedded pool of its own.

Usage: python glide_sweep.py MODEL RECORDS OUT [VLLM]
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from infer import GENERATE, HERE, WATCH_VARIABLE, WORKERS, announce, prompts_of, write_measurement
from vllm_workers import arguments, write_plugin

from glide.bench.rig import rig
from glide.bench.vllm_environment import VERSION
from glide.sweep.driver import Progress
from glide.vocabulary import State


def watched(vllm: str) -> Path:
    """Return the folder of an environment whose vLLM counts the prompts that it begins (vllm_counter.py).

    Glideins do not inherit this process's environment variables, so the environment's Python sets them.
    """
    watch = Path(os.environ[WATCH_VARIABLE])
    folder = watch.parent / "environment"
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    write_plugin(folder)
    lines = [
        f'export PYTHONPATH="$PYTHONPATH:{HERE}:{folder}"', f"export {WATCH_VARIABLE}={watch}",
        f'exec {vllm}/bin/python "$@"',
    ]  # fmt: skip
    python.write_text("\n".join(["#!/bin/sh", *lines, ""]), "utf-8")
    python.chmod(0o755)
    return folder


if __name__ == "__main__":
    began = time.time()
    folder, records, out, *vllm = sys.argv[1:]
    prompts = prompts_of(records)
    model = {"name": "verifier", "engine": "transformers", "path": folder, "options": {"dtype": "float32"}}
    if vllm:
        environment = str(watched(vllm[0])) if WATCH_VARIABLE in os.environ else vllm[0]
        program = {"program": "vllm", "args": arguments()}
        model |= {"engine": "server", "environment": environment, "options": program}
    with rig(cores=WORKERS, request={"cpus": 1, "memory": 4096 if vllm else 1024, "disk": 100}) as bench:

        def watch(progress: Progress) -> None:
            # To find the masters takes some CPU time, which a run without kills must not spend.
            if WATCH_VARIABLE in os.environ and progress.running:
                for master in bench.pool.glidein_masters():
                    announce(master.pid)

        summary = bench.sweep(len(prompts), {}, watch, texts=prompts, glideins=WORKERS, generate=GENERATE, model=model)
        results = bench.results.sweep.out
        history = [json.loads(line) for line in (results / ".glide" / "history.jsonl").read_text("utf-8").splitlines()]
        answers = [json.loads(line) for line in (results / "plain" / "results.jsonl").read_text("utf-8").splitlines()]
        # The time when the first model server was warm, by its own clock. The workers of the other systems measure this
        # time, too. The driver sees the warm server only later.
        ready = min(line["since"] for line in history if line.get("state") == State.WARM)
        engines: Counter[str] = Counter()
        for answer in answers:
            engines[answer["glidein"]] += answer["seconds"]
        texts = [answer["text"] for answer in answers]
        versions = {"vllm": VERSION} if vllm else {}
        write_measurement(out, began, ready, texts, versions, engines=engines, summary=summary)
