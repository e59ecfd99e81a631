"""The simulated factory. It passes snapshots of the simulation to the real function `plan`."""

from __future__ import annotations

from typing import Any

from glide.factory.actions import Remove, Retarget, Submit, Wait
from glide.factory.plan import plan
from glide.factory.snapshot import Snapshot
from glide.factory.submit import KEEP_ENDED_SECONDS
from glide.simulate.cluster import Cluster
from glide.simulate.sweep import SimulatedSweep
from glide.simulate.world import USER, Steps, World

# Seconds between two plans when nothing happens in the simulation except that time passes.
CALM_SECONDS = 30.0


class SimulatedFactory:
    """A simulated factory. In each cycle, the factory takes a snapshot, makes a plan, and carries out this plan.

    If nothing changes, the next cycle begins after CALM_SECONDS.

    The simulation ignores which nodes a glidein should avoid or prefer.

    Attributes:
        wait_reason: reason in the last Wait action of a plan; empty if no plan had such an action.
    """

    def __init__(self, world: World, cluster: Cluster, sweep: SimulatedSweep):
        self.world = world
        self.cluster = cluster
        self.sweep = sweep
        self.wait_reason = ""

    def run(self) -> Steps:
        """Run cycles in an endless loop."""
        planned_state: Any = None
        planned_at = 0.0
        while True:
            state = self.world.changed, self.sweep.demand_state
            if state != planned_state or self.world.now - planned_at >= CALM_SECONDS:
                planned_state, planned_at = state, self.world.now
                self._cycle()
            yield self.world.env.timeout(self.world.site.interval)

    def _cycle(self) -> None:
        for action in plan(self.snapshot(), self.world.site):
            assert not isinstance(action, Retarget), "a simulation has one template: no retargets"
            if isinstance(action, Submit):
                self.cluster.submit(action.entry, action.count)
            elif isinstance(action, Remove):
                self.cluster.remove(action.jobs)
            elif isinstance(action, Wait):
                self.wait_reason = action.reason

    def snapshot(self) -> Snapshot:
        """Return what the factory observes now."""
        glideins = self.cluster.glideins.values()
        self.cluster.ended = [each for each in self.cluster.ended if self.world.now - each.since < KEEP_ENDED_SECONDS]
        return Snapshot(
            tuple(each.observed() for each in glideins),
            tuple(lane for each in glideins for lane in each.observed_lanes()),
            self.sweep.demand(), ended=tuple(each.observed() for each in self.cluster.ended),
            now=self.world.epoch + self.world.now, user=USER,
        )  # fmt: skip
