"""RQ4: how many inferences are completed while a node is lost every minute, fast ones first, until none is left?"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from math import ceil
from statistics import median

from cluster import cluster
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from systems import (
    COLOURS,
    FAST,
    SLOW,
    STICKY_INVOC,
    STICKY_IO,
    Run,
    noop,
    options,
    report_progress,
    run,
    start_glideins,
)

from glide.bench.rig import Enough
from glide.report.experiment import Comparison, Experiment, Measurement
from glide.report.sweep.figures import WIDTH, style
from glide.report.sweep.timeline import Series
from glide.sweep.driver import Progress

NODES = 20  # number of nodes, half of which are slow
MINUTE = 6.0  # seconds that stand for one of the paper's minutes
FIRST = 15  # minutes (of MINUTE seconds) before the first loss
# In the paper, 20 GPUs compute 51.7 inferences per second. So on a fast node an inference takes 0.29 s. One record here
# stands for five inferences.
RECORD_SECONDS = 5 * 0.29 * MINUTE / 60
PAPER_LOAD = 32 * MINUTE / 60  # the average of a load in the paper's StickyI/O, in the scaled time
START_SECONDS = 0.5  # what the real start of an engine process and of a job takes here, which is a part of a load
# The other part of a load on a fast node. On slow nodes it takes twice as long. Fast nodes load twice as often. So an
# average load takes START_SECONDS + 4 / 3 * LOAD_SECONDS.
LOAD_SECONDS = 3 / 4 * (PAPER_LOAD - START_SECONDS)
# Number of records in a task. They are the paper's sizes, 1000 and 100 inferences, with which each system is fastest.
TASKS = {STICKY_IO: 200, STICKY_INVOC: 20}
RECORDS = 30_000  # number of records (150,000 inferences, as in the paper); all nodes are lost before they are done
STEP = 0.5  # seconds between the moments at which the systems are compared


def main() -> None:
    chosen = options(__doc__, 9).parse_args()
    nodes = max(2, round(NODES * chosen.scale))
    first = FIRST * max(chosen.scale, 0.2)
    experiment = Experiment(
        "rq4", "Completed inferences while nodes are lost (Figure 11)", (__doc__ or "").strip(),
        ("system", "records done", "half of them after (s)", "nodes lost", "jobs", "records in finished tasks"),
    )  # fmt: skip
    runs: dict[str, list[Run]] = {STICKY_IO: [], STICKY_INVOC: []}
    for turn in range(chosen.repeat):
        for system, same in runs.items():
            report_progress(f"round {turn + 1} of {chosen.repeat}: {system}, until {nodes} nodes are lost")
            same.append(lose_all(system, nodes, first, chosen.scale))
    for system, same in runs.items():
        experiment.rows.append((
            system, *(Measurement(tuple(values)) for values in (
                [each.done[-1][1] for each in same], [half_time(each.done) for each in same],
                [float(sum(node["leave_s"] is not None for node in each.document()["nodes"])) for each in same],
                [float(len(each.history.jobs)) for each in same], [ended_tasks(each)[-1][1] for each in same],
            )),
        ))  # fmt: skip
    pairs = list(zip(runs[STICKY_INVOC], runs[STICKY_IO], strict=True))
    ended = [(ended_tasks(one), ended_tasks(other)) for one, other in pairs]
    streamed = [(one.done, other.done) for one, other in pairs]
    experiment.compared = [
        Comparison("completed inferences in finished tasks, StickyInvoc over StickyI/O", 62.9 / 46, "×", over(ended),
                   better="more"),
        Comparison("the same, with streamed results", 62.9 / 46, "×", over(streamed)),
        Comparison("moments after the first finished task at which StickyInvoc is ahead", None, "%", ahead(ended),
                   better="more", goal=100.0),
        Comparison("the same, with streamed results", None, "%", ahead(streamed)),
    ]  # fmt: skip
    experiment.notes += [
        "StickyI/O runs on glide here, whose jobs stream their results. So the finished records of a lost node are"
        " kept, and only the rest of its task runs again. The paper's tasks return their results when they end. The"
        " last column counts as the paper does: only records of finished tasks.",
        "The paper's StickyInvoc lost three GPUs early. Here both systems have all nodes until the first node is lost.",
        f"A minute is {MINUTE:g} s here, and one record stands for five inferences. A task has 1000 inferences"
        f" ({TASKS[STICKY_IO]} records) in StickyI/O, and 100 ({TASKS[STICKY_INVOC]} records) in StickyInvoc, as in the"
        " paper. By default, glide makes longer tasks, because with streamed results a lost node costs only the records"
        " that it is computing.",
        f"StickyI/O's loads take {loads(runs, FAST):.1f} s on fast nodes and {loads(runs, SLOW):.1f} s on slow ones,"
        f" with the start of engine and job. In the paper they take {PAPER_LOAD:g} s on average, in the time of here.",
        "Both systems begin with all glideins connected, and with what they keep between tasks: files, or the state.",
        "A node is lost when its pool preempts the glidein, without a warning, for a job that it ranks higher. glide"
        " requests another node all the time, and gets none.",
        "The engine is noop, which takes a known time. HTCondor and glide themselves run on this machine's cores.",
    ]
    experiment.data = {
        "runs": [each.document() for pair in pairs for each in pair],
        "in_ended_tasks": [series for pair in ended for series in pair],
        "known": {"record_s": RECORD_SECONDS, "load_s": LOAD_SECONDS, "slow_pace": 2.0, "minute_s": MINUTE},
    }
    with style():
        experiment.write(chosen.out, figure(runs))


def loads(runs: dict[str, list[Run]], node: str) -> float:
    """Return the median seconds of a load of StickyI/O on a class of nodes."""
    return median(each.loading_seconds(node) for each in runs[STICKY_IO])


def lose_all(system: str, nodes: int, first: float, scale: float) -> Run:
    """Run a sweep while other people's jobs take one node after the other.

    Args:
        first: minutes (of MINUTE seconds) until the first node is lost.
    """
    order = [FAST] * ceil(nodes / 2) + [SLOW] * (nodes // 2)
    model = noop(RECORD_SECONDS, LOAD_SECONDS)
    with cluster(nodes, system) as (bench, others):
        start_glideins(bench, system, model, nodes)
        began = 0.0

        def watch(progress: Progress) -> None:
            nonlocal began
            began = began or time.monotonic()
            minute = (time.monotonic() - began) / MINUTE
            occupied = sum(len(jobs) for jobs in others.jobs.values())
            if occupied < nodes and minute >= first + occupied:
                others.occupy(order[occupied])
            elif occupied == nodes and not progress.lanes:
                raise Enough

        task = max(1, round(TASKS[system] * min(1.0, 4 * scale)))
        return run(bench, system, model, round(RECORDS * scale), watch, batch=1, pack=task, glideins=nodes)


def ended_tasks(measured: Run) -> Series:
    """Return the number of records in finished tasks, over time."""
    series, done = [(0.0, 0.0)], 0
    for task in sorted(measured.tasks, key=lambda task: task.ended):
        done += task.records
        series.append((task.ended, float(done)))
    return series


def at(series: Series, moment: float) -> float:
    """Return the last value of a series at or before a moment; 0 if the series begins later."""
    place = bisect_right([when for when, _ in series], moment)
    return series[place - 1][1] if place else 0.0


def over(pairs: Sequence[tuple[Series, Series]]) -> Measurement:
    """Return for each pair of series the last value of the first series, divided by the last value of the second."""
    return Measurement(tuple(one[-1][1] / max(1.0, other[-1][1]) for one, other in pairs), "×")


def ahead(pairs: Sequence[tuple[Series, Series]]) -> Measurement:
    """Return for each pair of series the share of moments, in percent, at which the first series is higher."""
    return Measurement(tuple(100 * share_ahead(one, other) for one, other in pairs), "%")


def half_time(done: Series) -> float:
    """Return the time at which half of the records were done."""
    return next(when for when, count in done if count >= done[-1][1] / 2)


def share_ahead(one: Series, other: Series) -> float:
    """Return the share of moments at which series `one` is higher than series `other`.

    The moments are STEP seconds apart, from the first result in any of the two series to the end of the longer series.
    """
    first = min(when for series in (one, other) for when, count in series if count > 0)
    last = max(one[-1][0], other[-1][0])
    moments = [first + number * STEP for number in range(1, int((last - first) / STEP) + 1)]
    return sum(at(one, moment) > at(other, moment) for moment in moments) / max(1, len(moments))


def figure(runs: dict[str, list[Run]]) -> Figure:
    """Draw the number of completed records over time, and below it the number of nodes."""
    drawn = Figure(figsize=(WIDTH, 3.6))
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for system, same in runs.items():
        line(above, same[0].done, COLOURS[system], f"{system}, streamed")
        line(above, ended_tasks(same[0]), COLOURS[system], f"{system}, in finished tasks", (0, (3, 2)))
        ends = sorted(node["leave_s"] or same[0].seconds for node in same[0].document()["nodes"])
        below.step(
            [0, *ends], [len(ends) - number for number in range(len(ends) + 1)], where="post", color=COLOURS[system]
        )
    above.set(ylabel="completed records")
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    below.set(ylabel="nodes", xlabel=f"seconds ({MINUTE:g} s stand for a minute of the paper)")
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
