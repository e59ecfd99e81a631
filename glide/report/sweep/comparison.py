"""Write the report of a sweep with several models: a page that compares the models, and the report of each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glide.report.sweep import captions, page
from glide.report.sweep.page import PageFigure
from glide.report.sweep.report import SweepReport
from glide.sweep.combined import by_cell


def write(reports: Mapping[str, SweepReport], folder: Path) -> dict[str, Any]:
    """Write the report of a sweep, and return it as a JSON document.

    Args:
        reports: the report of each model, by name. The name is empty if the sweep file has `model`. Then the page shows
            only this report.
        folder: the output folder. A missing folder is created.
    """
    if "" in reports:
        return page.write(reports[""], folder)
    numbers = document(reports, {model: page.write(each, folder / model) for model, each in reports.items()})
    page.write_page("models.html", numbers, list(_figures(numbers)), folder)
    return numbers


def document(reports: Mapping[str, SweepReport], models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the comparison of the models as one JSON document.

    Args:
        reports: the report of each model, by name.
        models: the JSON document of each model's report, by name.
    """
    return {
        "name": next(iter(models.values()))["name"],
        "finished": all(each["finished"] for each in models.values()),
        "notes": [f"{model}: {note}" for model, each in models.items() for note in each["notes"]],
        "models": {model: _model(reports[model], each) for model, each in models.items()},
        "accuracy": by_cell({model: each["accuracy"] for model, each in models.items()}),
    }  # fmt: skip


def _model(report: SweepReport, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one model for the comparison.

    The value `engine_rate` is in records per second of engine time.
    """
    counts, prompts = numbers["counts"], report.scores.prompts.values()
    engine_seconds = sum(report.scores.engine.values())
    right = [prompt.right for prompt in prompts if prompt.right is not None]
    return {
        "model": numbers["model"], "engine": numbers["engine"], "seconds": numbers["seconds"],
        "records_per_second": counts["records_per_second"],
        "records": counts["records"], "done": counts["done"], "errors": counts["errors"], "tokens": counts["tokens"],
        "accuracy": sum(right) / counts["done"] if right and counts["done"] else None,
        "engine_rate": round(counts["done"] / engine_seconds, 3) if engine_seconds else None,
    }  # fmt: skip


def _figures(numbers: Mapping[str, Any]) -> Iterator[PageFigure]:
    from glide.report.sweep import figures

    rates = {model: each["engine_rate"] for model, each in numbers["models"].items() if each["engine_rate"]}
    if rates:
        yield PageFigure("speed", "Speed by model", captions.speed(rates), lambda: figures.speed(rates))
    known = {name: score for name, score in numbers["accuracy"].items() if score["accuracy"] is not None}
    if known:
        yield PageFigure("accuracy", "Accuracy by model and prompt", captions.accuracy({"accuracy": known}),
                      lambda: figures.accuracy(known))  # fmt: skip
