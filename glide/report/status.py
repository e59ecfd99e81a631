"""The pool at a glance, from the factory's own snapshot: glideins, lanes, queue, and why what waits is waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from glide.condor import AccessPoint, Collector
from glide.config import SiteFile, load
from glide.errors import InputError
from glide.factory.apply import Hands
from glide.factory.daemon import drained, folder, is_running, known_sites
from glide.factory.journal import Journal
from glide.factory.look import take
from glide.factory.snapshot import Demand, Lane, Snapshot
from glide.report import factory
from glide.report.reasons import View, phase, why_idle
from glide.report.times import duration
from glide.vocabulary import JobStatus


def look(sites: Sequence[SiteFile] | None = None) -> tuple[Snapshot, list[View]]:
    """What is to be seen now, with the eyes of these sites' factories, or all that have run from this GLIDE_HOME."""
    unread: tuple[str, ...] = ()
    if sites is None:
        sites, unread = _sites()
    outer = [each for site in sites for each in Hands(site, folder(site)).outer]
    views = list(map(view, sites))
    # Who runs no factory looks at somebody else's.
    snapshot = take(AccessPoint, Collector(), outer, whose="ours" if views or unread else "all")
    return replace(snapshot, unread=unread), views


def view(site: SiteFile) -> View:
    """A site as its factory's folder has it."""
    refused = Journal(folder(site)).latest().get("refused", [])
    return View(site, frozenset(drained(site)), is_running(site), tuple(map(str, refused)))


def _sites() -> tuple[list[SiteFile], tuple[str, ...]]:
    """The sites known here, and what is wrong with files that cannot be read now: an admin may be about to edit one."""
    sites: list[SiteFile] = []
    problems: list[str] = []
    for path in known_sites():
        try:
            sites.append(load(path, SiteFile))
        except InputError as error:
            problems += error.problems
    return sites, tuple(problems)


def document(snapshot: Snapshot, views: Sequence[View] = ()) -> dict[str, Any]:
    """The status as one JSON document.

    Args:
        views: of the sites whose factories have run here.
    """
    entries = sorted({glidein.entry for glidein in snapshot.glideins} | {lane.entry for lane in snapshot.lanes})
    return {
        "entries": {
            entry: dict(Counter(JobStatus.NAMES[g.status] for g in snapshot.glideins if g.entry == entry))
            for entry in entries
        },
        "lanes": [
            {"model": model, "template": template, "state": state, "phase": shown, "claimed": claimed, "count": count}
            for (model, template, state, shown, claimed), count in sorted(Counter(map(_kind, snapshot.lanes)).items())
        ],
        "records_per_second": round(records_per_second(snapshot.lanes), 3),
        "queue": [
            {"run": demand.run, "model": demand.model, "template": demand.template, "user": demand.user,
             "idle": demand.idle, "running": demand.running, "records_left": demand.records,
             **_pace(demand, snapshot), "why_idle": why_idle(demand, snapshot, views)}
            for demand in snapshot.demands
        ],
        "failures": sorted({f"{lane.glide_id}: {lane.failure}" for lane in snapshot.lanes if lane.failure}),
        "held": sorted({glidein.hold_reason for glidein in snapshot.glideins if glidein.hold_reason}),
        "unseen": [*snapshot.failed, *snapshot.unread],
        "sites": [factory.document(view.site, snapshot) for view in views],
    }  # fmt: skip


def tables(told: dict[str, Any]) -> list[Table | str]:
    """A document for a terminal; of entries of sites that are known here, `glide.report.factory` says more."""
    glideins = Table("entry", "glideins", title="Glideins", title_justify="left")
    known = {entry["entry"] for site in told["sites"] for entry in site["entries"]}
    for entry, states in told["entries"].items():
        if entry in known:
            continue
        glideins.add_row(entry, ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "-")
    lanes = Table("model", "state", "lanes", "busy", title="Lanes", title_justify="left")
    groups: dict[tuple[str, str], Counter[str]] = {}
    for lane in told["lanes"]:
        group = groups.setdefault((lane["model"] or "-", lane["phase"]), Counter())
        group.update(lanes=lane["count"], busy=lane["count"] * lane["claimed"])
    for (model, state), counts in sorted(groups.items()):
        lanes.add_row(model, state, str(counts["lanes"]), str(counts["busy"]))
    queue = Table("run", "model", "idle", "running", "records left", "records/s", "ready in",
                  title="Queue", title_justify="left")  # fmt: skip
    reasons = []
    for demand in told["queue"]:
        numbers = (str(demand[name]) for name in ("idle", "running", "records_left", "records_per_second"))
        left = demand["seconds_left"]
        queue.add_row(demand["run"], demand["model"], *numbers, "-" if left is None else duration(left))
        if demand["why_idle"]:
            reasons.append(f"{demand['run']}: {demand['idle']} jobs wait: {demand['why_idle']}")
    shown: list[Table | str] = [table for table in (glideins, lanes, queue) if table.row_count]
    shown += reasons
    for title in ("failures", "held", "unseen"):
        shown += [f"{title}: {line}" for line in told[title]]
    return [*shown, f"{told['records_per_second']} records/s"] if shown else ["no glideins, no jobs"]


def _kind(lane: Lane) -> tuple[str, str, str, str, bool]:
    return lane.model, lane.template, lane.state, phase(lane), lane.claimed


def _pace(demand: Demand, snapshot: Snapshot) -> dict[str, Any]:
    """A run's share of the pace of the lanes that have its model, and the seconds that what is left takes so."""
    running = sum(each.running for each in snapshot.demands if each.template == demand.template)
    mine = [lane for lane in snapshot.lanes if lane.template == demand.template]
    pace = records_per_second(mine) * demand.running / running if running else 0.0
    return {"records_per_second": round(pace, 3), "seconds_left": round(demand.records / pace, 1) if pace else None}


def records_per_second(lanes: Iterable[Lane]) -> float:
    """The engines' pace, of those that have a job now."""
    paces = {lane.glide_id: lane.record_seconds for lane in lanes if lane.claimed and lane.record_seconds}
    return sum(1 / pace for pace in paces.values())
