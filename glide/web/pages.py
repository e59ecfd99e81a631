"""Make the pages as HTML and as JSON documents. In HTML, all texts that users have written are escaped."""

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
from glide.web.snapshot_cache import PoolView

_templates = Environment(
    loader=PackageLoader("glide.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_templates.filters["duration"] = lambda seconds: "–" if seconds is None else duration(seconds)
_templates.filters["counts"] = lambda counts: ", ".join(f"{count} {name}" for name, count in counts.items()) or "–"
_templates.filters["number"] = lambda number: f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
_templates.filters["clock"] = lambda at: time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))


def entry_document(view: PoolView, name: str) -> dict[str, Any] | None:
    """Return the JSON document of an entry and its glideins; None if no entry has this name."""
    known = [(site, entry) for site in view.status["sites"] for entry in site["entries"] if entry["entry"] == name]
    alive, ended = view.snapshot.glideins_of(name)
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
        **freshness(view),
    }


def run_document(view: PoolView, name: str) -> dict[str, Any] | None:
    """Return the JSON document of a run: its progress for each model and user; None if no run has this name."""
    runs = [run for run in runs_of(view) if run["run"] == name]
    for run in runs:
        mine = [lane for lane in view.snapshot.lanes if lane.template == run["template"]]
        run["lanes"] = dict(Counter(map(phase, mine)))
        run["claimed"] = sum(lane.claimed for lane in mine)
        run["glideins"] = sorted({(lane.glide_id, lane.entry) for lane in mine})
    return {"run": name, "jobs": runs, **freshness(view)} if runs else None


def runs_of(view: PoolView) -> list[dict[str, Any]]:
    """Return the runs in the status document's `queue`, each with the additional key `records_most`.

    `records_most` is the largest number of remaining records that any snapshot shows for the run.
    """

    def most(run: dict[str, Any]) -> int:
        return view.most_records.get((run["run"], run["user"], run["template"]), run["records_left"])

    return [{**each, "records_most": most(each)} for each in view.status["queue"]]


def overview(view: PoolView, charts: Callable[[str, Collection[str]], list[Chart]], hours: int) -> str:
    """Return the overview page.

    Args:
        charts: a function that returns the charts of a site. Its arguments are the name of the site and the names of
            the site's entries.
        hours: time range of the charts, in hours.
    """
    return page(
        "overview.html", view, runs=runs_of(view), models=_models(view.snapshot), sums=_sums(view),
        all_hours=HOURS, hours=hours,
        charts={site["site"]: charts(site["site"], [each["entry"] for each in site["entries"]])
                for site in view.status["sites"]},
    )  # fmt: skip


def page(template: str, view: PoolView, **context: Any) -> str:
    """Return a page as HTML.

    Args:
        template: HTML template's file name.
        context: further variables of the template. Some templates need `page` (the document to show) or `what` (the
            name of the thing that was not found).
    """
    return _templates.get_template(template).render(view=view, status=view.status, **freshness(view), **context)


def freshness(view: PoolView) -> dict[str, Any]:
    """Return the age of the view in seconds, and why it is not newer. The age is None if the pool never answered."""
    return {"age_s": round(max(0.0, time.time() - view.at), 1) if view.at else None, "trouble": view.trouble}


def _sums(view: PoolView) -> dict[str, Any]:
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
    """Count all lanes and the busy lanes, separately for each model and state."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    for lane in snapshot.lanes:
        key = lane.model or ("no model" if not lane.template else lane.template[:12]), phase(lane)
        groups.setdefault(key, Counter()).update(lanes=1, busy=lane.claimed)
    return [{"model": model, "state": state, **counts} for (model, state), counts in sorted(groups.items())]


def _alive(glidein: Glidein, lanes: Collection[Lane]) -> dict[str, Any]:
    running = glidein.status == JobStatus.RUNNING
    return {
        **_common(glidein),
        "state": JobStatus.NAMES[glidein.status],
        "does": activity(glidein, lanes) if running else "",
        "models": sorted({lane.model for lane in lanes if lane.model}),
        "lanes": dict(Counter(map(phase, lanes))),
        "busy": sum(lane.claimed for lane in lanes),
        "why": glidein.hold_reason or glidein.failure or next((lane.failure for lane in lanes if lane.failure), ""),
    }


def _ended(glidein: Glidein) -> dict[str, Any]:
    return {**_common(glidein), "state": glidein.state or "never warm", "why": glidein.failure}


def _common(glidein: Glidein) -> dict[str, Any]:
    return {
        "glidein": glidein.glide_id, "job": glidein.job, "host": glidein.host, "age_s": round(glidein.age, 1),
        "evictions": max(0, glidein.starts - 1), "warm_s": round(glidein.warm_seconds, 1),
        "served": glidein.served, "errors": glidein.errors,
    }  # fmt: skip
