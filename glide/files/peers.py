"""Other nodes that have a tree, or get it just now: who they are, what they have, and a chunk of it.

Each asks with a bearer token that it makes itself: when it ends, and an HMAC of that and of what is asked for, by a key
that the factory gives to the glideins that are to have that tree. Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from glide.files.program import run
from glide.files.tree import Tree, chunks
from glide.vocabulary import Machine

TIMEOUT = 5.0  # seconds in which a peer has to send something; who does not is left alone
SLOWEST = 64 << 10  # bytes a second: a peer that sends less is left alone
MOST_PEERS = 4096  # that a directory may name
TOKEN_SECONDS = 600
UNKNOWN = 128  # a distance
STRIKES = 3  # failures in a row, after which a peer is left alone
DIGEST = "Chunk-Digest"
_GLIDE_ID = re.compile(r"[\x21-\x7e]{1,256}")


def short(tree: str) -> str:
    """A tree as ads name it."""
    return tree[:16]


def token(key: str, path: str, now: float) -> str:
    """The right to a path for a while."""
    expiry = str(int(now) + TOKEN_SECONDS)
    return f"{expiry}.{_mac(key, path, expiry)}"


def allows(key: str, path: str, given: str, now: float) -> bool:
    """Whether a token is this key's, for this path, and not expired."""
    expiry, _, mac = given.partition(".")
    right = hmac.compare_digest(mac.encode(), _mac(key, path, expiry).encode())
    return right and expiry.isdecimal() and now < int(expiry) <= now + 2 * TOKEN_SECONDS  # clocks differ


def _mac(key: str, path: str, expiry: str) -> str:
    return hmac.new(key.encode(), f"{path}\n{expiry}".encode(), hashlib.sha256).hexdigest()


def is_address(text: str) -> bool:
    """Whether it is an IP address with a port, as peers are advertised."""
    host, _, port = text.rpartition(":")
    with suppress(ValueError):
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        return re.fullmatch("[1-9][0-9]{0,4}", port) is not None and int(port) < 1 << 16
    return False


def distance(host: str, address: str) -> int:
    """How far a host is from an address with a port: bits from the first on that differ. A rack shares the others."""
    with suppress(ValueError):
        ours, theirs = ipaddress.ip_address(host), ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
        if ours.version == theirs.version:
            return (int(ours) ^ int(theirs)).bit_length()
    return UNKNOWN


class Busy(Exception):
    """It has its hands full: no fault, but somebody else may have the chunk too."""


class Refused(OSError):
    """It answers, and does not give it; `code` is HTTP's."""

    def __init__(self, words: str, code: int):
        super().__init__(words)
        self.code = code


@dataclass(eq=False)
class Peer:
    """A node; `since` is when it began, `whole` whether it says that it has all. `have` is what it was seen to have."""

    glide_id: str
    address: str
    since: int = 0
    whole: bool = False
    have: dict[str, set[int] | None] = field(default_factory=dict)  # chunks by content; None for all
    patience: float = TIMEOUT
    strikes: int = 0
    asked: int = 0  # requests of ours that are under way
    rests: float = 0.0  # until when it is left in peace, as it had its hands full (time.monotonic)

    def has(self, content: str, chunk: int) -> bool:
        chunks = self.have.get(content, set())
        return chunks is None or chunk in chunks

    def look(self, tree: Tree, key: str) -> None:
        """See what it has; OSError when it does not say."""
        numbers = {content: chunks(size) for content, size in tree.contents.items()}
        most = sum(100 + 8 * len(each) for each in numbers.values())
        answer, _ = self._ask(f"/{tree.digest}/have", key, most)
        try:
            self.have = {name: _chunks(some, numbers[name]) for name, some in json.loads(answer).items()}
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise OSError(f"{self.glide_id} makes no sense: {error!r:.200}") from None
        if self.whole and not self.have:  # its cache has been deleted
            self.strikes = STRIKES

    def chunk(self, tree: str, content: str, chunk: int, length: int, key: str) -> bytes:
        """A chunk, as it was when the peer got it; Busy, or OSError when it is not to be had."""
        data, digest = self._ask(f"/{tree}/{content}/{chunk}", key, length)
        if len(data) != length or hashlib.sha256(data).hexdigest() != digest:
            raise OSError(f"{self.glide_id} sent a chunk that is not what it was")
        return data

    def _ask(self, path: str, key: str, most: int) -> tuple[bytes, str]:
        host, _, port = self.address.rpartition(":")
        self.asked += 1
        try:
            connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=self.patience)
            with closing(connection), _time_limit(connection, self.patience + most / SLOWEST):
                authorization = f"Bearer {token(key, path, time.time())}"
                connection.request("GET", path, headers={"Authorization": authorization})
                answer = connection.getresponse()
                if answer.status == http.client.SERVICE_UNAVAILABLE:
                    raise Busy
                if answer.status != http.client.OK:
                    raise Refused(f"{self.glide_id} says {answer.status} {answer.reason}", answer.status)
                return answer.read(most + 1), answer.getheader(DIGEST, "")
        except TimeoutError:
            self.strikes = STRIKES
            raise OSError(f"{self.glide_id} says nothing") from None
        except (http.client.HTTPException, ValueError, ConnectionError) as error:
            raise OSError(f"{self.glide_id}: {error!r:.200}") from None
        finally:
            self.asked -= 1


def _chunks(some: object, numbers: range) -> set[int] | None:
    """Chunks of a content that a peer says it has; ValueError for what is none."""
    if some is None:
        return None
    if not isinstance(some, list) or not all(type(number) is int and number in numbers for number in some):
        raise ValueError("no list of chunks")
    return set(some)


@contextmanager
def _time_limit(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Open a connection, and end it when its time is up, though something may come over it now and then."""
    connection.connect()
    connected = connection.sock  # http.client forgets it when it has the head of the answer

    def end() -> None:
        with suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def directory_command(programs: Path) -> list[str]:
    """What a Directory runs, of the HTCondor whose programs lie in a folder."""
    sharing = f'{Machine.PEER} =!= undefined && stringListMember("{{tree}}", {Machine.SHARES})'
    names = (Machine.ID, Machine.PEER, Machine.SHARES, Machine.FETCHING)
    return [str(programs / "condor_status"), "-constraint", sharing, "-af", *names]


class Directory:
    """Who has a tree, as a command says: condor_status, which asks the pool's collector.

    Args:
        command: prints a line `GlideId GlidePeer GlideShares GlideFetching` for each lane; `{tree}` in it is replaced
            by the tree's short name.
    """

    def __init__(self, command: Sequence[str]):
        self.command = command
        self.peers: dict[str, Peer] = {}

    def look(self, tree: str) -> list[Peer]:
        """All that are known, those no more that are gone; the same objects as before for the same nodes."""
        command = [word.replace("{tree}", short(tree)) for word in self.command]
        try:
            done = run(command, TIMEOUT)
        except OSError:
            done = None
        if done is None or done.code:
            return list(self.peers.values())  # what was true a moment ago
        found: dict[str, Peer] = {}
        for line in done.output.splitlines():
            words = line.split()
            if len(words) != 4 or not _GLIDE_ID.fullmatch(words[0]) or not is_address(words[1]):
                continue
            if len(found) == MOST_PEERS:
                break
            glide_id, address, shares, fetching = words
            known = self.peers.get(glide_id)
            peer = known if known and known.address == address else Peer(glide_id, address)
            since = dict(each.split(":", 1) for each in fetching.split(",") if ":" in each).get(short(tree), "")
            peer.since = int(since) if re.fullmatch("[0-9]{1,12}", since) else 0
            peer.whole = not since and short(tree) in shares.split(",")
            found[glide_id] = peer
        self.peers = found
        return list(found.values())
