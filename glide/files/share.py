"""What a node gives to its peers: chunks of the trees that it has a key for, and of those that it is just getting.

A little HTTP, as sendfile does the work: `GET /TREE/have` and `GET /TREE/CONTENT/CHUNK`, each with a bearer token.
Nothing that is asked for becomes a path: trees and contents are looked up. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glide.files.cache import Cache
from glide.files.part import read_have
from glide.files.peers import DIGEST, allows
from glide.files.tree import CHUNK, Tree, extent
from glide.system import open_regular

UPLOADS = 4  # at the same time; who comes then is told to come again, or finds somebody else
READERS = 4  # threads that verify files, a chunk of each in turn
VERIFYING = 64  # files at the same time; who comes for more is told to come again
CONNECTIONS = 256  # at the same time
CONNECTIONS_EACH = 64  # of one address: its host may have several glideins
REQUEST_SECONDS = 10.0
LARGEST_REQUEST = 8192  # bytes
VERIFY_SECONDS = 5.0  # who would have to wait longer for a file to be read is told to come again
STALLED_SECONDS = 60.0  # for the bytes of the smallest chunks to be taken
TURN_SECONDS = 1.0  # who would have to wait longer for the rate's sake is told to come again


@dataclass(frozen=True)
class Offer:
    """A tree that is shared: its key, and the folder where it lies if that is not the cache."""

    tree: Tree
    key: str
    folder: Path | None = None


class Share:
    """The server.

    Args:
        rate: bytes a second that all uploads together may take; None for no limit.
    """

    def __init__(self, cache: Cache, rate: float | None = None):
        self.cache = cache
        self.rate = rate
        self.offers: dict[str, Offer] = {}  # by digest
        self.uploads = 0
        self.connections: Counter[str] = Counter()  # by address
        self.readers = ThreadPoolExecutor(READERS)
        self.verifying: dict[Path, asyncio.Task[None]] = {}
        self.next = 0.0  # when the next upload may begin

    async def start(self, host: str, port: int = 0) -> int:
        """Listen at an address of this node; the port. OSError where that is taken."""
        server = await asyncio.start_server(self._visited, host, port, limit=LARGEST_REQUEST)
        self.serving = asyncio.create_task(_serve(server))
        return int(server.sockets[0].getsockname()[1])

    def find(self, tree: str) -> Offer | None:
        """What is offered of a tree."""
        return self.offers.get(tree)

    def stop(self) -> None:
        self.serving.cancel()
        self.readers.shutdown(wait=False, cancel_futures=True)

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        self.connections[peer] += 1
        try:
            if self.connections[peer] <= CONNECTIONS_EACH and self.connections.total() <= CONNECTIONS:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_SECONDS)
                await self._answer(head.decode("latin-1"), writer)
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), REQUEST_SECONDS)  # for what is in buffers still
        except (
            OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):  # fmt: skip
            pass  # somebody who is not, or no longer, interested; or who is no peer
        finally:
            writer.transport.abort()
            self.connections[peer] -= 1
            self.connections += Counter()  # forgets who has none

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        request, *lines = head.split("\r\n")
        method, path, _ = request.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        given = headers.get("authorization", "").removeprefix("Bearer ")
        _, tree, *rest = path.split("/")
        offer = self.find(tree)
        # Who guesses a tree learns no more than who guesses a token.
        if offer is None or not allows(offer.key, path, given, time.time()):
            return _say(writer, "403 Forbidden")
        if method == "GET" and rest == ["have"]:
            return _say(writer, "200 OK", json.dumps(self._have(offer)).encode())
        if (
            method == "GET"
            and len(rest) == 2
            and rest[0] in offer.tree.contents
            and re.fullmatch("[0-9]{1,9}", rest[1])
        ):
            return await self._upload(offer, rest[0], int(rest[1]), writer)
        _say(writer, "404 Not Found")

    def _have(self, offer: Offer) -> dict[str, list[int] | None]:
        """The chunks of each content that are here; None for all of them."""
        have: dict[str, list[int] | None] = {}
        for content in offer.tree.contents:
            if self._whole(offer, content) is not None:
                have[content] = None
            elif some := read_have(self.cache.partial(content)):
                have[content] = sorted(some)
        return have

    def _place(self, offer: Offer, content: str) -> Path:
        return offer.folder / offer.tree.name(content) if offer.folder else self.cache.content(content)

    def _whole(self, offer: Offer, content: str) -> list[str] | None:
        """The digests of a verified file's chunks; None where there is no such file."""
        return self.cache.parts(self._place(offer, content), content)

    async def _verified(self, offer: Offer, content: str) -> bool:
        """Whether a file that lies elsewhere than in the cache has been read, as it is before anybody gets of it."""
        path = self._place(offer, content)
        if offer.folder is None or self._whole(offer, content) is not None:
            return True
        if path not in self.verifying:
            if len(self.verifying) >= VERIFYING:
                return False
            self.verifying[path] = asyncio.create_task(self._verify(path, content, offer.tree.contents[content]))
        done, _ = await asyncio.wait([self.verifying[path]], timeout=VERIFY_SECONDS)
        return bool(done)

    async def _verify(self, path: Path, content: str, size: int) -> None:
        """Read a file, a chunk at a time: however large it is, others come to be read meanwhile."""
        reading, loop = self.cache.verifying(path, content, size), asyncio.get_running_loop()
        try:
            with suppress(OSError):
                while await loop.run_in_executor(self.readers, next, reading, self) is not self:
                    pass
        finally:
            del self.verifying[path]

    async def _upload(self, offer: Offer, content: str, chunk: int, writer: asyncio.StreamWriter) -> None:
        if not await self._verified(offer, content):
            return _say(writer, "503 Service Unavailable")
        if self.uploads >= UPLOADS or self.next - time.monotonic() > TURN_SECONDS:
            return _say(writer, "503 Service Unavailable")
        whole = self._whole(offer, content)
        if whole is not None:
            path, digest = self._place(offer, content), dict(enumerate(whole)).get(chunk)
        else:
            path = self.cache.partial(content)
            digest = read_have(path).get(chunk)
        if digest is None:
            return _say(writer, "404 Not Found")
        start, length = extent(chunk, offer.tree.contents[content])
        self.uploads += 1
        try:
            with open_regular(path) as file:
                await self._wait_for_turn(length)
                writer.write(_head("200 OK", length, f"{DIGEST}: {digest}\r\n"))
                await writer.drain()
                sending = asyncio.get_running_loop().sendfile(writer.transport, file, start, length)
                await asyncio.wait_for(sending, STALLED_SECONDS * max(1, length / CHUNK))
        except FileNotFoundError:  # somebody has deleted the cache
            _say(writer, "404 Not Found")
        finally:
            self.uploads -= 1

    async def _wait_for_turn(self, length: int) -> None:
        """Uploads follow each other so that they keep to the rate."""
        if self.rate:
            now = time.monotonic()
            self.next = max(now, self.next) + length / self.rate
            await asyncio.sleep(self.next - length / self.rate - now)


async def _serve(server: asyncio.Server) -> None:
    """Serve until cancelled. From Python 3.12 on, a cancelled `serve_forever` waits until every visitor has gone."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()


def _say(writer: asyncio.StreamWriter, status: str, body: bytes = b"") -> None:
    writer.write(_head(status, len(body)) + body)


def _head(status: str, length: int, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n".encode()


def address_towards(collector: str) -> str:
    """This machine's address on the way to a pool's collector: where the pool's other machines reach it, if they do."""
    host = collector.strip("<>").partition("?")[0].rpartition(":")[0] or collector
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((host, 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(way.getsockname()[0])
