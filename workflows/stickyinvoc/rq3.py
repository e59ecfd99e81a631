"""RQ3: how much does the number of inferences of a task matter, with the model's files or its state on the nodes?"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from systems import COLOURS, HALF_PACE, LANES, STICKY_INVOC, STICKY_IO, Run, bring_up, entries, noop, options, run, say

from glide.bench.rig import rig
from glide.report.experiment import Comparison, Experiment, Measured
from glide.report.sweep.figures import SKY, WIDTH, style

NODES = 4  # half of them slow
BATCHES = (1, 100, 1000)
RECORDS = 20_000
RECORD_SECONDS = 0.009
# With the engine's own start, a load is about as long as 46 inferences, as in the paper: 18.4 s and 0.39 s in
# StickyI/O's tasks of one (141.1k s for 150,000 claims on 20 GPUs).
LOAD_SECONDS = 0.1
A_JOB_EACH = "StickyInvoc, a job per batch"
# What is done in batches of which size, and as which system: the sweep's keys `batch` and `pack`.
WAYS: dict[str, tuple[str, int | str]] = {
    STICKY_IO: (STICKY_IO, 1),
    A_JOB_EACH: (STICKY_INVOC, 1),
    STICKY_INVOC: (STICKY_INVOC, "auto"),
}
# A job for each of all records would take an hour: of these a part is done, and its time multiplied.
PART = 0.02
GOAL = 3.0  # percent: StickyInvoc's spread
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
    told: list[dict[str, Any]] = []
    for name, (system, pack) in WAYS.items():
        for batch, part, made in measure(system, pack, batches, records, chosen.repeat):
            times[name][batch].append(whole(made, part))
            told.append({"way": name, "batch": batch, "part": part, **made.told()})
    parts = {(each["way"], each["batch"]) for each in told if each["part"] < 1}
    for batch in times[STICKY_IO]:
        cells = {name: Measured(tuple(times[name][batch])) for name in WAYS}
        experiment.rows.append(
            (batch, *(f"≈ {cell}" if (name, batch) in parts else cell for name, cell in cells.items()))
        )
    least = spread(times, STICKY_INVOC)
    experiment.compared = [
        Comparison("StickyInvoc, slowest batch size over best, less one", 13.6, "%", least, better="less", goal=GOAL),
        Comparison("the same with a job per batch", 13.6, "%", spread(times, A_JOB_EACH)),
        Comparison("StickyI/O, slowest batch size over best", 141.1 / 3.2, "×", worst_over_best(times, STICKY_IO)),
    ]
    experiment.notes += [
        "The paper's batch is the sweep's key `batch`: what a user puts into one invocation. Whatever that is, the"
        " default `pack: auto` cuts the jobs by the measured pace: the number decides nothing on glide, so"
        " that StickyInvoc's times should differ by chance alone. That is the column StickyInvoc.",
        f"`pack: 1` makes each batch an HTCondor job, as StickyI/O's tasks are: that is the column {A_JOB_EACH!r}."
        " Jobs of one inference wait for the access point, which starts some 15 to 20 a second; jobs of 1000 leave"
        " lanes idle at the end.",
        f"≈: batches of one in a job each. {PART:.0%} of the records are done, and the time from the first result on"
        " is multiplied.",
        "All glideins are connected before the first run, with what the system keeps, and their pace known: their start"
        " is RQ1's subject. The engine takes each inference alone, whatever the batch.",
        f"The engine is noop: {1000 * RECORD_SECONDS:g} ms an inference on fast nodes, twice that on slow ones, and"
        f" {LOAD_SECONDS:g} s a load, with the real start of an engine's process before it.",
    ]
    experiment.data = {
        "runs": told, "seconds": times,
        "known": {"record_s": RECORD_SECONDS, "load_s": LOAD_SECONDS, "slow_pace": 2.0},
    }  # fmt: skip
    with style():
        experiment.leave(chosen.out, figure(times))


def measure(
    system: str, pack: int | str, batches: list[int], records: int, repeat: int
) -> list[tuple[int, float, Run]]:
    """Runs of each batch size, and which part of the records they did."""
    made = []
    model = noop(RECORD_SECONDS, LOAD_SECONDS)
    with TemporaryDirectory(prefix="stickyinvoc-") as folder:
        places = entries(Path(folder), NODES // 2, HALF_PACE)
        with rig(cores=NODES, entries=places, lanes=LANES[system]) as bench:
            bring_up(bench, system, model, NODES)
            for turn in range(repeat):
                for batch in dict.fromkeys(batches):
                    say(f"round {turn + 1} of {repeat}: {system}, batch {batch}, pack {pack}")
                    count = max(10 * NODES, round(records * PART)) if (batch, pack) == (1, 1) else records
                    run_ = run(bench, system, model, count, batch=batch, pack=pack, glideins=NODES)
                    made.append((batch, count / records, run_))
    return made


def whole(made: Run, part: float) -> float:
    """Seconds for all records, of a run that did a part of them."""
    first = next(at for at, count in made.done if count)
    return made.seconds if part == 1 else first + (made.seconds - first) / part


def spread(times: Times, name: str) -> Measured:
    """In percent of the best."""
    return Measured(tuple(100 * (ratio - 1) for ratio in worst_over_best(times, name).runs), "%")


def worst_over_best(times: Times, name: str) -> Measured:
    rounds = zip(*times[name].values(), strict=True)
    return Measured(tuple(max(seconds) / min(seconds) for seconds in rounds), "×")


def figure(times: Times) -> Figure:
    """A group of bars for each batch size; seconds on a logarithmic scale."""
    drawn = Figure(figsize=(WIDTH, 3.0))
    axes = drawn.subplots()
    colours = {STICKY_IO: COLOURS[STICKY_IO], A_JOB_EACH: SKY, STICKY_INVOC: COLOURS[STICKY_INVOC]}
    batches = list(times[STICKY_IO])
    for number, (name, by_batch) in enumerate(times.items()):
        heights = [Measured(tuple(by_batch[batch])).median for batch in batches]
        places = [place + 0.27 * (number - 1) for place in range(len(batches))]
        bars = axes.bar(places, heights, 0.25, color=colours[name], label=name)
        axes.bar_label(bars, [f"{height:,.0f}" for height in heights], padding=1, fontsize=7)
    axes.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
    axes.set(xlabel="inferences of a batch", ylabel="execution time (s)", yscale="log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(y=0.25)
    axes.legend(loc="upper right")
    axes.grid(True)
    return drawn


if __name__ == "__main__":
    main()
