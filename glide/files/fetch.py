"""Fetch a tree of files into the cache, from peers and from the tree's source. This needs only the standard library.

Each node fetches chunks from its peers, so the source sends most chunks only once. If no peer has the complete tree,
these nodes also read the source:
- the node that began to fetch the tree before all its peers. This node reads the source from start to end.
- each node that is still unknown to its peers. Such a node reads the source at random places, to get chunks that its
  peers lack.

If a node has received no chunk for a long time, it also reads the source.
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
from glide.files.partial_file import PartialFile, partial_file
from glide.files.peers import MOST_FAILURES, UNKNOWN_DISTANCE, Directory, Peer, PeerBusy, distance
from glide.files.sources import Source
from glide.files.tree import Tree, chunks, extent

SWARM_BYTES = 32 << 20  # minimum size of a tree that is fetched from peers, in bytes
DOWNLOADS = 3  # number of simultaneous downloads from peers
QUERIED_PEERS = 4  # maximum number of peers that one call of `_query_peers` asks
QUERY_SECONDS = 1.0  # minimum time between two calls of `_query_peers`, in seconds
DIRECTORY_SECONDS = 3.0  # seconds between two updates of the list of peers
VISIBLE_SECONDS = 8.0  # if a fetch has taken this number of seconds, all peers are assumed to know about the fetch
READER_SECONDS = 1.0  # maximum time to wait for the end of the thread that reads the source, in seconds
# If a node receives no chunk for this time, in seconds, it reads the source. Each node multiplies the time by a random
# number from 1 to 2.
STALLED_SECONDS = 15.0


class WrongContent(Exception):
    """The content of a file is not the content that the template describes."""


@dataclass(frozen=True)
class Swarm:
    """The data with which this node finds its peers and sends requests to them.

    Attributes:
        glide_id: name of this node.
        since: Unix time when this node began to fetch.
        directory: object that lists the peers.
        key: key that signs requests to peers.
        host: IP address of this node; empty if it is unknown.
    """

    glide_id: str
    since: int
    directory: Directory
    key: str
    host: str = ""


@dataclass
class FetchAccount:
    """The number of bytes of a tree, and how many of these bytes came from each place.

    Attributes:
        size: number of bytes of the tree.
        cached: number of bytes that were in the cache when the fetch began.
        source: number of bytes that were read from the source.
        peers: number of bytes that were received from peers.
    """

    size: int
    cached: int = 0
    source: int = 0
    peers: int = 0

    @property
    def complete(self) -> bool:
        return self.cached + self.source + self.peers >= self.size


class Fetch:
    """The fetch of one tree into the cache.

    Args:
        swarm: this node and its peers. None: no peers are asked.
        report: function that is called several times a second with the number of bytes fetched so far.
    """

    def __init__(
        self, cache: Cache, tree: Tree, source: Source, swarm: Swarm | None, report: Callable[[FetchAccount], None]
    ):
        self.cache = cache
        self.tree = tree
        self.source = source
        self.swarm = swarm if swarm and tree.size >= SWARM_BYTES else None
        self.report = report
        self.account = FetchAccount(tree.size)
        self.partial_files: dict[str, PartialFile] = {}  # the keys are the sha256s that the complete files must have
        self.missing: dict[str, set[int]] = {}  # a dict from a file's sha256 to the numbers of its missing chunks
        self.in_flight: set[tuple[str, int]] = set()  # chunks that peers are sending: sha256 of file, number of chunk
        self.peers: list[Peer] = []
        self.lock = threading.RLock()
        self.progress = threading.Condition(self.lock)
        self.last_chunk_at = time.monotonic()
        self.stall_seconds = STALLED_SECONDS * random.uniform(1, 2)
        self.failure: BaseException | None = None  # an error of the source or of this node's disk
        self.reads_source = False
        self.in_order = self.swarm is None  # True: read the source from its beginning; False: at random places

    def run(self) -> Path:
        """Fetch the tree and return its folder.

        Raises:
            OSError: the source or the disk of this node failed, or the cache is full.
            WrongContent: the content at the source is not the content that the template describes.
        """
        for _ in range(3):  # another process may delete a cached file before it is linked
            if folder := self.cache.tree_folder(self.tree):
                self.account.cached = self.tree.size
                return folder
            try:
                self._fetch_missing()
                return self.cache.publish(self.tree)
            except FileNotFoundError as error:
                last = error
        raise last

    def _fetch_missing(self) -> None:
        absent = {content: size for content, size in self.tree.contents.items() if not self._link(content, size)}
        # The chunks of an interrupted fetch are already in the cache, so no space is reserved for them.
        paths = [self.cache.partial_path(content) for content in absent]
        here = sum(path.stat().st_blocks * 512 for path in paths if path.exists())
        self.cache.make_room(max(0, sum(absent.values()) - here))
        with ExitStack() as stack:
            for content, size in sorted(absent.items()):  # all processes lock in sorted order, to prevent deadlocks
                self.partial_files[content] = stack.enter_context(partial_file(self.cache, content, size))
            self.missing = {content: set(part.missing) for content, part in self.partial_files.items()}
            self.account = FetchAccount(self.tree.size)
            self.account.cached = self.tree.size - self._missing_bytes()
            self._fill_gaps()
            bad = [content for content in self.partial_files if not self._finish(content)]
            if bad and self.account.peers:  # a peer may have sent wrong data, so use only the source
                self.swarm = None
                self.missing = {content: set(chunks(self.tree.contents[content])) for content in bad}
                self._fill_gaps()
                bad = [content for content in bad if not self._finish(content)]
            if bad:
                name = self.tree.name(bad[0])
                raise WrongContent(f"{name} is not the file that the template describes: its sha256 is not {bad[0]}")

    def _link(self, content: str, size: int) -> bool:
        """Add a cached file with this content (a sha256) to the tree. Return False if the file is not cached."""
        try:
            if self.cache.has(content, size):
                self.cache.link(self.tree, content)
                return True
        except FileNotFoundError:
            pass
        return False

    def _finish(self, content: str) -> bool:
        valid = self.partial_files[content].finish()
        if valid:
            self.cache.link(self.tree, content)
        return valid

    def _is_incomplete(self) -> bool:
        return any(self.missing.values())

    def _missing_bytes(self) -> int:
        sizes = self.tree.contents
        return sum(extent(number, sizes[content])[1] for content, some in self.missing.items() for number in some)

    # ---- coordination ----------------------------------------------------------------------------

    def _fill_gaps(self) -> None:
        """Fetch all missing chunks. This thread coordinates other threads that fetch from the source and from peers."""
        if not self._is_incomplete():
            return
        self.failure = None
        self.last_chunk_at = time.monotonic()
        reader = threading.Thread(target=self._read_source, daemon=True)
        downloads = DOWNLOADS if self.swarm else 0
        workers = [threading.Thread(target=self._fetch_from_peers, daemon=True) for _ in range(downloads)]
        for thread in (reader, *workers):
            thread.start()
        queried_at = began = time.monotonic()
        listed_at = float("-inf")
        while self._is_incomplete() and self.failure is None:
            now = time.monotonic()
            if self.swarm and now - listed_at >= DIRECTORY_SECONDS:
                listed_at = now
                self._update_peers(self.swarm, now - began)
            if self.swarm and now - queried_at >= QUERY_SECONDS:
                queried_at = now
                self._query_peers(self.swarm)
            with self.progress:
                stalled = now - self.last_chunk_at > self.stall_seconds
                self.reads_source = self.swarm is None or self.reads_source or stalled
                self.progress.notify_all()
                self.progress.wait(0.2)
            self.report(self.account)
        with self.progress:
            self.progress.notify_all()
        for thread in workers:
            thread.join()
        reader.join(READER_SECONDS)  # a source that never answers must not block the fetch
        if self._is_incomplete() and self.failure is not None:
            raise self.failure

    def _update_peers(self, swarm: Swarm, waited: float) -> None:
        """Update the list of peers, and decide whether this node reads the source.

        Args:
            waited: seconds since the fetch began.
        """
        known = swarm.directory.refresh(self.tree.digest)
        others = [peer for peer in known if peer.glide_id != swarm.glide_id and peer.failures < MOST_FAILURES]
        visible = waited > VISIBLE_SECONDS or any(peer.glide_id == swarm.glide_id for peer in known)
        earlier = [peer for peer in others if (peer.since, peer.glide_id) < (swarm.since, swarm.glide_id)]
        with self.lock:
            self.peers = others
            self.in_order = visible and not earlier
            self.reads_source = not any(peer.has_all for peer in others) and (self.in_order or not visible)

    def _query_peers(self, swarm: Swarm) -> None:
        """Ask a few peers which chunks they have. These peers are asked, in this order:

        1. a peer that has the complete tree, or else the peer whose fetch began first
        2. the nearest of the remaining peers (glide.files.peers.distance)
        3. some random peers, so that at most QUERIED_PEERS peers are asked in total
        """
        first = sorted(self.peers, key=lambda peer: (not peer.has_all, peer.since, self._distance(peer)))[:1]
        near = sorted((peer for peer in self.peers if peer not in first), key=self._distance)[:1]
        others = [peer for peer in self.peers if peer not in first + near]
        for peer in first + near + random.sample(others, min(QUERIED_PEERS - 2, len(others))):
            try:
                peer.refresh(self.tree, swarm.key)
            except (OSError, PeerBusy):
                peer.failures += 1

    # ---- the source ------------------------------------------------------------------------------

    def _read_source(self) -> None:
        """Read chunks from the source whenever `reads_source` is true. End when no chunk is missing."""
        try:
            while run := self._next_to_read():
                content, first = run
                self._read(content, first)
        except BaseException as error:  # the thread in `_fill_gaps` raises this error
            with self.progress:
                self.failure = error
                self.progress.notify_all()

    def _next_to_read(self) -> tuple[str, int] | None:
        """Wait until this node itself must read chunks from the source.

        Return where to begin: the sha256 of a file and a chunk's number. At the end of the fetch, return None.
        """
        with self.progress:
            while self.failure is None and self._is_incomplete():
                free = [(content, n) for content in sorted(self.missing) for n in sorted(self._unassigned(content))]
                if self.reads_source and free:
                    return free[0] if self.in_order else random.choice(free)
                self.progress.wait(0.2)
        return None

    def _unassigned(self, content: str) -> set[int]:
        """Return the numbers of a file's missing chunks that no peer is sending. `content` is the file's sha256."""
        return self.missing[content] - {number for each, number in self.in_flight if each == content}

    def _read(self, content: str, number: int) -> None:
        """Read a file from the source, from chunk `number` on. Stop at a chunk that a peer is sending or has sent."""
        size, name = self.tree.contents[content], self.tree.name(content)
        buffer = bytearray()
        for data in self.source.read(name, extent(number, size)[0]):
            buffer += data
            while len(buffer) >= (length := extent(number, size)[1]) > 0:
                self._store(content, number, bytes(buffer[:length]))
                self.account.source += length
                del buffer[:length]
                number += 1
                with self.lock:
                    if not self.reads_source or self.failure or number not in self._unassigned(content):
                        return
        raise WrongContent(f"{name} ends after {extent(number, size)[0] + len(buffer)} of {size} bytes")

    def _store(self, content: str, number: int, data: bytes) -> None:
        with self.lock:
            if number not in self.missing[content]:
                return
        self.partial_files[content].write(number, data)
        with self.progress:
            self.missing[content].discard(number)
            self.last_chunk_at = time.monotonic()
            self.progress.notify_all()

    # ---- peers -----------------------------------------------------------------------------------

    def _fetch_from_peers(self) -> None:
        assert self.swarm
        while (job := self._next_chunk()) is not None:
            peer, content, number = job
            length = extent(number, self.tree.contents[content])[1]
            try:
                data = peer.fetch_chunk(self.tree.digest, content, number, length, self.swarm.key)
                self._store(content, number, data)
                peer.failures = 0
                with self.lock:
                    self.account.peers += length
            except PeerBusy:
                peer.busy_until = time.monotonic() + random.uniform(0.05, 0.2)
            except OSError as error:
                if error.filename is not None:  # an error with a file name comes from this node's disk
                    with self.progress:
                        self.failure = error
                peer.failures += 1
                peer.available = {}
            finally:
                with self.progress:
                    self.in_flight.discard((content, number))
                    self.progress.notify_all()

    def _next_chunk(self) -> tuple[Peer, str, int] | None:
        """Wait until a peer has a chunk that this node lacks.

        Return the peer, the sha256 of the file and the number of the chunk. At the end of the fetch, return None. The
        chunk is chosen at random. So nodes that start together get different chunks, and can exchange these chunks.
        """
        with self.progress:
            while self.failure is None and self._is_incomplete():
                now = time.monotonic()
                ready = [peer for peer in self.peers if peer.failures < MOST_FAILURES and peer.busy_until < now]
                wanted = [(c, n) for c, some in self.missing.items() for n in some if (c, n) not in self.in_flight]
                start = random.randrange(len(wanted) or 1)
                for content, number in (*wanted[start:], *wanted[:start]):
                    able = [peer for peer in ready if peer.has_chunk(content, number)]
                    if able:
                        self.in_flight.add((content, number))
                        best = min(able, key=lambda peer: (peer.in_flight, self._distance(peer), random.random()))
                        return best, content, number
                self.progress.wait(0.1)
        return None

    def _distance(self, peer: Peer) -> int:
        return distance(self.swarm.host, peer.address) if self.swarm else UNKNOWN_DISTANCE
