"""RQ3: how much does the number of inferences per task matter, if nodes keep the model's files or its state?"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from systems import (
    COLOURS,
    HALF_SPEED,
    LANES,
    STICKY_INVOC,
    STICKY_IO,
    Run,
    entries,
    noop,
    options,
    report_progress,
    run,
    start_glideins,
)

from glide.bench.rig import rig
from glide.report.experiment import Comparison, Experiment, Measurement
from glide.report.sweep.figures import SKY, WIDTH, style

NODES = 4  # number of nodes, half of which are slow
BATCHES = (1, 100, 1000)
RECORDS = 20_000
RECORD_SECONDS = 0.009
# Seconds of a load. The start of the engine and a load together take about as long as 46 inferences, as in the paper.
# There, a StickyI/O task of one inference takes 18.4 s for loading and 0.39 s for the inference (141.1k s for
# 150,000 claims on 20 GPUs).
LOAD_SECONDS = 0.1
A_JOB_EACH = "StickyInvoc, a job per batch"
# The compared ways to run a sweep: the system, and the value of the sweep's key `pack`. Each way runs with all sizes in
# BATCHES as the value of the sweep's key `batch`.
WAYS: dict[str, tuple[str, int | str]] = {
    STICKY_IO: (STICKY_IO, 1),
    A_JOB_EACH: (STICKY_INVOC, 1),
    STICKY_INVOC: (STICKY_INVOC, "auto"),
}
# If each record has its own job, all records would take an hour. So only this fraction of the records is run, and the
# time of all records is computed from the measured time.
PART = 0.02
GOAL = 3.0  # goal for the spread of StickyInvoc's times over the batch sizes: at most this number of percent
Times = dict[str, dict[int, list[float]]]


def main() -> None:
    chosen = options(__doc__, 11).parse_args()
    experiment = Experiment(
        "rq3", "Execution time by batch size (Figure 10)", (__doc__ or "").strip(),
        ("batch", *(f"{name} (s)" for name in WAYS)),
    )  # fmt: skip
    records = max(400, round(RECORDS * chosen.scale))
    batches = [max(1, round(batch * min(1.0, chosen.scale))) for batch in BATCHES]
    times: Times = {name: {batch: [] for batch in batches} for name in WAYS}
    runs: list[dict[str, Any]] = []
    for name, (system, pack) in WAYS.items():
        for batch, part, finished in measure(system, pack, batches, records, chosen.repeat):
            times[name][batch].append(whole(finished, part))
            runs.append({"way": name, "batch": batch, "part": part, **finished.document()})
    parts = {(each["way"], each["batch"]) for each in runs if each["part"] < 1}
    for batch in times[STICKY_IO]:
        cells = {name: Measurement(tuple(times[name][batch])) for name in WAYS}
        experiment.rows.append(
            (batch, *(f"≈ {cell}" if (name, batch) in parts else cell for name, cell in cells.items()))
        )
    least = spread(times, STICKY_INVOC)
    experiment.compared = [
        Comparison("StickyInvoc, slowest batch size over best, minus 1", 13.6, "%", least, better="less", goal=GOAL),
        Comparison("the same with a job per batch", 13.6, "%", spread(times, A_JOB_EACH)),
        Comparison("StickyI/O, slowest batch size over best", 141.1 / 3.2, "×", worst_over_best(times, STICKY_IO)),
    ]
    experiment.notes += [
        "The paper's batch is the sweep's key `batch`, the number of inferences in one invocation. With the default"
        " `pack: auto`, glide sizes jobs by measured times, and gives each job whole batches. So only batches that are"
        " larger than such a job matter: with batches of 1000, the last jobs are larger than the others need.",
        f"With `pack: 1` each batch is an HTCondor job, as StickyI/O's tasks are. The column {A_JOB_EACH!r} shows that."
        " Jobs of one inference wait for the access point, which starts 15 to 20 jobs per second. Jobs of 1000 leave"
        " lanes idle at the end.",
        f"≈ marks batches of one inference in a job each. {PART:.0%} of the records are run, and the time from the"
        " first result on is multiplied.",
        "Before the first run all glideins are connected, have what the system keeps, and have measured their speed."
        " RQ1 measures their start. The engine computes one inference at a time, whatever the batch size.",
        f"The engine is noop. An inference takes {1000 * RECORD_SECONDS:g} ms on fast nodes and twice that on slow"
        f" ones. A load takes {LOAD_SECONDS:g} s, after the real start of an engine process. Together they take about"
        " as long as 46 inferences. This ratio is the paper's, so StickyI/O's ratio can only be like the paper's, too.",
    ]
    experiment.data = {
        "runs": runs, "seconds": times,
        "known": {"record_s": RECORD_SECONDS, "load_s": LOAD_SECONDS, "slow_pace": 2.0},
    }  # fmt: skip
    with style():
        experiment.write(chosen.out, figure(times))


def measure(
    system: str, pack: int | str, batches: list[int], records: int, repeat: int
) -> list[tuple[int, float, Run]]:
    """Run sweeps with each batch size. Return for each run the batch size, the fraction of records, and the run."""
    measured = []
    model = noop(RECORD_SECONDS, LOAD_SECONDS)
    with TemporaryDirectory(prefix="stickyinvoc-") as folder:
        places = entries(Path(folder), NODES // 2, HALF_SPEED)
        with rig(cores=NODES, entries=places, lanes=LANES[system]) as bench:
            start_glideins(bench, system, model, NODES)
            for turn in range(repeat):
                for batch in dict.fromkeys(batches):
                    report_progress(f"round {turn + 1} of {repeat}: {system}, batch {batch}, pack {pack}")
                    count = max(10 * NODES, round(records * PART)) if (batch, pack) == (1, 1) else records
                    finished = run(bench, system, model, count, batch=batch, pack=pack, glideins=NODES)
                    measured.append((batch, count / records, finished))
    return measured


def whole(finished: Run, part: float) -> float:
    """Return the seconds for all records, computed from a run of a part of the records (`part`, a fraction)."""
    first = next(at for at, count in finished.done if count)
    return finished.seconds if part == 1 else first + (finished.seconds - first) / part


def spread(times: Times, name: str) -> Measurement:
    """Return by how many percent the slowest batch size takes longer than the fastest batch size."""
    return Measurement(tuple(100 * (ratio - 1) for ratio in worst_over_best(times, name).runs), "%")


def worst_over_best(times: Times, name: str) -> Measurement:
    rounds = zip(*times[name].values(), strict=True)
    return Measurement(tuple(max(seconds) / min(seconds) for seconds in rounds), "×")


def figure(times: Times) -> Figure:
    """Draw a group of bars for each batch size, with the seconds on a logarithmic scale."""
    drawn = Figure(figsize=(WIDTH, 3.0))
    axes = drawn.subplots()
    colours = {STICKY_IO: COLOURS[STICKY_IO], A_JOB_EACH: SKY, STICKY_INVOC: COLOURS[STICKY_INVOC]}
    batches = list(times[STICKY_IO])
    for number, (name, by_batch) in enumerate(times.items()):
        heights = [Measurement(tuple(by_batch[batch])).median for batch in batches]
        places = [place + 0.27 * (number - 1) for place in range(len(batches))]
        bars = axes.bar(places, heights, 0.25, color=colours[name], label=name)
        axes.bar_label(bars, [f"{height:,.0f}" for height in heights], padding=1, fontsize=7)
    axes.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
    axes.set(xlabel="inferences per batch", ylabel="execution time (s)", yscale="log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(y=0.25)
    axes.legend(loc="upper right")
    axes.grid(True)
    return drawn


if __name__ == "__main__":
    main()
