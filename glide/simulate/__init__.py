"""Simulate a sweep on the nodes that a trace file describes.

The simulation uses two real functions of glide: the factory's `plan` and the driver's `decide`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from glide.config import SiteFile
from glide.simulate.cluster import Cluster
from glide.simulate.factory import SimulatedFactory
from glide.simulate.glidein import SimulatedGlidein
from glide.simulate.outcome import Outcome, outcome
from glide.simulate.sweep import SimulatedSweep
from glide.simulate.trace import Trace, read
from glide.simulate.world import World

__all__ = ["Outcome", "Trace", "read", "simulate"]


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause Python's collector of reference cycles: a simulation creates hardly any, and searching takes long."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def simulate(trace: Trace, site: SiteFile) -> Outcome:
    """Simulate a sweep. The simulation ends when the first of these events happens:

    - The sweep is finished.
    - The time limit of the trace (`until`) is reached.
    - The last node has left for good.
    """
    began = time.monotonic()
    world = World(trace, site)
    sweep = SimulatedSweep(world)
    entries = {entry.name: entry for entry in site.entries}
    cluster = Cluster(
        world,
        lambda cluster, proc, entry, on_end: SimulatedGlidein(world, sweep, entries[entry], cluster, proc, on_end),
    )
    factory = SimulatedFactory(world, cluster, sweep)
    finished = world.env.process(sweep.run())
    world.env.process(factory.run())
    with _paused_collector():
        world.env.run(until=finished | world.env.timeout(trace.until) | cluster.all_nodes_gone)
    for glidein in cluster.glideins.values():
        glidein.close()
    why = "all nodes are gone" if cluster.all_nodes_gone.triggered else "the trace has ended"
    if world.log.first_warm is None:
        why += f", and no model was ever warm: {factory.wait_reason or 'no node stayed long enough'}"
    return outcome(world.log, trace.workload.records, sweep.done, world.now, why, time.monotonic() - began)
