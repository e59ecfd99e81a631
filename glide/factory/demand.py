"""Compute how many more glideins the jobs of a template can use."""

from __future__ import annotations

from collections.abc import Collection

from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.vocabulary import State


def missing_glideins(template: str, snapshot: Snapshot, owners: Collection[str]) -> int:
    """Return how many more glideins the jobs of a template can use; 0 or less if they can use no more.

    Each run wants a number of glideins for the template. Three rules reduce the sum of these numbers:
    - A run gets at most one glidein for each of its jobs.
    - The sum is at most the number of idle jobs plus the number of glideins that run jobs of the template.
    - Each glidein must get work that takes at least as long as its start. But one glidein is always allowed.

    From the reduced sum, subtract the number of glideins that already have the template, no matter whether they are
    warm. A job may run on a lane that is still coming up. Then its glidein counts once on each side: as a glidein that
    runs jobs, and as a glidein that exists. Do not subtract glideins that have retired or could not load the template.

    Args:
        owners: users that the site serves. If one of these users wants the template, ignore all other users' demand.
    """
    demands = [demand for demand in snapshot.demands if demand.template == template]
    demands = [demand for demand in demands if demand.user in owners] or demands
    wanted = sum(min(demand.wanted, demand.jobs) for demand in demands)
    busy = {lane.glide_id for lane in snapshot.lanes if lane.template == template and lane.claimed}
    wanted = min(wanted, len(busy) + sum(demand.idle for demand in demands))
    start, work = _start_seconds(template, snapshot), work_seconds(template, snapshot)
    if work < wanted * start:
        wanted = max(1, int(work / start))
    return wanted - len(useful_glideins(template, snapshot))


def useful_glideins(template: str, snapshot: Snapshot) -> set[str]:
    """Return the GlideIds of the glideins that have a template, except those that have retired or could not load it.

    A glidein that runs a job of the template has it, even if it is about to load another one.
    """
    retiring = {lane.glide_id for lane in snapshot.lanes if lane.retires <= snapshot.now}
    existing = {glidein.glide_id for glidein in snapshot.glideins if template in snapshot.templates_of(glidein)}
    # If an entry's queue is unavailable, find the entry's glideins by the ads of their lanes.
    unavailable = [lane for lane in snapshot.lanes if lane.entry in snapshot.unavailable_entries]
    existing |= {lane.glide_id for lane in unavailable if lane.template == template}
    busy = {lane.glide_id for lane in snapshot.lanes if lane.template == template and lane.claimed}
    # A glidein that is about to load another template may still run a job of this one.
    existing |= busy & {glidein.glide_id for glidein in snapshot.glideins}
    return existing - retiring - _failed_glideins(template, snapshot)


def _failed_glideins(template: str, snapshot: Snapshot) -> set[str]:
    """Return the GlideIds of the glideins where the template did not load.

    The hosts of these glideins may be the cause. So the plan does not count these glideins, and submits further ones.
    """
    holders: list[Lane | Glidein] = [lane for lane in snapshot.lanes if lane.template == template]
    holders += [glidein for glidein in snapshot.glideins if template in snapshot.templates_of(glidein)]
    return {each.glide_id for each in holders if each.state == State.FAILED}


def work_seconds(template: str, snapshot: Snapshot) -> float:
    """Return the seconds that one glidein would need for all remaining records.

    The result is infinity if no speed is known yet, or if there is a standing job, whose work never ends.
    """
    if any(demand.standing for demand in snapshot.demands if demand.template == template):
        return float("inf")
    measured = {lane.glide_id: lane.record_seconds for lane in snapshot.lanes if lane.template == template}
    known = [seconds for seconds in measured.values() if seconds > 0]
    if not known:
        return float("inf")
    return sum(demand.records for demand in snapshot.demands if demand.template == template) * sum(known) / len(known)


def _start_seconds(template: str, snapshot: Snapshot) -> float:
    """Return the mean start time of the template's warm glideins, in seconds; 0 if no glidein is warm."""
    warm = {
        lane.glide_id: lane.start_seconds
        for lane in snapshot.lanes if lane.template == template and lane.state == State.WARM
    }  # fmt: skip
    return sum(warm.values()) / len(warm) if warm else 0.0
