"""Reject implausible answers of a queue or a collector. An answer is implausible if it suddenly contains no glideins.

If a factory accepted such an answer, the factory would submit glideins again, or expunge the ads of working glideins.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from glide.config import SiteFile
from glide.factory.actions import Action, Remove
from glide.factory.snapshot import Snapshot
from glide.vocabulary import JobStatus

# An implausible answer that persists for this time, in seconds, is accepted. If the glideins are really gone, their ads
# expire within this time.
ACCEPT_AFTER_SECONDS = 60.0


def reject_implausible(
    snapshot: Snapshot, before: Snapshot | None, site: SiteFile, drained: Collection[str] = ()
) -> Snapshot:
    """If the answer of the collector or of an entry's queue is implausible, mark this source as unavailable.

    Return a new snapshot with these marks.

    Args:
        before: the last accepted snapshot, without the glideins that were removed after it (see `baseline`). None if no
            snapshot was accepted yet.
        drained: entries that an admin has closed. All glideins of such an entry may plausibly disappear together.
    """
    if snapshot.unavailable_sources:
        return snapshot
    accepted = f"accepted if that persists for {ACCEPT_AFTER_SECONDS:.0f} s"
    left = ACCEPT_AFTER_SECONDS - (snapshot.now - before.now) if before else 0.0
    unavailable = dict(snapshot.unavailable_entries)
    for entry in site.entries:
        queued, ended = snapshot.glideins_of(entry.name)
        if queued or ended or entry.name in unavailable:
            continue
        advertised = {lane.glide_id for lane in snapshot.lanes if lane.entry == entry.name}
        earlier = before.glideins_of(entry.name)[0] if before and left > 0 and entry.name not in drained else []
        if advertised:
            unavailable[entry.name] = f"its queue is empty, but {len(advertised)} glideins advertise"
        elif earlier:
            unavailable[entry.name] = f"its queue has forgotten all {len(earlier)} glideins; {accepted}"
    running = {glidein.glide_id for glidein in snapshot.glideins if glidein.status == JobStatus.RUNNING}
    advertised = {lane.glide_id for lane in snapshot.lanes}
    # Consider only glideins that had a job. The ads of an idle glidein may disappear some seconds before its outer job
    # ends, which is no error.
    working = before.claimed & running if before and left > 0 else set()
    sources: tuple[str, ...] = ()
    if working and not working & advertised:
        sources = (f"the collector has forgotten all {len(working)} working glideins; {accepted}",)
    return replace(snapshot, unavailable_entries=unavailable, unavailable_sources=sources)


def baseline(snapshot: Snapshot, actions: Collection[Action], before: Snapshot | None = None) -> Snapshot:
    """Return the snapshot that the next snapshot is compared with.

    Glideins that are being removed are left out, because it is plausible that they disappear. If the queue of an entry
    is unavailable, the entry's glideins are copied from `before`.

    Args:
        actions: the actions of this cycle.
        before: the result of this function in the previous cycle; None in the first cycle.
    """
    gone = {job for action in actions if isinstance(action, Remove) for job in action.jobs}
    gone |= {glidein.job for glidein in snapshot.glideins if glidein.status == JobStatus.REMOVED}
    remaining = [each for each in snapshot.glideins if each.job not in gone]
    unseen = [each for each in before.glideins if each.entry in snapshot.unavailable_entries] if before else []
    return replace(snapshot, glideins=(*remaining, *unseen))
