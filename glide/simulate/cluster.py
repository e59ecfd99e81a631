"""The nodes, and the outer queue: glideins that wait start on free nodes, and go with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glide.simulate.glidein import SimulatedGlidein
from glide.simulate.trace import Nodes
from glide.simulate.world import Steps, World
from glide.vocabulary import JobStatus


@dataclass(eq=False)
class Node:
    """A node that is there; `files` says whether the model's are."""

    name: str
    entry: str
    device: str
    files: bool = False
    glidein: SimulatedGlidein | None = None


class Cluster:
    """Nodes that come and go, and the glideins that are queued or run there."""

    def __init__(self, world: World, glidein: Callable[..., SimulatedGlidein]):
        self.world = world
        self.make = glidein
        self.glideins: dict[str, SimulatedGlidein] = {}
        self.ended: list[SimulatedGlidein] = []
        self.free: defaultdict[str, dict[Node, None]] = defaultdict(dict)
        self.idle: defaultdict[str, dict[SimulatedGlidein, None]] = defaultdict(dict)
        self.matching: set[str] = set()
        self.left = sum(nodes.count for nodes in world.trace.nodes)  # nodes that are there, or will be
        self.deserted = world.env.event()
        self.clusters = 0
        for number, nodes in enumerate(world.trace.nodes):
            entry = nodes.entry or world.site.entries[0].name
            for each in range(nodes.count):
                world.env.process(self._life(nodes, Node(f"node-{number}-{each}", entry, nodes.device), each))

    def submit(self, entry: str, count: int) -> None:
        """Queue glideins."""
        self.clusters += 1
        for proc in range(count):
            glidein = self.make(self.clusters, proc, entry, self._over)
            self.glideins[glidein.job] = glidein
            self.idle[entry][glidein] = None
        self.world.record.glideins += count
        self.world.changed += 1
        self._match(entry)

    def remove(self, jobs: tuple[str, ...]) -> None:
        """Take glideins out of the queue, running or not."""
        for job in jobs:
            if glidein := self.glideins.get(job):
                self.idle[glidein.entry].pop(glidein, None)
                if glidein.status == JobStatus.RUNNING:
                    glidein.end()
                    self.ended.remove(glidein)  # who was removed is no sign of anything
                else:
                    self._forget(glidein)

    def _life(self, nodes: Nodes, node: Node, number: int) -> Steps:
        env, chance = self.world.env, self.world.chance(node.name)
        yield env.timeout(nodes.arrive + number * nodes.every)
        leaves = None if nodes.leave is None else nodes.leave + number * nodes.leave_every
        while True:
            self.free[node.entry][node] = None
            self._offer(node, 1)
            self._match(node.entry)
            if leaves is None and nodes.stay is None:
                return
            stay = chance.expovariate(1 / nodes.stay) if nodes.stay else (leaves or 0.0) - env.now
            yield env.timeout(stay)
            self._offer(node, -1)
            self.free[node.entry].pop(node, None)
            if node.glidein:
                self._evict(node)
            if nodes.away is None:
                break
            yield env.timeout(chance.expovariate(1 / nodes.away))
        self.left -= 1
        if not self.left:
            self.deserted.succeed()

    def _offer(self, node: Node, seats: int) -> None:
        """A node with the files has come, or goes, and with it a place to fetch them from."""
        files, offered = self.world.trace.files, self.world.seats
        if offered and node.files and files and files.peers:
            offered.put(1) if seats > 0 else offered.get(1)

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

    def _evict(self, node: Node) -> None:
        """A node has gone; its glidein is in the queue again, as HTCondor has it."""
        glidein, node.glidein = node.glidein, None
        assert glidein
        glidein.lose()
        self.idle[glidein.entry][glidein] = None
        self.world.record.evictions += 1
        self.world.changed += 1
        self._match(glidein.entry)

    def _over(self, glidein: SimulatedGlidein, node: Any) -> None:
        """A glidein has ended by itself."""
        node.glidein = None
        self.free[node.entry][node] = None
        self._forget(glidein)
        self.ended.append(glidein)
        self._match(node.entry)

    def _forget(self, glidein: SimulatedGlidein) -> None:
        del self.glideins[glidein.job]
        self.world.changed += 1
