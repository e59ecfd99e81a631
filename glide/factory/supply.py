"""Share idle glideins and places among the templates in demand.

A template first gets idle glideins, which load it sooner than a new glidein starts, and then new glideins on free
places. If it can get neither, an idle glidein that it cannot load ends for it, so that a place becomes free. All of
these are given one by one, each to the template that has the fewest glideins by then. In any other order, a template
with many jobs could get all of them, and another template none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from glide.config import Entry, SiteFile
from glide.factory import headroom
from glide.factory.actions import Action, Retarget, Submit, Wait
from glide.factory.demand import missing_glideins, useful_glideins, work_seconds
from glide.factory.headroom import Headroom
from glide.factory.health import bad_nodes, nodes_with_files, nodes_without_success, unsuitable_nodes
from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.factory.suitability import is_idle
from glide.files import Tree
from glide.files.peers import short_digest
from glide.vocabulary import JobStatus


@dataclass
class Offer:
    """What an entry has for all templates together.

    Attributes:
        headroom: how many new glideins the entry may get.
        coming: number of places that become free soon, because glideins are being removed.
        removable: idle glideins that may end to make room, the one that should end first is the last one.
        removals: maximum number of glideins that may end to make room.
        removed: glideins that end to make room.
    """

    entry: Entry
    headroom: Headroom
    coming: int = 0
    removable: list[Glidein] = field(default_factory=list)
    removals: int = 0
    removed: list[Glidein] = field(default_factory=list)


@dataclass
class Room:
    """What a template may get on an entry, and what it gets.

    Attributes:
        of_template: headroom of the template on this entry.
        submit: the action that submits new glideins; its `count` is their number.
        idle: glideins that may load the template, the best one last.
        retargets: glideins that load it.
    """

    offer: Offer
    of_template: Headroom
    submit: Submit
    idle: list[Glidein]
    retargets: list[Glidein] = field(default_factory=list)

    def tightest(self, site: Headroom) -> Headroom:
        """Return the limit that allows the fewest new glideins now."""
        return min((self.of_template, self.offer.headroom, site), key=lambda each: each.left)


@dataclass
class Supply:
    """The glideins that a template gets in a cycle.

    Attributes:
        missing: number of glideins that the template still needs.
        glideins: number of useful glideins that have the template, including those that it gets.
        promised: number of places that become free soon and that the template may then get.
        why: who needs how many glideins, for the reasons of the actions.
        best_effort: whether all demand for the template is best effort.
        rooms: the most useful entry first.
    """

    template: str
    missing: int
    glideins: int
    why: str
    best_effort: bool
    rooms: list[Room]
    promised: int = 0

    def take(self, site: Headroom, used: set[str]) -> bool:
        """Take one more glidein. Return False if the template needs no more, or can get no more.

        Args:
            used: GlideIds of all idle glideins that load a template or end in this cycle. The function adds to them.
        """
        if self.missing <= 0:
            return False
        if not (self._take_idle(used) or self._take_place(site)):
            if self.best_effort or not self._take_promise(site, used):
                return False
            self.promised += 1
        self.missing -= 1
        self.glideins += 1
        return True

    def _take_idle(self, used: set[str]) -> bool:
        for room in self.rooms:
            most = min(room.offer.entry.submits_per_cycle, room.of_template.left)
            while room.idle and len(room.retargets) < most:
                glidein = room.idle.pop()
                if glidein.glide_id not in used:
                    used.add(glidein.glide_id)
                    room.retargets.append(glidein)
                    return True
        return False

    def _take_place(self, site: Headroom) -> bool:
        for room in self.rooms:
            if room.tightest(site).left > 0:
                for each in (room.of_template, room.offer.headroom, site):
                    each.left -= 1
                room.submit = replace(room.submit, count=room.submit.count + 1)
                return True
        return False

    def _take_promise(self, site: Headroom, used: set[str]) -> bool:
        """Take a place that becomes free soon. If there is none, let an idle glidein end that cannot load the model."""
        for room in self.rooms:
            offer = room.offer
            if not room.tightest(site).full:
                continue
            if offer.coming > 0:
                offer.coming -= 1
                return True
            loadable = {each.glide_id for each in room.idle}
            free = [each for each in offer.removable if each.glide_id not in used | loadable]
            if free and len(offer.removed) < offer.removals:
                used.add(free[-1].glide_id)
                offer.removed.append(free[-1])
                return True
        return False

    def actions(self, site: Headroom, snapshot: Snapshot) -> list[Action]:
        """Return the actions for what the template gets. If it gets neither old nor new glideins, return a Wait."""
        actions: list[Action] = []
        for room in self.rooms:
            if room.retargets:
                ids = [each.glide_id for each in room.retargets]
                slots = tuple(lane.name for each in ids for lane in snapshot.lanes_of[each])
                reason = f"{self.why}; idle glideins load it: {', '.join(ids)}"
                actions.append(Retarget(room.offer.entry.name, self.template, len(ids), reason, slots))
        for room in self.rooms:
            if room.submit.count:
                risk = f"; {room.of_template.risk}" if room.submit.count > room.of_template.usual else ""
                actions.append(replace(room.submit, reason=room.submit.reason + risk))
        if actions:
            return actions
        limits = [(room.offer.entry.name, room.tightest(site)) for room in self.rooms]
        reason = "no entry has room: " + "; ".join(f"{entry}: {tightest.limit}" for entry, tightest in limits)
        full = any(tightest.full for _, tightest in limits)
        return [Wait(limits[0][0], self.template, self.missing + self.promised, reason, full=full)]


def share(supplies: Collection[Supply], site: Headroom) -> None:
    """Give the templates idle glideins and places, until they need no more, or can get no more.

    Each goes to the template that has the fewest glideins by then. If several have equally few, it is the first one.
    Templates whose demand is best effort come last.
    """
    used: set[str] = set()
    taking = list(supplies)
    while taking:
        fewest = min(taking, key=lambda each: (each.best_effort, each.glideins))
        if not fewest.take(site, used):
            taking.remove(fewest)


def supply_of(
    template: str, snapshot: Snapshot, site: SiteFile, offers: Sequence[Offer], owners: Collection[str]
) -> Supply | Wait | None:
    """Return what a template may get in this cycle. If it can never get a glidein, return why; None if it needs none.

    Args:
        offers: what the entries have, the most useful entry first.
        owners: users that the site serves.
    """
    missing = missing_glideins(template, snapshot, owners)
    if missing <= 0:
        return None
    first = offers[0].entry.name
    demands = [demand for demand in snapshot.demands if demand.template == template]
    users = {demand.user for demand in demands}
    if not users & set(owners):
        return Wait(first, template, missing, f"no entry serves {', '.join(sorted(users))}")
    if not any(demand.spec for demand in demands):
        reason = "no glidein can be started: its jobs do not describe the template (GlideTemplateSpec)"
        return Wait(first, template, missing, reason)
    why = f"{sum(demand.jobs for demand in demands)} jobs of {demands[0].model} want {missing} more glideins"
    work = work_seconds(template, snapshot)
    why += f" for {work:.0f} s of work" if 0 < work < float("inf") else ""
    rooms = [
        Room(
            offer, headroom.of_template(offer.entry, template, snapshot, site.max_glideins),
            _submit(offer.entry, template, why, snapshot), _idle_glideins(offer.entry, template, snapshot),
        )
        for offer in offers
    ]  # fmt: skip
    best_effort = all(demand.best_effort for demand in demands)
    return Supply(template, missing, len(useful_glideins(template, snapshot)), why, best_effort, rooms)


def _submit(entry: Entry, template: str, why: str, snapshot: Snapshot) -> Submit:
    """Return the action that submits glideins with a template, with the number 0."""
    groups = snapshot.glideins_of(entry.name)
    described = snapshot.description(template)
    avoid = tuple(sorted({*bad_nodes(*groups), *unsuitable_nodes(template, *groups)}))
    prefer = nodes_with_files(template, *groups) if described and described.files else ()
    last_resort = tuple(node for node in nodes_without_success(template, *groups) if node not in avoid)
    why += f"; not on {', '.join(avoid)}, where glideins fail" if avoid else ""
    why += f"; rather not on {', '.join(last_resort)}, where it did not load" if last_resort else ""
    return Submit(entry.name, template, 0, why, avoid, prefer, last_resort)


def _idle_glideins(entry: Entry, template: str, snapshot: Snapshot) -> list[Glidein]:
    """Return the entry's idle glideins that may load a template, the best one last.

    Do not use a glidein if jobs want a template that it has, or if its records fail. If all demand for the new template
    is best effort, use only blank glideins, so that no glidein unloads its model.
    """
    if entry.name in snapshot.unavailable_entries:
        return []
    if any(each.template == template and each.hold_reason for each in snapshot.retargets):
        return []  # a sticky job has failed: submit new glideins, whose logs show why the template fails
    best_effort = all(demand.best_effort for demand in snapshot.demands if demand.template == template)
    described = snapshot.description(template)
    lanes = snapshot.lanes_of
    running = [each for each in snapshot.glideins_of(entry.name)[0] if each.status == JobStatus.RUNNING]
    unwanted = [each for each in running if not snapshot.templates_of(each) & snapshot.wanted and not each.is_failing]
    unwanted = [each for each in unwanted if not best_effort or snapshot.templates_of(each) == {""}]
    idle = [each for each in unwanted if is_idle(lanes.get(each.glide_id, []), snapshot.now, described)]
    trees = [Tree.of(file_set) for file_set in described.file_sets] if described and idle else []
    sizes = {short_digest(tree.digest): tree.size for tree in trees}
    return sorted(idle, key=lambda each: retarget_rank(lanes[each.glide_id][0], template, sizes))[::-1]


def retarget_rank(lane: Lane, template: str, sizes: Mapping[str, int]) -> tuple[bool, int, float]:
    """Return the sort key of a glidein that could load a template. `lane` is any lane of the glidein.

    Glideins that can wake the template up come first. Next come those on hosts with more bytes of the template's files.
    If hosts have equally many bytes, the glidein that retires later comes first.
    """
    return template not in lane.asleep, -sum(sizes.get(tree, 0) for tree in lane.cached), -lane.retires
