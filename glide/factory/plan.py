"""The factory's policy: a pure function from what it sees to what it would do, with a reason for each.

Needs neither clock nor HTCondor; `glide factory plan` prints its result and `apply` carries it out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from glide.config import Entry, SiteFile
from glide.errors import mistake
from glide.factory import room as rooms
from glide.factory.health import bad_nodes, diagnosed, nodes_with_files, nodes_without_success
from glide.factory.room import Room
from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.files import Tree
from glide.files.peers import short
from glide.vocabulary import JobStatus, State

GHOST_SECONDS = 20.0  # an outer job that started so recently may have ads of a life we have not seen yet
_RUNNING = (JobStatus.RUNNING, JobStatus.TRANSFERRING)
_PUBLIC = ("action", "entry", "template", "count", "reason")


@dataclass(frozen=True)
class Action:
    """What to do: submit `count` glideins, remove or expunge those in `ids`, or wait, which is to do nothing.

    A submission with `ids` is of sticky jobs, one for each of these lanes, which make `count` glideins that are there
    the template's. `avoid` names nodes that the submitted ones must not run on, `prefer` those that have its files, and
    `last` those to take only where no other is free. Who waits because of a `full` entry gets a glidein when what is
    there has gone.
    """

    action: str
    entry: str
    template: str
    count: int
    reason: str
    ids: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    full: bool = False

    def public(self) -> dict[str, Any]:
        """The fields that `glide factory plan --json` prints."""
        return {name: value for name, value in asdict(self).items() if name in _PUBLIC}


@dataclass
class Lack:
    """So many glideins are missing which these entries could have, if they were not full."""

    missing: int = 0
    entries: frozenset[str] = frozenset()


def plan(snapshot: Snapshot, site: SiteFile, drained: Collection[str] = ()) -> list[Action]:
    """What the factory does about what it sees; nothing at all when it does not see everything.

    Args:
        drained: entries that an admin has closed.
    """
    if snapshot.failed:
        return [Action("wait", entry.name, "", 0, f"no view: {snapshot.failed[0]}") for entry in site.entries]
    snapshot = diagnosed(snapshot)
    seen = [entry for entry in site.entries if entry.name not in snapshot.blind]
    actions = [
        Action("wait", entry.name, "", 0, f"no view: {snapshot.blind[entry.name]}")
        for entry in site.entries if entry not in seen
    ]  # fmt: skip
    actions += _expunge(snapshot, seen)
    whole = rooms.of_site(site, snapshot)
    # Where glideins were worth most comes first, else the file's order counts.
    ranked = sorted(site.entries, key=lambda entry: -rooms.usefulness(entry, snapshot))
    found = [(entry, _room(entry, snapshot, drained)) for entry in ranked]
    lacks: list[Lack] = []
    taken: set[str] = set()  # idle glideins that are to load something
    owners = {owner for entry in site.entries for owner in rooms.owners(entry, snapshot)}
    for template in dict.fromkeys(demand.template for demand in snapshot.demands):
        try:
            missing = _missing(template, snapshot, owners)
            if missing > 0:
                supplied, lack = _supply(template, missing, snapshot, whole, found, taken)
                actions += supplied
                lacks.append(lack)
        except Exception as error:  # costs this template alone, for anybody may describe one
            actions.append(Action("wait", ranked[0].name, template, 0, mistake(error)))
    for entry, space in found:
        actions += _apart(entry.name, partial(_ready, entry, snapshot, space, whole))
    for entry in seen:
        mine = [lack for lack in lacks if entry.name in lack.entries]
        unmet = sum(lack.missing for lack in mine)
        retired = _apart(entry.name, partial(_retire, entry, snapshot, unmet))[: entry.removals_per_cycle]
        actions += retired
        gone = sum(action.action == "remove" for action in retired)
        for lack in mine:
            lack.missing, gone = max(0, lack.missing - gone), max(0, gone - lack.missing)
    return actions


def _apart(entry: str, decide: Callable[[], list[Action]]) -> list[Action]:
    """One entry's actions; a mistake in glide costs this entry alone."""
    try:
        return decide()
    except Exception as error:
        return [Action("wait", entry, "", 0, mistake(error))]


def _room(entry: Entry, snapshot: Snapshot, drained: Collection[str]) -> Room:
    try:
        return rooms.of_entry(entry, snapshot, drained)
    except Exception as error:
        return Room(0, mistake(error), full=False)


def drain(snapshot: Snapshot, site: SiteFile, reason: str, entries: Collection[str] | None = None) -> list[Action]:
    """Take down every glidein of the site, or of these entries of it."""
    actions = []
    for entry in site.entries:
        ids = tuple(glidein.job for glidein in snapshot.glideins if glidein.entry == entry.name)
        if ids and (entries is None or entry.name in entries):
            actions.append(Action("drain", entry.name, "", len(ids), reason, ids))
    return actions


# ---- demand --------------------------------------------------------------------------------------


def _missing(template: str, snapshot: Snapshot, owners: Collection[str]) -> int:
    """How many more glideins the template's runs want.

    They cannot use more than have jobs now and idle jobs are there, for a running job stays where it is; nor one that
    would become warm when their records are done. Where one of these owners' runs wants some, others' do not count.
    """
    demands = [demand for demand in snapshot.demands if demand.template == template]
    demands = [demand for demand in demands if demand.user in owners] or demands
    wanted = sum(min(demand.wanted, demand.jobs) for demand in demands)
    busy = {lane.glide_id for lane in snapshot.lanes if lane.template == template and lane.claimed}
    wanted = min(wanted, len(busy) + sum(demand.idle for demand in demands))
    start, work = _start_seconds(template, snapshot), _work(template, snapshot)
    if work < wanted * start:
        wanted = max(1, int(work / start))
    retiring = {lane.glide_id for lane in snapshot.lanes if lane.retires <= snapshot.now}
    there = {glidein.glide_id for glidein in snapshot.glideins if template in snapshot.offers(glidein)}
    there |= {  # in a queue that is not seen now
        lane.glide_id for lane in snapshot.lanes if lane.template == template and lane.entry in snapshot.blind
    }
    return wanted - len(there - retiring - _in_vain(template, snapshot))


def _in_vain(template: str, snapshot: Snapshot) -> set[str]:
    """The glideins on which it does not load. One host may be the cause, so others are tried: the breaker's limit."""
    found: list[Lane | Glidein] = [lane for lane in snapshot.lanes if lane.template == template]
    found += [glidein for glidein in snapshot.glideins if template in snapshot.offers(glidein)]
    return {each.glide_id for each in found if each.state == State.FAILED}


def _work(template: str, snapshot: Snapshot) -> float:
    """Seconds that one glidein would take for all records the template's jobs have, by the measured paces."""
    paces = {lane.glide_id: lane.record_seconds for lane in snapshot.lanes if lane.template == template}
    known = [pace for pace in paces.values() if pace > 0]
    if not known:
        return float("inf")  # nothing measured
    return sum(demand.records for demand in snapshot.demands if demand.template == template) * sum(known) / len(known)


def _start_seconds(template: str, snapshot: Snapshot) -> float:
    """How long its warm glideins took to become warm, on average; 0 where none is."""
    warm = {
        lane.glide_id: lane.start_seconds
        for lane in snapshot.lanes if lane.template == template and lane.state == State.WARM
    }  # fmt: skip
    return sum(warm.values()) / len(warm) if warm else 0.0


def _supply(
    template: str, missing: int, snapshot: Snapshot, whole: Room, found: list[tuple[Entry, Room]], taken: set[str]
) -> tuple[list[Action], Lack]:
    """Submit what is missing, entry by entry, or say why not and what full entries lack."""
    first = found[0][0].name
    demands = [demand for demand in snapshot.demands if demand.template == template]
    users = {demand.user for demand in demands}
    if not any(users & set(rooms.owners(entry, snapshot)) for entry, _ in found):
        return [Action("wait", first, template, missing, f"no entry serves {', '.join(sorted(users))}")], Lack()
    if not any(demand.spec for demand in demands):
        why = "jobs ask for it without describing it (GlideTemplateSpec), and no glidein holds it"
        return [Action("wait", first, template, missing, why)], Lack()
    described = snapshot.template(template)
    files = bool(described and described.files)
    limits = []
    full = set()
    why = f"{sum(demand.jobs for demand in demands)} jobs of {demands[0].model} want {missing} more glideins"
    work = _work(template, snapshot)
    why += f" for {work:.0f} s of work" if 0 < work < float("inf") else ""
    actions = _move(template, missing, why, snapshot, found, taken)
    missing -= sum(action.count for action in actions)
    for entry, space in found if missing else ():
        own = rooms.of_template(entry, template, snapshot)
        count = min(missing, space.left, whole.left, own.left)
        if count > 0:
            avoid = bad_nodes(*snapshot.of(entry.name))
            reason = why + (f"; not on {', '.join(avoid)}, where they fail" if avoid else "")
            prefer = nodes_with_files(template, *snapshot.of(entry.name)) if files else ()
            last = nodes_without_success(template, *snapshot.of(entry.name))
            reason += f"; rather not on {', '.join(last)}, where it did not load" if last else ""
            submit = Action("submit", entry.name, template, count, reason, avoid=avoid, prefer=prefer, last=last)
            actions.append(submit)
            for each in (space, whole):
                each.left -= count
            missing -= count
        else:
            tightest = min((own, space, whole), key=lambda each: each.left)
            limits.append(f"{entry.name}: {tightest.limit}")
            if tightest.full:
                full.add(entry.name)
    if missing > 0 and not actions:
        reason = "no entry has room: " + "; ".join(limits)
        modest = all(demand.modest for demand in demands)
        lack = Lack() if modest else Lack(missing, frozenset(full))
        return [Action("wait", first, template, missing, reason, full=bool(full))], lack
    return actions, Lack()


def _move(
    template: str, missing: int, why: str, snapshot: Snapshot, found: list[tuple[Entry, Room]], taken: set[str]
) -> list[Action]:
    """Have idle glideins, of templates that nobody wants just now, load this one: that is sooner than new ones."""
    if any(move.template == template and move.hold_reason for move in snapshot.moves):
        return []  # it did not load; glideins of its own will say more
    wanted = {demand.template for demand in snapshot.demands}
    modest = all(demand.modest for demand in snapshot.demands if demand.template == template)
    lanes = snapshot.lanes_of
    described = snapshot.template(template)
    trees = [Tree(parcel.files) for parcel in described.parcels] if described else []
    sizes = {short(tree.digest): tree.size for tree in trees}
    actions = []
    for entry, _ in found:
        if entry.name in snapshot.blind:
            continue
        count = min(missing, entry.submits_per_cycle, rooms.of_template(entry, template, snapshot).left)
        running = [each for each in snapshot.of(entry.name)[0] if each.status == JobStatus.RUNNING]
        unwanted = [each for each in running if not snapshot.offers(each) & wanted]
        unwanted = [each for each in unwanted if not modest or snapshot.offers(each) == {""}]
        free = [each for each in unwanted if each.glide_id not in taken]
        idle = [each for each in free if _is_idle(lanes.get(each.glide_id, []), snapshot)]
        idle = sorted(idle, key=lambda each: _suits(lanes[each.glide_id][0], sizes))[: max(0, count)]
        if idle:
            missing -= len(idle)
            taken |= {each.glide_id for each in idle}
            names = tuple(lane.name for each in idle for lane in lanes[each.glide_id])
            reason = f"{why}; idle glideins load it: {', '.join(each.glide_id for each in idle)}"
            actions.append(Action("submit", entry.name, template, len(idle), reason, names))
    return actions


def _suits(lane: Lane, sizes: Mapping[str, int]) -> tuple[int, float]:
    """A glidein's place among those that might load something: whose host has most of it, then who stays longest."""
    return -sum(sizes.get(tree, 0) for tree in lane.cached), -lane.retires


def _is_idle(lanes: Collection[Lane], snapshot: Snapshot) -> bool:
    """Whether a glidein is up, does nothing, and has some of its life left."""
    settled = all(lane.state in (State.WARM, State.BLANK) and not lane.claimed for lane in lanes)
    return bool(lanes) and settled and all(lane.retires > snapshot.now for lane in lanes)


def _ready(entry: Entry, snapshot: Snapshot, space: Room, whole: Room) -> list[Action]:
    """Blank glideins, where fewer are idle than the entry is to have in readiness."""
    wanted = {demand.template for demand in snapshot.demands}
    spare = [each for each in snapshot.of(entry.name)[0] if not snapshot.offers(each) & wanted]
    claimed = {lane.glide_id for lane in snapshot.lanes if lane.claimed}
    missing = entry.ready - sum(each.glide_id not in claimed for each in spare)
    count = min(missing, space.left, whole.left)
    if count <= 0:
        return []
    whole.left -= count
    return [Action("submit", entry.name, "", count, f"{entry.ready} are to be ready, without a model or idle")]


# ---- what is of no use ---------------------------------------------------------------------------


def _retire(entry: Entry, snapshot: Snapshot, unmet: int) -> list[Action]:
    """Remove what is of no use: held glideins, queued ones nobody wants, and `unmet` idle ones in others' way.

    A warm glidein that is merely idle stays: it ends itself after the entry's idle_seconds. Where some have to go, the
    first are those that have the least of their life left.
    """
    wanted = {demand.template for demand in snapshot.demands} | ({""} if entry.ready else set())
    claimed = {lane.glide_id for lane in snapshot.lanes if lane.claimed}
    retires = {lane.glide_id: lane.retires for lane in snapshot.lanes}
    mine = sorted(snapshot.of(entry.name)[0], key=lambda glidein: retires.get(glidein.glide_id, float("inf")))
    unmet -= sum(glidein.status == JobStatus.REMOVED for glidein in mine)  # they are about to make room
    actions = []
    for glidein in (glidein for glidein in mine if glidein.status != JobStatus.REMOVED):
        if glidein.status == JobStatus.HELD:
            # Until then it stays, to be seen and to be counted: removed at once it would be replaced at once.
            if glidein.age > entry.breaker.backoff_seconds or glidein.template not in wanted:
                actions.append(_remove(glidein, f"held: {glidein.hold_reason}"))
        elif glidein.served and glidein.state == State.FAILED and glidein.glide_id not in claimed:
            actions.append(_remove(glidein, glidein.failure))
        elif snapshot.offers(glidein) & wanted:
            continue
        elif glidein.status == JobStatus.IDLE:
            actions.append(_remove(glidein, "still queued, and no job wants its template any more"))
        elif glidein.glide_id not in claimed and len(actions) < unmet:
            actions.append(_remove(glidein, "idle, and in the way of a template that jobs wait for"))
    return actions


def _remove(glidein: Glidein, reason: str) -> Action:
    return Action("remove", glidein.entry, glidein.template, 1, reason, (glidein.job,))


def _expunge(snapshot: Snapshot, seen: Collection[Entry]) -> list[Action]:
    """Ads of a glidein whose outer job does not run any more still match jobs, which then wait for a ghost."""
    entries = {entry.name for entry in seen}
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
