"""Kill a worker of each system once a minute while it computes the same prompts: what is computed again, what is lost?

    .venv/bin/python workflows/peers/kills.py [--out DIR]

A worker is killed with all its processes, without a warning (SIGKILL), as when a node is lost. Each system has its own
means to replace it. Each prompt gets many new tokens, because the model has no token that ends a text. So a task takes
seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from infer import TASK, TOKENS_VARIABLE, WATCH_VARIABLE, WORKERS
from matplotlib.figure import Figure
from peers import GLIDE, PROMPTVERIFY, SYSTEMS, Missing, System, interpreter, measure, write_records

from glide.condor.processes import children
from glide.report.experiment import Comparison, Experiment, Measurement, arguments, number, positive
from glide.report.sweep.figures import BLUE, INK, WIDTH, style

RECORDS, TOKENS = 12_000, 64
EVERY = 60.0  # seconds between two kills
LIMIT_SECONDS = 900.0  # time limit of one system
# How each system gets a new worker, and what it does with the task of the killed one.
MEANS = {
    "glide": "the factory submits another glidein; the driver puts the unfinished records into other jobs",
    "two plain processes": "none",
    "Parsl HTEX": "the manager starts another worker process; `retries=3`",
    "Ray actors": "`max_restarts=-1, max_task_retries=-1`",
    "Dask": "the nanny starts another worker process",
    "TaskVine functions": "the script starts another worker, as `vine_factory` does",
    "glide, vLLM": "the same as for `glide`",
    "vLLM run-batch": "the script starts the command again, as a batch system would; a file has 1,000 prompts",
    "datatrove InferenceRunner, vLLM": "the Ray executor starts the task again, three times, and then the script;"
    " `checkpoints_local_dir`",
}
# The systems with the same engine; glide comes first.
TRANSFORMERS = ("glide", "two plain processes", "Parsl HTEX", "Ray actors", "Dask", "TaskVine functions")
ON_VLLM = tuple(name for name in MEANS if name not in TRANSFORMERS)


class Killer:
    """Kill one of the announced workers every `every` seconds, for the first time `every` seconds after the first one.

    Args:
        folder: the folder of WATCH_VARIABLE.
    """

    def __init__(self, folder: Path, every: float):
        self.folder = folder
        self.every = every
        self.kills = 0
        self._next = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        alive = [int(path.stem) for path in self.folder.glob("*.worker") if Path(f"/proc/{path.stem}").exists()]
        if alive and not self._next:
            self._next = now + self.every
        if alive and now >= self._next:
            victim = min(alive, key=lambda pid: os.stat(f"/proc/{pid}").st_ctime)  # the one that works for longest
            for pid in (victim, *_descendants(victim)):
                _kill(pid)
            self.kills += 1
            self._next += self.every

    @property
    def begun(self) -> int:
        """How many prompts workers have begun to compute. A prompt that was begun twice counts twice."""
        return sum(int(line) for path in self.folder.glob("*.begun") for line in path.read_text("utf-8").split())


def _descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *_descendants(child))]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def write_endless_model(folder: Path) -> Path:
    """Copy the model of the sweep, and name another token as the one that ends texts. Return the copy's folder."""
    copy = folder / "model"
    shutil.copytree(PROMPTVERIFY / "model", copy)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = copy / name
        settings = json.loads(path.read_text("utf-8"))
        settings |= {"eos_token": settings["pad_token"]} if "eos_token" in settings else {"eos_token_id": 0}
        path.write_text(json.dumps(settings), "utf-8")
    return copy


def run(system: System, taskvine: str, records: int, every: float) -> dict[str, Any]:
    """Run a system under kills. Return the counts."""
    with tempfile.TemporaryDirectory(prefix="glide-kills-") as name:
        folder = Path(name)
        watched = folder / "watched"
        watched.mkdir()
        watched.chmod(0o777)  # glideins run under another account
        folder.chmod(0o755)
        os.environ[WATCH_VARIABLE] = str(watched)
        path = folder / "records.jsonl"
        write_records(path, records)
        killer = Killer(watched, every)
        began = time.monotonic()
        try:
            python, model = interpreter(system, taskvine), write_endless_model(folder)
            found = measure(system, python, path, killer, LIMIT_SECONDS, model)
        except Missing as why:
            return {"system": system.name, "kills": killer.kills, "done": 0, "problem": str(why)}
        if system == GLIDE:
            again = found["summary"]["recomputed"] + found["summary"]["lost_in_flight"]
        else:
            again = killer.begun - found["records"]
        return {
            "system": system.name, "kills": killer.kills, "done": found["records"], "again": again,
            "seconds": time.monotonic() - began, "digest": found["digest"],
        }  # fmt: skip


def account(runs: Sequence[dict[str, Any]], records: int, began: float) -> Experiment:
    """Return the experiment with its table and notes."""
    experiment = Experiment(
        "kills", "A worker is killed once a minute", "What is computed again, and what is lost, if workers are lost?",
        ("system", "killed", "prompts done", "begun again", "again per kill", "lost", "from nothing", "means"),
        began=began,
    )  # fmt: skip
    for each in runs:
        means, lost = MEANS[each["system"]], records - each["done"]
        if "problem" in each:
            experiment.rows.append((each["system"], each["kills"], 0, "–", "–", lost, "–", means))
            continue
        per_kill = number(_per_kill(each)) if each["kills"] else "–"
        counts = each["kills"], each["done"], each["again"], per_kill, lost, number(each["seconds"], "s")
        experiment.rows.append((each["system"], *counts, means))
    if quick := [each["system"] for each in runs if not each["kills"] and "problem" not in each]:
        experiment.notes.append(
            f"**Never killed, because all prompts were done before: {', '.join(map(repr, quick))}.** Run it again with"
            " more --records."
        )
    compare(experiment, [each for each in runs if each["system"] in TRANSFORMERS], records)
    compare(experiment, [each for each in runs if each["system"] in ON_VLLM], records, ", all on vLLM")
    experiment.notes += [
        f"{WORKERS} workers of one core compute {records:,} prompts with {TOKENS} new tokens each. A task of the"
        f" other systems has {TASK} prompts. glide chooses the size of its jobs, and its jobs stream their results.",
        "A prompt counts as begun again each time that a worker begins it after the first time. The workers count this."
        f" For {GLIDE.name!r}, the driver counts it: prompts that a lost node had given to its engine, also if they"
        " were still waiting there, and results that arrived twice. Prompts of a node's last second are missing.",
        "glide's engine begins many prompts at a time (continuous batching), plain transformers begin batches of 32,"
        " and vLLM begins up to 128 prompts at a time by default, but 256 under glide. glide's finished results reach"
        f" the access point once a second. Those of the others are safe when a task of {TASK} prompts ends, and with"
        " run-batch when a file ends; datatrove writes each result at once.",
        "A system without a means to replace workers ends with an error, and its results are in no file.",
    ]
    if len({each["digest"] for each in runs if "digest" in each}) == 1:
        experiment.notes.append("All texts of all systems are equal.")
    experiment.data = {"records": records, "tokens": TOKENS, "task": TASK, "runs": list(runs)}
    return experiment


def compare(experiment: Experiment, runs: Sequence[dict[str, Any]], records: int, engine: str = "") -> None:
    """Add glide's numbers, and a note if another system with the same engine begins fewer prompts again.

    Args:
        runs: the runs of the systems that are compared. If glide is among them, it is the first.
        engine: end of the phrases that describe the numbers.
    """
    if not runs or not runs[0]["system"].startswith(GLIDE.name):
        return
    ours, *others = runs
    experiment.compared.append(_number(f"prompts lost, glide{engine}", records - ours["done"], 0.0))
    measured = [each for each in others if each["kills"] and "again" in each]
    if not measured or not ours["kills"] or "again" not in ours:
        return
    best = min(measured, key=_per_kill)
    if _per_kill(best):
        what = f"prompts begun again per kill, glide over the fewest of the others{engine}"
        experiment.compared.append(_number(what, _per_kill(ours) / _per_kill(best), 1.0, "×"))
    if _per_kill(ours) > _per_kill(best):
        experiment.notes.append(
            f"{ours['system']!r} loses no prompt, but does not begin the fewest again: {number(_per_kill(ours))} per"
            f" kill, and {best['system']!r} {number(_per_kill(best))}. Its engine computes more prompts at a time."
        )


def _per_kill(run: dict[str, Any]) -> float:
    return run["again"] / run["kills"]


def _number(what: str, value: float, goal: float, unit: str = "") -> Comparison:
    """Return a number that should be at most the goal. No paper gives it."""
    return Comparison(what, None, unit, Measurement((value,), unit), better="less", goal=goal)


def drawn(runs: Sequence[dict[str, Any]]) -> Figure:
    """Draw the number of prompts that each system began again for each kill."""
    shown = [each for each in runs if each.get("kills") and "again" in each]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.4 * len(shown)))
    axes = figure.subplots()
    bars = axes.barh([each["system"] for each in shown], [_per_kill(each) for each in shown], 0.6,
                     color=BLUE, edgecolor=INK, linewidth=0.5)  # fmt: skip
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="prompts begun again per kill")
    return figure


def main() -> None:
    names = [system.name for system in SYSTEMS if system.name in MEANS]
    parser = arguments(
        "Kill a worker of each system once a minute.", "kills",
        "About 30 minutes on two cores. Each system starts its own daemons.",
    )  # fmt: skip
    parser.add_argument("--records", type=positive, default=RECORDS, help="number of prompts")
    parser.add_argument("--every", type=float, default=EVERY, help="seconds between two kills")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="measure only these systems")
    parser.add_argument("--taskvine", default="python3", metavar="PYTHON", help="interpreter that can import ndcctools")
    given, began = parser.parse_args(), time.time()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ[TOKENS_VARIABLE] = str(TOKENS)
    runs = []
    for system in SYSTEMS:
        if system.name in given.only:
            runs.append(run(system, given.taskvine, given.records, given.every))
            print(f"kills: {json.dumps(runs[-1])}", file=sys.stderr, flush=True)
    with style():
        account(runs, given.records, began).write(given.out, drawn(runs))


if __name__ == "__main__":
    main()
