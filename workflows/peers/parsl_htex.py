"""Parsl's HighThroughputExecutor: a block of two workers. In each worker, the model stays in a global variable.

Usage: python parsl_htex.py MODEL RECORDS OUT
"""

import os
import sys
import tempfile
import time
from pathlib import Path

began = time.time()
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # Parsl finds its own programs on the PATH

import parsl  # noqa: E402
from infer import HERE, WORKERS, load, serve, tasks, write_answers  # noqa: E402
from parsl import Config, HighThroughputExecutor, python_app  # noqa: E402
from parsl.providers import LocalProvider  # noqa: E402

load_app, serve_app = python_app(load), python_app(serve)

folder, records, out = sys.argv[1:]
with tempfile.TemporaryDirectory() as run_dir:
    provider = LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PYTHONPATH={HERE}")
    executor = HighThroughputExecutor(
        label="peers", address="127.0.0.1", max_workers_per_node=WORKERS, provider=provider, encrypted=False,
        prefetch_capacity=WORKERS,
    )  # fmt: skip
    config = Config(executors=[executor], run_dir=run_dir, strategy="none", usage_tracking=0, retries=3)
    with parsl.load(config):
        # Each worker loads the model once, because a worker takes no second task while it loads.
        loading = [load_app(folder) for _ in range(WORKERS)]
        answers = [serve_app(folder, task) for task in tasks(records)]
        write_answers(out, began, [answer.result() for answer in answers])
