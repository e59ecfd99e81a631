"""Draw charts of series over time as SVG.

The SVG contains CSS classes, but no colours. The page's style sheet has a colour for each class.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

WIDTH, HEIGHT = 420, 170
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 22  # margins around the plot, in SVG units; the axes' labels are in the margins
TICKS = 4  # number of labels on the time axis


@dataclass(frozen=True)
class Series:
    """A series of a chart.

    Attributes:
        colour: name of a CSS class. The page's style sheet has the colour of this class.
        values: the value of each step of time; None if the value is not known.
    """

    name: str
    colour: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """A chart with one or more series. All series cover the same steps of time.

    Attributes:
        kind: "stack" (stacked areas), "line" or "bars".
        start: Unix time of the first step.
        step: length of a step, in seconds.
        unit: the unit, which is shown after numbers.
        top: upper end of the vertical axis; None for a round number above all values.
    """

    title: str
    kind: str
    series: Sequence[Series]
    start: float
    step: float
    unit: str = ""
    top: float | None = None

    @property
    def svg(self) -> Markup:
        """The chart as SVG."""
        top = self.top or round_up(self._highest())
        parts = [*self._grid(top), *DRAWN[self.kind](self.series, top)]
        head = '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
        return Markup(head).format(WIDTH, HEIGHT, self.summary) + Markup("").join(parts) + Markup("</svg>")

    @property
    def summary(self) -> str:
        """The title and the legend as text, for screen readers."""
        return f"{self.title}. " + ", ".join(f"{each.name}: {self.value_text(each)}" for each in self.series)

    def value_text(self, series: Series) -> str:
        """Return a text for the legend. In a bar chart, it is the sum of the series; otherwise the last known value."""
        known = [value for value in series.values if value is not None]
        value = sum(known) if self.kind == "bars" else known[-1] if known else None
        return "–" if value is None else f"{number(value)}{self.unit}"

    def _highest(self) -> float:
        columns = zip(*(each.values for each in self.series), strict=True)
        heights = [[value or 0.0 for value in column] for column in columns]
        return max((sum(each) if self.kind == "stack" else max(each) for each in heights), default=0.0)

    def _grid(self, top: float) -> list[Markup]:
        line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        text = Markup('<text class="{}" x="{}" y="{}">{}</text>')
        parts = []
        for value in (0.0, top / 2, top):
            y = _y(value, top)
            parts.append(line.format(LEFT, WIDTH - RIGHT, y, y))
            parts.append(text.format("value", LEFT - 5, y + 4, f"{number(value)}{self.unit}"))
        steps = len(self.series[0].values)
        for tick in range(TICKS):
            x = LEFT + (WIDTH - LEFT - RIGHT) * tick / (TICKS - 1)
            when = time.strftime("%H:%M", time.localtime(self.start + self.step * steps * tick / (TICKS - 1)))
            anchor = "first" if tick == 0 else "last" if tick == TICKS - 1 else "middle"
            parts.append(text.format(f"time {anchor}", round(x, 1), HEIGHT - 6, when))
        return parts


def _stack(series: Sequence[Series], top: float) -> list[Markup]:
    below = [0.0] * len(series[0].values)
    parts = []
    for each in series:
        above = [low + (value or 0.0) for low, value in zip(below, each.values, strict=True)]
        known = [value is not None for value in each.values]
        path = "".join(_area(steps, below, above, top) for steps in _stretches(known) if max(above[i] for i in steps))
        parts.append(_path(each, "area", path))
        below = above
    return parts


def _area(steps: Sequence[int], below: Sequence[float], above: Sequence[float], top: float) -> str:
    """Return the SVG path of the area between two stepped lines. A value fills the whole width of its step."""
    count = len(above)
    upper = [point for i in steps for point in (_point(i, count, above[i], top), _point(i + 1, count, above[i], top))]
    lower = [point for i in steps for point in (_point(i, count, below[i], top), _point(i + 1, count, below[i], top))]
    return f"M{'L'.join(upper + lower[::-1])}Z"


def _line(series: Sequence[Series], top: float) -> list[Markup]:
    parts = []
    for each in series:
        values = each.values
        path = ""
        for steps in _stretches([value is not None for value in values]):
            points = [_point(i + half, len(values), values[i] or 0.0, top) for i in steps for half in (0, 1)]
            path += f"M{'L'.join(points)}"
        parts.append(_path(each, "line", path))
    return parts


def _bars(series: Sequence[Series], top: float) -> list[Markup]:
    """Draw a bar for each value that is not zero.

    Each bar is three SVG units wide. A thinner bar would be hard to see in a chart of a whole day.
    """
    parts = []
    for each in series:
        count = len(each.values)
        bars = [(i, value) for i, value in enumerate(each.values) if value]
        spots = ((_x(i + 0.5, count), _y(value, top)) for i, value in bars)
        path = "".join(f"M{x - 1.5:.1f},{_y(0, top)}V{y}h3V{_y(0, top)}Z" for x, y in spots)
        parts.append(_path(each, "area", path))
    return parts


DRAWN = {"stack": _stack, "line": _line, "bars": _bars}


def _path(series: Series, kind: str, path: str) -> Markup:
    shape = Markup('<path class="{} {}" d="{}"><title>{}</title></path>')
    return shape.format(kind, series.colour, path, series.name) if path else Markup("")


def _stretches(known: Sequence[bool]) -> list[list[int]]:
    """Return the groups of adjacent steps whose values are known."""
    return [[i for i, _ in group] for is_known, group in groupby(enumerate(known), lambda each: each[1]) if is_known]


def _point(step: float, count: int, value: float, top: float) -> str:
    return f"{_x(step, count):.1f},{_y(value, top)}"


def _x(step: float, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / count


def _y(value: float, top: float) -> float:
    """Return the vertical coordinate of a value, in SVG units."""
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, value / top)), 1)


def round_up(highest: float) -> float:
    """Return a round number that is not lower than `highest`. Half of this number is round too."""
    if highest <= 0:
        return 2.0
    scale = 10.0 ** math.floor(math.log10(highest))
    return next(top for top in (scale * each for each in (1, 2, 4, 6, 8, 10)) if top >= highest * 0.999)


def number(value: float) -> str:
    """Return a number as a short text."""
    if abs(value) >= 10000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
