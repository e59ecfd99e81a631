"""Real runs here, beside simulations that know their nodes, their rates, and what HTCondor usually costs."""

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
CALIBRATION, PART = "(calibration)", "(part)"  # of runs that are no fair trial
# Of the costs of HTCondor and glide the usual ones are taken; glideins are there when the trace says.
COSTS = {"queue": 0, "glidein": 0}
TURNOVER = Costs().turnover


def main() -> None:
    parser = arguments(__doc__ or "", "simulation", "Some seconds; nothing is started.")
    parser.add_argument(
        "--runs", type=Path, default=Path("results/stickyinvoc"), help="folder with what rq3, rq4 and rq5 left"
    )
    options = parser.parse_args()
    experiment = Experiment(
        "predicted", "Real runs and their simulations", "Does a simulation take what the run took?",
        ("run", "what", "measured", "simulated", "off", "jobs", "simulated"),
    )  # fmt: skip
    shown: dict[str, tuple[Mapping[str, Any], Any]] = {}
    for name, run, load in found(options.runs):
        outcome = simulate(*trace(run, load))
        lost = not run["finished"]
        measured, simulated = (
            (run["done"][-1][1], outcome.done) if lost else (run["makespan_s"], outcome.makespan)
        )  # fmt: skip
        off = f"{simulated / measured - 1:+.1%}"
        what = "records done" if lost else "makespan, s"
        experiment.rows.append((name, what, measured, float(simulated), off, run["jobs"], outcome.jobs))
        shown.setdefault(name, (run, outcome))
    experiment.notes += [
        "What a simulation knows: when each node came and went, what a record and a load take on a class of nodes, how"
        " many records there are and what a job carries. Matching, starts, turnover, losses and gathering cost what"
        " `glide simulate` takes by default, which was measured in other runs; sizes of jobs are the packer's own.",
        f"{CALIBRATION}: StickyI/O's load is that of an engine in a process of its own, as this run's tasks"
        " show it on average: their time without inference and without HTCondor's turnover.",
        f"{PART}: batches of one in a job each, of which a fiftieth was run. Without a load, such a job is all"
        " access point: the row says how well its usual cost is known.",
    ]
    with style():
        experiment.leave(options.out, figure(shown))


def found(folder: Path) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, float]]]:
    """Each run by name, and what a load takes there by class of node."""
    files = [folder / f"{name}.json" for name in ("rq3", "rq4", "rq5")]
    if not files[0].exists():
        raise SystemExit(f"{files[0]}: not there; run workflows/stickyinvoc/rq3.py --out {folder} first")
    told = {file.stem: json.loads(file.read_text("utf-8"))["data"] for file in files if file.exists()}
    (calibration,) = [run for run in told["rq3"]["runs"] if run["keep"] == "files" and run["batch"] == 100][:1]
    started = {  # beside the load that is known; a job's own start and end are a turnover, which comes with each anyway
        node: max(0.0, each["load_s"] - told["rq3"]["known"]["load_s"] * pace(told["rq3"]["known"], node) - TURNOVER)
        for node, each in calibration["classes"].items()
    }  # fmt: skip
    for name in sorted(told.keys() & {"rq3", "rq4"}):
        known = told[name]["known"]
        load = {node: known["load_s"] * pace(known, node) + started[node] for node in started}
        for run in told[name]["runs"]:
            word = CALIBRATION if run is calibration else PART if run.get("part", 1) < 1 else ""
            yield f"{name}, {run.get('way', run['system'])}, batch {run['batch']} {word}".rstrip(), run, load
    for name, runs in told.get("rq5", {}).items():
        for run in runs:
            yield f"rq5, {name} availability", run, {node: each["load_s"] for node, each in run["classes"].items()}


def pace(known: Mapping[str, float], node: str) -> float:
    return known["slow_pace"] if node == "slow" else 1.0


def trace(run: Mapping[str, Any], load: Mapping[str, float]) -> tuple[Trace, SiteFile]:
    """The run's nodes and its sweep."""
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
        name: {"record_seconds": each["record_s"], "load_seconds": 0.0 if ready else load[name]}
        for name, each in run["classes"].items()
    }  # fmt: skip
    batch = 1 if run["pack"] == "auto" else run["batch"]  # else it decides nothing, and the engine's own is 1
    work = {"glideins": len(nodes), "batch": batch, "pack": run["pack"], "keep": run["keep"]}
    made = Trace.model_validate({
        "site": {"site": "here", "interval": 1, "entries": entries}, "devices": devices, "nodes": nodes,
        "workload": {"records": run["total"], **work}, "costs": COSTS,
    })  # fmt: skip
    assert isinstance(made.site, SiteFile)
    return made, made.site


def at_once(run: Mapping[str, Any], name: str) -> int:
    """Most nodes of a class that were there at the same time."""
    mine = [node for node in run["nodes"] if node["class"] == name]
    return max(
        sum(each["arrive_s"] <= node["arrive_s"] and (each["leave_s"] or 1e9) > node["arrive_s"] for each in mine)
        for node in mine
    )


def figure(shown: Mapping[str, tuple[Mapping[str, Any], Any]]) -> Figure:
    """Measured and simulated records over time, where nodes come and go."""
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
