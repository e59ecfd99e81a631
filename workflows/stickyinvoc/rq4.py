"""RQ4: how much gets done while a node is lost every minute, the fast ones first, until none is left?"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from math import ceil

from cluster import cluster
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from systems import COLOURS, FAST, SLOW, STICKY_INVOC, STICKY_IO, Run, bring_up, noop, options, run, say

from glide.bench.rig import Enough
from glide.report.experiment import Comparison, Experiment, Measured
from glide.report.sweep.figures import WIDTH, style
from glide.report.sweep.timeline import Series
from glide.sweep.driver import Progress

NODES = 20  # half of them slow
MINUTE = 3.0  # seconds that are one of the paper's minutes
FIRST = 15  # minutes before the first loss
# At the paper's pace 20 GPUs of both classes do 51.7 inferences a second: a task of 1000 takes 6.5 minutes on average,
# and loading 0.53 (32 s, StickyI/O). One record here stands for five inferences.
RECORD_SECONDS = 5 * 0.29 * MINUTE / 60
LOAD_SECONDS = 24 * MINUTE / 60  # on a fast node
TASK = 200  # records of StickyI/O's best task
RECORDS = 16_000  # more than can be done
STEP = 0.5  # seconds between the moments that are compared


def main() -> None:
    chosen = options(__doc__, 5).parse_args()
    nodes = max(2, round(NODES * chosen.scale))
    first = FIRST * max(chosen.scale, 0.2)
    experiment = Experiment(
        "rq4", "Completed inferences while nodes are lost (Figure 11)", (__doc__ or "").strip(),
        ("system", "records done", "half of them after (s)", "nodes lost", "jobs", "done in tasks that ended"),
    )  # fmt: skip
    runs: dict[str, list[Run]] = {STICKY_IO: [], STICKY_INVOC: []}
    for turn in range(chosen.repeat):
        for system, same in runs.items():
            say(f"round {turn + 1} of {chosen.repeat}: {system}, until {nodes} nodes are lost")
            same.append(lose_all(system, nodes, first, chosen.scale))
    for system, same in runs.items():
        experiment.rows.append((
            system, *(Measured(tuple(values)) for values in (
                [each.done[-1][1] for each in same], [half_time(each.done) for each in same],
                [float(sum(node["leave_s"] is not None for node in each.told()["nodes"])) for each in same],
                [float(len(each.history.carriers)) for each in same], [ended_tasks(each)[-1][1] for each in same],
            )),
        ))  # fmt: skip
    pairs = list(zip(runs[STICKY_INVOC], runs[STICKY_IO], strict=True))
    ended = over([(ended_tasks(one), ended_tasks(other)) for one, other in pairs])
    streamed = [(one.done, other.done) for one, other in pairs]
    ahead = Measured(tuple(100 * share_ahead(one, other) for one, other in streamed), "%")
    experiment.compared = [
        Comparison("completed inferences, in tasks that ended, StickyInvoc over StickyI/O", 62.9 / 46, "×", ended,
                   better="more"),
        Comparison("the same, streamed as they come", 62.9 / 46, "×", over(streamed)),
        Comparison("moments after the first result at which StickyInvoc is ahead, streamed", None, "%", ahead,
                   better="more", goal=100.0),
    ]  # fmt: skip
    experiment.notes += [
        "StickyI/O runs on glide here, whose jobs stream their results: what a lost node had finished is not lost, and"
        " only the rest of its task is done again. The paper's tasks bring their results when they end; records are"
        " counted so for both systems, too: when their task has ended.",
        "The paper's StickyInvoc lost three GPUs early. Here both systems have all nodes until the first minute of"
        " losses: its ratio would have been larger so.",
        f"A minute is {MINUTE:g} s here, and one record stands for five inferences: a task of 1000 is {TASK} records."
        " StickyInvoc's tasks are cut by glide (pack: auto).",
        "Both begin with all glideins connected, with what the system keeps between tasks: the files, or the state.",
        "A node is lost as its pool preempts the glidein for a job that it ranks higher, without a warning; glide asks"
        " for another node all the time, and gets none.",
        "The engine is noop, which takes known time; HTCondor's and glide's own time is that of this machine's cores.",
    ]
    experiment.data = {
        "runs": [each.told() for pair in pairs for each in pair],
        "in_ended_tasks": [ended_tasks(each) for pair in pairs for each in pair],
        "known": {"record_s": RECORD_SECONDS, "load_s": LOAD_SECONDS, "slow_pace": 2.0, "minute_s": MINUTE},
    }
    with style():
        experiment.leave(chosen.out, figure(runs))


def lose_all(system: str, nodes: int, first: float, scale: float) -> Run:
    """Run a sweep while others take node by node.

    Args:
        first: minutes until the first is lost.
    """
    order = [FAST] * ceil(nodes / 2) + [SLOW] * (nodes // 2)
    model = noop(RECORD_SECONDS, LOAD_SECONDS)
    with cluster(nodes, system) as (bench, others):
        bring_up(bench, system, model, nodes)
        began = time.monotonic()

        def watch(progress: Progress) -> None:
            minute = (time.monotonic() - began) / MINUTE
            taken = sum(len(jobs) for jobs in others.jobs.values())
            if taken < nodes and minute >= first + taken:
                others.take(order[taken])
            elif taken == nodes and not progress.lanes:
                raise Enough

        size = {"pack": max(1, round(TASK * min(1.0, 4 * scale)))} if system == STICKY_IO else {}
        return run(bench, system, model, round(RECORDS * scale), watch, batch=1, glideins=nodes, **size)


def ended_tasks(measured: Run) -> Series:
    """How many records were in tasks that had ended, over time."""
    series, done = [(0.0, 0.0)], 0
    for task in sorted(measured.tasks, key=lambda task: task.ended):
        done += task.records
        series.append((task.ended, float(done)))
    return series


def at(series: Series, moment: float) -> float:
    """The last value until then."""
    place = bisect_right([when for when, _ in series], moment)
    return series[place - 1][1] if place else 0.0


def over(pairs: Sequence[tuple[Series, Series]]) -> Measured:
    """How many times as many records one has at the end as the other."""
    return Measured(tuple(one[-1][1] / max(1.0, other[-1][1]) for one, other in pairs), "×")


def half_time(done: Series) -> float:
    return next(when for when, count in done if count >= done[-1][1] / 2)


def share_ahead(one: Series, other: Series) -> float:
    """At which share of the moments, from the first result of either to the end of both, one has more than another."""
    first = min(when for series in (one, other) for when, count in series if count > 0)
    last = max(one[-1][0], other[-1][0])
    moments = [first + number * STEP for number in range(1, int((last - first) / STEP) + 1)]
    return sum(at(one, moment) > at(other, moment) for moment in moments) / max(1, len(moments))


def figure(runs: dict[str, list[Run]]) -> Figure:
    """Completed records over time; below, the nodes."""
    drawn = Figure(figsize=(WIDTH, 3.6))
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for system, same in runs.items():
        line(above, same[0].done, COLOURS[system], f"{system}, streamed")
        line(above, ended_tasks(same[0]), COLOURS[system], f"{system}, in tasks that ended", (0, (3, 2)))
        told = same[0].told()["nodes"]
        ends = sorted(node["leave_s"] or same[0].seconds for node in told)
        below.step(
            [0, *ends], [len(ends) - number for number in range(len(ends) + 1)], where="post", color=COLOURS[system]
        )
    above.set(ylabel="completed records")
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    below.set(ylabel="nodes", xlabel=f"seconds ({MINUTE:g} s are a minute of the paper's)")
    above.legend(loc="lower right")
    for axes in (above, below):
        axes.grid(True)
    return drawn


def line(axes: object, series: Series, colour: str, label: str, dashes: object = "solid") -> None:
    axes.plot(  # type: ignore[attr-defined]
        [when for when, _ in series], [count for _, count in series], color=colour, label=label, linestyle=dashes
    )


if __name__ == "__main__":
    main()
