"""The factory's policy: a pure function from what it sees to what it would do, with a reason for each.

Needs neither clock nor HTCondor; `glide factory plan` prints its result and `apply` carries it out.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from glide.config import Entry, SiteFile
from glide.factory.snapshot import Glidein, Snapshot
from glide.vocabulary import JobStatus, State

GHOST_SECONDS = 20.0  # an outer job that started so recently may have ads of a life we have not seen yet
FULL = "every entry is at its limit"
_RUNNING = (JobStatus.RUNNING, JobStatus.TRANSFERRING)


@dataclass(frozen=True)
class Action:
    """What to do: submit `count` glideins, remove or expunge those in `ids`, or wait, which is to do nothing."""

    action: str
    entry: str
    template: str
    count: int
    reason: str
    ids: tuple[str, ...] = ()

    def public(self) -> dict[str, Any]:
        """The fields that `glide factory plan --json` prints."""
        return {name: value for name, value in asdict(self).items() if name != "ids"}


def plan(snapshot: Snapshot, site: SiteFile) -> list[Action]:
    """What the factory does about what it sees; nothing at all when it does not see everything."""
    if snapshot.failed:
        return [Action("wait", entry.name, "", 0, f"no view: {snapshot.failed[0]}") for entry in site.entries]
    actions: list[Action] = _expunge(snapshot, site)
    rooms = {entry.name: min(_room(entry, snapshot), entry.submits_per_cycle) for entry in site.entries}
    unmet = 0
    for template in dict.fromkeys(demand.template for demand in snapshot.demands):
        missing = _missing(template, snapshot)
        if missing > 0:
            supplied = _supply(template, missing, snapshot, site, rooms)
            actions += supplied
            unmet += sum(action.count for action in supplied if action.reason.startswith(FULL))
    for entry in site.entries:
        retired = _retire(entry, snapshot, unmet)
        unmet -= len(retired)
        actions += retired
    return actions


def drain(snapshot: Snapshot, site: SiteFile, reason: str) -> list[Action]:
    """Take down every glidein of the site."""
    actions = []
    for entry in site.entries:
        ids = tuple(f"{glidein.cluster}.{glidein.proc}" for glidein in snapshot.glideins if glidein.entry == entry.name)
        if ids:
            actions.append(Action("drain", entry.name, "", len(ids), reason, ids))
    return actions


def _missing(template: str, snapshot: Snapshot) -> int:
    """How many more glideins the template's runs want. A run cannot use more of them than it has jobs."""
    wanted = sum(min(demand.wanted, demand.jobs) for demand in snapshot.demands if demand.template == template)
    return wanted - sum(glidein.template == template for glidein in snapshot.glideins)


def _supply(template: str, missing: int, snapshot: Snapshot, site: SiteFile, rooms: dict[str, int]) -> list[Action]:
    """Submit what is missing, entry by entry in the file's order, or say why not."""
    first = site.entries[0].name
    lanes = [lane for lane in snapshot.lanes if lane.template == template and lane.state == State.FAILED]
    if lanes:
        why = f"{lanes[0].glide_id} could not load it: {lanes[0].failure}"
        return [Action("wait", lanes[0].entry, template, missing, why)]
    demands = [demand for demand in snapshot.demands if demand.template == template]
    if not any(demand.spec for demand in demands):
        why = "jobs ask for it without describing it (GlideTemplateSpec), and no glidein holds it"
        return [Action("wait", first, template, missing, why)]
    actions = []
    jobs = sum(demand.jobs for demand in demands)
    reason = f"{jobs} jobs of {demands[0].model} want {missing} more glideins"
    for entry in site.entries:
        count = min(missing, rooms[entry.name])
        if count > 0:
            actions.append(Action("submit", entry.name, template, count, reason))
            rooms[entry.name] -= count
            missing -= count
    if missing > 0 and not actions:
        limits = ", ".join(f"{entry.name}: {entry.max_glideins} glideins" for entry in site.entries)
        actions.append(Action("wait", first, template, missing, f"{FULL} ({limits})"))
    return actions


def _room(entry: Entry, snapshot: Snapshot) -> int:
    return entry.max_glideins - sum(glidein.entry == entry.name for glidein in snapshot.glideins)


def _retire(entry: Entry, snapshot: Snapshot, unmet: int) -> list[Action]:
    """Remove what is of no use: held glideins, queued ones nobody wants, and `unmet` idle ones in others' way.

    A warm glidein that is merely idle stays: it ends itself after the entry's idle_seconds.
    """
    wanted = {demand.template for demand in snapshot.demands}
    claimed = {lane.glide_id for lane in snapshot.lanes if lane.claimed}
    actions = []
    for glidein in (glidein for glidein in snapshot.glideins if glidein.entry == entry.name):
        if glidein.status == JobStatus.HELD:
            actions.append(_remove(glidein, f"held: {glidein.hold_reason}"))
        elif glidein.template in wanted:
            continue
        elif glidein.status == JobStatus.IDLE:
            actions.append(_remove(glidein, "still queued, and no job wants its template any more"))
        elif glidein.glide_id not in claimed and len(actions) < unmet:
            actions.append(_remove(glidein, "idle, and in the way of a template that jobs wait for"))
    return actions


def _remove(glidein: Glidein, reason: str) -> Action:
    return Action("remove", glidein.entry, glidein.template, 1, reason, (f"{glidein.cluster}.{glidein.proc}",))


def _expunge(snapshot: Snapshot, site: SiteFile) -> list[Action]:
    """Ads of a glidein whose outer job does not run any more still match jobs, which then wait for a ghost."""
    entries = {entry.name for entry in site.entries}
    alive = {glidein.glide_id for glidein in snapshot.glideins if glidein.status in _RUNNING}
    # Between a start and the queue's knowing of it the numbers differ; such a glidein gets the doubt's benefit.
    starting = [g for g in snapshot.glideins if g.status in _RUNNING and g.age < GHOST_SECONDS]
    young = {f"{glidein.entry}-{glidein.cluster}.{glidein.proc}" for glidein in starting}
    ghosts = sorted({lane.glide_id for lane in snapshot.lanes if lane.entry in entries} - alive)
    ghosts = [ghost for ghost in ghosts if re.sub(r"r\d+$", "", ghost) not in young]
    return [
        Action("expunge", _entry_of(ghost, snapshot), "", 1, f"{ghost} has no running job any more", (ghost,))
        for ghost in ghosts
    ]


def _entry_of(glide_id: str, snapshot: Snapshot) -> str:
    return next(lane.entry for lane in snapshot.lanes if lane.glide_id == glide_id)
