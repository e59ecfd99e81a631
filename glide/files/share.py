"""Send chunks of files from a node to its peers. The node may still be fetching the rest of these files.

The server accepts three HTTP requests. Each request must contain a bearer token (glide.files.peers).

    GET /TREE/files            asks for the names, the sha256 and the sizes of a tree's files
    GET /TREE/have             asks which chunks of a tree the node has. TREE is the tree's digest
    GET /TREE/CONTENT/CHUNK    asks for a chunk. CHUNK is its number, and CONTENT is the sha256 of the file

A request names files only by sha256, so it cannot reach a file outside the trees that the node offers. This module uses
only the standard library.
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
from glide.files.partial_file import read_digests
from glide.files.peers import DIGEST_HEADER, allows, answer_mac
from glide.files.tree import CHUNK, Tree, extent
from glide.system import open_regular
from glide.template.private import check_open, opened_path

# If one of the next four limits is reached, a request for a chunk gets the HTTP status 503. The node that sent the
# request then asks again later, or asks another node.
UPLOADS = 4  # maximum number of simultaneous uploads
VERIFYING = 64  # maximum number of files that are verified at the same time
VERIFY_SECONDS = 5.0  # maximum time that a request waits until a file is verified, in seconds
TURN_SECONDS = 1.0  # maximum time that a request waits because of the limited upload rate, in seconds

READERS = 4  # number of threads that verify files
CONNECTIONS = 256  # maximum number of simultaneous connections
CONNECTIONS_EACH = 64  # maximum number of connections from one address; several glideins may have the same address
REQUEST_SECONDS = 10.0  # time limit for the arrival of a request, in seconds
LARGEST_REQUEST = 8192  # maximum size of a request in bytes
STALLED_SECONDS = 60.0  # time limit for sending CHUNK bytes, in seconds; larger chunks have proportionally more time


@dataclass(frozen=True)
class SharedTree:
    """A tree that a node offers to its peers.

    Attributes:
        tree: names, sha256 and sizes of the files.
        key: secret with which peers sign the tokens in their requests.
        folder: folder that contains the tree's files. None: the files are in the node's cache.
    """

    tree: Tree
    key: str
    folder: Path | None = None


class ChunkServer:
    """The server that sends chunks from a node to its peers.

    Args:
        cache: the node's cache, which contains the files and remembers verified files.
        rate: maximum rate of all uploads together, in bytes per second. None: no limit.
    """

    def __init__(self, cache: Cache, rate: float | None = None):
        self.cache = cache
        self.rate = rate
        self.address = ""  # the address that clients use for this server
        self.offers: dict[str, SharedTree] = {}  # offered trees by digest
        self.uploads = 0
        self.connections: Counter[str] = Counter()  # a dict from an address to its number of connections
        self.readers = ThreadPoolExecutor(READERS)
        self.verifying: dict[Path, asyncio.Task[None]] = {}
        self.next_upload = 0.0  # time when the next upload may begin, by time.monotonic()

    async def start(self, host: str, port: int = 0) -> int:
        """Listen at an address and return the port. Port 0: any free port. Raises OSError if the port is in use."""
        server = await asyncio.start_server(self._handle_connection, host, port, limit=LARGEST_REQUEST)
        self.serving = asyncio.create_task(_serve(server))
        port = int(server.sockets[0].getsockname()[1])
        self.address = f"{host}:{port}"
        return port

    def find(self, tree: str) -> SharedTree | None:
        """Return the offered tree with this digest; None if the node does not offer it."""
        return self.offers.get(tree)

    def stop(self) -> None:
        self.serving.cancel()
        self.readers.shutdown(wait=False, cancel_futures=True)

    async def _handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        self.connections[peer] += 1
        try:
            if self.connections[peer] <= CONNECTIONS_EACH and self.connections.total() <= CONNECTIONS:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_SECONDS)
                await self._answer(head.decode("latin-1"), writer)
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), REQUEST_SECONDS)  # wait until everything is sent
        except (
            OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):  # fmt: skip
            pass  # the client has closed the connection, is too slow, or does not speak the protocol
        finally:
            writer.transport.abort()
            self.connections[peer] -= 1
            self.connections += Counter()  # a Counter's `+=` deletes each address that has 0 connections

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        request, *lines = head.split("\r\n")
        method, path, _ = request.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        given = headers.get("authorization", "").removeprefix("Bearer ")
        _, tree, *rest = path.split("/")
        offer = self.find(tree)
        # An unknown tree and a wrong token get the same answer, so that nobody can find out which trees exist here.
        if offer is None or not self._is_allowed(offer, path, given):
            return _respond(writer, "403 Forbidden")
        if method == "GET" and rest == ["files"]:
            body = json.dumps(offer.tree.files).encode()
            return _respond(writer, "200 OK", body, f"{DIGEST_HEADER}: {answer_mac(offer.key, given, body)}\r\n")
        if method == "GET" and rest == ["have"]:
            return _respond(writer, "200 OK", json.dumps(self._available_chunks(offer)).encode())
        if (
            method == "GET"
            and len(rest) == 2
            and rest[0] in offer.tree.contents
            and re.fullmatch("[0-9]{1,9}", rest[1])
        ):
            return await self._upload(offer, rest[0], int(rest[1]), writer)
        _respond(writer, "404 Not Found")

    def _is_allowed(self, offer: SharedTree, path: str, given: str) -> bool:
        """Return whether a request has a valid token.

        A token contains the address of the server that it was made for. So a false peer that receives a token for its
        own address cannot use this token here. An older glide makes tokens without an address. Such a token is enough
        for files that are not private.
        """
        now = time.time()
        return allows(offer.key, f"{self.address}{path}", given, now) or (
            not offer.tree.owner and allows(offer.key, path, given, now)
        )

    def _available_chunks(self, offer: SharedTree) -> dict[str, list[int] | None]:
        """Return a dict from a file's sha256 to the chunks of the file that this node has.

        - If the node has all chunks, the value in the dict is None.
        - If the node has some chunks, the value is a list of chunk numbers. The first chunk of a file has the number 0.
        - If the node has no chunk, the dict does not contain the file's sha256.
        """
        have: dict[str, list[int] | None] = {}
        for content in offer.tree.contents:
            if self._verified_digests(offer, content) is not None:
                have[content] = None
            elif some := read_digests(self.cache.partial_path(content)):
                have[content] = sorted(some)
        return have

    def _path(self, offer: SharedTree, content: str) -> Path:
        return offer.folder / offer.tree.name(content) if offer.folder else self.cache.content_path(content)

    def _verified_digests(self, offer: SharedTree, content: str) -> list[str] | None:
        """Return the sha256 of each chunk of a file; None if the file does not exist or is not verified."""
        return self.cache.chunk_digests(self._path(offer, content), content)

    async def _ensure_verified(self, offer: SharedTree, content: str) -> bool:
        """Wait until a file outside the cache is verified. Return False if this takes too long."""
        path = self._path(offer, content)
        if offer.folder is None or self._verified_digests(offer, content) is not None:
            return True
        if path not in self.verifying:
            if len(self.verifying) >= VERIFYING:
                return False
            self.verifying[path] = asyncio.create_task(self._verify(path, content, offer.tree.contents[content]))
        done, _ = await asyncio.wait([self.verifying[path]], timeout=VERIFY_SECONDS)
        return bool(done)

    async def _verify(self, path: Path, content: str, size: int) -> None:
        """Verify a file chunk by chunk. Other files can be verified between two chunks of a large file."""
        reading, loop = self.cache.verifying(path, content, size), asyncio.get_running_loop()
        try:
            with suppress(OSError):
                while await loop.run_in_executor(self.readers, next, reading, self) is not self:
                    pass
        finally:
            del self.verifying[path]

    async def _upload(self, offer: SharedTree, content: str, chunk: int, writer: asyncio.StreamWriter) -> None:
        if not await self._ensure_verified(offer, content):
            return _respond(writer, "503 Service Unavailable")
        if self.uploads >= UPLOADS or self.next_upload - time.monotonic() > TURN_SECONDS:
            return _respond(writer, "503 Service Unavailable")
        whole = self._verified_digests(offer, content)
        if whole is not None:
            path, digest = self._path(offer, content), dict(enumerate(whole)).get(chunk)
        else:
            path = self.cache.partial_path(content)
            digest = read_digests(path).get(chunk)
        if digest is None:
            return _respond(writer, "404 Not Found")
        start, length = extent(chunk, offer.tree.contents[content])
        self.uploads += 1
        try:
            with open_regular(path) as file:
                # Another file may have taken the place of the verified file.
                if whole is not None and self.cache.chunk_digests(opened_path(file), content) != whole:
                    return _respond(writer, "404 Not Found")
                if offer.folder:
                    check_open(file, offer.tree.owner)
                await self._wait_for_turn(length)
                writer.write(_head("200 OK", length, f"{DIGEST_HEADER}: {digest}\r\n"))
                await writer.drain()
                sending = asyncio.get_running_loop().sendfile(writer.transport, file, start, length)
                await asyncio.wait_for(sending, STALLED_SECONDS * max(1, length / CHUNK))
        except FileNotFoundError:  # the cache was deleted
            _respond(writer, "404 Not Found")
        except PermissionError:
            _respond(writer, "403 Forbidden")
        finally:
            self.uploads -= 1

    async def _wait_for_turn(self, length: int) -> None:
        """Wait before an upload of `length` bytes, so that all uploads together do not exceed `rate`."""
        if self.rate:
            now = time.monotonic()
            self.next_upload = max(now, self.next_upload) + length / self.rate
            await asyncio.sleep(self.next_upload - length / self.rate - now)


async def _serve(server: asyncio.Server) -> None:
    """Keep the server open until this task is cancelled.

    `serve_forever` is not used. When it is cancelled, it waits until all connections end (Python 3.12 and later).
    """
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()


def _respond(writer: asyncio.StreamWriter, status: str, body: bytes = b"", more: str = "") -> None:
    writer.write(_head(status, len(body), more) + body)


def _head(status: str, length: int, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n".encode()


def address_towards(collector: str) -> str:
    """Return the IP address that this machine uses to reach a pool's collector, or 127.0.0.1 if there is no route.

    Other machines of the pool can reach this machine at this address, if this machine accepts their connections.
    """
    host = collector.strip("<>").partition("?")[0].rpartition(":")[0] or collector
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # this sends no packet
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
