"""Explain why jobs wait, and what a user or an admin can do. An explanation also tells what factories plan to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from glide.config import SiteFile
from glide.factory import headroom
from glide.factory.actions import Action, Retarget, Submit, Wait
from glide.factory.plan import plan
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot
from glide.vocabulary import JobStatus, State


@dataclass
class QueueView:
    """A site, with the state of its factory.

    Attributes:
        drained: names of entries that an admin has closed.
        running: whether the site's factory runs now.
        refused: actions that failed in the factory's last cycle, each as a text `ENTRY: cannot ACTION: WHY`.
    """

    site: SiteFile
    drained: frozenset[str] = frozenset()
    running: bool = True
    refused: tuple[str, ...] = ()
    _planned: tuple[Snapshot, list[Action]] | None = field(default=None, repr=False)

    def plan(self, snapshot: Snapshot) -> list[Action]:
        """Return the actions that the factory plans for a snapshot. The result is cached until the next snapshot."""
        if self._planned is None or self._planned[0] is not snapshot:
            self._planned = snapshot, plan(snapshot, self.site, self.drained)
        return self._planned[1]


def why_idle(demand: Demand, snapshot: Snapshot, views: Sequence[QueueView] = ()) -> str:
    """Return why the idle jobs of a run do not start. The text is empty if no job is idle."""
    if demand.idle == 0:
        return ""
    if snapshot.unavailable_sources:
        return f"the pool cannot be read completely: {snapshot.unavailable_sources[0]}"
    name = demand.model or demand.template[:12]
    lanes = [lane for lane in snapshot.lanes if lane.template == demand.template]
    if warm := [lane for lane in lanes if lane.state == State.WARM]:
        return _despite_warm_lanes(warm, name, demand, snapshot, views)
    if failed := next((lane for lane in lanes if lane.state == State.FAILED), None):
        where = next(
            (f" ({each.host})" for each in snapshot.glideins if each.glide_id == failed.glide_id and each.host), ""
        )
        does = _factory_plans(demand, snapshot, views)
        return f"{name} could not be loaded on {failed.glide_id}{where}: {failed.failure}; {does}"
    glideins = [glidein for glidein in snapshot.glideins if glidein.template == demand.template]
    if held := next((glidein for glidein in glideins if glidein.status == JobStatus.HELD), None):
        return f"its glidein {held.job} is held: {held.hold_reason}"
    if glideins:
        return _while_starting(glideins, lanes)
    if not demand.spec:
        return f"no glidein has {name}, and no factory can start one: the job does not describe it (GlideTemplateSpec)"
    return f"no glidein for {name}: {_factory_plans(demand, snapshot, views)}"


def phase(lane: Lane) -> str:
    """Return a lane's state as text. While the lane fetches files, the text has the percentage of fetched bytes."""
    return lane.state if lane.fetched is None else f"{lane.state} ({lane.fetched:.0%})"


def _despite_warm_lanes(
    warm: Sequence[Lane], name: str, demand: Demand, snapshot: Snapshot, views: Sequence[QueueView]
) -> str:
    accepting = [lane for lane in warm if lane.retires > snapshot.now]
    entries = {entry.name: entry for view in views for entry in view.site.entries}
    serving = [
        lane
        for lane in accepting
        if lane.entry not in entries or demand.user in headroom.owners(entries[lane.entry], snapshot)
    ]
    more = _factory_plans(demand, snapshot, views)
    if not accepting:
        return f"the glideins with {name} accept no more jobs, because their lifetime is over; {more}"
    if not serving:
        return f"{accepting[0].entry} has {name} and does not serve {demand.user} (its `owners`); {more}"
    busy = sum(lane.claimed for lane in serving)
    if busy < len(serving):
        return "warm lanes are free; HTCondor has not matched the jobs yet"
    return f"{busy} of {len(serving)} warm lanes are busy; {more}"


def _while_starting(glideins: Sequence[Glidein], lanes: Sequence[Lane]) -> str:
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


def _factory_plans(demand: Demand, snapshot: Snapshot, views: Sequence[QueueView]) -> str:
    """Describe the glideins that the factories plan to submit for a demand. If they plan no glidein, explain why."""
    if not views:
        return (
            "no factory has run with this GLIDE_HOME: start one (glide factory run -c SITE.yaml), or ask the admin of"
            " the pool's factory"
        )
    running = [view for view in views if view.running]
    if not running:
        sites = " or ".join(view.site.site for view in views)
        return f"no factory runs: start one for site {sites} (glide factory run)"
    actions = [action for view in running for action in view.plan(snapshot)]
    refused = [refusal for view in running for refusal in view.refused]
    mine = [action for action in actions if action.template == demand.template]
    reasons = [_submission(each, refused) for each in mine if isinstance(each, Submit | Retarget)]
    reasons += [each.reason for each in mine if isinstance(each, Wait)]
    unseen = [each.reason for each in actions if isinstance(each, Wait) and not each.template]
    glideins = f"{demand.wanted} glidein{'s' * (demand.wanted != 1)}"
    return "; ".join(reasons or unseen) or f"the run wants at most {glideins}, and not more than it has work for"


def _submission(action: Action, refused: Sequence[str]) -> str:
    """Describe a planned submission to an entry. If the last submission to this entry failed, explain why."""
    begins = f"{action.entry}: cannot submit: "
    why = next((refusal.removeprefix(begins) for refusal in refused if refusal.startswith(begins)), "")
    return (
        f"no glidein could be sent to {action.entry}: {why}"
        if why
        else f"the factory submits {action.count} to {action.entry}"
    )
