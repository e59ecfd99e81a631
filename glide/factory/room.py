"""How many more glideins an entry may get now, for which templates, and what sets the limit, in words."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass

from glide.config import Entry, SiteFile
from glide.factory.health import Verdict, judge
from glide.factory.snapshot import Glidein, Snapshot
from glide.vocabulary import JobStatus, State

USEFUL_SECONDS = 600.0  # a glidein that was warm for so long has been worth its start


@dataclass
class Room:
    """How many more glideins may be submitted, and what sets the limit; `full` where it is what is there already."""

    left: int
    limit: str
    full: bool = True

    def narrow(self, left: int, limit: str, full: bool = False) -> None:
        if left < self.left:
            self.left, self.limit, self.full = max(0, left), limit, full


def of_site(site: SiteFile, snapshot: Snapshot) -> Room:
    """The room of all its entries together."""
    there = 0
    for entry in site.entries:  # one that is not seen may have all that it may have
        least = entry.max_glideins if entry.name in snapshot.blind else 0
        there += max(least, len(snapshot.of(entry.name)[0]))
    if site.max_glideins is None:
        return Room(sys.maxsize, "")
    return Room(max(0, site.max_glideins - there), f"the site's limit of {site.max_glideins} glideins")


def of_entry(entry: Entry, snapshot: Snapshot, drained: Collection[str] = ()) -> Room:
    """The entry's room in this cycle: no limit of its file is ever exceeded, whatever state its glideins are in."""
    mine, _ = snapshot.of(entry.name)
    idle = sum(glidein.status == JobStatus.IDLE for glidein in mine)
    found = Room(max(0, entry.max_glideins - len(mine)), f"its limit of {entry.max_glideins} glideins")
    found.narrow(entry.max_idle - idle, f"its limit of {entry.max_idle} idle glideins", full=True)
    found.narrow(entry.submits_per_cycle, f"its limit of {entry.submits_per_cycle} submissions a cycle", full=True)
    for downtime in entry.downtimes:
        if downtime.contains(snapshot.now):
            found.narrow(0, f"down until {downtime.end:%Y-%m-%d %H:%M}: {downtime.reason}")
    if entry.name in drained:
        found.narrow(0, "closed by `glide factory drain`; `glide factory drain --undo` opens it")
    # By those that were warm or said nothing at all: what a server says that failed, it says of its template.
    alive, ended = ([each for each in kind if each.state != State.FAILED] for kind in snapshot.of(entry.name))
    _narrow(found, judge(alive, ended, entry.breaker))
    if entry.name in snapshot.blind:
        found.narrow(-1, f"no view: {snapshot.blind[entry.name]}")
    return found


def of_template(entry: Entry, template: str, snapshot: Snapshot) -> Room:
    """The room that a template has there, by what became of its glideins, who wants it, and how large it is."""
    found = Room(sys.maxsize, "")
    users = {demand.user for demand in snapshot.demands if demand.template == template}
    if not users & set(owners(entry, snapshot)):
        found.narrow(0, f"it does not serve {', '.join(sorted(users))}")
    described, most = snapshot.template(template), entry.request.model_memory
    if entry.service and described and (described.model != entry.service.serves or described.owner):
        found.narrow(0, f"it serves {entry.service.serves} alone")
    elif described and not entry.service and most is not None and described.megabytes > most:
        found.narrow(0, f"{described.model} needs {described.megabytes:.0f} MB, and its glideins have {most} MB")
    if described and described.has_code and len(owners(entry, snapshot)) > 1 and not entry.users_code:
        found.narrow(0, f"{described.model} brings a user's code, and it serves several owners without users_code")
    alive, ended = ([each for each in kind if each.template == template] for kind in snapshot.of(entry.name))
    _narrow(found, judge(alive, ended, entry.breaker))
    return found


def owners(entry: Entry, snapshot: Snapshot) -> tuple[str, ...]:
    """Whose jobs the entry's lanes serve."""
    return entry.owners or (snapshot.user,)


def _narrow(room: Room, verdict: Verdict) -> None:
    if verdict.room is not None:
        room.narrow(verdict.room, verdict.reason)


def usefulness(entry: Entry, snapshot: Snapshot) -> float:
    """What a glidein submitted there is worth, from 0 to 1: warm for USEFUL_SECONDS, or still warm, is 1.

    Never warm is 0, evicted early is little; one half where nothing is known.
    """
    alive, ended = snapshot.of(entry.name)
    known = [worth(glidein) for glidein in (*alive, *ended) if glidein.state or glidein in ended]
    return (sum(known) + 1) / (len(known) + 2)


def worth(glidein: Glidein) -> float:
    """What became of one glidein, from 0 to 1."""
    if glidein.state != State.WARM:
        return 0.0
    over = glidein.status in (JobStatus.COMPLETED, JobStatus.IDLE)  # ended, or evicted and queued again
    return min(1.0, glidein.warm_seconds / USEFUL_SECONDS) if over else 1.0
