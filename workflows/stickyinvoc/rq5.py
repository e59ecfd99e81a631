"""RQ5: does progress follow the number of available nodes, at low, medium and high availability?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import ceil

import numpy as np
from cluster import cluster
from matplotlib.figure import Figure
from systems import FAST, SLOW, STICKY_INVOC, TIME_FACTORS, Run, node_class, noop, options, report_progress, run

from glide.report.experiment import Comparison, Experiment, Measurement, number
from glide.report.sweep.figures import BLUE, INK, WIDTH, style
from glide.report.sweep.history import Interval
from glide.report.sweep.timeline import Series, lanes_over_time
from glide.sweep.driver import Progress

Trace = Sequence[tuple[float, int]]
# For each trace, pairs: a time in seconds, and the number of nodes that are available from this time on. Half of the
# nodes are slow. The paper's traces have up to 20, 92 and 186 nodes. These traces have fewer nodes, because one machine
# has all nodes and starts only one or two glideins per second.
TRACES: dict[str, Trace] = {
    "low": ((0, 4), (15, 8), (30, 12), (45, 8), (60, 16), (75, 20)),
    "medium": ((0, 4), (20, 10), (40, 18), (60, 12), (80, 24), (110, 32)),
    "high": ((0, 8), (20, 16), (40, 26), (60, 36), (80, 28), (100, 40), (130, 48)),
}
# For each trace, the amount of work: the seconds that it takes if each node computes as soon as it is available.
SECONDS = {"low": 95.0, "medium": 150.0, "high": 190.0}
RECORD_SECONDS = 0.2
LOAD_SECONDS = 1.0
INTERVALS = (10.0, 30.0)  # lengths of the intervals in which progress is measured, in seconds
TAIL = 0.05  # share of records that is ignored: lanes have no work left when the last records are done
GOAL = 0.99


def main() -> None:
    parser = options(__doc__, 9)
    parser.add_argument("--traces", nargs="+", choices=list(TRACES), default=list(TRACES), help="traces to run")
    chosen = parser.parse_args()
    experiment = Experiment(
        "rq5", "Completed inferences and connected lanes (Figure 12)", (__doc__ or "").strip(),
        ("availability", "most lanes", "records", "seconds", "nodes lost", *FITS),
    )  # fmt: skip
    runs: dict[str, list[Run]] = {name: [] for name in chosen.traces}
    for turn in range(chosen.repeat):
        for name, same in runs.items():
            report_progress(f"round {turn + 1} of {chosen.repeat}: {name} availability")
            same.append(follow(scaled(TRACES[name], chosen.scale), chosen.scale * SECONDS[name]))
    for name, same in runs.items():
        fits = {what: r_squared(same, fit) for what, fit in FITS.items()}
        experiment.rows.append((
            name, int(max(count for each in same for _, count in connected(each))), len(same[0].results),
            Measurement(tuple(each.seconds for each in same), "s"),
            Measurement(tuple(float(lost(each)) for each in same)), *fits.values(),
        ))  # fmt: skip
        of = f"on connected warm lanes, {name} availability"
        experiment.compared += [
            Comparison(f"R² of records done {of}", None, "", fits["R²"]),
            Comparison(f"R² of records done within {INTERVALS[0]:g} s {of}", None, "",
                       fits[f"R² within {INTERVALS[0]:g} s"], better="more", goal=GOAL),
        ]  # fmt: skip
    starts = [seconds for same in runs.values() for each in same for seconds in start_seconds(each)]
    experiment.notes += [
        "R² compares two series: the records done so far, and the seconds of all lanes with a loaded model so far. The"
        " fitted line goes through the origin, and a lane counts by the speed of its class. Both series only grow, so"
        " any such fit is good: 'time squared' is the R² of a curve that knows nothing of lanes. So the first R² has no"
        " goal.",
        "The last two columns are a harder test: the records done within an interval against the seconds of lanes in"
        " the same interval. A record counts when the driver sees its result. In a run there are 10 to 20 intervals of"
        f" {INTERVALS[0]:g} s, but only 3 to 6 of {INTERVALS[1]:g} s.",
        f"The last {TAIL:.0%} of the records, when lanes run out of work, are ignored.",
        "A node is lost, without a warning, when its pool ranks another job higher than a glidein. The traces give the"
        " available nodes. Each has two lanes.",
        "After a node becomes available, some seconds pass until a glidein starts there. The glidein needs"
        f" {number(min(starts))} to {number(max(starts))} s until its model is loaded. No R² includes these times:"
        " lanes count from when they are warm.",
        "The traces are shorter than the paper's, and medium and high end with 32 and 48 nodes instead of 92 and 186."
        " All nodes are on one machine, whose few cores need a large part of a short run to start many glideins. Each"
        " trace has its own amount of work; in the paper all have the same.",
        f"The engine is noop. A record takes {RECORD_SECONDS:g} s on fast nodes, and twice that on slow ones.",
    ]
    experiment.data = {
        name: [
            {"trace": scaled(TRACES[name], chosen.scale), "connected": connected(each), **each.document()}
            for each in same
        ]
        for name, same in runs.items()
    }
    with style():
        experiment.write(chosen.out, figure({name: same[0] for name, same in runs.items()}))


# ---- the runs ------------------------------------------------------------------------------------


def scaled(trace: Trace, scale: float) -> Trace:
    return [(at * scale, max(1, round(nodes * scale))) for at, nodes in trace]


def follow(trace: Trace, seconds: float) -> Run:
    """Run a sweep on the nodes of a trace.

    Args:
        seconds: amount of work: the time that it takes if each node computes as soon as it is available.
    """
    most = max(nodes for _, nodes in trace)
    with cluster(most, STICKY_INVOC) as (bench, others):
        others.set_occupied(occupied(trace[0][1], most))
        others.wait_until_running()
        steps = list(trace[1:])
        began = 0.0

        def watch(progress: Progress) -> None:
            nonlocal began
            began = began or time.monotonic()
            while steps and time.monotonic() - began >= steps[0][0]:
                others.set_occupied(occupied(steps.pop(0)[1], most))

        records = round(sum(work(nodes) * (end - start) for start, end, nodes in levels(trace, seconds)))
        model = noop(RECORD_SECONDS, LOAD_SECONDS)
        return run(bench, STICKY_INVOC, model, records, watch, glideins=most)


def occupied(available: int, most: int) -> dict[str, int]:
    """Return for each class of nodes how many nodes other people's jobs occupy if `available` nodes are free."""
    return {FAST: ceil(most / 2) - ceil(available / 2), SLOW: most // 2 - available // 2}


def levels(trace: Trace, seconds: float) -> list[tuple[float, float, int]]:
    return [(start, end, nodes) for (start, nodes), (end, _) in pairwise([*trace, (seconds, 0)])]


def work(nodes: int) -> float:
    """Return the records per second that a number of nodes compute. Half of the nodes are slow."""
    return ceil(nodes / 2) / RECORD_SECONDS + nodes // 2 / (RECORD_SECONDS * TIME_FACTORS[SLOW])


# ---- evaluation ----------------------------------------------------------------------------------


def connected(run: Run) -> Series:
    """Return the number of connected lanes over time, while the sweep ran."""
    series = [point for point in lanes_over_time(run.history)["connected"] if point[0] < run.seconds]
    return [*series, (run.seconds, series[-1][1])]


def start_seconds(run: Run) -> list[float]:
    """Return for each glidein the seconds from its start until it has loaded the model."""
    nodes = run.document()["nodes"]
    return [node["warm_s"] - node["arrive_s"] for node in nodes if node["warm_s"] is not None]


def lost(run: Run) -> int:
    return sum(node["leave_s"] is not None for node in run.document()["nodes"])


def cumulative(run: Run) -> float:
    """Return R² of two series: the records done until each moment, and the seconds of warm lanes until this moment."""
    at, done = before_the_tail(run)
    return explained(lane_seconds(run, at), done)


def time_squared(run: Run) -> float:
    """Return R² of two series: the records done until each moment, and the square of the time. Lanes have no effect."""
    at, done = before_the_tail(run)
    return explained(at**2, done)


def within(seconds: float, run: Run) -> float:
    """Return R² of two series: the records done within each interval, and the seconds of warm lanes within it.

    A record counts in the interval in which the driver saw its result.

    Args:
        seconds: length of the intervals.
    """
    at, done = before_the_tail(run)
    ends = np.linspace(0.0, at[-1], max(3, round(at[-1] / seconds)) + 1)
    return explained(np.diff(lane_seconds(run, ends)), np.diff(np.interp(ends, at, done)))


FITS: dict[str, Callable[[Run], float]] = {
    "R²": cumulative, "R², time squared": time_squared,
    **{f"R² within {seconds:g} s": partial(within, seconds) for seconds in INTERVALS},
}  # fmt: skip


def r_squared(runs: Sequence[Run], fit: Callable[[Run], float]) -> Measurement:
    return Measurement(tuple(round(fit(run), 4) for run in runs))


def before_the_tail(run: Run) -> np.ndarray:
    """Return two arrays: moments, and the records done until each moment. The last records (TAIL) are left out."""
    return np.array([point for point in run.done if point[1] <= (1 - TAIL) * len(run.results)]).T


def lane_seconds(run: Run, moments: np.ndarray) -> np.ndarray:
    """Return the seconds of warm lanes until each moment. A second of a lane on a slow node counts half."""
    warm = [(phase, 1 / TIME_FACTORS[node_class(lane.glidein)]) for lane in run.history.lanes for phase in lane.warm]
    return np.array([sum(weight * seconds_before(phase, at) for phase, weight in warm) for at in moments])


def seconds_before(phase: Interval, at: float) -> float:
    return max(0.0, min(phase.end, at) - phase.start)


def explained(x: np.ndarray, y: np.ndarray) -> float:
    """Return R², the coefficient of determination, of the best line through the origin."""
    slope = float(x @ y) / float(x @ x)
    return 1.0 - float(((y - slope * x) ** 2).sum()) / float(((y - y.mean()) ** 2).sum())


def figure(runs: dict[str, Run]) -> Figure:
    """Draw the lanes of each trace and, on a second axis, the records."""
    drawn = Figure(figsize=(WIDTH, 1.7 * len(runs) + 0.5))
    panels = drawn.subplots(len(runs), 1, squeeze=False)[:, 0]
    for axes, (name, shown) in zip(panels, runs.items(), strict=True):
        records = axes.twinx()
        lanes = connected(shown)
        axes.step(
            [at for at, _ in lanes], [count for _, count in lanes], where="post", color=INK, label="connected lanes"
        )
        records.plot(
            [at for at, _ in shown.done], [count for _, count in shown.done], color=BLUE, label="completed records"
        )
        axes.set_title(f"{name}: R² {cumulative(shown):.4f}")
        axes.set(ylabel="lanes")
        records.set(ylabel="records")
        records.spines["right"].set_visible(True)
        axes.set_ylim(0)
        records.set_ylim(0)
    panels[-1].set(xlabel="seconds")
    drawn.legend(loc="outside lower center", ncols=2, handles=[axes.lines[0], records.lines[0]])
    return drawn


if __name__ == "__main__":
    main()
