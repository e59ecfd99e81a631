"""RQ1: how long does claim verification take, if nodes keep nothing, the model's files, or its state?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from matplotlib.figure import Figure
from systems import COLOURS, CREATE_DESTROY, FAST, LANES, SLOW, STICKY_INVOC, STICKY_IO, Run, options
from verification import NOTE, RATE, SIZES, TINY, by_system, runs

from glide.report.experiment import Comparison, Experiment, Measurement, number
from glide.report.sweep.figures import WIDTH, style

RECORDS = 560
# Number of records in a task. In the paper, a create-destroy task takes 139 s. A StickyInvoc task, which does not load,
# takes 38.7 s (10.4k s and 2.9k s for 1500 tasks on 20 GPUs). So loading takes 2.6 times as long as inference there.
# Here a node runs fewer tasks, so StickyInvoc's single load costs more per task. To make up for this, a task has only
# 14 records, so that its loading takes more than 2.6 times as long as its inference.
TASK = 14
# A second run has tasks of the size for which loading would take 2.6 times as long, by the first run's times.
PAPER_LOADING = 139 / 38.7 - 1


def main() -> None:
    chosen = options(__doc__, 30).parse_args()
    experiment = Experiment(
        "rq1", "Execution time of claim verification (Figure 7)", (__doc__ or "").strip(),
        ("system", "seconds", "speed-up over create-destroy", "s per task, fast node", "s per task, slow node", "jobs"),
    )  # fmt: skip
    records = max(8, round(RECORDS * chosen.scale))
    task = min(TASK, max(1, records // 4))
    sizes = SIZES if chosen.scale >= 0.1 else TINY
    found = list(runs(records, task, LANES, chosen.repeat, sizes))
    seconds = seconds_of(found)
    for system, same in by_system(found).items():
        experiment.rows.append((
            system, Measurement(tuple(seconds[system]), "s"), ratio(seconds, CREATE_DESTROY, system),
            *(Measurement(tuple(each.task_seconds(node) for each in same), "s") for node in (FAST, SLOW)),
            len(same[0].history.jobs),
        ))  # fmt: skip
    loading = Measurement(tuple(loading_over_inference(rounds[0]) for rounds in found), "×")
    like_paper_task = max(1, round(task * loading.median / PAPER_LOADING))
    like_paper = records // task * like_paper_task
    others = list(runs(like_paper, like_paper_task, LANES, chosen.repeat, sizes))
    loading_like_paper = Measurement(tuple(loading_over_inference(rounds[0]) for rounds in others), "×")
    times_like_paper = seconds_of(others)
    middle = {system: number(median(times)) for system, times in times_like_paper.items()}
    experiment.compared = [
        Comparison(
            f"execution time, create-destroy over StickyInvoc; tasks of {task} records (100 in the paper)", 3.6, "×",
            ratio(seconds, CREATE_DESTROY), better="more",
        ),
        Comparison(
            f"longer tasks, whose loading over inference is close to the paper's {PAPER_LOADING:.1f}: execution time,"
            " create-destroy over StickyInvoc",
            3.6, "×", ratio(times_like_paper, CREATE_DESTROY), better="more",
        ),
        Comparison(
            f"execution time, StickyI/O over StickyInvoc; tasks of {task} records", 1.9, "×",
            ratio(seconds, STICKY_IO), better="more",
        ),
        Comparison(
            "longer tasks: execution time, StickyI/O over StickyInvoc", 1.9, "×",
            ratio(times_like_paper, STICKY_IO), better="more",
        ),
        Comparison(
            "execution time, create-destroy over StickyI/O (from the paper's seconds; its text has 1.7)",
            10.4 / 5.3, "×", ratio(seconds, CREATE_DESTROY, STICKY_IO),
        ),
        Comparison("loading over inference in a create-destroy task (the paper's from its seconds)", PAPER_LOADING, "×",
                   loading),
    ]  # fmt: skip
    experiment.notes += [
        NOTE,
        f"In the table a task has {task} records; in the paper it has 100. With 100, a run would have few tasks, and"
        " StickyInvoc's one load of each node would be a large part of its time. So the tasks are short, which favours"
        f" StickyInvoc: in a create-destroy task, loading takes {loading.median:.2g} times as long as inference; in the"
        f" paper {PAPER_LOADING:.1f} times as long.",
        f"With tasks of {like_paper_task} records, loading takes {loading_like_paper.median:.1f} times as long as"
        f" inference. For {like_paper} records, create-destroy, StickyI/O and StickyInvoc then take"
        f" {', '.join(middle.values())} s.",
        f"A node runs {records // task // 2} tasks on average; in the paper it runs 75. All times include the start of"
        " the glideins, and StickyInvoc's include one load of each node. Both count more here.",
        f"The distributed filesystem is a web server that sends {RATE / 1e6:.0f} MB/s to all nodes together. This rate"
        " was chosen, and fetching is the largest part of create-destroy's loading: with a faster filesystem, the first"
        " ratio would be smaller. A create-destroy task fetches nothing from other nodes.",
        "All nodes are on this machine, with one core each. The slow node uses only the oldest vector instructions."
        " HTCondor's daemons and the web server use the same cores.",
        "StickyInvoc has two lanes per glidein, glide's default, and the others have one. Two tasks at a time take"
        " twice as long each, but one starts while the other computes. So its seconds per task are not to be compared"
        " with those of the others.",
    ]
    experiment.data = {
        "runs": [each.document() for rounds in found for each in rounds], "records_per_task": task,
        "runs_like_paper": [each.document() for rounds in others for each in rounds],
    }  # fmt: skip
    with style():
        experiment.write(chosen.out, figure(seconds))


def seconds_of(rounds: Sequence[Sequence[Run]]) -> dict[str, list[float]]:
    """Return for each system the time of its run in each round."""
    return {system: [each.seconds for each in same] for system, same in by_system(rounds).items()}


def ratio(seconds: dict[str, list[float]], system: str, over: str = STICKY_INVOC) -> Measurement:
    """Return for each round the time of a system, divided by the time of the system `over`."""
    return Measurement(tuple(one / other for one, other in zip(seconds[system], seconds[over], strict=True)), "×")


def loading_over_inference(run: Run) -> float:
    """Return the loading time divided by the inference time, over all tasks of a run."""
    inference = sum(each["seconds"] for each in run.results)
    return sum(task.ended - task.started for task in run.tasks) / inference - 1


def figure(seconds: dict[str, list[float]]) -> Figure:
    """Draw a bar for each system."""
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
