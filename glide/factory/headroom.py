"""Compute how many more glideins a site, an entry or a template may get now, and which limit determines this number."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, replace

from glide.config import Entry, SiteFile
from glide.factory.health import BreakerState, breaker_state
from glide.factory.snapshot import Glidein, Snapshot
from glide.factory.suitability import lack
from glide.factory.trials import trial_limit
from glide.vocabulary import JobStatus, State

# If a glidein was warm for at least this number of seconds, the glidein was worth the cost of its start.
USEFUL_SECONDS = 600.0


@dataclass
class Headroom:
    """How many more glideins a site, an entry or a template may get, and which limit determines this number.

    Attributes:
        left: number of glideins that may still be submitted.
        limit: text that names the limit; empty if there is no limit.
        full: whether the limit is reached because of existing glideins. If so, more glideins are allowed as soon as
            existing glideins end.
        usual: number of glideins that could be submitted if the number of glideins on trial had its usual limit, which
            is `failures` of the circuit breaker.
        risk: text that says why more than this number may be submitted, and how many may fail; empty if not more.
    """

    left: int
    limit: str
    full: bool = True
    usual: int = sys.maxsize
    risk: str = ""

    def limit_to(self, left: int, limit: str, full: bool = False) -> None:
        """Apply one more limit. Only the lowest of all limits has an effect.

        Args:
            left: number of glideins that this limit still allows.
            limit: text that names this limit.
            full: True if this limit is reached because of existing glideins. False if there is a different cause, such
                as an open circuit breaker.
        """
        if left < self.left:
            self.left, self.limit, self.full = max(0, left), limit, full


def of_site(site: SiteFile, snapshot: Snapshot) -> Headroom:
    """Return how many more glideins the site's limit allows for all entries together."""
    existing = 0
    for entry in site.entries:  # if the queue of an entry is unavailable, assume that the entry is full
        at_least = entry.max_glideins if entry.name in snapshot.unavailable_entries else 0
        existing += max(at_least, len(snapshot.glideins_of(entry.name)[0]))
    if site.max_glideins is None:
        return Headroom(sys.maxsize, "")
    return Headroom(max(0, site.max_glideins - existing), f"the site's limit of {site.max_glideins} glideins")


def of_entry(entry: Entry, snapshot: Snapshot, drained: Collection[str] = ()) -> Headroom:
    """Return the headroom of an entry in this cycle. Each glidein of the entry counts, in any state.

    Args:
        drained: entries that an admin has closed.
    """
    mine, _ = snapshot.glideins_of(entry.name)
    idle = sum(glidein.status == JobStatus.IDLE for glidein in mine)
    headroom = Headroom(max(0, entry.max_glideins - len(mine)), f"its limit of {entry.max_glideins} glideins")
    headroom.limit_to(entry.max_idle - idle, f"its limit of {entry.max_idle} idle glideins", full=True)
    headroom.limit_to(entry.submits_per_cycle, f"its limit of {entry.submits_per_cycle} submissions per cycle")
    for downtime in entry.downtimes:
        if downtime.contains(snapshot.now):
            headroom.limit_to(0, f"down until {downtime.end:%Y-%m-%d %H:%M}: {downtime.reason}")
    if entry.name in drained:
        headroom.limit_to(0, "closed by `glide factory drain`; `glide factory drain --undo` opens it")
    # If the state of a glidein is Failed, the template is the cause and not the entry. So the entry's circuit breaker
    # ignores Failed glideins.
    groups = snapshot.glideins_of(entry.name)
    alive, ended = ([each for each in group if each.state != State.FAILED] for group in groups)
    _apply_breaker(headroom, breaker_state(alive, ended, entry.breaker))
    if entry.name in snapshot.unavailable_entries:
        # The text of this limit must replace the text of any earlier limit. `limit_to` replaces the text only if the
        # new limit is below `headroom.left`. Here, `headroom.left` may already be 0. So the new limit is -1. `limit_to`
        # stores 0 in place of -1.
        headroom.limit_to(-1, f"cannot observe its queue: {snapshot.unavailable_entries[entry.name]}")
    return headroom


def of_template(entry: Entry, template: str, snapshot: Snapshot, site_limit: int | None = None) -> Headroom:
    """Return the headroom of a template on an entry.

    The headroom is 0 if the entry does not serve the template's users, if the entry's glideins lack a resource that the
    template needs, or if the entry does not allow the template's code. A circuit breaker for the template on this entry
    also limits the headroom. Until the template was warm on this entry, the breaker allows `breaker.failures` glideins
    at the same time, or more if `glide.factory.trials.trial_limit` allows more.

    Args:
        site_limit: maximum number of glideins of the site; None for no limit.
    """
    headroom = Headroom(sys.maxsize, "")
    users = {demand.user for demand in snapshot.demands if demand.template == template}
    if not users & set(owners(entry, snapshot)):
        headroom.limit_to(0, f"it does not serve {', '.join(sorted(users))}")
    described = snapshot.description(template)
    if entry.service and described and (described.model != entry.service.serves or described.owner):
        headroom.limit_to(0, f"it serves only {entry.service.serves}")
    elif entry.service and described and described.adapters:
        headroom.limit_to(0, "its service gets no adapters")
    elif described and not entry.service and (missing := lack(described, entry)):
        headroom.limit_to(0, missing)
    code = described.code(entry.programs) if described else ""
    if described and code and len(owners(entry, snapshot)) > 1 and not (entry.users_code and described.owner):
        reason = f"{described.model} contains a user's code ({code}), and the entry serves several owners"
        cures = ["users_code"] * bool(described.owner) + ["programs"] * (described.engine == "server")
        headroom.limit_to(0, f"{reason}; to allow that, set the entry's {' or '.join(cures)}")
    alive, ended = ([each for each in group if each.template == template] for group in snapshot.glideins_of(entry.name))
    alive += _retargeted_and_warm(entry, template, snapshot)
    breaker = breaker_state(alive, ended, entry.breaker)
    if breaker.allowed is not None and not breaker.open:
        trials = trial_limit(entry, template, snapshot, site_limit)
        if trials.reason:
            headroom.usual, headroom.risk = breaker.allowed, trials.reason
            breaker = breaker_state(alive, ended, entry.breaker, trials.most)
    _apply_breaker(headroom, breaker)
    return headroom


def _retargeted_and_warm(entry: Entry, template: str, snapshot: Snapshot) -> list[Glidein]:
    """Return the entry's glideins that were submitted with another template, or with none, and are warm with this one.

    These glideins show that the template can be loaded on this entry.
    """
    warm = {lane.glide_id for lane in snapshot.lanes if lane.template == template and lane.state == State.WARM}
    others = (each for each in snapshot.glideins_of(entry.name)[0] if each.template != template)
    return [replace(each, state=State.WARM) for each in others if each.glide_id in warm]


def owners(entry: Entry, snapshot: Snapshot) -> tuple[str, ...]:
    """Return the Users whose jobs the entry's lanes serve."""
    return entry.owners or (snapshot.user,)


def _apply_breaker(headroom: Headroom, breaker: BreakerState) -> None:
    if breaker.allowed is not None:
        headroom.limit_to(breaker.allowed, breaker.reason)


def usefulness(entry: Entry, snapshot: Snapshot) -> float:
    """Estimate how useful the next glidein on an entry will be, from 0 to 1.

    Two kinds of glideins count: glideins that have reported a state, and glideins that have ended. Each of these
    glideins has a score (see `score`). Two additional scores count: 0 and 1. The estimate is the average of all scores.
    With few glideins, the two additional scores keep the estimate close to 0.5. If no glidein counts, the estimate is
    0.5.
    """
    alive, ended = snapshot.glideins_of(entry.name)
    scores = [score(glidein) for glidein in (*alive, *ended) if glidein.state or glidein in ended]
    return (sum(scores) + 1) / (len(scores) + 2)


def score(glidein: Glidein) -> float:
    """Return how useful one glidein was, from 0 to 1.

    A glidein whose last state is not Warm has the score 0. A glidein that is still warm has the score 1. If a warm
    glidein was evicted or has ended, the score is its warm time divided by USEFUL_SECONDS, but at most 1.
    """
    if glidein.state != State.WARM:
        return 0.0
    # If the outer job of a warm glidein is idle, the glidein was evicted, and the outer job waits in the queue again.
    is_over = glidein.status in (JobStatus.COMPLETED, JobStatus.IDLE)
    return min(1.0, glidein.warm_seconds / USEFUL_SECONDS) if is_over else 1.0
