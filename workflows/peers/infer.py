"""What every system here computes: greedy texts by plain transformers, the model loaded once per process.

Imported by the workers of all systems but glide, which has an engine of its own.
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
TASK = 100  # records of a task
BATCH = 32  # rows of a padded batch
GENERATE: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
PACKAGES = ("glide", "parsl", "ray", "distributed", "torch", "transformers")
HERE = str(Path(__file__).resolve().parent)

# A worker has one core. Before torch is imported, and inherited by what workers are started from.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

Answer = tuple[list[str], float]  # the texts, and when their worker's model was ready (Unix time)


def tasks(records: str) -> list[list[str]]:
    """The prompts of a file, cut into tasks."""
    prompts = [json.loads(line)["prompt"] for line in Path(records).read_text("utf-8").splitlines()]
    return [prompts[start : start + TASK] for start in range(0, len(prompts), TASK)]


@cache
def _resident(folder: str) -> tuple[Any, Any, float]:
    """Model and tokenizer, and when they were ready: the first call, which costs more, has been made."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    _greedy(model, tokenizer, ["Hello."] * BATCH)
    return model, tokenizer, time.time()


def load(folder: str) -> float:
    """Have the model in this process; when it was ready."""
    return _resident(folder)[2]


def serve(folder: str, prompts: Sequence[str]) -> Answer:
    """A task: padded batches, shortest prompts first, so that they hold little padding."""
    model, tokenizer, ready = _resident(folder)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        for row, text in zip(rows, _greedy(model, tokenizer, [prompts[row] for row in rows]), strict=True):
            texts[row] = text
    return texts, ready


def _greedy(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    import torch

    inputs = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        output = model.generate(**inputs, **GENERATE, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def leave(
    out: str,
    began: float,
    ready: float,
    texts: Sequence[str],
    versions: Mapping[str, str] = MappingProxyType({}),
    **more: Any,
) -> None:
    """Write down, now that the last result is in the caller's hands, how long that took.

    Args:
        began: when the system was started, Unix time.
        ready: when its first worker had the model.
        versions: of what pip does not know.
        more: what else it has to tell.
    """
    ended = time.time()
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    told = {
        "makespan_s": ended - ready, "total_s": ended - began, "records": len(texts), "digest": digest,
        "versions": {**_versions(), **versions},
    }  # fmt: skip
    Path(out).write_text(json.dumps({**told, **more}, indent=1) + "\n", "utf-8")


def _versions() -> dict[str, str]:
    """Of what the caller's interpreter has."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def leave_answers(out: str, began: float, answers: Sequence[Answer], **more: Any) -> None:
    """The same, for all tasks' answers in their order."""
    leave(out, began, min(ready for _, ready in answers), [text for texts, _ in answers for text in texts], **more)
