"""The factory in simulation: the real plan, on a snapshot of what is simulated."""

from __future__ import annotations

from typing import Any

from glide.factory.apply import KEEP_SECONDS
from glide.factory.plan import plan
from glide.factory.snapshot import Snapshot
from glide.simulate.cluster import Cluster
from glide.simulate.sweep import SimulatedSweep
from glide.simulate.world import USER, Steps, World

# The plan is a function of what is seen; while nothing changes but ages, it is asked so seldom.
CALM_SECONDS = 30.0


class SimulatedFactory:
    """Looks, plans and acts in every cycle in which there may be something new.

    Which nodes a glidein avoids or prefers is not simulated.
    """

    def __init__(self, world: World, cluster: Cluster, sweep: SimulatedSweep):
        self.world = world
        self.cluster = cluster
        self.sweep = sweep
        self.waited = ""  # why it did nothing, when it last did nothing

    def run(self) -> Steps:
        """Cycle by cycle, for ever."""
        seen: Any = None
        looked = 0.0
        while True:
            sight = self.world.changed, self.sweep.pressing
            if sight != seen or self.world.now - looked >= CALM_SECONDS:
                seen, looked = sight, self.world.now
                self._cycle()
            yield self.world.env.timeout(self.world.site.interval)

    def _cycle(self) -> None:
        for action in plan(self.snapshot(), self.world.site):
            assert not (action.action == "submit" and action.ids), "there is one template, which all have"
            if action.action == "submit":
                self.cluster.submit(action.entry, action.count)
            elif action.action == "remove":
                self.cluster.remove(action.ids)
            elif action.action == "wait":
                self.waited = action.reason

    def snapshot(self) -> Snapshot:
        """One look at everything."""
        glideins = self.cluster.glideins.values()
        self.cluster.ended = [each for each in self.cluster.ended if self.world.now - each.since < KEEP_SECONDS]
        return Snapshot(
            tuple(each.seen() for each in glideins), tuple(lane for each in glideins for lane in each.lanes()),
            self.sweep.demand(), ended=tuple(each.seen() for each in self.cluster.ended),
            now=self.world.epoch + self.world.now, user=USER,
        )  # fmt: skip
