"""Compare the engines that can run a model on a node: the same prompts, on one core and on two, without a pool.

    .venv/bin/python workflows/engines/run.py [--out DIR] [--repeat N]

It takes about 30 minutes on two cores. The first run also makes an environment with vLLM's CPU build in glide's cache,
which takes two minutes and 3.5 GB of disk.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

import glide
from glide.bench.gguf_file import write_gguf
from glide.bench.sticky import make_model
from glide.bench.vllm_environment import vllm_environment
from glide.report.experiment import Experiment, Measurement, arguments, number
from glide.report.sweep.figures import BLUE, GREY, INK, WIDTH, style
from glide.server.keeper import under_keeper

CODE = Path(glide.__file__).parents[1]
VERIFIER = Path(__file__).resolve().parents[1] / "promptverify"
PROMPT = "Claim: {claim}\nEvidence: {evidence}\nVerdict:"
CORES = (1, 2)
LIMIT_SECONDS = 1800.0  # time limit of one measurement
TRIAL = 16  # number of prompts that are computed before the first measurement


@dataclass(frozen=True)
class Work:
    """A model and its prompts.

    Attributes:
        folder: the model in the Hugging Face format.
        gguf: folder with the same model as a GGUF file.
        tokens: maximum number of new tokens for each prompt.
        dtype: type of the weights.
    """

    name: str
    folder: Path
    gguf: Path
    prompts: list[str]
    tokens: int
    dtype: str


WAYS = ("transformers engine", "vLLM (engine server)", "vLLM without a server", "llama.cpp (engine server)")


def works(folder: Path) -> list[Work]:
    """Make the models and the prompts."""
    found = []
    lines = (VERIFIER / "claims.jsonl").read_text("utf-8").splitlines()
    claims = [PROMPT.format_map(json.loads(line)) for line in lines]
    letters = random.Random(3)
    texts = ["".join(letters.choices("abcdefghij klmno", k=198)) for _ in range(32)]
    large = folder / "large"
    large.mkdir()
    make_model(large)
    for name, model, prompts, tokens, dtype in (
        ("tiny verifier, 0.8 M parameters", VERIFIER / "model", claims, 4, "float32"),
        ("random Llama, 187 M parameters", large, texts, 32, "bfloat16"),
    ):
        gguf = folder / f"gguf-{len(found)}"
        gguf.mkdir()
        write_gguf(model, gguf / "model.gguf")
        found.append(Work(name, model, gguf, prompts, tokens, dtype))
    return found


def measure(way: str, work: Work, cores: int, repeat: int, folder: Path) -> dict[str, Any]:
    """Run one engine on some cores, in a process of its own. Return its rates, its start time and its texts."""
    prompts, result = folder / "prompts.json", folder / "result.json"
    prompts.write_text(json.dumps(work.prompts), "utf-8")
    result.unlink(missing_ok=True)
    python = str(vllm_environment() / "bin" / "python")
    settings: dict[str, Any] = {
        "path": str(work.folder), "prompts": str(prompts), "result": str(result), "repeat": repeat, "trial": TRIAL,
        "generate": {"max_new_tokens": work.tokens, "do_sample": False}, "dtype": work.dtype,
    }  # fmt: skip
    program = [sys.executable, "-m", "glide.bench.engine_run"]
    if way == WAYS[0]:
        settings |= {"engine": "transformers", "options": {"dtype": work.dtype}}
    elif way == WAYS[1]:
        args = ["--dtype", work.dtype, "--enforce-eager", "--max-model-len", "512"]
        settings |= {"engine": "server", "options": {"program": "vllm", "args": args}, "python": python}
    elif way == WAYS[2]:
        program = [python, str(CODE / "glide" / "bench" / "vllm_alone.py")]
    else:
        settings |= {"engine": "server", "path": str(work.gguf), "options": {"program": "llamacpp"}}
    command = ["taskset", "-c", f"0-{cores - 1}", *under_keeper([*program, json.dumps(settings)])]
    environment = {**os.environ, "PYTHONPATH": str(CODE), "OMP_NUM_THREADS": str(cores)}
    with (folder / "log").open("wb") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=LIMIT_SECONDS)
    if not result.exists():
        sys.exit(f"{way} failed: {(folder / 'log').read_text('utf-8', 'replace')[-2000:]}")
    return json.loads(result.read_text("utf-8"))


def account(runs: dict[tuple[str, int, str], dict[str, Any]], began: float) -> Experiment:
    """Return the experiment's results. The keys of `runs` are the model, the number of cores, and the engine."""
    experiment = Experiment(
        "engines", "The same prompts through each engine, on one core and on two",
        "Which engine should run a model on a node?",
        ("model", "cores", "engine", "prompts/s", "over the transformers engine", "until ready", "texts that differ"),
        began=began,
    )  # fmt: skip
    for (model, cores, way), run in runs.items():
        reference = runs[model, cores, WAYS[0]]
        ratio = tuple(rate / median(reference["rates"]) for rate in run["rates"])
        others = sum(ours != theirs for ours, theirs in zip(run["texts"], reference["texts"], strict=True))
        rate, ratios = Measurement(tuple(run["rates"])), Measurement(ratio, "×")
        experiment.rows.append(
            (model, cores, way, rate, ratios, number(run["warm_s"], "s"), f"{others} of {len(run['texts'])}")
        )
    experiment.notes += [
        "The prompts of the tiny model have 37 tokens on average, and the answers at most 4. Those of the large model"
        " have about 199 tokens, and the answers 32.",
        "The tiny model is computed in float32. The large one has random weights, and is computed in bfloat16, except"
        " by llama.cpp, which computes it in float32. So llama.cpp's texts differ from those of the transformers"
        " engine.",
        "vLLM is its CPU build without compilation (--enforce-eager). `vLLM without a server` calls LLM.generate with"
        " all prompts, in one process. These rates say nothing about GPUs.",
        "llama.cpp is the package xllamacpp, which is built for all CPUs with AVX2. A build for one CPU is faster.",
        "`until ready` of vLLM without a server leaves out the time for importing vLLM, about 15 s.",
        "The ratio divides each rate by the median rate of the transformers engine with the same model and cores.",
    ]
    experiment.data = {
        "runs": [
            {"model": model, "cores": cores, "engine": way, "rates": run["rates"], "warm_s": run["warm_s"]}
            for (model, cores, way), run in runs.items()
        ]
    }
    return experiment


def drawn(runs: dict[tuple[str, int, str], dict[str, Any]]) -> Figure:
    """Draw the rates of each engine, as multiples of the transformers engine's rate."""
    models = list(dict.fromkeys(model for model, _, _ in runs))
    figure = Figure(figsize=(WIDTH, 1.2 + 0.9 * len(WAYS)))
    for axes, model in zip(figure.subplots(1, len(models), sharey=True, squeeze=False)[0], models, strict=True):
        for place, way in enumerate(WAYS):
            for cores, colour in zip(CORES, (GREY, BLUE), strict=True):
                base = median(runs[model, cores, WAYS[0]]["rates"])
                rates = [rate / base for rate in runs[model, cores, way]["rates"]]
                row = place + (cores - 1.5) * 0.36
                label = f"{cores} core{'s' * (cores > 1)}" if place == 0 and axes is figure.axes[0] else ""
                axes.barh(row, median(rates), height=0.34, color=colour, edgecolor=INK, linewidth=0.5, label=label)
                axes.plot(rates, [row] * len(rates), "|", color=INK, markersize=7)
        axes.set_title(model, fontsize="small")
        axes.set_yticks(range(len(WAYS)), WAYS)
        axes.set(xlabel="times the rate of the transformers engine", ylim=(len(WAYS) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    given, began = (
        arguments(
            "Compare the engines that can run a model on a node.", "engines",
            "About 30 minutes on two cores. The first run takes two minutes more, and 3.5 GB of disk.", 3,
        ).parse_args(words),
        time.time(),
    )  # fmt: skip
    runs: dict[tuple[str, int, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="glide-engines-") as name:
        for work in works(Path(name)):
            for cores in CORES:
                for way in WAYS:
                    run = runs[work.name, cores, way] = measure(way, work, cores, given.repeat, Path(name))
                    rates = ", ".join(f"{rate:.1f}" for rate in run["rates"])
                    print(f"{work.name}, cores: {cores}, {way}: {rates} prompts/s", file=sys.stderr, flush=True)
    with style():
        account(runs, began).write(given.out, drawn(runs))


if __name__ == "__main__":
    main()
