"""The status of the pool, computed from a snapshot: glideins, lanes, the queue, and why jobs wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from glide.condor import AccessPoint, Collector
from glide.config import SiteFile, load
from glide.errors import InputError
from glide.factory.home import drained, is_running, known_sites, site_folder
from glide.factory.journal import Journal
from glide.factory.observe import observe
from glide.factory.site_client import SiteClient
from glide.factory.snapshot import Demand, Lane, Snapshot
from glide.live.status import ModelStatus, read_status
from glide.report import factory
from glide.report.reasons import QueueView, phase, why_idle
from glide.report.times import duration
from glide.vocabulary import JobStatus


def observe_pool(sites: Sequence[SiteFile] | None = None) -> tuple[Snapshot, list[QueueView]]:
    """Take a snapshot of the pool, as a factory does. Return the snapshot and the state of each site's factory.

    Args:
        sites: the sites to observe; None for all sites whose factories have run with this GLIDE_HOME.
    """
    problems: tuple[str, ...] = ()
    if sites is None:
        sites, problems = _sites()
    outer = [each for site in sites for each in SiteClient(site, site_folder(site)).outer_queues]
    views = list(map(queue_view, sites))
    # If no factory has run with this GLIDE_HOME, show the glideins of all accounts.
    snapshot = observe(AccessPoint, Collector(), outer, accounts="own" if views or problems else "all")
    return replace(snapshot, config_errors=problems), views


def queue_view(site: SiteFile) -> QueueView:
    """Read the state of a site's factory from the factory's folder."""
    refused = Journal(site_folder(site)).latest().get("refused", [])
    return QueueView(site, frozenset(drained(site)), is_running(site), tuple(map(str, refused)))


def _sites() -> tuple[list[SiteFile], tuple[str, ...]]:
    """Return the sites whose factories have run with this GLIDE_HOME, and the mistakes in their files.

    If the file of a site has mistakes, this site is left out. The status of the other sites is still shown.
    """
    sites: list[SiteFile] = []
    problems: list[str] = []
    for path in known_sites():
        try:
            sites.append(load(path, SiteFile))
        except InputError as error:
            problems += error.problems
    return sites, tuple(problems)


def document(snapshot: Snapshot, views: Sequence[QueueView] = ()) -> dict[str, Any]:
    """Return the status of the pool as one JSON document.

    Args:
        views: the sites whose factories have run with this GLIDE_HOME.
    """
    entries = sorted({glidein.entry for glidein in snapshot.glideins} | {lane.entry for lane in snapshot.lanes})
    return {
        "entries": {
            entry: dict(Counter(JobStatus.NAMES[g.status] for g in snapshot.glideins if g.entry == entry))
            for entry in entries
        },
        "lanes": [
            {"model": model, "template": template, "state": state, "phase": shown, "claimed": claimed, "count": count}
            for (model, template, state, shown, claimed), count in sorted(Counter(map(_group, snapshot.lanes)).items())
        ],
        "records_per_second": round(records_per_second(snapshot.lanes), 3),
        "queue": [
            {"run": demand.run, "model": demand.model, "template": demand.template, "user": demand.user,
             "standing": demand.standing, "idle": demand.idle, "running": demand.running,
             "records_left": demand.records,
             **_throughput(demand, snapshot), "why_idle": why_idle(demand, snapshot, views)}
            for demand in snapshot.demands
        ],
        "failures": sorted({f"{lane.glide_id}: {lane.failure}" for lane in snapshot.lanes if lane.failure}),
        "held": sorted({glidein.hold_reason for glidein in snapshot.glideins if glidein.hold_reason}),
        "unseen": [*snapshot.unavailable_sources, *snapshot.config_errors],
        "serve": [asdict(model) for model in read_status()],
        "sites": [factory.document(view.site, snapshot) for view in views],
    }  # fmt: skip


def tables(status: dict[str, Any]) -> list[Table | str]:
    """Return tables and lines of text that show a status document on a terminal.

    Entries in `status["sites"]` are left out, because `glide.report.factory.tables` shows these entries.
    """
    glideins = Table("entry", "glideins", title="Glideins", title_justify="left")
    known = {entry["entry"] for site in status["sites"] for entry in site["entries"]}
    for entry, states in status["entries"].items():
        if entry in known:
            continue
        glideins.add_row(entry, ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "-")
    lanes = Table("model", "state", "lanes", "busy", title="Lanes", title_justify="left")
    groups: dict[tuple[str, str], Counter[str]] = {}
    for lane in status["lanes"]:
        group = groups.setdefault((lane["model"] or "-", lane["phase"]), Counter())
        group.update(lanes=lane["count"], busy=lane["count"] * lane["claimed"])
    for (model, state), counts in sorted(groups.items()):
        lanes.add_row(model, state, str(counts["lanes"]), str(counts["busy"]))
    queue = Table("run", "model", "idle", "running", "records left", "records/s", "ETA",
                  title="Queue", title_justify="left")  # fmt: skip
    reasons = []
    for demand in status["queue"]:
        numbers = [str(demand[name]) for name in ("idle", "running", "records_left", "records_per_second")]
        numbers[2] = "live calls" if demand["standing"] else numbers[2]
        left = demand["seconds_left"]
        queue.add_row(demand["run"], demand["model"], *numbers, "-" if left is None else duration(left))
        if demand["why_idle"]:
            reasons.append(f"{demand['run']}: {demand['idle']} jobs wait: {demand['why_idle']}")
    shown: list[Table | str] = [table for table in (glideins, lanes, queue) if table.row_count]
    shown += reasons
    shown += [ModelStatus(**model).text for model in status["serve"]]
    for key, title in (("failures", "failure"), ("held", "held"), ("unseen", "cannot be read")):
        shown += [f"{title}: {line}" for line in status[key]]
    return [*shown, f"{status['records_per_second']} records/s"] if shown else ["no glideins, no jobs"]


def _group(lane: Lane) -> tuple[str, str, str, str, bool]:
    return lane.model, lane.template, lane.state, phase(lane), lane.claimed


def _throughput(demand: Demand, snapshot: Snapshot) -> dict[str, Any]:
    """Return a run's throughput in records per second, and the seconds until the run ends at this throughput.

    Several runs may want the same template. Then the throughput of the template's lanes is divided between these runs,
    in proportion to their numbers of running jobs.
    """
    running = sum(each.running for each in snapshot.demands if each.template == demand.template)
    mine = [lane for lane in snapshot.lanes if lane.template == demand.template]
    share = records_per_second(mine) * demand.running / running if running else 0.0
    return {"records_per_second": round(share, 3), "seconds_left": round(demand.records / share, 1) if share else None}


def records_per_second(lanes: Iterable[Lane]) -> float:
    """Return the total throughput of all engines that have a running job, in records per second.

    The lanes of a glidein share one engine, so each glidein counts once.
    """
    seconds = {lane.glide_id: lane.record_seconds for lane in lanes if lane.claimed and lane.record_seconds}
    return sum(1 / each for each in seconds.values())
