"""Measure the benefit of batching: the prompts per second of plain transformers and of glide's engine.

Plain transformers computes single prompts in a loop, or padded batches. Everything runs on one core, without a pool.
The loop computes only every tenth prompt. The loop's rate counts only these prompts.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from glide.bench.sticky import make_model
from glide.server.engines import EngineRecord
from glide.server.engines.transformers import Transformers
from glide.template import Template

PROMPTS = 2000
LOOP = 10  # the loop over single prompts computes only every tenth prompt
TOKENS = 40  # average number of tokens in a prompt; one byte is one token
SPREAD = 6  # maximum difference between a prompt's length and the average length, in tokens
SHARED = "The verdict of a judge: "[: TOKENS // 2]  # in the comparison "half_shared", all prompts begin with this text
BATCHES = (32, 128, 256)
GENERATE = {"max_new_tokens": 4, "do_sample": False}
# The model has about 4 M parameters. Because of the large initializer range, each prompt gives a different text.
SIZES = {
    "vocab_size": 258, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 5,
    "num_attention_heads": 4, "initializer_range": 0.1,
}  # fmt: skip

Way = Callable[[list[str]], list[str]]  # a function that takes prompts and returns their completions


def batching(repeat: int) -> dict[str, Any]:
    """Measure the prompts per second of a loop over single prompts, of padded batches, and of glide's engine.

    Also divide glide's rate by the rate of the loop, and by the best rate of padded batches. Do this in each round, and
    report the medians of these ratios.

    Args:
        repeat: number of rounds. Each round measures everything once. So if the machine is slow for a minute, this
            affects all rates.
    """
    # The engine prints to standard output, which must contain only the benchmark's result. So redirect what it prints.
    with _one_core(), redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="glide-bench-") as folder:
        parameters = make_model(Path(folder), **SIZES)
        report: dict[str, Any] = {
            "parameters": parameters, "prompts": PROMPTS, "prompts_of_the_loop": PROMPTS // LOOP, "tokens": TOKENS,
            "new_tokens": GENERATE["max_new_tokens"],
        }  # fmt: skip
        for name, shared in (("nothing_shared", ""), ("half_shared", SHARED)):
            report[name] = _compare(Path(folder), _texts(shared), repeat)
    return report


def _texts(shared: str) -> list[str]:
    """Return texts that begin with `shared` and continue with random letters. For the model, each byte is a token."""
    chance = random.Random(7)
    return [
        shared + "".join(chance.choices("abcdefghij ", k=TOKENS + chance.randint(-SPREAD, SPREAD) - len(shared)))
        for _ in range(PROMPTS)
    ]


def _compare(folder: Path, texts: list[str], repeat: int) -> dict[str, Any]:
    engine = Transformers(Template("bench", "transformers", str(folder)), Transformers.Options(dtype="float32"))
    engine.prepare()
    engine.load(str(folder), lambda state: None)
    plain = _Plain(folder)
    ways: dict[str, Way] = {"loop": lambda texts: plain.padded(texts[::LOOP], 1)}
    ways |= {f"padded_{size}": partial(plain.padded, size=size) for size in BATCHES}
    ways["ours"] = lambda texts: _with_engine(engine, texts)
    completions: dict[str, list[str]] = {}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + repeat):
        for name, way in ways.items():
            started = time.perf_counter()
            completions[name] = way(texts)
            rate = len(completions[name]) / (time.perf_counter() - started)
            if number:  # the first round only warms up, and is not measured
                rates[name].append(rate)
    padded = [max(each) for each in zip(*(rates[f"padded_{size}"] for size in BATCHES), strict=True)]
    facts = engine.describe()
    return {
        "prompts_per_s": {name: round(median(each), 1) for name, each in rates.items()},
        "ours_over_loop": _ratio(rates["ours"], rates["loop"]),
        "ours_over_best_padded": _ratio(rates["ours"], padded),
        "same_texts": completions["ours"][::LOOP] == completions["loop"]
        and all(completions["ours"] == completions[f"padded_{size}"] for size in BATCHES),
        "different_texts": len(set(completions["ours"])),
        "batching": facts["batching"],
        "prefix_hits": round(facts["prefix_hits"], 3),
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(median(mine / other for mine, other in zip(ours, theirs, strict=True)), 3)


class _Plain:
    """The model in plain transformers. `padded` calls `generate` for batches of prompts that are sorted by length."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def padded(self, texts: list[str], size: int) -> list[str]:
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        completions = [""] * len(texts)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            inputs = self.tokenizer(
                [texts[number] for number in part], padding=True, return_tensors="pt", return_token_type_ids=False
            )
            output = self.model.generate(**inputs, **GENERATE, pad_token_id=self.tokenizer.pad_token_id)
            decoded = self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for number, text in zip(part, decoded, strict=True):
                completions[number] = text
        return completions


def _with_engine(engine: Transformers, texts: list[str]) -> list[str]:
    """Complete texts with glide's engine.

    Like a model server, this function gives the engine groups of records. Each group has `engine.window` records. The
    engine divides a group into batches, and computes the batches.
    """
    completions = [""] * len(texts)
    records = [EngineRecord(number, text, GENERATE) for number, text in enumerate(texts)]
    for start in range(0, len(records), engine.window):
        for call in engine.plan(records[start : start + engine.window]):
            for record, completion in zip(call, engine.call(call), strict=True):
                completions[record.key] = completion.text or ""
    return completions


@contextmanager
def _one_core() -> Iterator[None]:
    """Restrict this process to one core in a `with` block. The threads of tokenizer and torch share this core."""
    import torch

    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
