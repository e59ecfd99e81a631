"""Decide what the factory does. The function `plan` turns a snapshot into actions. Each action has a reason.

The function needs neither a clock nor HTCondor. `glide factory plan` prints the actions. glide.factory.act carries out
the actions. If a bug raises an exception, only one template or one entry is affected. Each cycle has these steps:
1. Do nothing if the collector or the queue of the overlay pool is unavailable. If only the queue of an entry is
   unavailable, do nothing on this entry.
2. Expunge the machine ads of glideins whose outer job no longer runs.
3. For each template in demand, retarget idle glideins. Then submit new glideins within all limits. The template with
   the fewest glideins comes first, and the best entry first.
4. On entries that keep some glideins ready, submit blank glideins. A blank glidein has no template.
5. Remove useless glideins. Also remove idle glideins, to make room for glideins with other templates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from glide.config import Entry, SiteFile
from glide.errors import describe_bug
from glide.factory import headroom
from glide.factory.actions import Action, Drain, Expunge, Remove, Retarget, Submit, Wait
from glide.factory.demand import missing_glideins, work_seconds
from glide.factory.headroom import Headroom
from glide.factory.health import (
    bad_nodes,
    mark_failing_glideins,
    nodes_with_files,
    nodes_without_success,
    unsuitable_nodes,
)
from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.factory.suitability import is_idle
from glide.files import Tree
from glide.files.peers import short_digest
from glide.protocol.names import outer_job
from glide.vocabulary import JobStatus, State

# Number of seconds after a glidein's start. During this time, the queue's answer may be older than the glidein's ads.
START_GRACE_SECONDS = 20.0
_RUNNING = (JobStatus.RUNNING, JobStatus.TRANSFERRING)
_Ranked = list[tuple[Entry, Headroom]]  # all entries with their headroom, the most useful entry first


@dataclass
class UnmetDemand:
    """How many glideins a template still needs, and which entries may get them as soon as existing glideins end."""

    missing: int = 0
    entries: frozenset[str] = frozenset()


def plan(snapshot: Snapshot, site: SiteFile, drained: Collection[str] = ()) -> list[Action]:
    """Return the factory's actions for a snapshot.

    Args:
        drained: entries that an admin has closed.
    """
    if snapshot.unavailable_sources:
        reason = f"cannot observe the pool: {snapshot.unavailable_sources[0]}"
        return [Wait(entry.name, "", 0, reason) for entry in site.entries]
    snapshot = mark_failing_glideins(snapshot)
    available = [entry for entry in site.entries if entry.name not in snapshot.unavailable_entries]
    actions: list[Action] = [
        Wait(entry.name, "", 0, f"cannot observe its queue: {snapshot.unavailable_entries[entry.name]}")
        for entry in site.entries if entry not in available
    ]  # fmt: skip
    actions += _expunge_stale_ads(snapshot, available)
    site_headroom = headroom.of_site(site, snapshot)
    # If entries are equally useful, they keep the order of the site file.
    best_first = sorted(site.entries, key=lambda entry: -headroom.usefulness(entry, snapshot))
    ranked = [(entry, _entry_headroom(entry, snapshot, drained)) for entry in best_first]
    unmet_demands: list[UnmetDemand] = []
    retargeted: set[str] = set()  # GlideIds of the idle glideins that this plan retargets
    owners = {owner for entry in site.entries for owner in headroom.owners(entry, snapshot)}
    for template in _fewest_glideins_first(snapshot):
        try:
            missing = missing_glideins(template, snapshot, owners)
            if missing > 0:
                supply, unmet = _meet_demand(template, missing, snapshot, site, site_headroom, ranked, retargeted)
                actions += supply
                unmet_demands.append(unmet)
        except Exception as error:  # a bug that a template triggers must affect only this template
            actions.append(Wait(best_first[0].name, template, 0, describe_bug(error)))
    for entry, entry_headroom in ranked:
        actions += _isolated(entry.name, partial(_keep_ready, entry, snapshot, entry_headroom, site_headroom))
    for entry in available:
        waiting = [unmet for unmet in unmet_demands if entry.name in unmet.entries]
        missing = sum(unmet.missing for unmet in waiting)
        removals = _isolated(entry.name, partial(_remove_useless, entry, snapshot, missing))[: entry.removals_per_cycle]
        actions += removals
        freed = sum(isinstance(action, Remove) for action in removals)
        # Each removal makes room for one missing glidein. So fewer removals are necessary on the next entries.
        for unmet in waiting:
            unmet.missing, freed = max(0, unmet.missing - freed), max(0, freed - unmet.missing)
    return actions


def _fewest_glideins_first(snapshot: Snapshot) -> list[str]:
    """Return the templates in demand. Those with equally many glideins keep their order.

    If all entries are full, places become free one by one. In any other order, a template with many jobs could get each
    of these places, and another template none.
    """
    counts = Counter(template for glidein in snapshot.glideins for template in snapshot.templates_of(glidein))
    return sorted(dict.fromkeys(demand.template for demand in snapshot.demands), key=lambda each: counts[each])


def _isolated(entry: str, decide: Callable[[], list[Action]]) -> list[Action]:
    """Call `decide`, and return its actions for an entry. If `decide` raises an exception, return a Wait instead."""
    try:
        return decide()
    except Exception as error:
        return [Wait(entry, "", 0, describe_bug(error))]


def _entry_headroom(entry: Entry, snapshot: Snapshot, drained: Collection[str]) -> Headroom:
    try:
        return headroom.of_entry(entry, snapshot, drained)
    except Exception as error:
        return Headroom(0, describe_bug(error), full=False)


def drain(snapshot: Snapshot, site: SiteFile, reason: str, entries: Collection[str] | None = None) -> list[Action]:
    """Return the actions that remove all glideins of these entries. If `entries` is None, the whole site is drained."""
    actions: list[Action] = []
    for entry in site.entries:
        ids = tuple(glidein.job for glidein in snapshot.glideins if glidein.entry == entry.name)
        if ids and (entries is None or entry.name in entries):
            actions.append(Drain(entry.name, "", len(ids), reason, ids))
    return actions


def _meet_demand(
    template: str, missing: int, snapshot: Snapshot, site: SiteFile, site_headroom: Headroom, ranked: _Ranked,
    retargeted: set[str],
) -> tuple[list[Action], UnmetDemand]:  # fmt: skip
    """Return the actions for a template that needs more glideins, and the demand that remains unmet.

    The actions retarget idle glideins and submit new ones, entry by entry. If neither is possible, the only action is a
    Wait with the reasons.
    """
    first = ranked[0][0].name
    demands = [demand for demand in snapshot.demands if demand.template == template]
    users = {demand.user for demand in demands}
    if not any(users & set(headroom.owners(entry, snapshot)) for entry, _ in ranked):
        return [Wait(first, template, missing, f"no entry serves {', '.join(sorted(users))}")], UnmetDemand()
    if not any(demand.spec for demand in demands):
        reason = "no glidein can be started: its jobs do not describe the template (GlideTemplateSpec)"
        return [Wait(first, template, missing, reason)], UnmetDemand()
    described = snapshot.description(template)
    has_files = bool(described and described.files)
    limits = []
    full_entries = set()
    why = f"{sum(demand.jobs for demand in demands)} jobs of {demands[0].model} want {missing} more glideins"
    work = work_seconds(template, snapshot)
    why += f" for {work:.0f} s of work" if 0 < work < float("inf") else ""
    actions = _retarget_idle(template, missing, why, snapshot, ranked, retargeted)  # a retarget is faster than a start
    missing -= sum(action.count for action in actions)
    for entry, entry_headroom in ranked if missing else ():
        template_headroom = headroom.of_template(entry, template, snapshot, site.max_glideins)
        count = min(missing, entry_headroom.left, site_headroom.left, template_headroom.left)
        if count > 0:
            groups = snapshot.glideins_of(entry.name)
            avoid = tuple(sorted({*bad_nodes(*groups), *unsuitable_nodes(template, *groups)}))
            prefer = nodes_with_files(template, *groups) if has_files else ()
            last_resort = tuple(node for node in nodes_without_success(template, *groups) if node not in avoid)
            reason = why + (f"; not on {', '.join(avoid)}, where glideins fail" if avoid else "")
            reason += f"; rather not on {', '.join(last_resort)}, where it did not load" if last_resort else ""
            reason += f"; {template_headroom.risk}" if count > template_headroom.usual else ""
            actions.append(Submit(entry.name, template, count, reason, avoid, prefer, last_resort))
            entry_headroom.left -= count
            site_headroom.left -= count
            missing -= count
        else:
            tightest = min((template_headroom, entry_headroom, site_headroom), key=lambda each: each.left)
            limits.append(f"{entry.name}: {tightest.limit}")
            if tightest.full:
                full_entries.add(entry.name)
    if missing > 0 and not actions:
        reason = "no entry has room: " + "; ".join(limits)
        best_effort = all(demand.best_effort for demand in demands)
        unmet = UnmetDemand() if best_effort else UnmetDemand(missing, frozenset(full_entries))
        return [Wait(first, template, missing, reason, full=bool(full_entries))], unmet
    return actions, UnmetDemand()


def _retarget_idle(
    template: str, missing: int, why: str, snapshot: Snapshot, ranked: _Ranked, retargeted: set[str]
) -> list[Action]:
    """Return the actions that make idle glideins load a template.

    Do not use a glidein if jobs want a template that it has. If all demand for the new template is best effort, use
    only blank glideins, so that no glidein unloads its model.

    Args:
        retargeted: GlideIds of all glideins that are retargeted in this cycle. The function adds further GlideIds.
    """
    if any(each.template == template and each.hold_reason for each in snapshot.retargets):
        return []  # a sticky job has failed: submit new glideins, whose logs show why the template fails
    wanted = {demand.template for demand in snapshot.demands}
    best_effort = all(demand.best_effort for demand in snapshot.demands if demand.template == template)
    lanes = snapshot.lanes_of
    described = snapshot.description(template)
    trees = [Tree.of(file_set) for file_set in described.file_sets] if described else []
    sizes = {short_digest(tree.digest): tree.size for tree in trees}
    actions: list[Action] = []
    for entry, _ in ranked:
        if entry.name in snapshot.unavailable_entries:
            continue
        limit = min(missing, entry.submits_per_cycle, headroom.of_template(entry, template, snapshot).left)
        running = [each for each in snapshot.glideins_of(entry.name)[0] if each.status == JobStatus.RUNNING]
        unwanted = [each for each in running if not snapshot.templates_of(each) & wanted]
        unwanted = [each for each in unwanted if not best_effort or snapshot.templates_of(each) == {""}]
        free = [each for each in unwanted if each.glide_id not in retargeted]
        idle = [each for each in free if is_idle(lanes.get(each.glide_id, []), snapshot.now, described)]
        idle = sorted(idle, key=lambda each: _retarget_rank(lanes[each.glide_id][0], template, sizes))[: max(0, limit)]
        if idle:
            missing -= len(idle)
            retargeted |= {each.glide_id for each in idle}
            slots = tuple(lane.name for each in idle for lane in lanes[each.glide_id])
            reason = f"{why}; idle glideins load it: {', '.join(each.glide_id for each in idle)}"
            actions.append(Retarget(entry.name, template, len(idle), reason, slots))
    return actions


def _retarget_rank(lane: Lane, template: str, sizes: Mapping[str, int]) -> tuple[bool, int, float]:
    """Return the sort key of a glidein that could load a template. `lane` is any lane of the glidein.

    Glideins that can wake the template up come first. Next come those on hosts with more bytes of the template's files.
    If hosts have equally many bytes, the glidein that retires later comes first.
    """
    return template not in lane.asleep, -sum(sizes.get(tree, 0) for tree in lane.cached), -lane.retires


def _keep_ready(entry: Entry, snapshot: Snapshot, entry_headroom: Headroom, site_headroom: Headroom) -> list[Action]:
    """If fewer than `entry.ready` glideins of an entry are ready, return the action that submits blank ones."""
    wanted = {demand.template for demand in snapshot.demands}
    unwanted = [each for each in snapshot.glideins_of(entry.name)[0] if not snapshot.templates_of(each) & wanted]
    claimed = {lane.glide_id for lane in snapshot.lanes if lane.claimed}
    missing = entry.ready - sum(each.glide_id not in claimed for each in unwanted)
    count = min(missing, entry_headroom.left, site_headroom.left)
    if count <= 0:
        return []
    site_headroom.left -= count
    return [Submit(entry.name, "", count, f"it keeps {entry.ready} glideins ready, without a model or idle")]


def _remove_useless(entry: Entry, snapshot: Snapshot, unmet: int) -> list[Action]:
    """Return the actions that remove useless glideins.

    Held glideins and failing glideins are useless. A queued glidein is useless if no job wants its template. An idle
    glidein is removed only if a new glidein needs the place. The idle glidein that retires first is removed first. All
    remaining idle glideins stay, because an idle glidein ends by itself after the entry's idle_seconds.

    Args:
        unmet: number of new glideins that the factory would submit to this entry if the entry had room.
    """
    wanted = {demand.template for demand in snapshot.demands} | ({""} if entry.ready else set())
    claimed = {lane.glide_id for lane in snapshot.lanes if lane.claimed}
    retires = {lane.glide_id: lane.retires for lane in snapshot.lanes}
    mine = sorted(snapshot.glideins_of(entry.name)[0], key=lambda each: retires.get(each.glide_id, float("inf")))
    # Some glideins are already being removed, and will soon make room. So fewer further removals are necessary.
    unmet -= sum(glidein.status == JobStatus.REMOVED for glidein in mine)
    actions = []
    for glidein in (glidein for glidein in mine if glidein.status != JobStatus.REMOVED):
        if glidein.status == JobStatus.HELD:
            # Keep a held glidein for a while, so that people can see it, and so that circuit breakers count it as a
            # failure. If the plan removed the glidein immediately, the plan would immediately submit a new one.
            if glidein.age > entry.breaker.backoff_seconds or glidein.template not in wanted:
                actions.append(_remove(glidein, f"held: {glidein.hold_reason}"))
        elif glidein.served and glidein.state == State.FAILED and glidein.glide_id not in claimed:
            actions.append(_remove(glidein, glidein.failure))
        elif snapshot.templates_of(glidein) & wanted:
            continue
        elif glidein.status == JobStatus.IDLE:
            actions.append(_remove(glidein, "still queued, and no job wants its template any more"))
        elif glidein.glide_id not in claimed and len(actions) < unmet:
            actions.append(_remove(glidein, "idle, and jobs that wait for another template need its place"))
    return actions


def _remove(glidein: Glidein, reason: str) -> Action:
    return Remove(glidein.entry, glidein.template, 1, reason, (glidein.job,))


def _expunge_stale_ads(snapshot: Snapshot, available: Collection[Entry]) -> list[Action]:
    """Return the actions that expunge the machine ads of glideins whose outer job no longer runs.

    If such an ad stayed in the collector, a job could match the ad and wait for a slot that no longer exists.
    """
    names = {entry.name for entry in available}
    advertised = {lane.glide_id: lane.entry for lane in snapshot.lanes if lane.entry in names}
    running = [glidein for glidein in snapshot.glideins if glidein.status in _RUNNING]
    alive = {glidein.glide_id for glidein in running}
    # A GlideId contains the number of starts of the outer job. Just after a start, the queue may still report the old
    # number. Ads with the new number then seem to belong to no job. So keep the ads of a glidein that just started.
    starting = {(glidein.entry, glidein.job) for glidein in running if glidein.age < START_GRACE_SECONDS}
    return [
        Expunge(entry, "", 1, f"{each} advertises, but has no running job", (each,))
        for each, entry in sorted(advertised.items()) if each not in alive and (entry, outer_job(each)) not in starting
    ]  # fmt: skip
