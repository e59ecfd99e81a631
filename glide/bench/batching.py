"""What batching is worth: prompts a second of plain transformers, one by one and in padded batches, and of our engine.

On one core, without a pool. The loop of single prompts runs over every tenth prompt; its rate is that of those.
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
from glide.server.engines import Record
from glide.server.engines.transformers import Transformers
from glide.template import Template

PROMPTS = 2000
LOOP = 10  # the loop runs over one prompt in so many
TOKENS = 40  # of a prompt, give or take SPREAD
SPREAD = 6
SHARED = "The verdict of a judge: "[: TOKENS // 2]  # half of a prompt, where they share their beginning
BATCHES = (32, 128, 256)
GENERATE = {"max_new_tokens": 4, "do_sample": False}
# About 4 M parameters, random enough that texts differ from prompt to prompt.
SIZES = {
    "vocab_size": 258, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 5,
    "num_attention_heads": 4, "initializer_range": 0.1,
}  # fmt: skip

Way = Callable[[list[str]], list[str]]


def batching(repeat: int) -> dict[str, Any]:
    """Prompts a second of each way, and the medians of what ours is over the others in the same round.

    Args:
        repeat: rounds, in each of which every way has its turn: a slow minute of the machine is everyone's.
    """
    # An engine's words go to a glidein's log; here they are no part of the result.
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
    """Texts of random letters: a byte is a token of this model's."""
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
    ways["ours"] = lambda texts: _ours(engine, texts)
    said: dict[str, list[str]] = {}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + repeat):
        for name, way in ways.items():
            started = time.perf_counter()
            said[name] = way(texts)
            rate = len(said[name]) / (time.perf_counter() - started)
            if number:  # the first round is for warming up, and for the texts
                rates[name].append(rate)
    padded = [max(each) for each in zip(*(rates[f"padded_{size}"] for size in BATCHES), strict=True)]
    facts = engine.describe()
    return {
        "prompts_per_s": {name: round(median(each), 1) for name, each in rates.items()},
        "ours_over_loop": _ratio(rates["ours"], rates["loop"]),
        "ours_over_best_padded": _ratio(rates["ours"], padded),
        "same_texts": said["ours"][::LOOP] == said["loop"]
        and all(said["ours"] == said[f"padded_{size}"] for size in BATCHES),
        "different_texts": len(set(said["ours"])),
        "batching": facts["batching"],
        "prefix_hits": round(facts["prefix_hits"], 3),
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(median(mine / other for mine, other in zip(ours, theirs, strict=True)), 3)


class _Plain:
    """The model as anybody would use it: `generate` on batches sorted by length."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def padded(self, texts: list[str], size: int) -> list[str]:
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        said = [""] * len(texts)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            inputs = self.tokenizer(
                [texts[number] for number in part], padding=True, return_tensors="pt", return_token_type_ids=False
            )
            output = self.model.generate(**inputs, **GENERATE, pad_token_id=self.tokenizer.pad_token_id)
            decoded = self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for number, text in zip(part, decoded, strict=True):
                said[number] = text
        return said


def _ours(engine: Transformers, texts: list[str]) -> list[str]:
    """In windows, as a model server sends them."""
    said = [""] * len(texts)
    records = [Record(number, text, GENERATE) for number, text in enumerate(texts)]
    for start in range(0, len(records), engine.window):
        for call in engine.plan(records[start : start + engine.window]):
            for record, completion in zip(call, engine.call(call), strict=True):
                said[record.key] = completion.text or ""
    return said


@contextmanager
def _one_core() -> Iterator[None]:
    """For the tokenizer's and torch's threads alike."""
    import torch

    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
