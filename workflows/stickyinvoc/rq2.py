"""RQ2: how long does a task take, and what takes this time, if nodes keep nothing, the model's files, or its state?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, pstdev
from typing import Any

from matplotlib.figure import Figure
from systems import COLOURS, CREATE_DESTROY, FAST, KEEP, SLOW, STICKY_INVOC, Run, options
from verification import NOTE, SIZES, TINY, by_system, runs

from glide.report.experiment import Comparison, Experiment, Measurement, number
from glide.report.sweep.figures import BLUE, GREY, INK, WIDTH, style

RECORDS = 400
TASK = 14  # number of records in a task; see rq1.py
PAPER_SHARE = 100 * (1 - 38.7 / 139)  # loading's share of a task's time, in percent, from the paper's execution times


def main() -> None:
    chosen = options(__doc__, 10).parse_args()
    experiment = Experiment(
        "rq2", "Time of a task, and its parts (Figures 8 and 9)", (__doc__ or "").strip(),
        ("system", "nodes", "tasks", "seconds per task", "deviation", "loading", "inference", "loading's share"),
    )  # fmt: skip
    records = max(8, round(RECORDS * chosen.scale))
    task = min(TASK, max(1, records // 4))
    sizes = SIZES if chosen.scale >= 0.1 else TINY
    found = list(runs(records, task, dict.fromkeys(KEEP, 1), chosen.repeat, sizes))
    measured = by_system(found)
    for system, same in measured.items():
        for node in (FAST, SLOW):
            experiment.rows.append((system, node, *row(same, node)))
    shares = {system: [loading_share(each) for each in same] for system, same in measured.items()}
    experiment.compared = [
        Comparison(
            f"loading's share of a create-destroy task of {task} records (100 in the paper; its share is from its"
            " seconds)", PAPER_SHARE, "%",
            percent(shares, CREATE_DESTROY),
        ),
    ]  # fmt: skip
    longest, others = zip(*(longest_and_others(measured[STICKY_INVOC], node) for node in (FAST, SLOW)), strict=True)
    smallest = all(
        pstdev(times(measured[STICKY_INVOC], node)) <= min(pstdev(times(same, node)) for same in measured.values())
        for node in (FAST, SLOW)
    )
    rest = {
        node: ", ".join(number(pstdev(longest_and_others(same, node)[1])) for same in measured.values())
        for node in (FAST, SLOW)
    }
    experiment.notes += [
        NOTE,
        "Nearly all of StickyInvoc's loading is in one task on each node, which includes the fetch of the files and the"
        f" only load. This task takes {number(longest[0])} s on the fast node and {number(longest[1])} s on the slow"
        f" one. In the other tasks, which take {number(mean(others[0]))} and {number(mean(others[1]))} s on average,"
        " loading is too short to measure. A node runs 75 tasks in the paper, so this load has a smaller share there."
        " One task of StickyI/O on each node includes the fetch.",
        "The paper: the time of StickyInvoc's tasks has the smallest deviation. Here this is"
        f" {'true' if smallest else 'not true'}, see the table. One of its tasks on each node loads, and there are few"
        f" tasks. Without the longest task of each system on each node, the deviations of {', '.join(measured)} are"
        f" {rest[FAST]} s on the fast node, and {rest[SLOW]} s on the slow one. HTCondor reports the times of jobs in"
        " whole seconds, so small differences mean nothing.",
        "Loading is the whole time of a task except the engine's time for its records: fetching, starting the engine,"
        " imports, reading the weights, and the start and end of the job. The paper's share is from its execution"
        " times.",
        "All systems have one lane per glidein here, so that no task waits for the inference of another one. With two"
        " lanes, glide's default, one task starts or ends while another computes (RQ1).",
    ]
    experiment.data = {
        "tasks": {system: {node: times(same, node) for node in (FAST, SLOW)} for system, same in measured.items()},
        "records_per_task": task, "runs": [each.document() for rounds in found for each in rounds],
    }  # fmt: skip
    with style():
        experiment.write(chosen.out, figure(measured))


def times(runs: Sequence[Run], node: str) -> list[float]:
    return [task.ended - task.started for run in runs for task in run.tasks if task.node == node]


def longest_and_others(runs: Sequence[Run], node: str) -> tuple[float, list[float]]:
    """Return the average seconds of each run's longest task on a class of nodes, and the seconds of all other tasks."""
    seconds = [sorted(times([run], node)) for run in runs]
    others = [second for each in seconds for second in each[:-1]]
    return mean([each[-1] for each in seconds if each] or [0.0]), others or [0.0]


def row(runs: Sequence[Run], node: str) -> tuple[Any, ...]:
    seconds = times(runs, node)
    whole = mean(run.task_seconds(node) for run in runs)
    loading = mean(run.loading_seconds(node) for run in runs)
    inference = whole - loading
    share = f"{loading / whole:.0%}" if whole else "–"
    return (
        len(seconds),
        *(Measurement((value,), "s") for value in (whole, pstdev(seconds or [0.0]), loading, inference)),
        share,
    )


def loading_share(run: Run) -> float:
    """Return the share of loading in the time of all tasks of a run."""
    whole = sum(task.ended - task.started for task in run.tasks)
    return max(0.0, 1 - sum(each["seconds"] for each in run.results) / whole)


def percent(shares: dict[str, list[float]], system: str) -> Measurement:
    return Measurement(tuple(100 * share for share in shares[system]), "%")


def figure(measured: dict[str, list[Run]]) -> Figure:
    """Draw histograms of task times on the fast node, and below them the parts of task times on each class of nodes."""
    drawn = Figure(figsize=(WIDTH, 4.4))
    above, below = drawn.subplots(2, 1)
    longest = max(value for same in measured.values() for value in [*times(same, FAST), 1.0])
    edges = [number - 0.5 for number in range(int(longest) + 3)]
    for system, same in measured.items():
        above.hist(
            times(same, FAST), edges, color=COLOURS[system], alpha=0.75, edgecolor=INK, linewidth=0.4, label=system
        )
    above.set(xlabel="time of a task on the fast node (s)", ylabel="tasks")
    above.legend()
    bars = [(f"{system}\n{node}", same, node) for node in (FAST, SLOW) for system, same in measured.items()]
    loading = [mean(run.loading_seconds(node) for run in same) for _, same, node in bars]
    whole = [mean(run.task_seconds(node) for run in same) for _, same, node in bars]
    below.bar(range(len(bars)), loading, 0.6, color=GREY, hatch="////", edgecolor=INK, linewidth=0.5, label="loading")
    inference = [total - part for total, part in zip(whole, loading, strict=True)]
    below.bar(
        range(len(bars)), inference, 0.6, bottom=loading, color=BLUE, edgecolor=INK, linewidth=0.5, label="inference"
    )
    below.set_xticks(range(len(bars)), [name for name, _, _ in bars], fontsize=6.5)
    below.set(ylabel="seconds of a task")
    below.legend()
    for axes in (above, below):
        axes.grid(True)
    return drawn


if __name__ == "__main__":
    main()
