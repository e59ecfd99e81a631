"""The data of a sweep's report, computed from the files in the sweep's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from glide.protocol.json_lines import read_lines
from glide.report.sweep import history as histories
from glide.report.sweep import timeline
from glide.report.sweep.history import SweepHistory
from glide.report.sweep.scores import PromptScore, Scores, quantile, wilson
from glide.report.sweep.timeline import GlideinTimeline
from glide.report.sweep.usage import usage
from glide.sweep.out import history_file, read_state
from glide.sweep.prepare import Sweep
from glide.sweep.status import check_same_sweep, current_results, is_correct, read_summary, request_index

NO_HISTORY = "This folder has no history (.glide/history.jsonl), so nothing can be shown over time."
CHANGED = (
    "The sweep file, or a file that it names, has changed since the last run. The report shows only results of the"
    " current requests."
)


@dataclass(frozen=True)
class SweepReport:
    """The data of a sweep's report.

    Attributes:
        summary: the content of the sweep's summary.json; None if the sweep has not finished.
        notes: warnings that a reader of the report must see first.
    """

    sweep: Sweep
    summary: dict[str, Any] | None
    history: SweepHistory
    scores: Scores
    glideins: list[GlideinTimeline]
    notes: Sequence[str]


def load_report(sweep: Sweep) -> SweepReport:
    """Read the history and results of a finished or unfinished sweep.

    Raises:
        InputError: the folder holds the results of another sweep.
    """
    state = read_state(sweep.out)
    if state is not None:
        check_same_sweep(sweep, state, {prompt: request_index(sweep, prompt) for prompt in sweep.cells})
    history = histories.read(read_lines(history_file(sweep.out)))
    scores = _scores(sweep)
    notes = []
    done = sum(prompt.done for prompt in scores.prompts.values())
    # A finished sweep may be extended or changed. Then the folder still has the old summary. Ignore this summary until
    # each record has a result again.
    summary = read_summary(sweep.out) if (state is None or state.finished) and done == sweep.total else None
    if summary is None:
        notes.append(f"This sweep has not finished: {done:,} of {sweep.total:,} records have a result.")
    if not history.runs and (done or summary):
        notes.append(NO_HISTORY)
    if state is not None and state.digest != sweep.digest:
        notes.append(CHANGED)
    return SweepReport(sweep, summary, history, scores, timeline.glideins(history), notes)


def _scores(sweep: Sweep) -> Scores:
    scores = Scores()
    for prompt in sweep.cells:
        scores.prompts[prompt] = PromptScore(len(sweep.records), right=0 if sweep.file.expect else None)
        for number, result in current_results(sweep, prompt):
            right = is_correct(result, sweep, sweep.records[number]) if sweep.file.expect else None
            scores.add(prompt, result, right)
    return scores


def document(report: SweepReport) -> dict[str, Any]:
    """Return the report as one JSON document.

    Times are in seconds since the sweep began, without the time between two runs of the driver.
    """
    history, scores = report.history, report.scores
    runs, tasks = history.runs, timeline.task_seconds(history)
    levels = timeline.lanes_over_time(history)
    return {
        "name": report.sweep.file.name,
        "model": report.sweep.template.model,
        "engine": report.sweep.template.engine,
        "finished": report.summary is not None,
        "notes": list(report.notes),
        "began": _iso(runs[0].began) if runs else None,
        "ended": _iso(runs[-1].ended) if runs else None,
        "seconds": round(_seconds(report), 3),
        "counts": _counts(report),
        "lanes": {which: int(max(count for _, count in series)) for which, series in levels.items()},
        "tasks": {
            "count": len(tasks), "median_records": quantile((each.records for each in history.jobs), 0.5),
            "median_s": quantile(tasks, 0.5), "p95_s": quantile(tasks, 0.95),
            "longest_s": max(tasks, default=0.0), "busy_s": timeline.busy_seconds(history),
            "record_median_s": quantile(scores.seconds, 0.5),
        },
        "spent": {
            "jobs": timeline.spent_by_jobs(history, sum(scores.engine.values())),
            "glideins": timeline.spent_by_glideins(report.glideins, scores.engine),
        },
        "goodput": timeline.goodput(history),
        "usage": usage(history),
        "glideins": [_glidein(glidein, scores) for glidein in report.glideins],
        "accuracy": {name: _accuracy(prompt) for name, prompt in scores.prompts.items()},
        "errors": [{**asdict(cause), "prompts": dict(cause.prompts)} for cause in scores.errors],
    }  # fmt: skip


def _counts(report: SweepReport) -> dict[str, Any]:
    """Return the numbers of records, jobs, evictions and driver runs. An unknown number is None."""
    history, summary, prompts = report.history, report.summary or {}, report.scores.prompts.values()
    done, seconds = sum(prompt.done for prompt in prompts), _seconds(report)
    counted = history.counts[-1][1] if history.counts else summary
    resumed = history.runs[-1].found if history.runs else summary.get("resumed")
    first = history.runs[0].found if history.runs else resumed
    return {
        "records": report.sweep.total, "done": done, "errors": sum(prompt.errors for prompt in prompts),
        "records_per_second": round((done - (first or 0)) / seconds, 3) if seconds else 0.0,
        "tokens": report.scores.tokens,
        "jobs": len(history.jobs) if history.runs else summary.get("jobs"),
        "evictions": sum(each.evictions for each in history.jobs) if history.runs else summary.get("evictions"),
        "recomputed": counted.get("recomputed"), "lost_in_flight": counted.get("lost_in_flight"),
        "resumed": resumed, "runs": len(history.runs) or None,
    }  # fmt: skip


def _seconds(report: SweepReport) -> float:
    return report.history.seconds or (report.summary or {}).get("makespan_s", 0.0)


def _glidein(glidein: GlideinTimeline, scores: Scores) -> dict[str, Any]:
    return {
        "id": glidein.id, "device": glidein.device, "lanes": glidein.lanes, "records": scores.by_glidein[glidein.id],
        "engine_s": round(scores.engine.get(glidein.id, 0.0), 3), "from_s": round(glidein.start, 3),
        "to_s": round(glidein.ended, 3), "warm_after_s": None if glidein.warm is None else round(glidein.warm, 3),
        "serving_s": round(glidein.seconds(timeline.SERVING), 3), "end": glidein.end,
    }  # fmt: skip


def _accuracy(prompt: PromptScore) -> dict[str, Any]:
    low, high = wilson(prompt.right or 0, prompt.done)
    known = prompt.accuracy is not None
    return {
        **asdict(prompt),
        "accuracy": prompt.accuracy,
        "low": low if known else None,
        "high": high if known else None,
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
