"""The figures of a sweep's report, for screen and print.

Colour-blind people can distinguish the colours, and hatches distinguish areas in print without colour. The figures fit
a column of about 12 cm. Texts are drawn as shapes, so that they look the same on every machine.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from glide.report.sweep.history import SweepHistory
from glide.report.sweep.timeline import (
    IDLE,
    SERVING,
    SPENT,
    GlideinTimeline,
    coarsen,
    lanes_over_time,
    losses,
    records_done,
)
from glide.report.times import duration
from glide.vocabulary import State

WIDTH = 4.6  # width of a figure, in inches
DOTS = 300  # resolution of a PNG, in dots per inch
DOTS_ACROSS = 700  # width of a timeline, in dots; more dots only make the page's file larger
MOST_BINS = 40  # maximum number of bins of a histogram
BLUE, ORANGE, GREEN, RED, SKY, YELLOW, PURPLE = (  # the palette of Okabe and Ito, 2008
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#F0E442", "#CC79A7",
)  # fmt: skip
GREY, INK = "#D9D9D9", "#222222"
# For each kind of time: its colour, its hatch and its name in the legend.
KINDS = {
    State.BLANK: ("#FFFFFF", "", "no model"),
    State.FETCHING: (SKY, "////", "fetching"),
    State.IMPORTING: (PURPLE, "+++", "importing"),
    State.LOADING: (ORANGE, "\\\\\\\\", "loading"),
    State.WARMING: (YELLOW, "xxxx", "warm-up"),
    "engine": (GREEN, "", "engine computes"),
    SERVING: (GREEN, "", "serving"),
    "rest": ("#8FD3BD", "----", "has jobs, engine waits"),
    IDLE: (GREY, "", "warm, idle"),
    State.FAILED: ("#FFFFFF", "||||", "failed"),
    "other": ("#FFFFFF", "||||", "other"),
    "waiting": (GREY, "", "in the queue"),
    "starting": (SKY, "////", "starting"),
    "sharing": ("#8FD3BD", "----", "waiting for the engine"),
    "productive": (GREEN, "", "productive"),
    "loading": (ORANGE, "\\\\\\\\", "loading"),
    "lost": (RED, "xxxx", "lost"),
    "idle": (GREY, "", "idle"),
}
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlelocation": "left", "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK,
    "hatch.linewidth": 0.5, "hatch.color": INK, "lines.linewidth": 1.4, "legend.frameon": False,
    "axes.grid.axis": "y", "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "text.parse_math": False,  # a `$` in a name that a user has chosen must not start a formula
    "svg.fonttype": "path", "svg.hashsalt": "glide", "figure.constrained_layout.use": True,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's options for the code in a `with` block. Draw and save all figures in such a block."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # do not warn if the font lacks a character
        yield


def _figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, **options)


# ---- the figures ---------------------------------------------------------------------------------


def progress(history: SweepHistory, total: int) -> Figure:
    """Draw the number of completed records over time. A second panel below shows the number of lanes.

    Args:
        total: number of records of the sweep.
    """
    figure, (above, below) = _figure(3.9, 2, sharex=True, height_ratios=(3, 2))
    unit, name = _unit(history.seconds)
    done = [*records_done(history), (history.seconds, records_done(history)[-1][1])]
    above.plot([at / unit for at, _ in done], [count for _, count in done], color=BLUE)
    above.fill_between([at / unit for at, _ in done], [count for _, count in done], color=BLUE, alpha=0.12, linewidth=0)
    above.axhline(total, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    above.annotate(f"all {total:,}", (0, total), xytext=(4, -3), textcoords="offset points", va="top", fontsize=8)
    above.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    above.set(ylabel="completed records", ylim=(0, total * 1.08))
    lines = {"connected": (INK, (0, (3, 1.5)), 1.2), "warm": (ORANGE, "solid", 2.2), "claimed": (GREEN, "solid", 1.2)}
    for which, series in lanes_over_time(history).items():
        colour, dashes, width = lines[which]
        # At the end of the history, the number of lanes is always zero. So do not draw the points at this time.
        before_end = [point for point in series if point[0] < history.seconds] or series
        steps = [*before_end, (history.seconds, before_end[-1][1])]
        below.step(
            [at / unit for at, _ in steps], [count for _, count in steps], where="post", color=colour,
            linestyle=dashes, linewidth=width, label=which, zorder=3 if which == "connected" else 2,
        )  # fmt: skip
    most = max(count for _, count in lanes_over_time(history)["connected"])
    below.set(ylabel="lanes", xlabel=f"time since the sweep began ({name})", ylim=(0, max(1, most) * 1.15))
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if lost := losses(history):
        levels = np.interp(lost, [at for at, _ in done], [count for _, count in done])
        label = f"{len(lost)} job{'s' * (len(lost) != 1)} lost"
        above.plot([at / unit for at in lost], levels, "v", color=RED, markeredgecolor=INK, markersize=6, label=label)
        above.legend(loc="lower right")
    for axes in (above, below):
        axes.set_xlim(0, max(history.seconds, 0.001) / unit)
        axes.grid(True)
        for at in history.resumed:
            axes.axvline(at / unit, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
    for at in history.resumed:
        above.annotate("resumed", (at / unit, 0.85), xycoords=("data", "axes fraction"), xytext=(3, 0), fontsize=7.5,
                       textcoords="offset points", va="top", rotation=90)  # fmt: skip
    below.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.32))
    return figure


def tasks(seconds: Sequence[float], engine: Sequence[float]) -> Figure:
    """Draw two histograms: the run times of jobs, and the engine's times per record.

    Args:
        seconds: for each job, its run time in seconds.
        engine: for each record, the engine's time in seconds.
    """
    figure, panels = _figure(2.4, 1, 2)
    shown = ((seconds, "time of a job (s)", "jobs", 1.0), (engine, "engine's time for a record (ms)", "records", 1e3))
    for axes, (values, what, of, scale) in zip(panels, shown, strict=True):
        scaled = np.sort(np.asarray(values, float) * scale)  # there may be ten million values, too many for a list
        if not len(scaled):
            axes.text(0.5, 0.5, "none yet", transform=axes.transAxes, ha="center", va="center")
        else:
            middle, largest = scaled[len(scaled) // 2], scaled[-1]
            # Put far outliers into the last bar. Otherwise a few outliers would squeeze all other values into one bar.
            most = scaled[int(0.99 * (len(scaled) - 1))]
            limit = max(1.05 * (largest if largest < 2 * most else most), 1e-9)
            beyond = int(np.count_nonzero(scaled > limit))
            edges = _edges(scaled, limit)
            axes.hist(np.minimum(scaled, limit), bins=edges, color=SKY, edgecolor=INK, linewidth=0.5)
            axes.axvline(middle, color=RED, linewidth=1.4, linestyle=(0, (4, 1.5)))
            right = middle > 0.6 * limit
            place = {"xycoords": ("data", "axes fraction"), "xytext": (-3 if right else 3, -2), "va": "top"}
            axes.annotate(f"median {middle:.3g}", (middle, 1), textcoords="offset points", fontsize=8,
                          ha="right" if right else "left", **place)  # fmt: skip
            axes.margins(y=0.36 if beyond else 0.18)
            if beyond:
                axes.annotate(
                    f"last bar: {beyond:,} longer ones",
                    (1, 0.86),
                    xycoords="axes fraction",
                    ha="right",
                    fontsize=7,
                )
        axes.set(xlabel=what, ylabel=of)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.grid(True)
    return figure


def breakdown(jobs: Mapping[str, float], glideins: Mapping[str, float]) -> Figure:
    """Draw a bar for all jobs and a bar for all glideins. Each bar shows how the time was used, in percent.

    Args:
        jobs: a dict from the use of the time, such as "starting", to the total seconds of all jobs.
        glideins: a dict from the use of the time, such as "serving", to the total seconds of all glideins.
    """
    figure = Figure(figsize=(WIDTH, 3.5))
    renamed = {("rest" if kind == SERVING else kind): seconds for kind, seconds in glideins.items()}
    panels: Any = figure.subfigures(2, height_ratios=(1, 1.1))
    for panel, (title, spent) in zip(panels, (("Jobs", jobs), ("Glideins", renamed)), strict=True):
        axes = panel.subplots()
        _stacked(axes, {"": spent})
        axes.set_title(f"{title}, {duration(sum(spent.values()))} together")
        axes.spines["left"].set_visible(False)
        patches = [_patch(kind) for kind, seconds in spent.items() if seconds > 0]
        _legend(panel, patches, 3)
    return figure


def goodput(spent: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw how the lanes' time was used, with one bar for each device.

    Args:
        spent: `spent[device][use]` is a number of seconds. A device is, for example, a GPU model. A use of the time is
            "productive", "loading", "lost" or "idle".
    """
    figure, axes = _figure(1.25 + 0.45 * len(spent))
    _stacked(axes, {f"{_short(device)}\n{duration(sum(each.values()))}": each for device, each in spent.items()})
    axes.set_xlabel("share of the lanes' time")
    _legend(figure, [_patch(kind) for kind in SPENT], 4)
    return figure


def glideins(shown: Sequence[GlideinTimeline], seconds: float) -> Figure:
    """Draw a timeline of each glidein. `seconds` is the length of the sweep."""
    figure, axes = _figure(1.2 + 0.19 * max(3, len(shown)))
    unit, name = _unit(seconds)
    for row, glidein in enumerate(shown):
        intervals = coarsen(glidein.intervals, max(seconds, 0.001) / DOTS_ACROSS)
        for kind in sorted({interval.kind for interval in intervals}):
            colour, hatch, _ = KINDS.get(kind, KINDS["other"])
            spans = [(each.start / unit, each.seconds / unit) for each in intervals if each.kind == kind]
            axes.broken_barh(spans, (row - 0.36, 0.72), facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.35)
        if glidein.end in ENDS:
            marker, colour = ENDS[glidein.end]
            axes.plot(glidein.ended / unit, row, marker, color=colour, markeredgecolor=INK, markersize=6, clip_on=False)
    axes.set_yticks(range(len(shown)), [_short(glidein.id, 18) for glidein in shown])
    axes.set(xlabel=f"time since the sweep began ({name})", ylim=(len(shown) - 0.4, -0.6), xlim=(0, seconds / unit))
    axes.tick_params(axis="y", length=0, labelsize=7 if len(shown) > 15 else 8)
    there = {interval.kind for glidein in shown for interval in glidein.intervals}
    ends = {glidein.end for glidein in shown}
    patches = [_patch(kind) for kind in KINDS if kind in there]
    _legend(figure, [*patches, *(_marker(end) for end in ENDS if end in ends)], 4)
    return figure


def accuracy(scores: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the accuracy of each prompt with its confidence interval. The best prompt is at the top."""
    ranked = sorted(scores.items(), key=lambda item: -item[1]["accuracy"])
    figure, axes = _figure(0.75 + 0.3 * max(2, len(ranked)))
    for row, (_, score) in enumerate(ranked):
        low, high = score["low"], score["high"]
        axes.plot([low, high], [row, row], color=BLUE, linewidth=1.6, solid_capstyle="butt")
        axes.plot([low, high], [row, row], "|", color=BLUE, markersize=8)
        axes.plot(score["accuracy"], row, "o", color=BLUE, markeredgecolor=INK, markersize=5.5)
        axes.annotate(f"{score['accuracy']:.1%}", (high, row), xytext=(6, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(ranked)), [_short(name) for name, _ in ranked])
    lowest, highest = min(score["low"] for _, score in ranked), max(score["high"] for _, score in ranked)
    room = max(0.02, (highest - lowest) * 0.08)
    axes.set(xlabel="accuracy, with the 95 % confidence interval", ylim=(len(ranked) - 0.5, -0.5))
    axes.set_xlim(max(-0.01, lowest - room), min(1.01, highest) + 2.2 * room)
    axes.set_xticks([tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= min(1, axes.get_xlim()[1])])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if highest - lowest > 0.06 else 1))
    axes.grid(True, axis="x")
    return figure


def speed(rates: Mapping[str, float]) -> Figure:
    """Draw a bar for each model. Its length is in records per second of engine time."""
    ranked = sorted(rates.items(), key=lambda item: -item[1])
    figure, axes = _figure(0.75 + 0.3 * max(2, len(ranked)))
    axes.barh(range(len(ranked)), [rate for _, rate in ranked], 0.6, color=GREEN, edgecolor=INK, linewidth=0.35)
    for row, (_, rate) in enumerate(ranked):
        axes.annotate(f"{rate:,.3g}", (rate, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(ranked)), [_short(name) for name, _ in ranked])
    axes.set(xlabel="records per second of engine time", ylim=(len(ranked) - 0.5, -0.5), xlim=(0, 1.15 * ranked[0][1]))
    axes.grid(True, axis="x")
    return figure


# ---- parts of the figures ------------------------------------------------------------------------

ENDS = {"lost": ("X", RED), "failed": ("s", "#FFFFFF"), "left": (">", "#FFFFFF")}


def _edges(values: np.ndarray[Any, Any], limit: float) -> list[float]:
    """Return the edges of a histogram's bins. If all values are whole numbers, bins are centred on whole numbers."""
    count = min(MOST_BINS, max(8, int(len(values) ** 0.5)))
    if np.all(values == np.floor(values)):
        width = max(1, math.ceil(limit / MOST_BINS))
        return [number * width - 0.5 for number in range(int(limit / width) + 2)]
    return [limit * number / count for number in range(count + 1)]


def _stacked(axes: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    """Draw one bar for each item of `bars`. A bar has one part for each kind of time.

    If a part is at least 7 % of its bar, a label shows the percentage.
    """
    for row, spent in enumerate(bars.values()):
        whole, left = sum(spent.values()) or 1.0, 0.0
        for kind, seconds in spent.items():
            share = seconds / whole
            colour, hatch, _ = KINDS[kind]
            axes.barh(row, share, left=left, height=0.62, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.5)
            if share >= 0.07:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9}
                axes.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=8, bbox=box)
            left += share
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set(xlim=(0, 1), ylim=(len(bars) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _legend(figure: FigureBase, handles: list[Any], columns: int) -> None:
    """Draw a legend below a figure. Entries fill the first row, then the next row. matplotlib would fill columns."""
    by_rows = [handle for column in range(columns) for handle in handles[column::columns]]
    figure.legend(handles=by_rows, loc="outside lower center", ncols=columns, handlelength=1.6, columnspacing=1.2)


def _patch(kind: str) -> Patch:
    colour, hatch, name = KINDS[kind]
    return Patch(facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.5, label=name)


def _marker(end: str) -> Line2D:
    marker, colour = ENDS[end]
    return Line2D([], [], marker=marker, color=colour, markeredgecolor=INK, linestyle="none", label=end)


def _unit(seconds: float) -> tuple[float, str]:
    return (3600.0, "hours") if seconds > 4 * 3600 else (60.0, "minutes") if seconds > 600 else (1.0, "seconds")


def _short(text: str, most: int = 28) -> str:
    """Shorten a name that a node or a user has chosen. Characters that cannot be drawn become `?`."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable if len(printable) <= most else f"{printable[: most - 1]}…"
