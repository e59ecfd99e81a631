"""The figure of a simulation: records done, and warm glideins, over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from glide.report.sweep.figures import BLUE, DOTS, GREEN, ORANGE, PURPLE, RED, SKY, WIDTH, style

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
DASHES = ("-", "--", "-.", ":")  # for print without colour, and for more variants than colours

Curves = tuple[Sequence[float], Sequence[float], Sequence[int]]


def draw(file: Path, found: Mapping[str, Curves]) -> None:
    """Write a PNG.

    Args:
        found: seconds, and records done and warm glideins at them, by variant.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 4.2))
        records, glideins = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        for number, (name, (times, done, warm)) in enumerate(found.items()):
            look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
            records.plot(times, done, label=name, **look)
            glideins.step(times, warm, where="post", **look)
        records.set(ylabel="records done", ylim=(0, None))
        glideins.set(ylabel="warm glideins", xlabel="seconds", ylim=(0, None), xlim=(0, None))
        if len(found) > 1:
            records.legend()
        figure.savefig(file, dpi=DOTS)
