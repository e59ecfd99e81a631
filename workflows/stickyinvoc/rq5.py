"""RQ5: does progress follow the nodes that there are, at low, medium and high availability?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil

import numpy as np
from cluster import cluster
from matplotlib.figure import Figure
from systems import FAST, PACES, SLOW, STICKY_INVOC, Run, node_class, noop, options, run, say

from glide.report.experiment import Comparison, Experiment, Measured
from glide.report.sweep.figures import BLUE, INK, WIDTH, style
from glide.report.sweep.history import Interval
from glide.report.sweep.timeline import Series, lanes_over_time
from glide.sweep.driver import Progress

Trace = Sequence[tuple[float, int]]
# How many nodes others leave, from which second on; half of them are slow. The paper's go up to 20, 92 and 186; here
# all nodes are on one machine, whose cores start a glidein or two a second, and would do nothing else.
TRACES: dict[str, Trace] = {
    "low": ((0, 4), (15, 8), (30, 12), (45, 8), (60, 16), (75, 20)),
    "medium": ((0, 4), (20, 10), (40, 18), (60, 12), (80, 24), (110, 32)),
    "high": ((0, 8), (20, 16), (40, 26), (60, 36), (80, 28), (100, 40), (130, 48)),
}
SECONDS = {"low": 95.0, "medium": 150.0, "high": 190.0}  # of work, on nodes that computed from when they are left
RECORD_SECONDS = 0.2
LOAD_SECONDS = 1.0
INTERVAL = 10.0  # seconds, where the progress of intervals counts
TAIL = 0.05  # of the records, at the end of which lanes have nothing to do any more: not looked at
GOAL = 0.99


def main() -> None:
    parser = options(__doc__, 9)
    parser.add_argument("--traces", nargs="+", choices=list(TRACES), default=list(TRACES), help="which of them")
    chosen = parser.parse_args()
    experiment = Experiment(
        "rq5", "Completed inferences and connected lanes (Figure 12)", (__doc__ or "").strip(),
        ("availability", "most lanes", "records", "seconds", "nodes lost", *FITS),
    )  # fmt: skip
    runs: dict[str, list[Run]] = {name: [] for name in chosen.traces}
    for turn in range(chosen.repeat):
        for name, same in runs.items():
            say(f"round {turn + 1} of {chosen.repeat}: {name} availability")
            same.append(follow(scaled(TRACES[name], chosen.scale), chosen.scale * SECONDS[name]))
    for name, same in runs.items():
        experiment.rows.append((
            name, int(max(count for each in same for _, count in connected(each))), len(same[0].results),
            Measured(tuple(each.seconds for each in same), "s"),
            Measured(tuple(float(lost(each)) for each in same)), *(r_squared(same, fit) for fit in FITS.values()),
        ))  # fmt: skip
        for what, fit in COMPARED.items():
            told = f"R² of {what} on connected warm lanes, {name} availability"
            experiment.compared.append(Comparison(told, None, "", r_squared(same, fit), better="more", goal=GOAL))
    experiment.notes += [
        "R² is of the records done by each second against the seconds that lanes were connected with a loaded model by"
        " then, through the origin; a lane counts by its class's speed. Both only grow, which makes such a fit a good"
        " one: 'time squared' is what a curve gets that knows nothing of lanes.",
        f"The last two columns are harder: records done within {INTERVAL:g} s against the lanes' seconds within them."
        " First as the driver has seen them, with every delay of its view; then with the records of each job spread"
        " evenly over the time that it ran, where those of lost jobs are missing.",
        f"The last {TAIL:.0%} of the records, when lanes run out of work, are left out.",
        "A node is taken away by a job that its pool ranks higher than a glidein, without a warning. The trace is of"
        " nodes that others leave; a glidein needs some seconds from there to its loaded model, and that is in no R².",
        "The traces are short, each has an amount of work of its own, where the paper's have the same, and they end at"
        " fewer nodes than the paper's: all nodes are on one machine, and the start of so many glideins on its few"
        " cores is not small against some minutes.",
        f"The engine is noop, {RECORD_SECONDS:g} s a record on fast nodes, twice that on slow ones.",
    ]
    experiment.data = {
        name: [
            {"trace": scaled(TRACES[name], chosen.scale), "connected": connected(each), **each.told()} for each in same
        ]
        for name, same in runs.items()
    }
    with style():
        experiment.leave(chosen.out, figure({name: same[0] for name, same in runs.items()}))


# ---- the runs ------------------------------------------------------------------------------------


def scaled(trace: Trace, scale: float) -> Trace:
    return [(at * scale, max(1, round(nodes * scale))) for at, nodes in trace]


def follow(trace: Trace, seconds: float) -> Run:
    """Run a sweep on the nodes that a trace leaves to it, with work for so many seconds."""
    most = max(nodes for _, nodes in trace)
    with cluster(most, STICKY_INVOC) as (bench, others):
        others.leave(taken(trace[0][1], most))
        others.wait()
        steps = list(trace[1:])
        began = time.monotonic()

        def watch(progress: Progress) -> None:
            while steps and time.monotonic() - began >= steps[0][0]:
                others.leave(taken(steps.pop(0)[1], most))

        records = round(sum(work(nodes) * (end - start) for start, end, nodes in levels(trace, seconds)))
        model = noop(RECORD_SECONDS, LOAD_SECONDS)
        return run(bench, STICKY_INVOC, model, records, watch, glideins=most)


def taken(left: int, most: int) -> dict[str, int]:
    """Nodes that others have when they leave so many, by class."""
    return {FAST: ceil(most / 2) - ceil(left / 2), SLOW: most // 2 - left // 2}


def levels(trace: Trace, seconds: float) -> list[tuple[float, float, int]]:
    return [(start, end, nodes) for (start, nodes), (end, _) in pairwise([*trace, (seconds, 0)])]


def work(nodes: int) -> float:
    """Records a second of so many nodes."""
    return ceil(nodes / 2) / RECORD_SECONDS + nodes // 2 / (RECORD_SECONDS * PACES[SLOW])


# ---- what they show ------------------------------------------------------------------------------


def connected(run: Run) -> Series:
    """Lanes while the sweep ran."""
    series = [point for point in lanes_over_time(run.history)["connected"] if point[0] < run.seconds]
    return [*series, (run.seconds, series[-1][1])]


def lost(run: Run) -> int:
    return sum(node["leave_s"] is not None for node in run.told()["nodes"])


def cumulative(run: Run) -> float:
    """By each second."""
    at, done = before_the_tail(run)
    return explained(lane_seconds(run, at), done)


def time_squared(run: Run) -> float:
    """By each second, on what knows nothing of lanes."""
    at, done = before_the_tail(run)
    return explained(at**2, done)


def as_seen(run: Run) -> float:
    """Within intervals, what the driver has seen by their ends."""
    at, done = before_the_tail(run)
    return in_intervals(run, lambda ends: np.interp(ends, at, done))


def as_served(run: Run) -> float:
    """Within intervals, each job's records spread over the time that it ran."""
    ran = [(Interval(task.started, task.ended), task.records) for task in run.tasks if task.ended > task.started]
    return in_intervals(
        run,
        lambda ends: np.array([sum(n * seconds_before(each, at) / each.seconds for each, n in ran) for at in ends]),
    )


def in_intervals(run: Run, done: Callable[[np.ndarray], np.ndarray]) -> float:
    """R² of the records done within intervals on the lanes' seconds within them; `done` counts by moments."""
    last = before_the_tail(run)[0][-1]
    ends = np.linspace(0.0, last, max(3, round(last / INTERVAL)) + 1)
    return explained(np.diff(lane_seconds(run, ends)), np.diff(done(ends)))


FITS: dict[str, Callable[[Run], float]] = {
    "R²": cumulative, "R², time squared": time_squared, f"R² in {INTERVAL:g} s, seen": as_seen,
    f"R² in {INTERVAL:g} s, served": as_served,
}  # fmt: skip
COMPARED = {"records done": cumulative, f"records done within {INTERVAL:g} s": as_served}


def r_squared(runs: Sequence[Run], fit: Callable[[Run], float]) -> Measured:
    return Measured(tuple(round(fit(run), 4) for run in runs))


def before_the_tail(run: Run) -> np.ndarray:
    """Moments, and how many records were done by each."""
    return np.array([point for point in run.done if point[1] <= (1 - TAIL) * len(run.results)]).T


def lane_seconds(run: Run, moments: np.ndarray) -> np.ndarray:
    """How long lanes had been warm by then, all together, each weighed by its class's speed."""
    warm = [(phase, 1 / PACES[node_class(lane.glidein)]) for lane in run.history.lanes for phase in lane.warm]
    return np.array([sum(weight * seconds_before(phase, at) for phase, weight in warm) for at in moments])


def seconds_before(phase: Interval, at: float) -> float:
    return max(0.0, min(phase.end, at) - phase.start)


def explained(x: np.ndarray, y: np.ndarray) -> float:
    """The coefficient of determination of a line through the origin."""
    slope = float(x @ y) / float(x @ x)
    return 1.0 - float(((y - slope * x) ** 2).sum()) / float(((y - y.mean()) ** 2).sum())


def figure(runs: dict[str, Run]) -> Figure:
    """For each trace the lanes and, on an axis of its own, the records."""
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
