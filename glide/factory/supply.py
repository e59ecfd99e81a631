"""Share idle glideins and free places among the templates in demand.

A template first gets idle glideins, which load it sooner than a new glidein starts, and then new glideins. They are
given one by one, each to the template that has the fewest glideins by then. In any other order, a template with many
jobs could get all of them, and another template none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from glide.config import Entry, SiteFile
from glide.factory import headroom
from glide.factory.actions import Action, Retarget, Submit, Wait
from glide.factory.demand import work_seconds
from glide.factory.headroom import Headroom
from glide.factory.health import bad_nodes, nodes_with_files, nodes_without_success, unsuitable_nodes
from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.factory.suitability import is_idle
from glide.files import Tree
from glide.files.peers import short_digest
from glide.vocabulary import JobStatus

Ranked = Sequence[tuple[Entry, Headroom]]  # all entries with their headroom, the most useful entry first


@dataclass
class Room:
    """What a template may get on an entry, and what it gets.

    Attributes:
        of_entry: headroom of the entry, for all templates together.
        of_template: headroom of the template on this entry.
        idle: glideins that may load the template, the best one last.
        retargets: glideins that load it.
        submits: number of new glideins.
    """

    entry: Entry
    of_entry: Headroom
    of_template: Headroom
    idle: list[Glidein]
    retargets: list[Glidein] = field(default_factory=list)
    submits: int = 0

    def tightest(self, site: Headroom) -> Headroom:
        return min((self.of_template, self.of_entry, site), key=lambda each: each.left)


@dataclass
class Supply:
    """The glideins that a template gets in a cycle.

    Attributes:
        missing: number of glideins that the template still needs.
        glideins: number of glideins that have the template, including those that it gets.
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

    def take(self, site: Headroom, retargeted: set[str]) -> bool:
        """Take one more glidein. Return False if the template needs no more, or can get no more.

        Args:
            retargeted: GlideIds of all glideins that are retargeted in this cycle. The function adds one if it takes
                an idle glidein.
        """
        if self.missing <= 0 or not (self._take_idle(retargeted) or self._take_place(site)):
            return False
        self.missing -= 1
        self.glideins += 1
        return True

    def _take_idle(self, retargeted: set[str]) -> bool:
        for room in self.rooms:
            while room.idle and room.of_template.left > 0 and len(room.retargets) < room.entry.submits_per_cycle:
                glidein = room.idle.pop()
                if glidein.glide_id not in retargeted:
                    retargeted.add(glidein.glide_id)
                    room.retargets.append(glidein)
                    room.of_template.left -= 1
                    return True
        return False

    def _take_place(self, site: Headroom) -> bool:
        for room in self.rooms:
            if room.tightest(site).left > 0:
                for each in (room.of_template, room.of_entry, site):
                    each.left -= 1
                room.submits += 1
                return True
        return False

    def actions(self, site: Headroom, snapshot: Snapshot) -> list[Action]:
        """Return the actions for what the template gets. If it needs glideins and gets none, return a Wait."""
        actions: list[Action] = [self._retarget(room, snapshot) for room in self.rooms if room.retargets]
        actions += [self._submit(room, snapshot) for room in self.rooms if room.submits]
        if not actions:
            reason = "no entry has room: " + "; ".join(
                f"{room.entry.name}: {room.tightest(site).limit}" for room in self.rooms
            )
            full = any(room.tightest(site).full for room in self.rooms)
            actions.append(Wait(self.rooms[0].entry.name, self.template, self.missing, reason, full=full))
        return actions

    def waits_for(self, entry: str, site: Headroom) -> bool:
        """Return whether idle glideins should end on an entry, because this template gets nothing and needs a place."""
        if self.best_effort or any(room.retargets or room.submits for room in self.rooms):
            return False
        return any(room.entry.name == entry and room.tightest(site).full for room in self.rooms)

    def _retarget(self, room: Room, snapshot: Snapshot) -> Retarget:
        ids = [each.glide_id for each in room.retargets]
        slots = tuple(lane.name for each in ids for lane in snapshot.lanes_of[each])
        reason = f"{self.why}; idle glideins load it: {', '.join(ids)}"
        return Retarget(room.entry.name, self.template, len(ids), reason, slots)

    def _submit(self, room: Room, snapshot: Snapshot) -> Submit:
        groups = snapshot.glideins_of(room.entry.name)
        described = snapshot.description(self.template)
        avoid = tuple(sorted({*bad_nodes(*groups), *unsuitable_nodes(self.template, *groups)}))
        prefer = nodes_with_files(self.template, *groups) if described and described.files else ()
        last_resort = tuple(node for node in nodes_without_success(self.template, *groups) if node not in avoid)
        reason = self.why + (f"; not on {', '.join(avoid)}, where glideins fail" if avoid else "")
        reason += f"; rather not on {', '.join(last_resort)}, where it did not load" if last_resort else ""
        reason += f"; {room.of_template.risk}" if room.submits > room.of_template.usual else ""
        return Submit(room.entry.name, self.template, room.submits, reason, avoid, prefer, last_resort)


def share(supplies: Collection[Supply], site: Headroom) -> set[str]:
    """Give the templates idle glideins and places, until they need no more, or can get no more.

    Each goes to the template that has the fewest glideins by then. If several have equally few, it is the first one.

    Returns:
        the GlideIds of the idle glideins that are retargeted.
    """
    retargeted: set[str] = set()
    taking = list(supplies)
    while taking:
        fewest = min(taking, key=lambda each: each.glideins)
        if not fewest.take(site, retargeted):
            taking.remove(fewest)
    return retargeted


def supply_of(template: str, missing: int, snapshot: Snapshot, site: SiteFile, ranked: Ranked) -> Supply | Wait:
    """Return what a template may get in this cycle. If no glidein can ever be started for it, return why."""
    first = ranked[0][0].name
    demands = [demand for demand in snapshot.demands if demand.template == template]
    users = {demand.user for demand in demands}
    if not any(users & set(headroom.owners(entry, snapshot)) for entry, _ in ranked):
        return Wait(first, template, missing, f"no entry serves {', '.join(sorted(users))}")
    if not any(demand.spec for demand in demands):
        reason = "no glidein can be started: its jobs do not describe the template (GlideTemplateSpec)"
        return Wait(first, template, missing, reason)
    why = f"{sum(demand.jobs for demand in demands)} jobs of {demands[0].model} want {missing} more glideins"
    work = work_seconds(template, snapshot)
    why += f" for {work:.0f} s of work" if 0 < work < float("inf") else ""
    rooms = [
        Room(
            entry, of_entry, headroom.of_template(entry, template, snapshot, site.max_glideins),
            _idle_glideins(entry, template, snapshot),
        )
        for entry, of_entry in ranked
    ]  # fmt: skip
    glideins = sum(template in snapshot.templates_of(each) for each in snapshot.glideins)
    best_effort = all(demand.best_effort for demand in demands)
    return Supply(template, missing, glideins, why, best_effort, rooms)


def _idle_glideins(entry: Entry, template: str, snapshot: Snapshot) -> list[Glidein]:
    """Return the entry's idle glideins that may load a template, the best one last.

    Do not use a glidein if jobs want a template that it has. If all demand for the new template is best effort, use
    only blank glideins, so that no glidein unloads its model.
    """
    if entry.name in snapshot.unavailable_entries:
        return []
    if any(each.template == template and each.hold_reason for each in snapshot.retargets):
        return []  # a sticky job has failed: submit new glideins, whose logs show why the template fails
    wanted = {demand.template for demand in snapshot.demands}
    best_effort = all(demand.best_effort for demand in snapshot.demands if demand.template == template)
    described = snapshot.description(template)
    trees = [Tree.of(file_set) for file_set in described.file_sets] if described else []
    sizes = {short_digest(tree.digest): tree.size for tree in trees}
    lanes = snapshot.lanes_of
    running = [each for each in snapshot.glideins_of(entry.name)[0] if each.status == JobStatus.RUNNING]
    unwanted = [each for each in running if not snapshot.templates_of(each) & wanted]
    unwanted = [each for each in unwanted if not best_effort or snapshot.templates_of(each) == {""}]
    idle = [each for each in unwanted if is_idle(lanes.get(each.glide_id, []), snapshot.now, described)]
    return sorted(idle, key=lambda each: retarget_rank(lanes[each.glide_id][0], template, sizes))[::-1]


def retarget_rank(lane: Lane, template: str, sizes: Mapping[str, int]) -> tuple[bool, int, float]:
    """Return the sort key of a glidein that could load a template. `lane` is any lane of the glidein.

    Glideins that can wake the template up come first. Next come those on hosts with more bytes of the template's files.
    If hosts have equally many bytes, the glidein that retires later comes first.
    """
    return template not in lane.asleep, -sum(sizes.get(tree, 0) for tree in lane.cached), -lane.retires
