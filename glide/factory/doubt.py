"""Answers that can't be true: a queue or a collector that answers, and has forgotten what it knew a moment ago.

A factory that believes them floods the site with glideins it already has, or takes away the ads of those that work.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from glide.config import SiteFile
from glide.factory.plan import Action
from glide.factory.snapshot import Snapshot
from glide.vocabulary import JobStatus

DOUBT_SECONDS = 60.0  # who still says so after that is believed: ads of what is really gone have expired by then


def doubted(snapshot: Snapshot, before: Snapshot | None, site: SiteFile, drained: Collection[str] = ()) -> Snapshot:
    """The snapshot, with what can't be believed named among what is not seen.

    Args:
        before: the last one that was believed, without what has been removed since (`expected`).
        drained: entries that an admin has closed, whose glideins may well be gone.
    """
    if snapshot.failed:
        return snapshot
    left = DOUBT_SECONDS - (snapshot.now - before.now) if before else 0.0
    blind = dict(snapshot.blind)
    for entry in site.entries:
        mine, ended = snapshot.of(entry.name)
        if mine or ended or entry.name in blind:
            continue
        advertised = {lane.glide_id for lane in snapshot.lanes if lane.entry == entry.name}
        earlier = before.of(entry.name)[0] if before and left > 0 and entry.name not in drained else []
        if advertised:
            blind[entry.name] = f"its queue is empty, but {len(advertised)} glideins advertise"
        elif earlier:
            blind[entry.name] = (
                f"its queue has forgotten all {len(earlier)} glideins; believed if it still says so in {left:.0f} s"
            )
    running = {glidein.glide_id for glidein in snapshot.glideins if glidein.status == JobStatus.RUNNING}
    advertised = {lane.glide_id for lane in snapshot.lanes}
    # Of those that had work, for an idle one's ads go some seconds before itself.
    working = {lane.glide_id for lane in before.lanes if lane.claimed} & running if before and left > 0 else set()
    failed: tuple[str, ...] = ()
    if working and not working & advertised:
        forgotten = f"the collector has forgotten all {len(working)} glideins that work"
        failed = (f"{forgotten}; believed if it still says so in {left:.0f} s",)
    return replace(snapshot, blind=blind, failed=failed)


def expected(snapshot: Snapshot, actions: Collection[Action], before: Snapshot | None = None) -> Snapshot:
    """The snapshot without the glideins that these actions take away, and with those from before that are not seen."""
    gone = {job for action in actions if action.action in ("remove", "drain") for job in action.ids}
    gone |= {glidein.job for glidein in snapshot.glideins if glidein.status == JobStatus.REMOVED}
    there = [each for each in snapshot.glideins if each.job not in gone]
    unseen = [each for each in before.glideins if each.entry in snapshot.blind] if before else []
    return replace(snapshot, glideins=(*there, *unseen))
