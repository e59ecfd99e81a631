"""Find the peers of a node, ask them which chunks they have, and get chunks from them.

A peer is another node that has a tree of files or is fetching it. Each request to a peer contains a bearer token: an
expiry time, and an HMAC of this time and the requested path. The factory makes the key of the HMAC, and gives the key
only to glideins that may have the tree. This module uses only the standard library.
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
from glide.template import checks
from glide.vocabulary import Machine

TIMEOUT = 5.0  # if a peer sends no byte for this time, in seconds, it is not asked again
SLOWEST = 64 << 10  # minimum rate of a peer in bytes per second; the connection to a slower peer is closed
MOST_LISTING = 1 << 20  # maximum size of an answer with a list of files, in bytes
MOST_PEERS = 4096  # maximum number of peers that a Directory lists
TOKEN_SECONDS = 600  # seconds for which a token is valid
UNKNOWN_DISTANCE = 128  # the distance if an address is unknown; no distance is larger
MOST_FAILURES = 3  # number of failures in a row after which a peer is not asked again
DIGEST_HEADER = "Chunk-Digest"
_GLIDE_ID = re.compile(r"[\x21-\x7e]{1,256}")


def short_digest(tree: str) -> str:
    """Return the short form of a tree's digest, which lanes advertise."""
    return tree[:16]


def token(key: str, path: str, now: float) -> str:
    """Return a bearer token for requests of `path`. It is valid for TOKEN_SECONDS after the Unix time `now`.

    Args:
        path: address of the peer, followed by the path of the request.
    """
    expiry = str(int(now) + TOKEN_SECONDS)
    return f"{expiry}.{_mac(key, path, expiry)}"


def allows(key: str, path: str, given: str, now: float) -> bool:
    """Return whether a token is valid at the Unix time `now`.

    A token is valid if it was made for this path and with this key, and has not expired.

    Args:
        given: the token.
    """
    expiry, _, mac = given.partition(".")
    authentic = hmac.compare_digest(mac.encode(), _mac(key, path, expiry).encode())
    # The sender sets the expiry time to one token lifetime after the time on its own clock. The sender's clock may be
    # ahead of `now` by up to one token lifetime. So the expiry time may be up to two token lifetimes after `now`.
    return authentic and expiry.isdecimal() and now < int(expiry) <= now + 2 * TOKEN_SECONDS


def answer_mac(key: str, given: str, body: bytes) -> str:
    """Return a code that shows that the sender of an answer knows the key.

    Args:
        given: the token of the request, so that an old answer cannot be sent again.
        body: the content of the answer.
    """
    return hmac.new(key.encode(), f"answer\n{given}\n".encode() + body, hashlib.sha256).hexdigest()


def _mac(key: str, path: str, expiry: str) -> str:
    return hmac.new(key.encode(), f"{path}\n{expiry}".encode(), hashlib.sha256).hexdigest()


def is_address(text: str) -> bool:
    """Return whether a text is an IP address with a port, such as 10.0.0.1:9618 or [fe80::1]:9618."""
    host, _, port = text.rpartition(":")
    with suppress(ValueError):
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        return re.fullmatch("[1-9][0-9]{0,4}", port) is not None and int(port) < 1 << 16
    return False


def distance(host: str, address: str) -> int:
    """Return the distance between the IP address `host` and an IP address with a port.

    To compute the distance, leave out the first bits, in which both IP addresses agree, and count the remaining bits.
    Hosts in the same rack have a small distance, because only the last bits of their addresses differ.
    """
    with suppress(ValueError):
        first, second = ipaddress.ip_address(host), ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
        if first.version == second.version:
            return (int(first) ^ int(second)).bit_length()
    return UNKNOWN_DISTANCE


class PeerBusy(Exception):
    """The peer answered that it is busy. The same request can succeed later."""


class PeerRefused(OSError):
    """The peer answered with an error. `code` is the HTTP status."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclass(eq=False)
class Peer:
    """A node that has a tree of files or is fetching it.

    Attributes:
        glide_id: name of the node.
        address: IP address and port of the node.
        since: Unix time when the node began to fetch the tree; 0 if the node is not fetching the tree.
        has_all: whether the node advertises that it has the complete tree.
        available: a dict from a file's sha256 to the numbers of the chunks that the node has. None: all chunks.
        timeout: a request fails if the node sends no byte for this time, in seconds.
        failures: number of failed requests in a row.
        in_flight: number of requests to the node that have no answer yet.
        busy_until: the node was busy, so no chunks are requested from it until this time, by time.monotonic().
    """

    glide_id: str
    address: str
    since: int = 0
    has_all: bool = False
    available: dict[str, set[int] | None] = field(default_factory=dict)
    timeout: float = TIMEOUT
    failures: int = 0
    in_flight: int = 0
    busy_until: float = 0.0

    def has_chunk(self, content: str, chunk: int) -> bool:
        chunks = self.available.get(content, set())
        return chunks is None or chunk in chunks

    def refresh(self, tree: Tree, key: str) -> None:
        """Ask the peer which chunks of a tree it has, and store the answer in `available`.

        Raises:
            PeerBusy: the peer is busy.
            OSError: the peer sends no valid answer.
        """
        numbers = {content: chunks(size) for content, size in tree.contents.items()}
        most = sum(100 + 8 * len(each) for each in numbers.values())
        answer, _, _ = self._get(f"/{tree.digest}/have", key, most)
        try:
            self.available = {name: _chunk_numbers(some, numbers[name]) for name, some in json.loads(answer).items()}
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise OSError(f"{self.glide_id} sent an invalid list of chunks: {error!r:.200}") from None
        if self.has_all and not self.available:  # the peer has lost its cache, so it is not asked again
            self.failures = MOST_FAILURES

    def listing(self, tree: str, key: str) -> dict[str, tuple[str, int]]:
        """Return the sha256 and the size of each file of a tree. The keys are the files' names.

        Raises:
            OSError: the peer sends no valid answer, or does not know the key.
        """
        answer, code, given = self._get(f"/{tree}/files", key, MOST_LISTING)
        if not hmac.compare_digest(code.encode(), answer_mac(key, given, answer).encode()):
            raise OSError(f"{self.glide_id} does not know the key")
        try:
            return checks.files(json.loads(answer))
        except (ValueError, RecursionError) as error:
            raise OSError(f"{self.glide_id} sent an invalid list of files: {error!r:.200}") from None

    def fetch_chunk(self, tree: str, content: str, chunk: int, length: int, key: str) -> bytes:
        """Return the data of a chunk from the peer. The data are checked with the sha256 that the peer sends.

        Raises:
            PeerBusy: the peer is busy.
            OSError: the peer does not send the chunk, or the data are damaged.
        """
        data, digest, _ = self._get(f"/{tree}/{content}/{chunk}", key, length)
        if len(data) != length or hashlib.sha256(data).hexdigest() != digest:
            raise OSError(f"{self.glide_id} sent a chunk with a wrong length or checksum")
        return data

    def _get(self, path: str, key: str, most: int) -> tuple[bytes, str, str]:
        """Return the content of an answer, its header DIGEST_HEADER, and the token of the request."""
        host, _, port = self.address.rpartition(":")
        self.in_flight += 1
        try:
            connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=self.timeout)
            with closing(connection), _time_limit(connection, self.timeout + most / SLOWEST):
                given = token(key, f"{self.address}{path}", time.time())
                connection.request("GET", path, headers={"Authorization": f"Bearer {given}"})
                answer = connection.getresponse()
                if answer.status == http.client.SERVICE_UNAVAILABLE:
                    raise PeerBusy
                if answer.status != http.client.OK:
                    raise PeerRefused(f"{self.glide_id} answered {answer.status} {answer.reason}", answer.status)
                return answer.read(most + 1), answer.getheader(DIGEST_HEADER, ""), given
        except TimeoutError:
            self.failures = MOST_FAILURES
            raise OSError(f"{self.glide_id} does not answer within {self.timeout:g} s") from None
        except (http.client.HTTPException, ValueError, ConnectionError) as error:
            raise OSError(f"{self.glide_id}: {error!r:.200}") from None
        finally:
            self.in_flight -= 1


def _chunk_numbers(some: object, numbers: range) -> set[int] | None:
    """Return the chunk numbers in a peer's answer; None: all chunks. Raises ValueError if the answer is invalid."""
    if some is None:
        return None
    if not isinstance(some, list) or not all(type(number) is int and number in numbers for number in some):
        raise ValueError("not a list of chunks")
    return set(some)


@contextmanager
def _time_limit(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Open a connection. Close it if the `with` block takes longer than `seconds`, even if bytes still arrive."""
    connection.connect()
    connected = connection.sock  # `end` needs this socket, but http.client forgets `connection.sock` too early

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
    """Return the condor_status command that a Directory runs. `programs` is the folder of HTCondor's programs."""
    sharing = f'{Machine.PEER} =!= undefined && stringListMember("{{tree}}", {Machine.SHARES})'
    names = (Machine.ID, Machine.PEER, Machine.SHARES, Machine.FETCHING)
    return [str(programs / "condor_status"), "-constraint", sharing, "-af", *names]


class Directory:
    """Lists the nodes that have a tree of files or are fetching it. The list comes from the pool's collector.

    Args:
        command: command that prints one line for each lane, with GlideId, GlidePeer, GlideShares and
            GlideFetching. In the command, `{tree}` is replaced by the short digest of the tree.
    """

    def __init__(self, command: Sequence[str]):
        self.command = command
        self.peers: dict[str, Peer] = {}

    def refresh(self, tree: str) -> list[Peer]:
        """Ask the collector for the nodes that have the tree with this digest, or are fetching it. Return these peers.

        If the last call returned a Peer object for a node, return this object again. If the collector does not answer,
        return the peers of the last successful call.
        """
        command = [word.replace("{tree}", short_digest(tree)) for word in self.command]
        try:
            done = run(command, TIMEOUT)
        except OSError:
            done = None
        if done is None or done.code:
            return list(self.peers.values())
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
            since = dict(each.split(":", 1) for each in fetching.split(",") if ":" in each).get(short_digest(tree), "")
            peer.since = int(since) if re.fullmatch("[0-9]{1,12}", since) else 0
            peer.has_all = not since and short_digest(tree) in shares.split(",")
            found[glide_id] = peer
        self.peers = found
        return list(found.values())
