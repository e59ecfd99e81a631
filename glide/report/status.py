"""The pool at a glance, from the factory's own snapshot: glideins, lanes, queue, and why what waits is waiting."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.table import Table

from glide.factory.snapshot import Demand, Lane, Snapshot
from glide.vocabulary import JobStatus, State


def document(snapshot: Snapshot) -> dict[str, Any]:
    """The status as one JSON document."""
    entries = sorted({glidein.entry for glidein in snapshot.glideins} | {lane.entry for lane in snapshot.lanes})
    return {
        "entries": {
            entry: dict(Counter(JobStatus.NAMES[g.status] for g in snapshot.glideins if g.entry == entry))
            for entry in entries
        },
        "lanes": [
            {"model": model, "template": template, "state": state, "claimed": claimed, "count": count}
            for (model, template, state, claimed), count in sorted(
                Counter((lane.model, lane.template, lane.state, lane.claimed) for lane in snapshot.lanes).items()
            )
        ],
        "records_per_second": round(_records_per_second(snapshot), 3),
        "queue": [
            {"run": demand.run, "model": demand.model, "template": demand.template, "user": demand.user,
             "idle": demand.idle, "running": demand.running, "why_idle": why_idle(demand, snapshot)}
            for demand in snapshot.demands
        ],
        "failures": sorted({f"{lane.glide_id}: {lane.failure}" for lane in snapshot.lanes if lane.failure}),
        "held": sorted({glidein.hold_reason for glidein in snapshot.glideins if glidein.hold_reason}),
        "unseen": list(snapshot.failed),
    }  # fmt: skip


def why_idle(demand: Demand, snapshot: Snapshot) -> str:
    """Why a run's idle jobs do not run, in words; empty when none is idle."""
    if demand.idle == 0:
        return ""
    name = demand.model or demand.template[:12]
    lanes = [lane for lane in snapshot.lanes if lane.template == demand.template]
    warm = [lane for lane in lanes if lane.state == State.WARM]
    if warm:
        busy = sum(lane.claimed for lane in warm)
        return f"{busy} of {len(warm)} warm lanes are busy" if busy else "warm lanes are there; the next match is due"
    if failed := next((lane for lane in lanes if lane.state == State.FAILED), None):
        return f"{name} could not be loaded on {failed.glide_id}: {failed.failure}"
    glideins = [glidein for glidein in snapshot.glideins if glidein.template == demand.template]
    if held := next((glidein for glidein in glideins if glidein.status == JobStatus.HELD), None):
        return f"its glidein {held.cluster}.{held.proc} is held: {held.hold_reason}"
    if glideins:
        states = Counter(JobStatus.NAMES[glidein.status] for glidein in glideins)
        phases = Counter(_phase(lane) for lane in lanes)
        coming = ", ".join(f"{count} {name}" for name, count in (states + phases).items())
        return f"no lane is warm yet; its glideins: {coming}"
    if not demand.spec:
        return (
            f"nobody serves {name}: no glidein holds it, and the job does not describe it (GlideTemplateSpec),"
            " so no factory can start one"
        )
    return (
        f"no glidein for {name}: is a factory running here (glide factory run), and what does glide factory plan say?"
    )


def _phase(lane: Lane) -> str:
    return lane.state if lane.fetched is None else f"{lane.state} ({lane.fetched:.0%})"


def tables(snapshot: Snapshot) -> list[Table | str]:
    """The status for a terminal."""
    told = document(snapshot)
    glideins = Table("entry", "glideins", title="Glideins", title_justify="left")
    for entry, states in told["entries"].items():
        glideins.add_row(entry, ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "-")
    lanes = Table("model", "state", "lanes", "busy", title="Lanes", title_justify="left")
    for model, state in sorted({(lane.model, _phase(lane)) for lane in snapshot.lanes}):
        those = [lane for lane in snapshot.lanes if (lane.model, _phase(lane)) == (model, state)]
        lanes.add_row(model or "-", state, str(len(those)), str(sum(lane.claimed for lane in those)))
    queue = Table("run", "model", "idle", "running", "why idle", title="Queue", title_justify="left")
    for demand in told["queue"]:
        queue.add_row(demand["run"], demand["model"], str(demand["idle"]), str(demand["running"]), demand["why_idle"])
    shown: list[Table | str] = [table for table in (glideins, lanes, queue) if table.row_count]
    for title in ("failures", "held", "unseen"):
        shown += [f"{title}: {line}" for line in told[title]]
    return [*shown, f"{told['records_per_second']} records/s"] if shown else ["no glideins, no jobs"]


def _records_per_second(snapshot: Snapshot) -> float:
    """The engines' pace, of those that have a job now."""
    paces = {lane.glide_id: lane.record_seconds for lane in snapshot.lanes if lane.claimed and lane.record_seconds}
    return sum(1 / pace for pace in paces.values())
