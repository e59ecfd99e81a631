"""Compare real runs on this machine with simulations from each run's nodes and speeds, and HTCondor's usual costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from glide.config import SiteFile
from glide.report.experiment import Experiment, arguments
from glide.report.sweep.figures import BLUE, GREY, INK, WIDTH, style
from glide.simulate import Trace, simulate
from glide.simulate.trace import Costs

STATE = "state"
PART = "(part)"  # mark of runs of a part of the records
# The time in the queue and the start of a glidein cost nothing in the simulation, because a node arrives in the trace
# when its glidein already ran in the real run. All other costs have default values.
COSTS = Costs(queue=0, glidein=0)


def main() -> None:
    parser = arguments(__doc__ or "", "simulation", "Some seconds; nothing is started.")
    parser.add_argument(
        "--runs", type=Path, default=Path("results/stickyinvoc"), help="folder with the results of rq3, rq4 and rq5"
    )
    options = parser.parse_args()
    experiment = Experiment(
        "predicted", "Real runs and their simulations", "Does a simulation take the same time as the real run?",
        ("run", "what", "measured", "simulated", "off", "jobs", "simulated"),
    )  # fmt: skip
    shown: dict[str, tuple[Mapping[str, Any], Any]] = {}
    for name, run in measured_runs(options.runs):
        outcome = simulate(*trace(run))
        lost = not run["finished"]
        measured, simulated = (
            (run["done"][-1][1], outcome.done) if lost else (run["makespan_s"], outcome.makespan)
        )  # fmt: skip
        off = f"{simulated / measured - 1:+.1%}"
        what = "records done" if lost else "makespan, s"
        experiment.rows.append((name, what, measured, float(simulated), off, run["jobs"], outcome.jobs))
        shown.setdefault(name, (run, outcome))
    experiment.notes += [
        "A simulation knows when each node arrived and left, how long a record and a load take on each class of nodes,"
        " how many records there are, and what a job carries. The times of a record and of a load are the run's own"
        " averages. Matching, starts, turnover, losses and gathering have the default costs of `glide simulate`, which"
        " were measured in other runs. The packer chooses the sizes of jobs.",
        f"{PART}: each job has a batch of one record, and only a fiftieth of the records was run. Without a load, such"
        " a job costs little more than its start at the access point. So the row shows how exact that cost is.",
    ]
    with style():
        experiment.write(options.out, figure(shown))


def measured_runs(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield for each run its name and its data."""
    files = [folder / f"{name}.json" for name in ("rq3", "rq4", "rq5")]
    if not files[0].exists():
        raise SystemExit(f"{files[0]}: no such file; run workflows/stickyinvoc/rq3.py --out {folder} first")
    data = {file.stem: json.loads(file.read_text("utf-8"))["data"] for file in files if file.exists()}
    for name in sorted(data.keys() & {"rq3", "rq4"}):
        for run in data[name]["runs"]:
            mark = PART if run.get("part", 1) < 1 else ""
            yield f"{name}, {run.get('way', run['system'])}, batch {run['batch']} {mark}".rstrip(), run
    for name, runs in data.get("rq5", {}).items():
        for run in runs:
            yield f"rq5, {name} availability", run


def trace(run: Mapping[str, Any]) -> tuple[Trace, SiteFile]:
    """Return a trace with the nodes and the sweep of a run, and the trace's site."""
    # StickyI/O loads in each task, and the measured time of a load includes HTCondor's turnover between two tasks.
    turnover = 0.0 if run["keep"] == STATE else COSTS.turnover
    ready = run["keep"] == STATE and all(node["warm_s"] == node["arrive_s"] for node in run["nodes"])
    entries = [
        {"name": name, "max_glideins": at_once(run, name), "max_idle": 1000, "submits_per_cycle": 1000,
         "lanes": run["lanes"], "breaker": {"failures": 1000}}
        for name in run["classes"]
    ]  # fmt: skip
    nodes = [
        {"device": each["class"], "entry": each["class"], "arrive": each["arrive_s"], "leave": each["leave_s"]}
        for each in run["nodes"]
    ]  # fmt: skip
    devices = {
        name: {"record_seconds": each["record_s"], "load_seconds": 0.0 if ready else max(0, each["load_s"] - turnover)}
        for name, each in run["classes"].items()
    }
    batch = 1 if run["batch"] == "auto" else run["batch"]
    work = {"glideins": len(nodes), "batch": batch, "pack": run["pack"], "keep": run["keep"]}
    simulated = Trace.model_validate({
        "site": {"site": "here", "interval": 1, "entries": entries}, "devices": devices, "nodes": nodes,
        "workload": {"records": run["total"], **work}, "costs": COSTS,
    })  # fmt: skip
    assert isinstance(simulated.site, SiteFile)
    return simulated, simulated.site


def at_once(run: Mapping[str, Any], name: str) -> int:
    """Return the largest number of nodes of a class that were available at the same time."""
    mine = [node for node in run["nodes"] if node["class"] == name]
    return max(
        sum(each["arrive_s"] <= node["arrive_s"] and (each["leave_s"] or 1e9) > node["arrive_s"] for each in mine)
        for node in mine
    )


def figure(shown: Mapping[str, tuple[Mapping[str, Any], Any]]) -> Figure:
    """Draw measured and simulated records over time, for the runs in which nodes come and go."""
    some = {name: each for name, each in shown.items() if name.startswith(("rq4", "rq5"))} or dict(shown)
    drawn = Figure(figsize=(WIDTH * 1.5, 1.7 * len(some) + 0.5))
    panels = drawn.subplots(len(some), 1, squeeze=False)[:, 0]
    for axes, (name, (run, outcome)) in zip(panels, some.items(), strict=True):
        warm = axes.twinx()
        warm.step(outcome.times, outcome.warm, where="post", color=GREY)
        warm.set(ylabel="glideins", ylim=(0, None))
        axes.plot(*zip(*run["done"], strict=True), color=INK, label="measured")
        axes.plot(outcome.times, outcome.curve, "--", color=BLUE, label="simulated")
        axes.set(title=name, ylabel="records", ylim=(0, None), xlim=(0, None))
    panels[0].legend(loc="upper left")
    panels[-1].set(xlabel="seconds")
    return drawn


if __name__ == "__main__":
    main()
