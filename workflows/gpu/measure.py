"""On one GPU: what does sticky state save, and how much of the engine's rate does glide keep?

Each step of PLAN has a planned time. A step is left out if less than this time is left of --minutes. A step that is
slower than planned is not stopped. After each step the results so far are written, so that at most one step is lost if
the machine is taken away.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "stickyinvoc"))

from systems import COLOURS, CREATE_DESTROY, KEEP, LANES, STICKY_INVOC, STICKY_IO, run  # noqa: E402

from glide.bench.origin import origin  # noqa: E402
from glide.bench.recovery import wait_for_restart  # noqa: E402
from glide.bench.rig import Rig, rig  # noqa: E402
from glide.bench.sticky import make_model  # noqa: E402
from glide.condor import EventLog  # noqa: E402
from glide.files.listing import MANIFEST  # noqa: E402
from glide.protocol.json_lines import read_results  # noqa: E402
from glide.report.experiment import Comparison, Experiment, Measurement, arguments, number  # noqa: E402
from glide.report.sweep.figures import BLUE, GREY, WIDTH, style  # noqa: E402
from glide.server.keeper import under_keeper  # noqa: E402
from glide.sweep.driver import Progress  # noqa: E402
from glide.template.spec import files_of  # noqa: E402

LIMIT_SECONDS = 240.0  # time limit of an engine alone


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        model: sizes of the model, as keys and values of transformers' LlamaConfig.
        gpus: number of GPUs of a glidein; 0 to compute on CPU cores.
        shared: number of glideins that share the device.
        tasks, records: for RQ1, the number of tasks, and of records in a task.
        many: number of records of the other steps.
        tokens: number of new tokens of each record.
    """

    model: dict[str, int]
    dtype: str
    gpus: int
    shared: int
    tasks: int
    records: int
    many: int
    tokens: int


# The shape of a Llama with 1.7 billion parameters.
FULL = Size(
    {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
     "vocab_size": 49152},
    "bfloat16", gpus=1, shared=4, tasks=16, records=100, many=8000, tokens=16,
)  # fmt: skip
TINY = Size(
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 2000},
    "float32", gpus=0, shared=2, tasks=4, records=10, many=800, tokens=4,
)  # fmt: skip


@dataclass
class Kit:
    """The measurements so far.

    Attributes:
        until: monotonic time by which the last step should end.
        folder: folder for temporary files.
    """

    size: Size
    experiment: Experiment
    out: Path
    until: float
    folder: Path
    model: Path = field(init=False)
    megabytes: float = 0.0
    copy_rate: float = 0.0  # bytes per second from main memory to the device
    alone: dict[str, dict[str, Any]] = field(default_factory=dict)  # for each engine, the result of engine_run
    seconds: dict[str, float] = field(default_factory=dict)  # for each of the paper's systems, the time of RQ1

    def row(self, step: str, what: str, value: float, unit: str, beside: str = "") -> None:
        self.experiment.rows.append((step, what, number(value, unit), beside))
        self.experiment.data.setdefault("values", []).append([step, what, value, unit])

    def prompts(self, count: int) -> list[str]:
        """Return `count` different prompts of about 150 bytes. A token is a byte."""
        filler = "a sentence that makes the prompt as long as a short claim with evidence. " * 2
        return [f"{index}: {filler}" for index in range(count)]

    @property
    def generate(self) -> dict[str, Any]:
        return {"max_new_tokens": self.size.tokens, "min_new_tokens": self.size.tokens, "do_sample": False}

    def spec(self, engine: str = "transformers", path: str = "") -> dict[str, Any]:
        """Return the `model` of a sweep file."""
        options: dict[str, Any] = {"dtype": self.size.dtype}
        if engine == "vllm":
            options = {"program": "vllm", "args": ["--dtype", self.size.dtype, "--max-model-len", "512"]}
        name = "server" if engine == "vllm" else engine
        return {"name": f"gpu-{engine}", "engine": name, "path": path or str(self.model), "options": options}

    def pool(self, glideins: int, lanes: int) -> AbstractContextManager[Rig]:
        """Return a pool for a `with` block. Its glideins share the device."""
        settings = {"GPU_DISCOVERY_EXTRA": f"-extra -divide {glideins}"} if self.size.gpus else {}
        request = {"memory": 12000 if self.size.gpus else 1500, "disk": 100, "gpus": self.size.gpus}
        return rig(cores=glideins, settings=settings, lanes=lanes, request=request)


# ---- steps ---------------------------------------------------------------------------------------


def make(kit: Kit) -> None:
    """Make the model with random weights, and measure the copy rate to the device."""
    kit.model = kit.folder / "model"
    began = time.monotonic()
    device = "cuda" if kit.size.gpus else "cpu"
    parameters = make_model(kit.model, getattr(torch, kit.size.dtype), device, **kit.size.model)
    (kit.model / MANIFEST).write_text(json.dumps(files_of(kit.model, kit.model)), "utf-8")
    os.chmod(kit.folder, 0o755)
    kit.megabytes = sum(path.stat().st_size for path in kit.model.glob("*.safetensors")) / 1e6
    kit.row("model", f"made and saved, {parameters / 1e6:,.1f} M parameters", time.monotonic() - began, "s",
            f"{kit.megabytes:,.0f} MB")  # fmt: skip
    source = torch.empty(512_000_000, dtype=torch.uint8, pin_memory=bool(kit.size.gpus))
    rates = []
    for _ in range(4):
        began = time.monotonic()
        copied = source.to(device, copy=True)
        if kit.size.gpus:
            torch.cuda.synchronize()
        rates.append(source.numel() / (time.monotonic() - began))
        del copied
    kit.copy_rate = max(rates[1:])
    kit.row("model", f"copy rate from main memory to {device}", kit.copy_rate / 1e9, "GB/s", "best of three")
    if kit.size.gpus:
        torch.cuda.empty_cache()


def alone(kit: Kit, engine: str) -> None:
    """Measure an engine without HTCondor: time to load, and tokens per second."""
    prompts, result = kit.folder / "prompts.json", kit.folder / f"{engine}.json"
    prompts.write_text(json.dumps(kit.prompts(kit.size.many)), "utf-8")
    spec = kit.spec(engine)
    settings = {
        "engine": spec["engine"], "path": spec["path"], "options": spec["options"], "prompts": str(prompts),
        "result": str(result), "repeat": 1, "trial": 16, "generate": kit.generate,
    }  # fmt: skip
    command = under_keeper([sys.executable, "-m", "glide.bench.engine_run", json.dumps(settings)])
    with (kit.folder / "log").open("wb") as log:
        subprocess.run(command, cwd=kit.folder, stdout=log, stderr=log, timeout=LIMIT_SECONDS)
    if not result.exists():
        raise RuntimeError((kit.folder / "log").read_text("utf-8", "replace")[-2000:])
    found = kit.alone[engine] = json.loads(result.read_text("utf-8"))
    ideal = kit.megabytes * 1e6 / kit.copy_rate
    kit.row(f"{engine} alone", "time to load", found["warm_s"], "s", f"bytes ÷ copy rate: {number(ideal, 's')}")
    kit.row(f"{engine} alone", "new tokens per second", found["rates"][0] * kit.size.tokens, "")


def check(results: Sequence[Mapping[str, Any]], count: int) -> None:
    """Raise AssertionError unless there is one result without an error of each record."""
    assert len({each["custom_id"] for each in results}) == len(results) == count
    assert not any(each["error"] for each in results)


def rq1(kit: Kit) -> None:
    """RQ1: glideins that share the device, with nothing, files, or the state kept between tasks."""
    size = kit.size
    for system in KEEP:
        count = size.tasks * size.records
        with origin(kit.model, 1e9) as source, kit.pool(size.shared, LANES[system]) as bench:
            done = run(
                bench, system, kit.spec(path=source.url), count, pack=size.records, texts=kit.prompts(count),
                generate=kit.generate, glideins=size.shared,
            )  # fmt: skip
        check(done.results, count)
        kit.seconds[system] = done.seconds
        kit.row("RQ1", f"{system}, {size.tasks} tasks of {size.records} records", done.seconds, "s")
        kit.experiment.data.setdefault("runs", []).append(done.document())
    for other, paper in ((CREATE_DESTROY, 3.6), (STICKY_IO, 1.9)):
        ratio = Measurement((kit.seconds[other] / kit.seconds[STICKY_INVOC],), "×")
        kit.experiment.compared.append(Comparison(f"{other} over StickyInvoc, one device", paper, "×", ratio))


def rq3_and_recovery(kit: Kit) -> None:
    """RQ3 on warm glideins that share the device, and then the loss of one of them."""
    size, seconds = kit.size, {}
    with kit.pool(size.shared, 2) as bench:
        sweep = partial(bench.sweep, model=kit.spec(), generate=kit.generate, glideins=size.shared, options={})
        sweep(size.many // 4, texts=kit.prompts(size.many // 4))  # the glideins start, and measure their speed
        for batch in (1, 100, 1000):
            texts = kit.prompts(size.many)
            seconds[batch] = float(sweep(size.many, texts=texts, batch=batch)["makespan_s"])
            kit.row("RQ3", f"batch {batch:,}, {size.many:,} records", seconds[batch], "s")
        slowest = Measurement((100 * (max(seconds.values()) / min(seconds.values()) - 1),), "%")
        kit.experiment.compared.append(
            Comparison("slowest batch size over best, minus 1, one device", 13.6, "%", slowest)
        )
        recovery(kit, bench, sweep)


def recovery(kit: Kit, bench: Rig, sweep: Callable[..., dict[str, Any]]) -> None:
    """Kill a glidein in the middle of a sweep. Nothing may be lost."""
    restarted: list[float] = []
    ended = threading.Event()

    def kill() -> None:
        events, began = EventLog(), time.monotonic()
        bench.pool.glidein_masters()[0].send(signal.SIGKILL)
        if (at := wait_for_restart(events, ended)) is not None:
            restarted.append(at - began)

    killer = threading.Thread(target=kill, daemon=True)

    def watch(progress: Progress) -> None:
        if progress.done > progress.total / 4 and killer.ident is None:
            killer.start()

    sweep(kit.size.many, texts=kit.prompts(kit.size.many), watch=watch)
    ended.set()
    results = list(read_results(bench.results.sweep.out / "plain" / "results.jsonl"))
    check(results, kit.size.many)
    kit.row("recovery", "records computed again after the loss of a glidein", bench.results.recomputed, "",
            f"of {kit.size.many:,}; none lost")  # fmt: skip
    for each in restarted:
        kit.row("recovery", "from the loss to the start of the job with its records", each, "s")


def whole(kit: Kit, engine: str) -> None:
    """One glidein with all of the device: tokens per second against the engine alone."""
    count = kit.size.many
    with kit.pool(1, 2) as bench:
        sweep = partial(bench.sweep, model=kit.spec(engine), generate=kit.generate, glideins=1, options={})
        sweep(count // 8, texts=kit.prompts(count // 8))  # the glidein starts, and measures its speed
        summary = sweep(count, texts=kit.prompts(count))
    rate = count / float(summary["makespan_s"])
    share = Measurement((rate / kit.alone[engine]["rates"][0],), "×")
    kit.row(f"{engine}, one glidein", "new tokens per second", rate * kit.size.tokens, "",
            f"{share} of the engine alone")  # fmt: skip
    kit.experiment.compared.append(
        Comparison(
            f"rate of a warm glidein over its engine alone ({engine})", None, "×", share, better="more", goal=0.9
        )
    )


@dataclass(frozen=True)
class Step:
    """A step of the plan, and the seconds that it should take at most on a GPU."""

    name: str
    seconds: float
    do: Callable[[Kit], None]


PLAN = (
    Step("make the model, measure the copy rate", 45, make),
    Step("the transformers engine alone", 60, partial(alone, engine="transformers")),
    Step("RQ1: three systems, four glideins on one GPU", 180, rq1),
    Step("RQ3 and recovery, four glideins on one GPU", 120, rq3_and_recovery),
    Step("one glidein with the whole GPU", 60, partial(whole, engine="transformers")),
    Step("the vLLM engine alone", 70, partial(alone, engine="vllm")),
    Step("one glidein with the whole GPU, vLLM", 65, partial(whole, engine="vllm")),
)


def main() -> None:
    takes = "Ten minutes at most. It starts HTCondor pools of its own."
    parser = arguments(__doc__ or "", "gpu", takes)
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on CPU cores, to try the command")
    chosen = parser.parse_args()
    began = time.monotonic()
    if not chosen.tiny and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU; with --tiny, the kit runs on CPU cores")
    title = "glide on CPU cores with a tiny model, to try the kit" if chosen.tiny else "glide on one GPU"
    experiment = Experiment(
        "gpu", title, "What does sticky state save, and how much of the engine's rate does glide keep?",
        ("step", "what", "value", "beside"),
    )  # fmt: skip
    failed = []
    with tempfile.TemporaryDirectory(prefix="glide-gpu-") as name:
        size = TINY if chosen.tiny else FULL
        kit = Kit(size, experiment, chosen.out, began + 60 * chosen.minutes, Path(name))
        for step in PLAN:
            left = kit.until - time.monotonic()
            if "vLLM" in step.name and find_spec("vllm") is None:
                experiment.notes.append(f"Left out: {step.name}. vLLM is not installed.")
                continue
            if left < step.seconds and not chosen.tiny:
                experiment.notes.append(
                    f"Left out: {step.name}. It takes {step.seconds:g} s, and {left:.0f} s were left."
                )
                continue
            started = time.monotonic()
            try:
                step.do(kit)
            except Exception as error:  # the other steps are worth their time
                failed.append(step.name)
                experiment.notes.append(f"**Failed: {step.name}.** {type(error).__name__}: {error}")
            took = time.monotonic() - started
            experiment.data.setdefault("steps", []).append([step.name, round(took, 1), step.seconds])
            print(f"gpu: {step.name}: {took:.0f} s", file=sys.stderr, flush=True)
            with style(), redirect_stdout(StringIO()):
                experiment.write(chosen.out, figure(kit))
    print((chosen.out / "gpu.md").read_text("utf-8"))
    sys.exit(bool(failed))


def figure(kit: Kit) -> Figure:
    """Draw the times of RQ1, and the times of the steps."""
    drawn = Figure(figsize=(WIDTH, 4.4))
    above, below = drawn.subplots(2)
    bars = above.bar(list(kit.seconds), list(kit.seconds.values()), 0.55, color=[COLOURS[each] for each in kit.seconds])
    above.bar_label(bars, fmt="%.0f s", padding=2, fontsize=8)
    above.set(ylabel="RQ1: seconds")
    steps = kit.experiment.data["steps"]
    names = [name for name, _, _ in steps]
    below.barh(names, [planned for _, _, planned in steps], 0.7, color=GREY, label="planned")
    below.barh(names, [took for _, took, _ in steps], 0.4, color=BLUE, label="taken")
    below.invert_yaxis()
    below.set(xlabel="seconds")
    below.legend()
    return drawn


if __name__ == "__main__":
    main()
