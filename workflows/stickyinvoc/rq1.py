"""RQ1: how long does claim verification take, with nothing, the model's files, or its state kept on the nodes?"""

from __future__ import annotations

from statistics import median

from matplotlib.figure import Figure
from systems import COLOURS, CREATE_DESTROY, FAST, LANES, SLOW, STICKY_INVOC, STICKY_IO, Run, options
from verification import RATE, SIZES, TINY, runs

from glide.report.experiment import Comparison, Experiment, Measured
from glide.report.sweep.figures import WIDTH, style

RECORDS = 560
# Records of a task. Loading takes 2.6 times as long as inference in the paper's create-destroy tasks (139 s, of which
# 38.7 s are a StickyInvoc task's: 10.4k s and 2.9k s, 1500 tasks, 20 GPUs); here some more, as a node has fewer tasks
# over which the one load of StickyInvoc is spread.
TASK = 14
PAPER_LOADING = 139 / 38.7 - 1


def main() -> None:
    chosen = options(__doc__, 14).parse_args()
    experiment = Experiment(
        "rq1", "Execution time of claim verification (Figure 7)", (__doc__ or "").strip(),
        ("system", "seconds", "speed-up over create-destroy", "seconds a task, fast", "seconds a task, slow", "jobs"),
    )  # fmt: skip
    records = max(8, round(RECORDS * chosen.scale))
    task = min(TASK, max(1, records // 4))
    sizes = SIZES if chosen.scale >= 0.1 else TINY
    found = list(runs(records, task, LANES, chosen.repeat, sizes))
    by_system = {each.system: [rounds[at] for rounds in found] for at, each in enumerate(found[0])}
    seconds = {system: [each.seconds for each in same] for system, same in by_system.items()}
    for system, same in by_system.items():
        experiment.rows.append((
            system, Measured(tuple(seconds[system]), "s"), ratio(seconds, CREATE_DESTROY, system),
            *(Measured(tuple(each.task_seconds(node) for each in same), "s") for node in (FAST, SLOW)),
            len(same[0].history.carriers),
        ))  # fmt: skip
    loading = Measured(tuple(loading_over_inference(each) for each in by_system[CREATE_DESTROY]), "×")
    speedup = ratio(seconds, CREATE_DESTROY)
    pairs = zip(speedup.runs, loading.runs, strict=True)
    as_theirs = Measured(tuple((1 + PAPER_LOADING) / (1 + weighs) * times for times, weighs in pairs), "×")
    experiment.compared = [
        Comparison(
            f"create-destroy over StickyInvoc; tasks of {task} records (the paper's 100)", 3.6, "×", speedup,
            better="more",
        ),
        Comparison(
            f"the same by reckoning, with tasks whose loading is {PAPER_LOADING:.1f} times their inference, as theirs",
            3.6, "×", as_theirs, better="more",
        ),
        Comparison("StickyI/O over StickyInvoc, the same tasks", 1.9, "×", ratio(seconds, STICKY_IO), better="more"),
        Comparison(
            "create-destroy over StickyI/O (by the paper's seconds; its text says 1.7)", 10.4 / 5.3, "×",
            ratio(seconds, CREATE_DESTROY, STICKY_IO),
        ),
        Comparison("loading over inference in a create-destroy task (the paper's from its seconds)", PAPER_LOADING, "×",
                   loading),
    ]  # fmt: skip
    experiment.notes += [
        f"Each task carries {task} records, for all three systems, where the paper's carry 100: on these nodes that"
        f" makes loading {loading.median:.2g} times inference in a create-destroy task (the paper's:"
        f" {PAPER_LOADING:.1f}).",
        f"With tasks so large that it is {PAPER_LOADING:.1f} here, too, create-destroy would take about"
        f" {as_theirs.median:.1f} times as long as StickyInvoc: a task {1 + PAPER_LOADING:.2f} times as long is all"
        " there is to gain then, and the start of the glideins is in it.",
        f"A node does {records // task // 2} tasks on average, where the paper's does 75, so that the one load of"
        " StickyInvoc and the start of the glideins, which are in all times, weigh more here.",
        f"The distributed filesystem is a web server of {RATE / 1e6:.0f} MB/s to all together; a create-destroy task"
        " takes nothing from other nodes.",
        "All nodes are on this machine, one core each; the slow one's processor lacks its vector instructions. All time"
        " of HTCondor, of both pools' daemons and of the web server is taken from the same cores.",
        "StickyInvoc has glide's usual two lanes a glidein, the others one: its two tasks at a time take twice as long"
        " each, but one's start hides behind the other's inference.",
    ]
    experiment.data = {"runs": [each.told() for rounds in found for each in rounds], "records_per_task": task}
    with style():
        experiment.leave(chosen.out, figure(seconds))


def ratio(seconds: dict[str, list[float]], system: str, over: str = STICKY_INVOC) -> Measured:
    """Of two systems' times in the same round."""
    return Measured(tuple(one / other for one, other in zip(seconds[system], seconds[over], strict=True)), "×")


def loading_over_inference(run: Run) -> float:
    """Over all of its tasks."""
    inference = sum(each["seconds"] for each in run.results)
    return sum(task.ended - task.started for task in run.tasks) / inference - 1


def figure(seconds: dict[str, list[float]]) -> Figure:
    """A bar for each system."""
    drawn = Figure(figsize=(WIDTH, 2.6))
    axes = drawn.subplots()
    middle = {system: median(times) for system, times in seconds.items()}
    bars = axes.bar(list(middle), list(middle.values()), 0.55, color=[COLOURS[system] for system in middle])
    axes.bar_label(bars, [f"{value:.0f} s" for value in middle.values()], padding=2, fontsize=8)
    axes.set(ylabel="execution time (s)")
    axes.margins(y=0.15)
    axes.grid(True)
    return drawn


if __name__ == "__main__":
    main()
