"""The report of a sweep: one HTML file that refers to nothing outside, and its figures as PNGs beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from glide.report.sweep import captions
from glide.report.sweep.account import Account, document
from glide.report.sweep.timeline import Glidein, task_seconds
from glide.system import publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
MOST_GLIDEINS = 40  # in a figure


@dataclass(frozen=True)
class Picture:
    """A figure on the page: its file's name without the suffix, its heading, its caption, and how to draw it."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


def write(account: Account, folder: Path) -> dict[str, Any]:
    """Write a report's files, and return the document of its numbers.

    Args:
        folder: where to; made if need be.
    """
    from glide.report.sweep.figures import inline_svg, save_png, style  # matplotlib takes half a second to import

    told = document(account)
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    with style():
        for picture in pictures(account, told):
            figure = picture.draw()
            save_png(figure, folder / f"{picture.name}.png")
            shown.append((picture, Markup(inline_svg(figure, picture.name))))
    publish(folder / PAGE, page(told, shown), 0o666)
    return told


def pictures(account: Account, told: dict[str, Any]) -> Iterator[Picture]:
    """Those for which there is something to show."""
    from glide.report.sweep import figures

    history, scores = account.history, account.scores
    if history.runs:
        yield Picture("progress", "Completed records and lanes over time", captions.progress(told),
                      lambda: figures.progress(history, account.sweep.total))  # fmt: skip
    if scores.seconds and history.runs:
        yield Picture("tasks", "Task time", captions.tasks(told),
                      lambda: figures.tasks(task_seconds(history), scores.seconds))  # fmt: skip
    if account.glideins:
        jobs, glideins = told["spent"]["jobs"], told["spent"]["glideins"]
        yield Picture("breakdown", "Where time went", captions.breakdown(told),
                      lambda: figures.breakdown(jobs, glideins))  # fmt: skip
        yield Picture("goodput", "Goodput by device", captions.goodput(told), lambda: figures.goodput(told["goodput"]))
        telling = most_telling(account.glideins)
        yield Picture("glideins", "Glideins", captions.glideins(told, len(telling)),
                      lambda: figures.glideins(telling, history.seconds))  # fmt: skip
    known = {name: score for name, score in told["accuracy"].items() if score["accuracy"] is not None}
    if known:
        yield Picture("accuracy", "Accuracy by prompt", captions.accuracy({"accuracy": known}),
                      lambda: figures.accuracy(known))  # fmt: skip


def most_telling(glideins: list[Glidein], most: int = MOST_GLIDEINS) -> list[Glidein]:
    """As many as one can look at, as they came: those that were lost or failed, then the slowest to become warm."""
    ranked = sorted(glideins, key=lambda each: (each.end not in ("lost", "failed"), -(each.warm or 0.0)))
    chosen = {each.id for each in ranked[:most]}
    return [each for each in glideins if each.id in chosen]


def page(told: dict[str, Any], shown: list[tuple[Picture, Markup]]) -> str:
    """The report as HTML; what users and nodes have written is escaped."""
    environment = Environment(
        loader=PackageLoader("glide.report.sweep"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("sweep.html").render(told=told, pictures=shown)
