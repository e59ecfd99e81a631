"""Why jobs wait, in words that say what to do: from the factory's own snapshot, and by its own plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from glide.config import SiteFile
from glide.factory import room as rooms
from glide.factory.plan import Action, plan
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot
from glide.vocabulary import JobStatus, State


@dataclass
class View:
    """A site whose factory has run from this GLIDE_HOME.

    Attributes:
        drained: entries closed by hand.
        running: whether its factory runs now.
        refused: what that could not do in its last cycle, and why, each as `ENTRY: cannot ACTION: WHY`.
    """

    site: SiteFile
    drained: frozenset[str] = frozenset()
    running: bool = True
    refused: tuple[str, ...] = ()
    _planned: tuple[Snapshot, list[Action]] | None = field(default=None, repr=False)

    def plan(self, snapshot: Snapshot) -> list[Action]:
        """What its factory does about a snapshot: worked out once, however many runs ask."""
        if self._planned is None or self._planned[0] is not snapshot:
            self._planned = snapshot, plan(snapshot, self.site, self.drained)
        return self._planned[1]


def why_idle(demand: Demand, snapshot: Snapshot, views: Sequence[View] = ()) -> str:
    """Why a run's idle jobs do not run; empty when none is idle."""
    if demand.idle == 0:
        return ""
    if snapshot.failed:
        return f"not all is seen: {snapshot.failed[0]}"
    name = demand.model or demand.template[:12]
    lanes = [lane for lane in snapshot.lanes if lane.template == demand.template]
    if warm := [lane for lane in lanes if lane.state == State.WARM]:
        return _although_warm(warm, name, demand, snapshot, views)
    if failed := next((lane for lane in lanes if lane.state == State.FAILED), None):
        where = next(
            (f" ({each.host})" for each in snapshot.glideins if each.glide_id == failed.glide_id and each.host), ""
        )
        does = _what_the_factory_does(demand, snapshot, views)
        return f"{name} could not be loaded on {failed.glide_id}{where}: {failed.failure}; {does}"
    glideins = [glidein for glidein in snapshot.glideins if glidein.template == demand.template]
    if held := next((glidein for glidein in glideins if glidein.status == JobStatus.HELD), None):
        return f"its glidein {held.job} is held: {held.hold_reason}"
    if glideins:
        return _while_coming(glideins, lanes)
    if not demand.spec:
        return (
            f"nobody serves {name}: no glidein holds it, and the job does not describe it (GlideTemplateSpec),"
            " so no factory can start one"
        )
    return f"no glidein for {name}: {_what_the_factory_does(demand, snapshot, views)}"


def phase(lane: Lane) -> str:
    """A lane's state, with how far it is."""
    return lane.state if lane.fetched is None else f"{lane.state} ({lane.fetched:.0%})"


def _although_warm(warm: Sequence[Lane], name: str, demand: Demand, snapshot: Snapshot, views: Sequence[View]) -> str:
    lasting = [lane for lane in warm if lane.retires > snapshot.now]
    entries = {entry.name: entry for view in views for entry in view.site.entries}
    serving = [
        lane
        for lane in lasting
        if lane.entry not in entries or demand.user in rooms.owners(entries[lane.entry], snapshot)
    ]
    more = _what_the_factory_does(demand, snapshot, views)
    if not lasting:
        return f"the glideins with {name} take no further job, as their life is over; {more}"
    if not serving:
        return f"{lasting[0].entry} has {name} and does not serve {demand.user} (its `owners`); {more}"
    busy = sum(lane.claimed for lane in serving)
    if busy < len(serving):
        return "warm lanes are there; the next match is due"
    return f"{busy} of {len(serving)} warm lanes are busy; {more}"


def _while_coming(glideins: Sequence[Glidein], lanes: Sequence[Lane]) -> str:
    waiting = [glidein for glidein in glideins if glidein.status == JobStatus.IDLE]
    if len(waiting) == len(glideins):
        first = max(waiting, key=lambda glidein: glidein.age)
        return (
            f"its {len(waiting)} glideins wait in the queue of {first.entry}, the first for {first.age:.0f} s:"
            f" no node is free, or none suits (condor_q -better-analyze {first.job})"
        )
    states = Counter(JobStatus.NAMES[glidein.status] for glidein in glideins)
    phases = Counter(map(phase, lanes))
    coming = ", ".join(f"{count} {name}" for name, count in (states + phases).items())
    return f"no lane is warm yet; its glideins: {coming}"


def _what_the_factory_does(demand: Demand, snapshot: Snapshot, views: Sequence[View]) -> str:
    """About more glideins for it, as the factories' plans have it."""
    if not views:
        return "no factory has run from this GLIDE_HOME (glide factory run -c SITE.yaml), or ask who runs the pool's"
    running = [view for view in views if view.running]
    if not running:
        return f"no factory runs: glide factory run, for site {' or '.join(view.site.site for view in views)}"
    actions = [action for view in running for action in view.plan(snapshot)]
    refused = [refusal for view in running for refusal in view.refused]
    mine = [action for action in actions if action.template == demand.template]
    said = [_sending(each, refused) for each in mine if each.action == "submit"]
    said += [each.reason for each in mine if each.action == "wait"]
    unseen = [each.reason for each in actions if each.action == "wait" and not each.template]
    glideins = f"{demand.wanted} glidein{'s' * (demand.wanted != 1)}"
    return "; ".join(said or unseen) or f"it wants no more than {glideins}, and no more than there is work for"


def _sending(action: Action, refused: Sequence[str]) -> str:
    """What becomes of a submission: that it is under way, or why the last one failed."""
    begins = f"{action.entry}: cannot submit: "
    why = next((refusal.removeprefix(begins) for refusal in refused if refusal.startswith(begins)), "")
    return (
        f"no glidein could be sent to {action.entry}: {why}"
        if why
        else f"the factory sends {action.count} to {action.entry}"
    )
