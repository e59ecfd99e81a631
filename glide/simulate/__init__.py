"""Clusters that we do not have: the factory's own plan and the packer against a trace of nodes."""

from __future__ import annotations

import time

from glide.config import SiteFile
from glide.simulate.cluster import Cluster
from glide.simulate.factory import SimulatedFactory
from glide.simulate.glidein import SimulatedGlidein
from glide.simulate.outcome import Outcome, outcome
from glide.simulate.sweep import SimulatedSweep
from glide.simulate.trace import Trace, read
from glide.simulate.world import World

__all__ = ["Outcome", "Trace", "read", "simulate"]


def simulate(trace: Trace, site: SiteFile) -> Outcome:
    """Let a sweep run on a cluster that is nowhere, to its end or the trace's."""
    began = time.monotonic()
    world = World(trace, site)
    sweep = SimulatedSweep(world)
    entries = {entry.name: entry for entry in site.entries}
    cluster = Cluster(
        world, lambda cluster, proc, entry, over: SimulatedGlidein(world, sweep, entries[entry], cluster, proc, over)
    )
    factory = SimulatedFactory(world, cluster, sweep)
    finished = world.env.process(sweep.run())
    world.env.process(factory.run())
    world.env.run(until=finished | world.env.timeout(trace.until) | cluster.deserted)
    for glidein in cluster.glideins.values():
        glidein.close()
    why = "all nodes have gone" if cluster.deserted.triggered else "the trace has ended"
    if world.record.first_warm is None:
        why += f", and no model was ever warm: {factory.waited or 'no node was there for long enough'}"
    return outcome(world.record, trace.workload.records, sweep.have, world.now, why, time.monotonic() - began)
