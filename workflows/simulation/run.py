"""Simulate the StickyInvoc paper's experiments at full size: the paper's systems, glide, and larger clusters."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glide.report.experiment import Comparison, Experiment, arguments
from glide.report.sweep.figures import BLUE, GREY, INK, ORANGE, WIDTH, style
from glide.simulate import Outcome, read, simulate

HERE = Path(__file__).parent
# For each variant of paper.yaml, the paper's number: seconds, or for RQ4 the number of completed records.
PAPER = {
    "rq1-create-destroy": 10_400, "rq1-sticky-io": 5_300, "rq1-sticky-invoc": 2_900, "rq3-sticky-io-1": 141_100,
    "rq3-sticky-io-1000": 3_200, "rq3-sticky-invoc-1": 3_300, "rq4-sticky-io": 46_000, "rq4-sticky-invoc": 62_900,
    "rq5-low": 4_959, "rq5-medium": 1_536, "rq5-high": 783,
}  # fmt: skip
# Pairs of variants. The paper's conclusions rest on their ratios. If the simulated numbers of a pair differ from the
# paper's in opposite directions, the ratio differs even more.
RATIOS = (
    ("rq1-create-destroy", "rq1-sticky-invoc"), ("rq1-sticky-io", "rq1-sticky-invoc"),
    ("rq3-sticky-io-1", "rq3-sticky-invoc-1"), ("rq4-sticky-invoc", "rq4-sticky-io"),
)  # fmt: skip
# For some variants of paper.yaml, the variant of glide.yaml that has the same nodes.
AS_GLIDE = {"rq1-sticky-invoc": "rq1", "rq4-sticky-invoc": "rq4", **{name: name for name in PAPER if "rq5" in name}}


def main() -> None:
    options = arguments(__doc__ or "", "simulation", "About a minute; nothing is started.").parse_args()
    experiment = Experiment(
        "simulation", "The paper's experiments in simulation",
        "On the paper's cluster, do plan and packer take the time that the paper measured, and what would glide do?",
        ("experiment", "unit", "paper", "simulated", "off", "as glide"),
    )  # fmt: skip
    theirs, ours = outcomes("paper.yaml"), outcomes("glide.yaml")
    for name, paper in PAPER.items():
        unit = unit_of(name)
        simulated = value(name, theirs[name])
        here = value(name, ours[AS_GLIDE[name]]) if name in AS_GLIDE else None
        off = f"{simulated / paper - 1:+.1%}"
        experiment.rows.append((name, unit, paper, round(simulated), off, "" if here is None else round(here)))
        experiment.compared.append(Comparison(name, paper, unit, simulated=round(simulated, 1)))
    for more, less in RATIOS:
        paper, simulated = PAPER[more] / PAPER[less], value(more, theirs[more]) / value(less, theirs[less])
        experiment.compared.append(Comparison(f"{more} over {less}", paper, "×", simulated=simulated))
    for name, each in outcomes("scale.yaml").items():
        experiment.rows.append((f"{name}, {each.records:,} records", "s", "", "", "", round(each.makespan)))
        experiment.notes.append(
            f"{name}: {each.done:,} of {each.records:,} records are done in {each.makespan:,.0f} simulated seconds,"
            f" with {each.jobs:,} jobs and {each.evictions:,} evictions. Glideins serve for"
            f" {each.shares['serving']:.0%} of their time. The simulation took {each.took:.0f} s."
        )
    stormy = ours["stormy"]
    experiment.notes += [
        f"With 186 GPUs that stay for half an hour on average, glide takes {stormy.makespan:,.0f} s, with"
        f" {stormy.evictions} evictions and {stormy.lost_in_flight} records begun twice.",
        "Eight parameters were fitted to the first eight rows together: rates, load and fetch times of the devices, the"
        " cost of an invocation, the time between arrivals of GPUs, and the time when the first three GPUs of RQ4 were"
        " lost. RQ5's three rows have no parameter of their own: GPUs arrive evenly until the paper's run ended. So"
        " these rows show only that the same GPUs do the same work.",
        "The paper's tasks have a fixed size (pack), and so have the simulated ones. The packer decides only in the"
        " column 'as glide' and in the last two rows.",
    ]
    with style():
        experiment.write(options.out, figure(theirs))


def outcomes(name: str) -> dict[str, Outcome]:
    return {variant: simulate(*each) for variant, each in read(HERE / name).items()}


def unit_of(name: str) -> str:
    return "records" if name.startswith("rq4") else "s"


def value(name: str, outcome: Outcome) -> float:
    return outcome.makespan if unit_of(name) == "s" else outcome.done


def figure(theirs: dict[str, Outcome]) -> Figure:
    drawn = Figure(figsize=(WIDTH * 1.5, 5.2))
    above, below = drawn.subplots(2, height_ratios=(3, 2))
    _deviations(above, theirs)
    for name, each in theirs.items():
        if name.startswith("rq4"):
            colour = BLUE if "invoc" in name else ORANGE
            below.plot(each.times, each.curve, color=colour, label=f"{name[4:]}, simulated")
            below.axhline(PAPER[name], color=colour, linestyle=":", label=f"{name[4:]}, paper's end")
    below.set(
        xlabel="seconds", ylabel="records done", title="One GPU lost per minute (RQ4)", xlim=(0, None), ylim=(0, None)
    )
    below.legend()
    return drawn


def _deviations(axes: Axes, theirs: dict[str, Outcome]) -> None:
    names = list(PAPER)[::-1]
    off = [value(name, theirs[name]) / PAPER[name] - 1 for name in names]
    axes.axvspan(-10, 10, color=GREY, zorder=0, label="10 %")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.plot([100 * each for each in off], names, "o", color=BLUE)
    axes.set(
        xlabel="simulated minus the paper's, % of the paper's",
        xlim=(-25, 25),
        title="Eight parameters, fitted to the first eight rows",
    )
    axes.legend()


if __name__ == "__main__":
    main()
