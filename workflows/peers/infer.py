"""The computation in the workers of all compared systems without glide's engine: load a model, and generate texts.

Each worker uses plain transformers. glide's engine computes the same texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

WORKERS = 2
TASK_VARIABLE = "PEERS_TASK"
TASK = int(os.environ.get(TASK_VARIABLE, "100"))  # number of prompts in a task
BATCH = 32  # number of prompts in a padded batch
TOKENS_VARIABLE = "PEERS_TOKENS"
GENERATE: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
if tokens := os.environ.get(TOKENS_VARIABLE):
    GENERATE["max_new_tokens"] = int(tokens)
# Folder where workers say which process computes, and how much, so that kills.py can kill them and count.
WATCH_VARIABLE = "PEERS_WATCH"
PACKAGES = ("glide", "parsl", "ray", "distributed", "datatrove", "torch", "transformers", "vllm")
HERE = str(Path(__file__).resolve().parent)

# Each worker uses one core. torch reads these variables when it is imported, and worker processes inherit them.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

Answer = tuple[list[str], float]  # the texts, and the Unix time when the worker's model was ready


def prompts_of(records: str) -> list[str]:
    """Return the prompts of a file."""
    return [json.loads(line)["prompt"] for line in Path(records).read_text("utf-8").splitlines()]


def tasks(records: str) -> list[list[str]]:
    """Return the prompts of a file, divided into tasks."""
    prompts = prompts_of(records)
    return [prompts[start : start + TASK] for start in range(0, len(prompts), TASK)]


@cache
def _resident(folder: str) -> tuple[Any, Any, float]:
    """Load the model at the first call. Return model, tokenizer, and the Unix time when both were ready.

    The model is called once before it counts as ready, because its first call takes longer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    _greedy(model, tokenizer, ["Hello."] * BATCH)
    announce(os.getpid())
    return model, tokenizer, time.time()


def announce(pid: int) -> None:
    """Say that a process is a worker that computes, if kills.py wants to know."""
    if folder := os.environ.get(WATCH_VARIABLE):
        (Path(folder) / f"{pid}.worker").touch()


def begin(records: int) -> None:
    """Say that this process begins to compute some more prompts, if kills.py wants to know."""
    if folder := os.environ.get(WATCH_VARIABLE):
        with (Path(folder) / f"{os.getpid()}.begun").open("a", encoding="utf-8") as file:
            file.write(f"{records}\n")


def loaded() -> None:
    """Say when the model of this process was loaded."""
    (Path(os.environ[WATCH_VARIABLE]) / f"{os.getpid()}.ready").write_text(str(time.time()), "utf-8")


def load(folder: str) -> float:
    """Load the model in this process, and return the Unix time when it was ready."""
    return _resident(folder)[2]


def serve(folder: str, prompts: Sequence[str]) -> Answer:
    """Compute a task in padded batches. The prompts are sorted by length, so that batches have little padding."""
    model, tokenizer, ready = _resident(folder)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        begin(len(rows))
        for row, text in zip(rows, _greedy(model, tokenizer, [prompts[row] for row in rows]), strict=True):
            texts[row] = text
    return texts, ready


def _greedy(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    import torch

    inputs = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        output = model.generate(**inputs, **GENERATE, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def write_measurement(
    out: str,
    began: float,
    ready: float,
    texts: Sequence[str],
    versions: Mapping[str, str] = MappingProxyType({}),
    **more: Any,
) -> None:
    """Write the measured times to a file. The time of this call counts as the end of the run.

    Args:
        out: path of the file.
        began: Unix time when the system was started.
        ready: Unix time when the system's first worker had the model.
        texts: all results, in the order of the prompts.
        versions: versions of programs that pip does not know.
        more: further keys and values of the file.
    """
    ended = time.time()
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    document = {
        "makespan_s": ended - ready, "total_s": ended - began, "records": len(texts), "digest": digest,
        "versions": {**_versions(), **versions},
    }  # fmt: skip
    Path(out).write_text(json.dumps({**document, **more}, indent=1) + "\n", "utf-8")


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages among PACKAGES."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def write_answers(out: str, began: float, answers: Sequence[Answer], **more: Any) -> None:
    """Write the measured times to the file `out`. `answers` are the answers of all tasks, in the order of the tasks."""
    ready = min(ready for _, ready in answers)
    write_measurement(out, began, ready, [text for texts, _ in answers for text in texts], **more)
