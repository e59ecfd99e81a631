"""The figure of a simulation: completed records and warm glideins over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from glide.report.sweep.figures import BLUE, DOTS, GREEN, ORANGE, PURPLE, RED, SKY, WIDTH, style

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
# Each variant has one of these line styles. A reader needs the line styles in two cases: the figure is printed without
# colour, or two variants have the same colour.
DASHES = ("-", "--", "-.", ":")

# The curves of a simulation are three sequences of the same length: times in seconds, the number of completed records
# at each time, and the number of warm glideins at each time.
Curves = tuple[Sequence[float], Sequence[float], Sequence[int]]


def draw(file: Path, found: Mapping[str, Curves]) -> None:
    """Draw the curves of simulated variants, and write the figure as a PNG file.

    Args:
        found: for each variant, its curves. The key is the name of the variant.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 4.2))
        records, glideins = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        for number, (name, (times, done, warm)) in enumerate(found.items()):
            line = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
            records.plot(times, done, label=name, **line)
            glideins.step(times, warm, where="post", **line)
        records.set(ylabel="records done", ylim=(0, None))
        glideins.set(ylabel="warm glideins", xlabel="seconds", ylim=(0, None), xlim=(0, None))
        if len(found) > 1:
            records.legend()
        figure.savefig(file, dpi=DOTS)
