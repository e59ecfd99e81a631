"""Write the report of a sweep: one HTML file that needs no other file, and each figure as a PNG in the same folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from glide.report.sweep import captions
from glide.report.sweep.report import SweepReport, document
from glide.report.sweep.timeline import GlideinTimeline, task_seconds
from glide.system import publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
MOST_GLIDEINS = 40  # maximum number of glideins in a figure


@dataclass(frozen=True)
class PageFigure:
    """A figure on the page.

    Attributes:
        name: name of the PNG file, without the suffix.
        title: the heading above the figure.
        draw: a function that draws the figure.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


def write(report: SweepReport, folder: Path) -> dict[str, Any]:
    """Write the page and the figures of a report, and return the report as a JSON document.

    Args:
        folder: the output folder. A missing folder is created.
    """
    numbers = document(report)
    write_page("sweep.html", numbers, list(page_figures(report, numbers)), folder)
    return numbers


def write_page(template: str, numbers: dict[str, Any], shown: list[PageFigure], folder: Path) -> None:
    """Write a page and its figures into a folder. Texts that users or nodes have written are escaped.

    Args:
        template: name of the page's template.
        numbers: the report as a JSON document.
        shown: the figures of the page.
    """
    # Import matplotlib only when a page is written, because the import takes half a second.
    from glide.report.sweep.figures import style
    from glide.report.sweep.files import inline_svg, save_png

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with style():
        for each in shown:
            figure = each.draw()
            save_png(figure, folder / f"{each.name}.png")
            drawn.append((each, Markup(inline_svg(figure, each.name))))
    environment = Environment(
        loader=PackageLoader("glide.report.sweep"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    publish(folder / PAGE, environment.get_template(template).render(report=numbers, figures=drawn, page=PAGE), 0o666)


def page_figures(report: SweepReport, numbers: dict[str, Any]) -> Iterator[PageFigure]:
    """Yield the figures for which the sweep has data.

    Args:
        numbers: the report as a JSON document.
    """
    from glide.report.sweep import figures

    history, scores = report.history, report.scores
    if history.runs:
        yield PageFigure("progress", "Completed records and lanes over time", captions.progress(numbers),
                      lambda: figures.progress(history, report.sweep.total))  # fmt: skip
    if scores.seconds and history.runs:
        yield PageFigure("tasks", "Job time", captions.tasks(numbers),
                      lambda: figures.tasks(task_seconds(history), scores.seconds))  # fmt: skip
    if report.glideins:
        jobs, glideins = numbers["spent"]["jobs"], numbers["spent"]["glideins"]
        yield PageFigure("breakdown", "Where time went", captions.breakdown(numbers),
                      lambda: figures.breakdown(jobs, glideins))  # fmt: skip
        yield PageFigure(
            "goodput", "Goodput by device", captions.goodput(numbers), lambda: figures.goodput(numbers["goodput"])
        )
        selected = select_glideins(report.glideins)
        yield PageFigure("glideins", "Glideins", captions.glideins(numbers, len(selected)),
                      lambda: figures.glideins(selected, history.seconds))  # fmt: skip
    known = {name: score for name, score in numbers["accuracy"].items() if score["accuracy"] is not None}
    if known:
        yield PageFigure("accuracy", "Accuracy by prompt", captions.accuracy({"accuracy": known}),
                      lambda: figures.accuracy(known))  # fmt: skip


def select_glideins(glideins: list[GlideinTimeline], most: int = MOST_GLIDEINS) -> list[GlideinTimeline]:
    """Select glideins for a figure, without a change of their order.

    Lost and failed glideins are preferred, and after them the glideins that took longest to become warm.

    Args:
        most: the maximum number of glideins.
    """
    ranked = sorted(glideins, key=lambda each: (each.end not in ("lost", "failed"), -(each.warm or 0.0)))
    chosen = {each.id for each in ranked[:most]}
    return [each for each in glideins if each.id in chosen]
