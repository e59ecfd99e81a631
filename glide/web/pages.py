"""The pages, as HTML and as JSON, from a view. What users wrote is escaped by the templates."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from glide.factory.activity import activity
from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.report.reasons import phase
from glide.report.times import duration
from glide.vocabulary import JobStatus, State
from glide.web.chart import Chart
from glide.web.history import HOURS
from glide.web.sight import View

_templates = Environment(
    loader=PackageLoader("glide.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_templates.filters["duration"] = lambda seconds: "–" if seconds is None else duration(seconds)
_templates.filters["counts"] = lambda counts: ", ".join(f"{count} {name}" for name, count in counts.items()) or "–"
_templates.filters["number"] = lambda number: f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
_templates.filters["clock"] = lambda at: time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))


def entry_document(view: View, name: str) -> dict[str, Any] | None:
    """An entry and its glideins; None where there is none of that name."""
    known = [(site, entry) for site in view.told["sites"] for entry in site["entries"] if entry["entry"] == name]
    alive, ended = view.snapshot.of(name)
    if not (known or alive or ended):
        return None
    site, entry = known[0] if known else ({"site": ""}, {})
    lanes_of = view.snapshot.lanes_of
    return {
        "site": site["site"],
        "entry": name,
        "told": entry,
        "glideins": [_alive(each, lanes_of.get(each.glide_id, [])) for each in alive],
        "ended": [_ended(each) for each in sorted(ended, key=lambda each: each.age)],
        **seen(view),
    }


def run_document(view: View, name: str) -> dict[str, Any] | None:
    """A run: for each model and user that it has jobs of, how far it is; None where there is none of that name."""
    runs = [run for run in runs_of(view) if run["run"] == name]
    for run in runs:
        mine = [lane for lane in view.snapshot.lanes if lane.template == run["template"]]
        run["lanes"] = dict(Counter(map(phase, mine)))
        run["claimed"] = sum(lane.claimed for lane in mine)
        run["glideins"] = sorted({(lane.glide_id, lane.entry) for lane in mine})
    return {"run": name, "jobs": runs, **seen(view)} if runs else None


def runs_of(view: View) -> list[dict[str, Any]]:
    """The queue of the status, with the most records that each run was seen to have left."""
    return [
        {**each, "records_most": view.most.get((each["run"], each["user"], each["template"]), each["records_left"])}
        for each in view.told["queue"]
    ]


def overview(view: View, charts: Callable[[str, Collection[str]], list[Chart]], hours: int) -> str:
    """The page of everything.

    Args:
        charts: those of a site with these entries.
    """
    return page(
        "overview.html", view, runs=runs_of(view), models=_models(view.snapshot), sums=_sums(view),
        all_hours=HOURS, hours=hours,
        charts={site["site"]: charts(site["site"], [each["entry"] for each in site["entries"]])
                for site in view.told["sites"]},
    )  # fmt: skip


def page(template: str, view: View, **context: Any) -> str:
    """A page of a view: `page` is the document it shows, where it has one, and `what` is what is missing."""
    return _templates.get_template(template).render(view=view, told=view.told, **seen(view), **context)


def seen(view: View) -> dict[str, Any]:
    """How far what is shown can be relied on."""
    return {"age_s": round(max(0.0, time.time() - view.at), 1) if view.at else None, "trouble": view.trouble}


def _sums(view: View) -> dict[str, Any]:
    snapshot = view.snapshot
    warm = [lane for lane in snapshot.lanes if lane.state == State.WARM]
    return {
        "glideins": Counter(JobStatus.NAMES[each.status] for each in snapshot.glideins),
        "warm": len(warm),
        "busy": sum(lane.claimed for lane in warm),
        "idle_jobs": sum(each.idle for each in snapshot.demands),
        "running_jobs": sum(each.running for each in snapshot.demands),
        "records": sum(each.records for each in snapshot.demands),
    }


def _models(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Lanes by model and how far they are."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    for lane in snapshot.lanes:
        key = lane.model or ("no model" if not lane.template else lane.template[:12]), phase(lane)
        groups.setdefault(key, Counter()).update(lanes=1, busy=lane.claimed)
    return [{"model": model, "state": state, **counts} for (model, state), counts in sorted(groups.items())]


def _alive(glidein: Glidein, lanes: Collection[Lane]) -> dict[str, Any]:
    running = glidein.status == JobStatus.RUNNING
    return {
        **_told(glidein),
        "state": JobStatus.NAMES[glidein.status],
        "does": activity(glidein, lanes) if running else "",
        "models": sorted({lane.model for lane in lanes if lane.model}),
        "lanes": dict(Counter(map(phase, lanes))),
        "busy": sum(lane.claimed for lane in lanes),
        "why": glidein.hold_reason or glidein.failure or next((lane.failure for lane in lanes if lane.failure), ""),
    }


def _ended(glidein: Glidein) -> dict[str, Any]:
    return {**_told(glidein), "state": glidein.state or "never warm", "why": glidein.failure}


def _told(glidein: Glidein) -> dict[str, Any]:
    return {
        "glidein": glidein.glide_id, "job": glidein.job, "host": glidein.host, "age_s": round(glidein.age, 1),
        "evictions": max(0, glidein.started - 1), "warm_s": round(glidein.warm_seconds, 1),
        "served": glidein.served, "errors": glidein.errors,
    }  # fmt: skip
