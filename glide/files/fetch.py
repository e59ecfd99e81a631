"""Fetch a tree: from the cache, from peers, from its source, in this order; many nodes at once read the source once.

Of those that fetch the same tree at the same time, the one that began first reads the source; the others take from it
and from each other what is there so far, chunk by chunk. Who is not known to the others yet reads on anywhere: what
it gets is somebody's share. Who sees no progress reads the source too. Standard library only.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from glide.files.cache import Cache
from glide.files.part import Part
from glide.files.peers import STRIKES, UNKNOWN, Busy, Directory, Peer, distance
from glide.files.sources import Source
from glide.files.tree import Tree, chunks, extent

HERD_BYTES = 32 << 20  # a tree smaller than this is no herd's meal: everybody reads the source
DOWNLOADS = 3  # from peers at the same time
NEIGHBOURS = 4  # peers that are asked what they have
LOOK_SECONDS = 1.0  # between looks at what they have
DIRECTORY_SECONDS = 3.0  # between looks at who there is
SEEN_SECONDS = 8.0  # in which the collector should know of us, or else it is no help
READER_SECONDS = 1.0  # for the source's reader to end when all is there
STALLED_SECONDS = 15.0  # without a chunk from anybody


class Wrong(Exception):
    """The source has not, or does not give, what the template says."""


@dataclass(frozen=True)
class Swarm:
    """Who we are to our peers, since when, how they are found, the key that opens their doors, and our address."""

    glide_id: str
    since: int
    directory: Directory
    key: str
    host: str = ""


@dataclass
class Account:
    """Bytes of a tree: in all, here when we began, and from whom the rest came."""

    size: int
    cached: int = 0
    source: int = 0
    peers: int = 0

    @property
    def complete(self) -> bool:
        return self.cached + self.source + self.peers >= self.size


class Fetch:
    """One tree on its way to the cache.

    Args:
        swarm: None to ask no peers.
        say: is told the account now and then.
    """

    def __init__(self, cache: Cache, tree: Tree, source: Source, swarm: Swarm | None, say: Callable[[Account], None]):
        self.cache = cache
        self.tree = tree
        self.source = source
        self.swarm = swarm if swarm and tree.size >= HERD_BYTES else None
        self.say = say
        self.account = Account(tree.size)
        self.parts: dict[str, Part] = {}
        self.missing: dict[str, set[int]] = {}
        self.underway: set[tuple[str, int]] = set()
        self.peers: list[Peer] = []
        self.lock = threading.RLock()
        self.progress = threading.Condition(self.lock)
        self.moved = time.monotonic()  # when the last chunk came
        self.patience = STALLED_SECONDS * random.uniform(1, 2)
        self.failure: BaseException | None = None  # the source's, or the disk's
        self.reads = False  # the source
        self.orderly = self.swarm is None  # from the beginning on

    def run(self) -> Path:
        """The tree's folder; OSError or Wrong when it is not to be had."""
        for _ in range(3):  # what is here may be evicted, or deleted, before it is linked
            if folder := self.cache.place(self.tree):
                self.account.cached = self.tree.size
                return folder
            try:
                self._gather()
                return self.cache.publish(self.tree)
            except FileNotFoundError as error:
                last = error
        raise last

    def _gather(self) -> None:
        absent = {content: size for content, size in self.tree.contents.items() if not self._link(content, size)}
        # What a killed process has left of them counts as there: it is part of what the cache takes.
        here = sum(part.stat().st_blocks * 512 for content in absent if (part := self.cache.partial(content)).exists())
        self.cache.make_room(max(0, sum(absent.values()) - here))
        with ExitStack() as stack:
            for content, size in sorted(absent.items()):  # in one order, so that no two wait for each other
                self.parts[content] = stack.enter_context(self.cache.part(content, size))
            self.missing = {content: set(part.missing) for content, part in self.parts.items()}
            self.account = Account(self.tree.size)
            self.account.cached = self.tree.size - self._left()
            self._fill()
            bad = [content for content in self.parts if not self._finish(content)]
            if bad and self.account.peers:  # whoever it was, the source knows better
                self.swarm = None
                self.missing = {content: set(chunks(self.tree.contents[content])) for content in bad}
                self._fill()
                bad = [content for content in bad if not self._finish(content)]
            if bad:
                name = self.tree.name(bad[0])
                raise Wrong(f"{name} is not what the template was made of: its sha256 is not {bad[0]}")

    def _link(self, content: str, size: int) -> bool:
        """Whether it is here already."""
        try:
            if self.cache.has(content, size):
                self.cache.link(self.tree, content)
                return True
        except FileNotFoundError:
            pass
        return False

    def _finish(self, content: str) -> bool:
        whole = self.parts[content].finish()
        if whole:
            self.cache.link(self.tree, content)
        return whole

    def _lacks(self) -> bool:
        return any(self.missing.values())

    def _left(self) -> int:
        """Bytes that are missing: a walk over all chunks."""
        sizes = self.tree.contents
        return sum(extent(number, sizes[content])[1] for content, some in self.missing.items() for number in some)

    # ---- who does what ---------------------------------------------------------------------------

    def _fill(self) -> None:
        """Have what is missing brought; who brings it are threads."""
        if not self._lacks():
            return
        self.failure = None
        self.moved = time.monotonic()
        reader = threading.Thread(target=self._read_source, daemon=True)
        downloads = DOWNLOADS if self.swarm else 0
        workers = [threading.Thread(target=self._ask_peers, daemon=True) for _ in range(downloads)]
        for thread in (reader, *workers):
            thread.start()
        looked = begun = time.monotonic()
        asked = float("-inf")
        while self._lacks() and self.failure is None:
            now = time.monotonic()
            if self.swarm and now - asked >= DIRECTORY_SECONDS:
                asked = now
                self._meet(self.swarm, now - begun)
            if self.swarm and now - looked >= LOOK_SECONDS:
                looked = now
                self._look_around(self.swarm)
            with self.progress:
                self.reads = self.swarm is None or self.reads or now - self.moved > self.patience
                self.progress.notify_all()
                self.progress.wait(0.2)
            self.say(self.account)
        with self.progress:
            self.progress.notify_all()
        for thread in workers:
            thread.join()
        reader.join(READER_SECONDS)  # a source that says nothing is not waited for when others gave all
        if self._lacks() and self.failure is not None:
            raise self.failure

    def _meet(self, swarm: Swarm, waited: float) -> None:
        """See who there is, and whether it is on us to read the source."""
        known = swarm.directory.look(self.tree.digest)
        others = [peer for peer in known if peer.glide_id != swarm.glide_id and peer.strikes < STRIKES]
        visible = waited > SEEN_SECONDS or any(peer.glide_id == swarm.glide_id for peer in known)
        earlier = [peer for peer in others if (peer.since, peer.glide_id) < (swarm.since, swarm.glide_id)]
        with self.lock:
            self.peers = others
            self.orderly = visible and not earlier
            self.reads = not any(peer.whole for peer in others) and (self.orderly or not visible)

    def _look_around(self, swarm: Swarm) -> None:
        """Ask some of them what they have: one that has all or most, the nearest, and others by chance."""
        first = sorted(self.peers, key=lambda peer: (not peer.whole, peer.since, self._distance(peer)))[:1]
        near = sorted((peer for peer in self.peers if peer not in first), key=self._distance)[:1]
        others = [peer for peer in self.peers if peer not in first + near]
        for peer in first + near + random.sample(others, min(NEIGHBOURS - 2, len(others))):
            try:
                peer.look(self.tree, swarm.key)
            except (OSError, Busy):
                peer.strikes += 1

    # ---- the source ------------------------------------------------------------------------------

    def _read_source(self) -> None:
        """Read what is missing and nobody else is to read, in order, for as long as it is on us."""
        try:
            while run := self._next_run():
                content, first = run
                self._read(content, first)
        except BaseException as error:  # the disk's, too: it is the coordinator's to say
            with self.progress:
                self.failure = error
                self.progress.notify_all()

    def _next_run(self) -> tuple[str, int] | None:
        """Where to read, once it is on us; None when there is nothing left."""
        with self.progress:
            while self.failure is None and self._lacks():
                free = [(c, n) for c in sorted(self.missing) for n in sorted(self.missing[c] - self._busy(c))]
                if self.reads and free:
                    return free[0] if self.orderly else random.choice(free)
                self.progress.wait(0.2)
        return None

    def _busy(self, content: str) -> set[int]:
        return {number for each, number in self.underway if each == content}

    def _read(self, content: str, number: int) -> None:
        """Read from a chunk on, until one comes that is not missing any more."""
        size, name = self.tree.contents[content], self.tree.name(content)
        buffer = bytearray()
        for data in self.source.read(name, extent(number, size)[0]):
            buffer += data
            while len(buffer) >= (length := extent(number, size)[1]) > 0:
                self._keep(content, number, bytes(buffer[:length]))
                self.account.source += length
                del buffer[:length]
                number += 1
                with self.lock:
                    if not self.reads or self.failure or number not in self.missing[content] - self._busy(content):
                        return
        raise Wrong(f"{name} ends after {extent(number, size)[0] + len(buffer)} bytes, and should have {size}")

    def _keep(self, content: str, number: int, data: bytes) -> None:
        with self.lock:
            if number not in self.missing[content]:
                return
        self.parts[content].write(number, data)
        with self.progress:
            self.missing[content].discard(number)
            self.moved = time.monotonic()
            self.progress.notify_all()

    # ---- peers -----------------------------------------------------------------------------------

    def _ask_peers(self) -> None:
        assert self.swarm
        while (job := self._next_chunk()) is not None:
            peer, content, number = job
            length = extent(number, self.tree.contents[content])[1]
            try:
                data = peer.chunk(self.tree.digest, content, number, length, self.swarm.key)
                self._keep(content, number, data)
                peer.strikes = 0
                with self.lock:
                    self.account.peers += length
            except Busy:
                peer.rests = time.monotonic() + random.uniform(0.05, 0.2)
            except OSError as error:
                if error.filename is not None:  # the disk's
                    with self.progress:
                        self.failure = error
                peer.strikes += 1
                peer.have = {}
            finally:
                with self.progress:
                    self.underway.discard((content, number))
                    self.progress.notify_all()

    def _next_chunk(self) -> tuple[Peer, str, int] | None:
        """A chunk that somebody has, and who; by chance, so that those who start together soon have different ones."""
        with self.progress:
            while self.failure is None and self._lacks():
                now = time.monotonic()
                ready = [peer for peer in self.peers if peer.strikes < STRIKES and peer.rests < now]
                wanted = [(c, n) for c, some in self.missing.items() for n in some if (c, n) not in self.underway]
                start = random.randrange(len(wanted) or 1)
                for content, number in (*wanted[start:], *wanted[:start]):
                    able = [peer for peer in ready if peer.has(content, number)]
                    if able:
                        self.underway.add((content, number))
                        best = min(able, key=lambda peer: (peer.asked, self._distance(peer), random.random()))
                        return best, content, number
                self.progress.wait(0.1)
        return None

    def _distance(self, peer: Peer) -> int:
        return distance(self.swarm.host, peer.address) if self.swarm else UNKNOWN
