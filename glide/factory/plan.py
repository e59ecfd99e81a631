"""The factory's policy: a pure function from what it sees to what it would do, with a reason for each.

Needs neither clock nor HTCondor; `glide factory plan` prints its result and `apply` carries it out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from glide.config import Entry, SiteFile
from glide.factory.health import Verdict, bad_nodes, judge
from glide.factory.snapshot import Glidein, Snapshot
from glide.vocabulary import JobStatus, State

GHOST_SECONDS = 20.0  # an outer job that started so recently may have ads of a life we have not seen yet
_RUNNING = (JobStatus.RUNNING, JobStatus.TRANSFERRING)


@dataclass(frozen=True)
class Action:
    """What to do: submit `count` glideins, remove or expunge those in `ids`, or wait, which is to do nothing.

    `avoid` names nodes that the submitted ones must not run on.
    """

    action: str
    entry: str
    template: str
    count: int
    reason: str
    ids: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()

    def public(self) -> dict[str, Any]:
        """The fields that `glide factory plan --json` prints."""
        return {name: value for name, value in asdict(self).items() if name not in ("ids", "avoid")}


@dataclass
class Room:
    """How many more glideins may be submitted to an entry in this cycle, and what sets the limit."""

    left: int
    limit: str

    def narrow(self, left: int, limit: str) -> None:
        if left < self.left:
            self.left, self.limit = max(0, left), limit


def plan(snapshot: Snapshot, site: SiteFile, drained: Collection[str] = ()) -> list[Action]:
    """What the factory does about what it sees; nothing at all when it does not see everything.

    Args:
        drained: entries that an admin has closed.
    """
    if snapshot.failed:
        return [Action("wait", entry.name, "", 0, f"no view: {snapshot.failed[0]}") for entry in site.entries]
    actions: list[Action] = _expunge(snapshot, site)
    whole = _of_site(site, snapshot)
    # Those that did best come first, else the file's order counts.
    entries = sorted(site.entries, key=lambda entry: -_record(entry, snapshot))
    rooms = [(entry, room(entry, snapshot, drained)) for entry in entries]
    unmet = 0
    for template in dict.fromkeys(demand.template for demand in snapshot.demands):
        missing = _missing(template, snapshot)
        if missing > 0:
            supplied, lacking = _supply(template, missing, snapshot, site, whole, rooms)
            actions += supplied
            unmet += lacking
    for entry in site.entries:
        retired = _retire(entry, snapshot, unmet)
        unmet -= len(retired)
        actions += retired[: entry.removals_per_cycle]
    return actions


def drain(snapshot: Snapshot, site: SiteFile, reason: str, entries: Collection[str] | None = None) -> list[Action]:
    """Take down every glidein of the site, or of these entries of it."""
    actions = []
    for entry in site.entries:
        ids = tuple(glidein.job for glidein in snapshot.glideins if glidein.entry == entry.name)
        if ids and (entries is None or entry.name in entries):
            actions.append(Action("drain", entry.name, "", len(ids), reason, ids))
    return actions


def room(entry: Entry, snapshot: Snapshot, drained: Collection[str] = ()) -> Room:
    """The entry's room in this cycle: no limit of its file is ever exceeded, whatever state its glideins are in."""
    mine, _ = snapshot.of(entry.name)
    idle = sum(glidein.status == JobStatus.IDLE for glidein in mine)
    found = Room(max(0, entry.max_glideins - len(mine)), f"its limit of {entry.max_glideins} glideins")
    found.narrow(entry.max_idle - idle, f"its limit of {entry.max_idle} idle glideins")
    found.narrow(entry.submits_per_cycle, f"its limit of {entry.submits_per_cycle} submissions a cycle")
    for downtime in entry.downtimes:
        if downtime.contains(snapshot.now):
            found.narrow(0, f"down until {downtime.end:%Y-%m-%d %H:%M}: {downtime.reason}")
    if entry.name in drained:
        found.narrow(0, "closed by `glide factory drain`; `glide factory drain --undo` opens it")
    verdict = _of_entry(entry, snapshot)
    if verdict.room is not None:
        found.narrow(verdict.room, verdict.reason)
    return found


def _of_entry(entry: Entry, snapshot: Snapshot) -> Verdict:
    """By those that were warm or said nothing at all: what a server says that failed, it says of its template."""
    alive, ended = ([each for each in kind if each.state != State.FAILED] for kind in snapshot.of(entry.name))
    return judge(alive, ended, entry.breaker)


def _of_template(entry: Entry, template: str, snapshot: Snapshot) -> Verdict:
    alive, ended = ([each for each in kind if each.template == template] for kind in snapshot.of(entry.name))
    return judge(alive, ended, entry.breaker)


def _missing(template: str, snapshot: Snapshot) -> int:
    """How many more glideins the template's runs want. A run cannot use more of them than it has jobs."""
    wanted = sum(min(demand.wanted, demand.jobs) for demand in snapshot.demands if demand.template == template)
    return wanted - sum(glidein.template == template for glidein in snapshot.glideins)


def _supply(
    template: str, missing: int, snapshot: Snapshot, site: SiteFile, whole: Room, rooms: list[tuple[Entry, Room]]
) -> tuple[list[Action], int]:
    """Submit what is missing, entry by entry, or say why not; and how many full entries lack."""
    first = site.entries[0].name
    lanes = [lane for lane in snapshot.lanes if lane.template == template and lane.state == State.FAILED]
    if lanes:
        why = f"{lanes[0].glide_id} could not load it: {lanes[0].failure}"
        return [Action("wait", lanes[0].entry, template, missing, why)], 0
    demands = [demand for demand in snapshot.demands if demand.template == template]
    if not any(demand.spec for demand in demands):
        why = "jobs ask for it without describing it (GlideTemplateSpec), and no glidein holds it"
        return [Action("wait", first, template, missing, why)], 0
    actions: list[Action] = []
    limits = []
    jobs = sum(demand.jobs for demand in demands)
    for entry, found in rooms:
        verdict = _of_template(entry, template, snapshot)
        count = min(missing, found.left, whole.left, missing if verdict.room is None else verdict.room)
        if count > 0:
            avoid = bad_nodes(*snapshot.of(entry.name))
            reason = f"{jobs} jobs of {demands[0].model} want {missing} more glideins"
            reason += f"; not on {', '.join(avoid)}, where they fail" if avoid else ""
            actions.append(Action("submit", entry.name, template, count, reason, avoid=avoid))
            found.left -= count
            whole.left -= count
            missing -= count
        elif verdict.room == 0:
            limits.append(f"{entry.name}: {verdict.reason}")
        else:
            limits.append(f"{entry.name}: {found.limit if found.left == 0 else whole.limit}")
    if missing > 0 and not actions:
        actions.append(Action("wait", first, template, missing, "no entry has room: " + "; ".join(limits)))
        return actions, missing if all("limit of" in limit for limit in limits) else 0
    return actions, 0


def _of_site(site: SiteFile, snapshot: Snapshot) -> Room:
    names = {entry.name for entry in site.entries}
    there = sum(glidein.entry in names for glidein in snapshot.glideins)
    if site.max_glideins is None:
        return Room(sys.maxsize, "")
    return Room(max(0, site.max_glideins - there), f"the site's limit of {site.max_glideins} glideins")


def _record(entry: Entry, snapshot: Snapshot) -> float:
    """How likely a glidein of the entry becomes warm, by those that did or did not; one half where none is known."""
    alive, ended = snapshot.of(entry.name)
    known = [*(glidein for glidein in alive if glidein.state), *ended]
    return (sum(glidein.state == State.WARM for glidein in known) + 1) / (len(known) + 2)


def _retire(entry: Entry, snapshot: Snapshot, unmet: int) -> list[Action]:
    """Remove what is of no use: held glideins, queued ones nobody wants, and `unmet` idle ones in others' way.

    A warm glidein that is merely idle stays: it ends itself after the entry's idle_seconds.
    """
    wanted = {demand.template for demand in snapshot.demands}
    claimed = {lane.glide_id for lane in snapshot.lanes if lane.claimed}
    actions = []
    for glidein in (glidein for glidein in snapshot.glideins if glidein.entry == entry.name):
        if glidein.status == JobStatus.HELD:
            # Until then it stays, to be seen and to be counted: removed at once it would be replaced at once.
            if glidein.age > entry.breaker.backoff_seconds or glidein.template not in wanted:
                actions.append(_remove(glidein, f"held: {glidein.hold_reason}"))
        elif glidein.template in wanted:
            continue
        elif glidein.status == JobStatus.IDLE:
            actions.append(_remove(glidein, "still queued, and no job wants its template any more"))
        elif glidein.glide_id not in claimed and len(actions) < unmet:
            actions.append(_remove(glidein, "idle, and in the way of a template that jobs wait for"))
    return actions


def _remove(glidein: Glidein, reason: str) -> Action:
    return Action("remove", glidein.entry, glidein.template, 1, reason, (glidein.job,))


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
