"""Combine what is known about the models of a sweep: their progress, their status and their summaries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from glide.config import SUMMARY
from glide.sweep.driver import Progress
from glide.sweep.out import cell_name, holder
from glide.sweep.prepare import Sweep
from glide.sweep.results import Results
from glide.sweep.status import EMPTY_SUMMARY, SweepStatus, read_summary, sweep_status
from glide.system import publish

T = TypeVar("T")


def by_cell(models: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Return a value of each cell of the whole sweep, by the cell's name, such as MODEL/PROMPT/VARIANT.

    Args:
        models: for each model, its values by the names of its cells.
    """
    return {cell_name(model, cell): value for model, each in models.items() for cell, value in each.items()}


def combined_progress(models: Mapping[str, Progress]) -> Progress:
    """Return the progress of a sweep.

    Args:
        models: progress of each model, by name. The name is empty if the sweep file has `model`.
    """
    if "" in models:
        return models[""]
    parts = models.values()
    problems = [f"{model}: {each.problem}" for model, each in models.items() if each.problem]
    waves = [f"{model}: {each.wave}" for model, each in models.items() if each.wave]
    return Progress(
        total=sum(each.total for each in parts), done=sum(each.done for each in parts),
        errors=sum(each.errors for each in parts),
        lanes=dict(sorted(sum((Counter(each.lanes) for each in parts), Counter()).items())),
        running=sum(each.running for each in parts), idle=sum(each.idle for each in parts),
        wave="; ".join(waves), problem="; ".join(problems),
    )  # fmt: skip


def combined_status(sweeps: Sequence[Sweep]) -> SweepStatus:
    """Return the status of a sweep, read from the folders of its models.

    Raises:
        InputError: a folder holds another sweep's results.
    """
    models = {sweep.model: sweep_status(sweep) for sweep in sweeps}
    states = {each.state for each in models.values()}
    driver = holder(sweeps[0].out_of_all)
    if driver:
        state = "running"
    elif len(states) == 1:
        (state,) = states
    else:
        state = "changed" if states <= {"finished", "changed"} else "interrupted"
    return SweepStatus(
        state, driver,
        by_cell({model: each.done for model, each in models.items()}),
        by_cell({model: each.errors for model, each in models.items()}),
    )  # fmt: skip


def combined_summary(
    name: str, models: Mapping[str, Mapping[str, Any]], makespan: float, warm_makespan: float
) -> dict[str, Any]:
    """Return the summary of a sweep with several models. It has the same keys as the summary of one model.

    Args:
        name: name of the sweep.
        models: the summary of each model, by name.
        makespan: seconds that the run took.
        warm_makespan: seconds from the first warm lane to the end of the run.
    """
    parts = models.values()
    counts = {key: sum(each[key] for each in parts) for key, empty in EMPTY_SUMMARY.items() if type(empty) is int}
    rejected_by = sum((Counter(each.get("rejected_by", {})) for each in parts), Counter[str]())
    return {
        "name": name, **EMPTY_SUMMARY, **counts,
        "makespan_s": round(makespan, 3), "warm_makespan_s": round(warm_makespan, 3),
        "rejected": sum(rejected_by.values()), "rejected_by": dict(rejected_by),
        "glideins": [glidein for each in parts for glidein in each["glideins"]],
        "prompts": by_cell({model: each["prompts"] for model, each in models.items()}),
    }  # fmt: skip


def finished_summary(models: Sequence[Results]) -> dict[str, Any]:
    """Return the summary of a finished sweep. If its summary.json is missing or outdated, first write the summary."""
    if not models[0].sweep.model:
        return models[0].finished_summary()
    parts = {each.sweep.model: each.finished_summary() for each in models}
    summary = combined_summary(
        models[0].sweep.file.name, parts, max(each["makespan_s"] for each in parts.values()),
        max(each["warm_makespan_s"] for each in parts.values()),
    )  # fmt: skip
    known = read_summary(models[0].sweep.out_of_all)
    if known is not None and known["prompts"] == summary["prompts"]:
        return known
    write_summary(models[0], summary)
    return summary


def write_summary(results: Results, summary: Mapping[str, Any]) -> None:
    """Write the summary of a sweep with several models to `out`."""
    try:
        publish(results.sweep.out_of_all / SUMMARY, json.dumps(summary) + "\n", 0o666)
    except OSError as error:
        raise results.write_error(error) from None
