"""Decide what the factory does. The function `plan` turns a snapshot into actions. Each action has a reason.

The function needs neither a clock nor HTCondor. `glide factory plan` prints the actions. glide.factory.act carries out
the actions. If a bug raises an exception, only one template or one entry is affected. Each cycle has these steps:
1. Do nothing if the collector or the queue of the overlay pool is unavailable. If only the queue of an entry is
   unavailable, do nothing on this entry.
2. Expunge the machine ads of glideins whose outer job no longer runs.
3. Share idle glideins and places among the templates in demand (glide.factory.supply): retarget idle glideins, submit
   new ones within all limits, or choose idle glideins to be removed. The best entry comes first.
4. On entries that keep some glideins ready, submit blank glideins. A blank glidein has no template.
5. Remove useless glideins, and the idle glideins that were chosen in step 3.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from glide.config import Entry, SiteFile
from glide.errors import describe_bug
from glide.factory import headroom
from glide.factory.actions import Action, Drain, Expunge, Remove, Submit, Wait
from glide.factory.headroom import Headroom
from glide.factory.health import mark_failing_glideins
from glide.factory.snapshot import Glidein, Snapshot
from glide.factory.supply import Offer, Supply, share, supply_of
from glide.protocol.names import outer_job
from glide.vocabulary import JobStatus

# Number of seconds after a glidein's start. During this time, the queue's answer may be older than the glidein's ads.
START_GRACE_SECONDS = 20.0
_RUNNING = (JobStatus.RUNNING, JobStatus.TRANSFERRING)


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
    useless = {entry.name: _isolated(entry.name, partial(_useless, entry, snapshot)) for entry in available}
    # If entries are equally useful, they keep the order of the site file.
    best_first = sorted(site.entries, key=lambda entry: -headroom.usefulness(entry, snapshot))
    offers = [_offer(entry, snapshot, drained, useless.get(entry.name, [])) for entry in best_first]
    supplies, waits = _supplies(snapshot, site, offers)
    share(supplies, site_headroom)
    actions += waits
    for supply in supplies:
        actions += _isolated(best_first[0].name, partial(supply.actions, site_headroom, snapshot), supply.template)
    for offer in offers:
        actions += _isolated(offer.entry.name, partial(_keep_ready, offer, snapshot, site_headroom))
    for offer in offers:
        actions += useless.get(offer.entry.name, [])
        reason = "idle, and jobs that wait for another template need its place"
        actions += [_remove(glidein, reason) for glidein in offer.removed]
    return actions


def _offer(entry: Entry, snapshot: Snapshot, drained: Collection[str], useless: Collection[Action]) -> Offer:
    """Return what an entry has for the templates in demand.

    Args:
        useless: the actions that remove the entry's useless glideins.
    """
    removals = sum(isinstance(action, Remove) for action in useless)
    try:
        of_entry = headroom.of_entry(entry, snapshot, drained)
        if entry.name in snapshot.unavailable_entries:
            return Offer(entry, of_entry)
        coming = removals + sum(each.status == JobStatus.REMOVED for each in snapshot.glideins_of(entry.name)[0])
        return Offer(entry, of_entry, coming, _removable(entry, snapshot), entry.removals_per_cycle - removals)
    except Exception as error:
        return Offer(entry, Headroom(0, describe_bug(error), full=False))


def _supplies(snapshot: Snapshot, site: SiteFile, offers: list[Offer]) -> tuple[list[Supply], list[Wait]]:
    """Return what each template may get that needs more glideins, and a Wait for each that can get none."""
    owners = {owner for entry in site.entries for owner in headroom.owners(entry, snapshot)}
    found: list[Supply | Wait | None] = []
    for template in dict.fromkeys(demand.template for demand in snapshot.demands):
        try:
            found.append(supply_of(template, snapshot, site, offers, owners))
        except Exception as error:  # a bug that a template triggers must affect only this template
            found.append(Wait(offers[0].entry.name, template, 0, describe_bug(error)))
    return [each for each in found if isinstance(each, Supply)], [each for each in found if isinstance(each, Wait)]


def _isolated(entry: str, decide: Callable[[], list[Action]], template: str = "") -> list[Action]:
    """Call `decide`, and return its actions. If `decide` raises an exception, return a Wait instead."""
    try:
        return decide()
    except Exception as error:
        return [Wait(entry, template, 0, describe_bug(error))]


def drain(snapshot: Snapshot, site: SiteFile, reason: str, entries: Collection[str] | None = None) -> list[Action]:
    """Return the actions that remove all glideins of these entries. If `entries` is None, the whole site is drained."""
    actions: list[Action] = []
    for entry in site.entries:
        ids = tuple(glidein.job for glidein in snapshot.glideins if glidein.entry == entry.name)
        if ids and (entries is None or entry.name in entries):
            actions.append(Drain(entry.name, "", len(ids), reason, ids))
    return actions


def _keep_ready(offer: Offer, snapshot: Snapshot, site: Headroom) -> list[Action]:
    """If fewer than `entry.ready` glideins of an entry are ready, return the action that submits blank ones."""
    entry = offer.entry
    mine = snapshot.glideins_of(entry.name)[0]
    unwanted = [each for each in mine if not snapshot.templates_of(each) & snapshot.wanted]
    missing = entry.ready - sum(each.glide_id not in snapshot.claimed for each in unwanted)
    count = min(missing, offer.headroom.left, site.left)
    if count <= 0:
        return []
    site.left -= count
    return [Submit(entry.name, "", count, f"it keeps {entry.ready} glideins ready, without a model or idle")]


def _useless(entry: Entry, snapshot: Snapshot) -> list[Action]:
    """Return the actions that remove useless glideins: held and failing ones, and queued ones that no job wants."""
    wanted = _wanted(entry, snapshot)
    actions = []
    for glidein in snapshot.glideins_of(entry.name)[0]:
        if glidein.status == JobStatus.HELD:
            # Keep a held glidein for a while, so that people can see it, and so that circuit breakers count it as a
            # failure. If the plan removed the glidein immediately, the plan would immediately submit a new one.
            if glidein.age > entry.breaker.backoff_seconds or glidein.template not in wanted:
                actions.append(_remove(glidein, f"held: {glidein.hold_reason}"))
        elif glidein.status != JobStatus.REMOVED and glidein.is_failing and glidein.glide_id not in snapshot.claimed:
            actions.append(_remove(glidein, glidein.failure))
        elif glidein.status == JobStatus.IDLE and not snapshot.templates_of(glidein) & wanted:
            actions.append(_remove(glidein, "still queued, and no job wants its template any more"))
    return actions[: entry.removals_per_cycle]


def _removable(entry: Entry, snapshot: Snapshot) -> list[Glidein]:
    """Return the idle glideins that end if a new glidein needs a place. The one that retires first is the last one.

    If nothing needs a place, an idle glidein stays, and ends by itself after the entry's idle_seconds.
    """
    wanted = _wanted(entry, snapshot)
    retires = {lane.glide_id: lane.retires for lane in snapshot.lanes}
    running = [each for each in snapshot.glideins_of(entry.name)[0] if each.status in _RUNNING and not each.is_failing]
    idle = [
        each for each in running if each.glide_id not in snapshot.claimed and not snapshot.templates_of(each) & wanted
    ]
    return sorted(idle, key=lambda each: retires.get(each.glide_id, float("inf")))[::-1]


def _wanted(entry: Entry, snapshot: Snapshot) -> set[str]:
    """Return the templates whose glideins an entry needs. Blank glideins have the template ''."""
    return {*snapshot.wanted, ""} if entry.ready else set(snapshot.wanted)


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
