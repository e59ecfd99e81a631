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
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from glide.vocabulary import Machine

TIMEOUT = 5.0  # seconds in which a peer has to send something; who does not is left alone
TOKEN_SECONDS = 600
UNKNOWN = 128  # a distance
STRIKES = 3  # failures in a row, after which a peer is left alone
DIGEST = "Chunk-Digest"


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

    def look(self, tree: str, key: str) -> None:
        """See what it has; OSError when it does not say."""
        answer, _ = self._ask(f"/{tree}/have", key, 1 << 24)
        try:
            have = json.loads(answer)
            self.have = {str(name): None if some is None else set(some) for name, some in have.items()}
            if self.whole and not have:  # its cache has been deleted
                self.strikes = STRIKES
        except (ValueError, TypeError, AttributeError) as error:
            raise OSError(f"{self.glide_id} makes no sense: {error!r}") from None

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
            with closing(http.client.HTTPConnection(host.strip("[]"), int(port), timeout=self.patience)) as connection:
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
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"{self.glide_id}: {error!r}") from None
        finally:
            self.asked -= 1


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
            said = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return list(self.peers.values())  # what was true a moment ago
        found: dict[str, Peer] = {}
        for line in said.splitlines():
            words = line.split()
            if len(words) != 4 or ":" not in words[1]:
                continue
            glide_id, address, shares, fetching = words
            known = self.peers.get(glide_id)
            peer = known if known and known.address == address else Peer(glide_id, address)
            since = dict(each.split(":") for each in fetching.split(",") if ":" in each).get(short(tree), "")
            peer.since = int(since) if since.isdecimal() else 0
            peer.whole = not since and short(tree) in shares.split(",")
            found[glide_id] = peer
        self.peers = found
        return list(found.values())
