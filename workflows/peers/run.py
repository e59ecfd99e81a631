"""Compare glide with similar systems: the same prompts in the same run, with two workers of one core each.

    .venv/bin/python workflows/peers/run.py [--out DIR] [--repeat N]

If a system is not installed or fails, it is left out, and a note names this system. The first run makes an environment
for each system.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from infer import BATCH, TASK, TASK_VARIABLE, WORKERS
from matplotlib.figure import Figure
from peers import ENGINE, GLIDE, GLIDE_VLLM, PROCESSES, SYSTEMS, Missing, System, interpreter, measure, write_records

from glide.report.experiment import Experiment, Measurement, arguments, number, positive
from glide.report.sweep.figures import BLUE, GREY, INK, WIDTH, style

# Numbers of prompts. The second number is the whole sweep, to show how a difference grows with the amount of work.
RECORDS = [4000, 12000]


@dataclass(frozen=True)
class Case:
    """A measurement: a system, and the number of prompts that it gets."""

    system: System
    records: int


def measure_all(
    cases: Sequence[Case], taskvine: str, repeat: int
) -> tuple[dict[Case, list[dict[str, Any]]], list[str]]:
    """Run all cases `repeat` times. Return the measurements of each case, and why systems were left out."""
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    interpreters: dict[System, str] = {}
    missing: list[str] = []
    for system in dict.fromkeys(case.system for case in cases):
        try:
            interpreters[system] = interpreter(system, taskvine)
        except Missing as why:
            missing.append(str(why))
    with tempfile.TemporaryDirectory(prefix="glide-peers-") as folder:
        for turn in range(repeat):
            for case in cases[:: -1 if turn % 2 else 1]:  # alternate the order, so that slow minutes affect all cases
                if case.system not in interpreters:
                    continue
                records = Path(folder) / f"{case.records}.jsonl"
                write_records(records, case.records)
                try:
                    runs[case].append(measure(case.system, interpreters[case.system], records))
                except Missing as why:
                    missing.append(str(why))
                    del interpreters[case.system]
                    continue
                measured = f"{case.system.name}, {case.records:,} prompts: {runs[case][-1]['makespan_s']:.2f} s"
                print(f"peers: {turn + 1}/{repeat} {measured}", file=sys.stderr)
    runs = {case: same for case, same in runs.items() if case.system in interpreters}
    texts = {(case.records, each["digest"]) for case, same in runs.items() for each in same}
    assert len(texts) == len({records for records, _ in texts}), f"the systems' texts differ: {runs}"
    return runs, missing


def account(runs: dict[Case, list[dict[str, Any]]], missing: list[str], began: float) -> Experiment:
    """Return the experiment with its table and notes.

    Args:
        missing: for each system that was left out, a sentence with the reason.
        began: Unix time when the command began.
    """
    experiment = Experiment(
        "peers", "The same prompts through two workers of one core each",
        "Does warm inference take longer with HTCondor than with systems that have their own workers?",
        ("system", "prompts", "first worker ready to last result", "over glide's", "over its engine alone",
         "from nothing"), began=began,
    )  # fmt: skip
    ours: list[float] = []  # glide's ratios over its engine alone
    theirs: list[float] = []  # those of the other systems
    for case, same in runs.items():
        makespan, total = seconds(same, "makespan_s"), seconds(same, "total_s")
        reference = GLIDE_VLLM if case.system.vllm else GLIDE
        glide = seconds(runs.get(Case(reference, case.records), []), "makespan_s")
        ratio = tuple(other / own for other, own in zip(makespan, glide, strict=False))
        bare = engine_alone(case.system)
        alone = seconds(runs.get(Case(bare, case.records), []), "makespan_s") if bare else ()
        over_alone = tuple(one / other for one, other in zip(makespan, alone, strict=False))
        cells = (
            Measurement(makespan, "s"), *(Measurement(each, "×") if each else "" for each in (ratio, over_alone)),
            Measurement(total, "s"),
        )  # fmt: skip
        experiment.rows.append((case.system.name, case.records, *cells))
        if over_alone:
            (ours if case.system == GLIDE else theirs).append(median(over_alone))
    if ours and theirs:
        experiment.notes.append(
            f"glide takes {extremes(ours)} times as long as its engine alone, and the systems with plain transformers"
            f" take {extremes(theirs)} times as long. On two cores, HTCondor's daemons and glide's driver take CPU time"
            " from the workers. If the workers are other machines, they do not."
        )
    experiment.notes += [
        *missing,
        *(glide_note(case, same) for case, same in runs.items() if case.system in (GLIDE, GLIDE_VLLM)),
    ]
    experiment.notes += [
        "All texts of all systems and runs are equal.",
        f"`over its engine alone` shows what a system adds to its engine: it compares glide with {ENGINE.name}, and the"
        f" systems that run plain transformers with {PROCESSES.name}. These systems compute tasks of {TASK} prompts in"
        f" padded batches of {BATCH}, shortest prompts first, in float32. glide's engine needs less time per prompt,"
        " and glide chooses the sizes of batches and jobs. So `over glide's` measures engine and overhead together.",
        "Each ratio is the median of the ratios within the rounds. So it may differ from the ratio of the medians.",
        "The time from the first ready worker begins by the worker's own clock, and ends when the caller has the last"
        " result. The time from nothing begins with the caller's script, so it includes the start of the system, and"
        " for glide that of the HTCondor pool.",
    ]
    versions = {case.system.name: same[0]["versions"] for case, same in runs.items()}
    experiment.notes += [f"{name} ran on {', '.join(map(' '.join, each.items()))}." for name, each in versions.items()]
    listed = [{"system": case.system.name, "records": case.records, "runs": same} for case, same in runs.items()]
    experiment.data = {"task": TASK, "batch": BATCH, "workers": WORKERS, "cases": listed}
    return experiment


def engine_alone(system: System) -> System | None:
    """Return the system that runs the engine of another one in two processes; None if no system does."""
    if system.vllm or system in (ENGINE, PROCESSES):
        return None
    return ENGINE if system == GLIDE else PROCESSES


def extremes(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def seconds(runs: Sequence[dict[str, Any]], what: str) -> tuple[float, ...]:
    return tuple(each[what] for each in runs)


def glide_note(case: Case, runs: Sequence[dict[str, Any]]) -> str:
    """Return a note on glide's makespan: how long its busier engine computed, and how long lanes were warm."""
    whole = median(seconds(runs, "makespan_s"))
    busy = median(max(each["engines"].values()) for each in runs)
    seen = median(each["summary"]["warm_makespan_s"] for each in runs)
    jobs = median(each["summary"]["jobs"] for each in runs)
    return (
        f"In the {number(whole, 's')} of {case.system.name!r} for {case.records:,} prompts, the busier engine computed"
        f" for {number(busy, 's')}. There were {jobs:.0f} jobs in total. The first jobs waited on their lanes while the"
        " model was loaded, so the engine began at once. By the driver's view, a lane was warm for"
        f" {number(seen, 's')} (warm_makespan_s). HTCondor's daemons start a process for each job on the same cores."
    )


def drawn(runs: dict[Case, list[dict[str, Any]]]) -> Figure:
    """Draw the makespans of each case, and their median as a bar. A second bar includes the system's start."""
    figure = Figure(figsize=(WIDTH, 1.1 + 0.42 * len(runs)))
    axes = figure.subplots()
    for row, same in enumerate(runs.values()):
        makespan, total = seconds(same, "makespan_s"), seconds(same, "total_s")
        names = ("from nothing", "from the first ready worker") if row == 0 else ("", "")
        bars = ((median(total), 0.66, GREY), (median(makespan), 0.42, BLUE))
        for name, (width, height, colour) in zip(names, bars, strict=True):
            axes.barh(row, width, height=height, color=colour, edgecolor=INK, linewidth=0.5, label=name)
        axes.plot(makespan, [row] * len(makespan), "|", color=INK, markersize=9)
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{number(median(makespan))} of {number(median(total), 's')}", (median(total), row), **place)
    axes.set_yticks(range(len(runs)), [f"{case.system.name}\n{case.records:,} prompts" for case in runs])
    axes.set(xlabel="seconds", ylim=(len(runs) - 0.5, -0.5))
    axes.margins(x=0.25)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    parser = arguments(
        "Compare glide with similar systems on the same work.", "peers",
        "About 20 minutes on two cores. Each system starts its own daemons. The first run also downloads 2 GB.", 3,
    )  # fmt: skip
    parser.add_argument(
        "--records",
        nargs="+",
        type=positive,
        default=RECORDS,
        help="numbers of prompts; all but the first only for glide and the two pairs of processes",
    )
    parser.add_argument("--only", nargs="+", choices=[each.name for each in SYSTEMS], help="measure only these systems")
    parser.add_argument("--task", type=positive, help="prompts in a task of the other systems; 100 by default")
    parser.add_argument("--taskvine", default="python3", metavar="PYTHON", help="interpreter that can import ndcctools")
    given, began = parser.parse_args(), time.time()
    # A shell lets its background jobs ignore this signal, and the scripts that are interrupted here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.task not in (None, TASK):  # the variable must be set before `infer` is imported, here and in all scripts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, TASK_VARIABLE: str(given.task)})
    first, *more = given.records
    cases = [
        *(Case(system, first) for system in SYSTEMS),
        *(Case(each, n) for n in more for each in (GLIDE, ENGINE, PROCESSES)),
    ]
    cases = [case for case in cases if not given.only or case.system.name in given.only]
    runs, missing = measure_all(cases, given.taskvine, given.repeat)
    with style():
        account(runs, missing, began).write(given.out, drawn(runs))


if __name__ == "__main__":
    main()
