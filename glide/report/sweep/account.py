"""A sweep's account: everything that its report says in numbers, worked out once, from what lies in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from glide.invoke.carriers import read_lines
from glide.report.sweep import history as histories
from glide.report.sweep import timeline
from glide.report.sweep.history import History
from glide.report.sweep.scores import Prompt, Scores, quantile, wilson
from glide.report.sweep.timeline import Glidein
from glide.sweep.out import history_file, read_state
from glide.sweep.prepare import Sweep
from glide.sweep.standing import asked_by, check_whose, current, is_right, read_summary

NO_HISTORY = "This folder has no history (.glide/history.jsonl), so that nothing can be shown over time."
CHANGED = "The sweep file, or what it names, has changed since; only results of what it asks now are shown."


@dataclass(frozen=True)
class Account:
    """What there is of a sweep.

    Attributes:
        summary: its summary.json; None as long as it has not finished.
        notes: what whoever reads this must know first.
    """

    sweep: Sweep
    summary: dict[str, Any] | None
    history: History
    scores: Scores
    glideins: list[Glidein]
    notes: Sequence[str]


def look(sweep: Sweep) -> Account:
    """Read what a sweep's folder holds, whether it has finished or not.

    Raises:
        InputError: it holds another sweep's results.
    """
    state = read_state(sweep.out)
    if state is not None:
        check_whose(sweep, state, {prompt: asked_by(sweep, prompt) for prompt in sweep.file.prompts})
    history = histories.read(read_lines(history_file(sweep.out)))
    scores = _scores(sweep)
    notes = []
    done = sum(prompt.done for prompt in scores.prompts.values())
    # An unfinished sweep's summary, if any, is that of what it was before.
    summary = read_summary(sweep) if (state is None or state.finished) and done == sweep.total else None
    if summary is None:
        notes.append(f"This sweep has not finished: {done:,} of {sweep.total:,} records have a result.")
    if not history.runs and (done or summary):
        notes.append(NO_HISTORY)
    if state is not None and state.digest != sweep.digest:
        notes.append(CHANGED)
    return Account(sweep, summary, history, scores, timeline.glideins(history), notes)


def _scores(sweep: Sweep) -> Scores:
    scores = Scores()
    for prompt in sweep.file.prompts:
        scores.prompts[prompt] = Prompt(len(sweep.records), right=0 if sweep.file.expect else None)
        for record, result in current(sweep, prompt):
            scores.add(prompt, result, is_right(result, sweep, record) if sweep.file.expect else None)
    return scores


def document(account: Account) -> dict[str, Any]:
    """The account as one JSON document; seconds are those of the sweep, in which none pass while no driver runs."""
    history, scores = account.history, account.scores
    runs, tasks = history.runs, timeline.task_seconds(history)
    levels = timeline.lanes_over_time(history)
    return {
        "name": account.sweep.file.name,
        "model": account.sweep.template.model,
        "engine": account.sweep.file.model.engine,
        "finished": account.summary is not None,
        "notes": list(account.notes),
        "began": _iso(runs[0].began) if runs else None,
        "ended": _iso(runs[-1].ended) if runs else None,
        "seconds": round(_seconds(account), 3),
        "counts": _counts(account),
        "lanes": {which: int(max(count for _, count in series)) for which, series in levels.items()},
        "tasks": {
            "count": len(tasks), "median_records": quantile((each.records for each in history.carriers), 0.5),
            "median_s": quantile(tasks, 0.5), "p95_s": quantile(tasks, 0.95),
            "longest_s": max(tasks, default=0.0), "busy_s": timeline.busy_seconds(history),
            "record_median_s": quantile(scores.seconds, 0.5),
        },
        "spent": {
            "jobs": timeline.spent_by_carriers(history, sum(scores.engine.values())),
            "glideins": timeline.spent_by_glideins(account.glideins, scores.engine),
        },
        "goodput": timeline.goodput(history),
        "glideins": [_glidein(glidein, scores) for glidein in account.glideins],
        "accuracy": {name: _accuracy(prompt) for name, prompt in scores.prompts.items()},
        "errors": [{**asdict(cause), "prompts": dict(cause.prompts)} for cause in scores.errors],
    }  # fmt: skip


def _counts(account: Account) -> dict[str, Any]:
    """What was counted; None is what nobody knows."""
    history, summary, prompts = account.history, account.summary or {}, account.scores.prompts.values()
    done, seconds = sum(prompt.done for prompt in prompts), _seconds(account)
    counted = history.counts[-1][1] if history.counts else summary
    resumed = history.runs[-1].found if history.runs else summary.get("resumed")
    first = history.runs[0].found if history.runs else resumed
    return {
        "records": account.sweep.total, "done": done, "errors": sum(prompt.errors for prompt in prompts),
        "records_per_second": round((done - (first or 0)) / seconds, 3) if seconds else 0.0,
        "tokens": account.scores.tokens,
        "jobs": len(history.carriers) if history.runs else summary.get("jobs"),
        "evictions": sum(each.evictions for each in history.carriers) if history.runs else summary.get("evictions"),
        "recomputed": counted.get("recomputed"), "lost_in_flight": counted.get("lost_in_flight"),
        "resumed": resumed, "runs": len(history.runs) or None,
    }  # fmt: skip


def _seconds(account: Account) -> float:
    return account.history.seconds or (account.summary or {}).get("makespan_s", 0.0)


def _glidein(glidein: Glidein, scores: Scores) -> dict[str, Any]:
    return {
        "id": glidein.id, "device": glidein.device, "lanes": glidein.lanes, "records": scores.by_glidein[glidein.id],
        "engine_s": round(scores.engine.get(glidein.id, 0.0), 3), "from_s": round(glidein.start, 3),
        "to_s": round(glidein.ended, 3), "warm_after_s": None if glidein.warm is None else round(glidein.warm, 3),
        "serving_s": round(glidein.seconds(timeline.SERVING), 3), "end": glidein.end,
    }  # fmt: skip


def _accuracy(prompt: Prompt) -> dict[str, Any]:
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
