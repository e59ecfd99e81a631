"""Measure the benefit of sticky state. The same inferences run in four ways on two cores:

- `create_destroy`: HTCondor sends the model's files to each job, and the job loads the model.
- `sticky_io`: the files are on the node, and each job loads the model.
- `sticky`: glide loads the model once per glidein.
- `resident`: a plain process on each core loads the model once. This way is the fastest, because it needs no jobs.

Create-destroy and StickyI/O are task models from a paper by Phung and Thain.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from glide.bench.rig import Rig, rig
from glide.condor import AccessPoint
from glide.vocabulary import JobStatus

CORES = 2
RECORDS = 384
LONG = 6 * RECORDS  # number of records for the report's key `warm_sticky_over_resident`
PER_JOB = 8
GENERATE = {"max_new_tokens": 4, "do_sample": False}
OPTIONS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch": PER_JOB}


def sticky(repeat: int) -> dict[str, Any]:
    """Run the same inferences in four ways, and compare the makespans.

    The four ways are `create_destroy`, `sticky_io`, `sticky` and `resident`. A makespan is the time from a cold start
    to the last result. In the report, `over_sticky` has each makespan, divided by the makespan of `sticky`.

    In the report, `warm_sticky_over_resident` has the duration of `sticky`, divided by the duration of `resident`.
    Both durations begin after the loading of a model:

    - The duration of `sticky` begins with the first warm lane, and ends with the last gathered result.
    - The duration of `resident` is the time for which the slowest process computes.
    """
    seconds: dict[str, list[float]] = {}
    serving: dict[str, list[float]] = {}
    with rig(cores=CORES, request={"memory": 4000, "disk": 100}) as bench:
        model = bench.folder / "model"
        parameters = make_model(model)
        for _ in range(repeat):
            for name, way in (("resident", _resident), ("sticky", _sticky)):
                seconds.setdefault(name, []).append(way(bench, model, RECORDS)[0])
                serving.setdefault(name, []).append(way(bench, model, LONG)[1])
            seconds.setdefault("sticky_io", []).append(_load_in_each_job(bench, model, transfer=False))
            seconds.setdefault("create_destroy", []).append(_load_in_each_job(bench, model, transfer=True))
    medians = {name: median(times) for name, times in seconds.items()}
    return {
        "records": RECORDS, "records_per_job": PER_JOB, "parameters": parameters, "seconds": seconds,
        "over_sticky": {name: round(time / medians["sticky"], 3) for name, time in medians.items()},
        "serving_records": LONG, "serving_seconds": serving,
        "warm_sticky_over_resident": round(median(serving["sticky"]) / median(serving["resident"]), 3),
    }  # fmt: skip


def make_model(folder: Path, dtype: Any = None, device: Any = "cpu", **sizes: Any) -> int:
    """Save a Llama model with random weights and a tokenizer of bytes. Return the number of the model's parameters.

    Args:
        dtype: torch's type of the weights; None for float32.
        device: torch's device on which the weights are made. A GPU makes large models in seconds.
        sizes: changes to the model's configuration. Without changes, the model has about 180 M parameters.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *sorted(alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(**{
        "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
        "num_attention_heads": 16, "max_position_embeddings": 2048, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **sizes,
    })  # fmt: skip
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _texts(count: int) -> list[str]:
    return [f"Record {number}: a text of some forty bytes." for number in range(count)]


def _resident(bench: Rig, model: Path, count: int) -> tuple[float, float]:
    """Run a plain process on each core. Each process has its own model and a share of the records.

    Returns:
        The seconds from the start to the end of all processes, and the seconds in which the slowest process computed.
    """
    bench.drain()
    started = time.monotonic()
    processes = []
    for core in range(CORES):
        share = bench.folder / f"resident-{core}.json"
        share.write_text(json.dumps(_texts(count)[core::CORES]), "utf-8")
        processes.append(_start_cold_job(str(model), str(share), str(share.with_suffix(".out"))))
    for process in processes:
        assert process.wait() == 0
    whole = time.monotonic() - started
    return whole, max(json.loads(out.read_text("utf-8"))["seconds"] for out in bench.folder.glob("resident-*.out"))


def _start_cold_job(*arguments: str) -> subprocess.Popen[bytes]:
    command = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "glide.bench.cold_job", *arguments]
    return subprocess.Popen(command, stdout=sys.stderr)  # standard output must contain only the benchmark's result


def _sticky(bench: Rig, model: Path, count: int) -> tuple[float, float]:
    """Run a sweep on new glideins.

    Returns:
        Two durations in seconds. Both durations end when the last result is gathered:

        - The first duration begins before the glideins start and load the model.
        - The second duration begins when the first lane is warm.
    """
    bench.drain()
    started = time.monotonic()
    summary = bench.sweep(
        count, {}, texts=_texts(count), glideins=CORES, generate=GENERATE,
        model={"name": "bench", "engine": "transformers", "path": str(model), "options": OPTIONS},
    )  # fmt: skip
    return time.monotonic() - started, summary["warm_makespan_s"]


def _load_in_each_job(bench: Rig, model: Path, transfer: bool) -> float:
    """Run HTCondor jobs that each load the model, and return the seconds until the last job has ended.

    Args:
        transfer: whether HTCondor sends the model's files with each job. If not, the jobs read the files on the node.
    """
    bench.drain()
    folder = bench.folder / f"jobs-{time.monotonic_ns()}"
    folder.mkdir()
    texts = _texts(RECORDS)
    parts = [texts[start : start + PER_JOB] for start in range(0, RECORDS, PER_JOB)]
    for number, part in enumerate(parts):
        (folder / f"{number}.json").write_text(json.dumps(part), "utf-8")
    where = model.name if transfer else str(model)
    description = f"""
        universe = vanilla
        executable = {sys.executable}
        transfer_executable = false
        arguments = -m glide.bench.cold_job {where} $(part).json $(part).out
        environment = "PYTHONPATH={Path(__file__).resolve().parents[2]}"
        transfer_input_files = $(part).json{f", {model}" if transfer else ""}
        transfer_output_files = $(part).out
        should_transfer_files = yes
        request_cpus = 1
        request_memory = 4000
        initialdir = {folder}
    """
    started = time.monotonic()
    access_point = AccessPoint()
    cluster = access_point.submit(description, items=[{"part": str(number)} for number in range(len(parts))])
    while jobs := access_point.jobs(f"ClusterId == {cluster}", ["HoldReason"]):
        held = [job.get("HoldReason") for job in jobs if job["JobStatus"] == JobStatus.HELD]
        assert not held, held[0]
        time.sleep(0.5)
    assert len(list(folder.glob("*.out"))) == len(parts)
    return time.monotonic() - started
