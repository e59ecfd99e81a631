"""The simulated nodes, and the queue of the outer pool. Idle glideins in this queue start on free nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from glide.simulate.glidein import SimulatedGlidein, SimulatedNode
from glide.simulate.trace import Nodes
from glide.simulate.world import Steps, World
from glide.vocabulary import JobStatus


class Cluster:
    """The nodes of the trace, and the queue of the outer pool.

    Args:
        make_glidein: function that makes a glidein. Its arguments are a cluster number, a process number, the name of
            an entry, and the function that the glidein calls when it ends.

    Attributes:
        glideins: idle and running glideins of the queue, by job id.
        ended: glideins that have ended by themselves within the last KEEP_ENDED_SECONDS.
        free: nodes without a glidein, by entry.
        idle: glideins that wait for a node, by entry.
        matching: entries for which a negotiation is in progress.
        nodes_left: number of nodes that are present now or will be present later.
        all_nodes_gone: event that occurs when the last node has left for good.
        last_cluster: cluster number of the last submission.
    """

    def __init__(self, world: World, make_glidein: Callable[..., SimulatedGlidein]):
        self.world = world
        self.make_glidein = make_glidein
        self.glideins: dict[str, SimulatedGlidein] = {}
        self.ended: list[SimulatedGlidein] = []
        self.free: defaultdict[str, dict[SimulatedNode, None]] = defaultdict(dict)
        self.idle: defaultdict[str, dict[SimulatedGlidein, None]] = defaultdict(dict)
        self.matching: set[str] = set()
        self.nodes_left = sum(nodes.count for nodes in world.trace.nodes)
        self.all_nodes_gone = world.env.event()
        self.last_cluster = 0
        for number, nodes in enumerate(world.trace.nodes):
            entry = nodes.entry or world.site.entries[0].name
            for each in range(nodes.count):
                node = SimulatedNode(f"node-{number}-{each}", entry, nodes.device)
                world.env.process(self._run_node(nodes, node, each))

    def submit(self, entry: str, count: int) -> None:
        """Submit `count` glideins for an entry."""
        self.last_cluster += 1
        for proc in range(count):
            glidein = self.make_glidein(self.last_cluster, proc, entry, self._glidein_ended)
            self.glideins[glidein.job] = glidein
            self.idle[entry][glidein] = None
        self.world.log.glideins += count
        self.world.changed += 1
        self._match(entry)

    def remove(self, jobs: tuple[str, ...]) -> None:
        """Remove running or waiting glideins from the queue."""
        for job in jobs:
            if glidein := self.glideins.get(job):
                self.idle[glidein.entry].pop(glidein, None)
                if glidein.status == JobStatus.RUNNING:
                    glidein.end()
                    self.ended.remove(glidein)  # a removed glidein counts neither as a success nor as a failure
                else:
                    self._forget(glidein)

    def _run_node(self, nodes: Nodes, node: SimulatedNode, number: int) -> Steps:
        """Let a node arrive and leave at the times that the trace gives."""
        env, chance = self.world.env, self.world.random_for(node.name)
        yield env.timeout(nodes.arrive + number * nodes.every)
        leaves = None if nodes.leave is None else nodes.leave + number * nodes.leave_every
        while True:
            self.free[node.entry][node] = None
            self._change_fetch_slots(node, 1)
            self._match(node.entry)
            if leaves is None and nodes.stay is None:
                return
            stay = chance.expovariate(1 / nodes.stay) if nodes.stay else (leaves or 0.0) - env.now
            yield env.timeout(stay)
            self._change_fetch_slots(node, -1)
            self.free[node.entry].pop(node, None)
            if node.glidein:
                self._evict(node)
            if nodes.away is None:
                break
            yield env.timeout(chance.expovariate(1 / nodes.away))
        self.nodes_left -= 1
        if not self.nodes_left:
            self.all_nodes_gone.succeed()

    def _change_fetch_slots(self, node: SimulatedNode, change: int) -> None:
        """When a node arrives or leaves, change the number of fetches that may still start.

        A node with the files can send the files to one other node at a time. If such a node arrives, the number grows
        by 1. If such a node leaves, the number falls by 1. For a node without the files, the number does not change.

        Args:
            change: 1 if the node arrives, and -1 if it leaves.
        """
        files, slots = self.world.trace.files, self.world.fetch_slots
        if slots and node.files and files and files.peers:
            slots.put(1) if change > 0 else slots.get(1)

    def _match(self, entry: str) -> None:
        if self.idle[entry] and self.free[entry] and entry not in self.matching:
            self.matching.add(entry)
            self.world.env.process(self._negotiate(entry))

    def _negotiate(self, entry: str) -> Steps:
        yield self.world.env.timeout(self.world.trace.costs.queue)
        self.matching.discard(entry)
        idle, free = self.idle[entry], self.free[entry]
        for glidein, node in list(zip(idle, free, strict=False)):
            del idle[glidein], free[node]
            node.glidein = glidein
            glidein.start(node)
            self.world.changed += 1

    def _evict(self, node: SimulatedNode) -> None:
        """Put the glidein of a lost node back into the queue, as HTCondor does."""
        glidein, node.glidein = node.glidein, None
        assert glidein
        glidein.lose_node()
        self.idle[glidein.entry][glidein] = None
        self.world.log.evictions += 1
        self.world.changed += 1
        self._match(glidein.entry)

    def _glidein_ended(self, glidein: SimulatedGlidein, node: Any) -> None:
        """Free the node of a glidein that has ended by itself."""
        node.glidein = None
        self.free[node.entry][node] = None
        self._forget(glidein)
        self.ended.append(glidein)
        self._match(node.entry)

    def _forget(self, glidein: SimulatedGlidein) -> None:
        del self.glideins[glidein.job]
        self.world.changed += 1
