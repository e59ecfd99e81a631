"""Peers: model servers that have a tree, or fetch it just now, serve it to each other. Real servers, a real source."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glide.bench.origin import Origin, origin
from glide.factory.seed import Seed
from glide.files import Cache, Tree
from glide.files.fetch import Fetch, Swarm
from glide.files.peers import Directory, Peer, distance, token
from glide.files.sources import FolderSource
from glide.files.tree import CHUNK
from glide.template import Template
from glide.vocabulary import Machine, State
from tests.conftest import eventually
from tests.file_trees import described, same, written
from tests.server_rig import Server

SIZES = {"config.json": 300, "one.bin": 9 * CHUNK + 17, "two.bin": CHUNK}
KEY = "the key of this tree"


class Nodes:
    """Model servers that know of each other, by a file that stands for the collector."""

    def __init__(self, folder: Path, template: Template):
        self.folder = folder
        self.template = replace(template, key=KEY)
        self.servers: list[Server] = []
        self.ads: dict[str, dict[str, Any]] = {}
        (folder / "ads").mkdir()

    def start(self, count: int = 1, **supply: Any) -> list[Server]:
        started = []
        for _ in range(count):
            glide_id = f"node-{len(self.servers)}"
            supply = {
                "cache": str(self.folder / glide_id / "cache"), "glide_id": glide_id,
                "directory": ["sh", "-c", f"cat {self.folder}/ads/*"], **supply,
            }  # fmt: skip
            server = Server(self.folder / glide_id, self.template, **supply)
            supply.pop("cache"), supply.pop("glide_id")
            threading.Thread(target=self._advertise, args=(glide_id, server), daemon=True).start()
            self.servers.append(server)
            started.append(server)
        return started

    def _advertise(self, glide_id: str, server: Server) -> None:
        names = (Machine.PEER, Machine.SHARES, Machine.FETCHING)
        with suppress(OSError):
            for ad in server.states():
                self.ads[glide_id] = ad
                words = [glide_id, *(str(ad.get(name) or "undefined") for name in names)]
                fresh = self.folder / f"{glide_id}.ad"
                fresh.write_text(" ".join(words) + "\n")
                fresh.replace(self.folder / "ads" / glide_id)

    def forget(self, server: Server) -> None:
        (self.folder / "ads" / f"node-{self.servers.index(server)}").unlink(missing_ok=True)

    def warm(self, servers: list[Server] | None = None) -> None:
        for server in servers or self.servers:
            server.reached(State.WARM)

    def place(self, server: Server) -> Path:
        cache = Cache(server.folder / "cache")
        place = cache.tree_folder(Tree(self.template.files))
        assert place, "the tree is not whole"
        return place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model", SIZES)


@pytest.fixture
def source(model: Path, request) -> Iterator[Origin]:
    with origin(model, rate=getattr(request, "param", 20e6)) as server:
        yield server


@pytest.fixture
def nodes(tmp_path: Path, model: Path, source: Origin) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path, described(model, source.url))
    yield nodes
    for server in nodes.servers:
        server.stop()


# Until the nodes know of each other, all read the source. So it is slow enough to send little in this time.
@pytest.mark.parametrize("source", [5e6], indirect=True)
def test_source_sends_six_nodes_at_most_two_copies(nodes, model, source):
    nodes.start(6)
    nodes.warm()
    assert all(same(nodes.place(server), model) for server in nodes.servers)
    assert sum(source.sent.values()) <= 2 * sum(SIZES.values())


def test_new_node_fetches_everything_from_its_peer(nodes, model, source):
    nodes.warm(nodes.start())
    before = sum(source.sent.values())
    (newcomer,) = nodes.start()
    nodes.warm([newcomer])
    assert same(nodes.place(newcomer), model)
    assert sum(source.sent.values()) == before


def test_nodes_never_share_files_they_do_not_keep(nodes, model, source):
    nodes.template = replace(nodes.template, keep="nothing")
    for _ in range(2):
        nodes.warm(nodes.start())
    assert sum(source.sent.values()) == 2 * sum(SIZES.values())
    assert not any(ad.get(Machine.SHARES) for ad in nodes.ads.values())


def test_stalled_source_does_not_delay_fetch_from_peer(nodes, model, source):
    nodes.warm(nodes.start())
    source.stall = 0
    (newcomer,) = nodes.start()
    nodes.warm([newcomer])
    assert same(nodes.place(newcomer), model)


def test_fetch_continues_after_peers_are_killed(nodes, model, source):
    first, second = nodes.start(2, upload_rate=4e6)
    nodes.warm()
    (newcomer,) = nodes.start()
    eventually(lambda: list(newcomer.folder.glob("cache/partial/*.have")), "its first chunk")
    first.process.kill()
    second.process.kill()
    nodes.warm([newcomer])
    assert same(nodes.place(newcomer), model)


def test_corrupt_chunk_of_peer_is_not_accepted(nodes, model, source):
    """A disk that lies: the file is known as what it was."""
    (first,) = nodes.start()
    nodes.warm()
    path, content = nodes.place(first) / "one.bin", nodes.template.files["one.bin"][0]
    cache = Cache(first.folder / "cache")
    parts = cache.chunk_digests(path, content)
    assert parts
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(CHUNK + 1)
        file.write(b"?")
    path.chmod(0o400)
    cache.mark_verified(path, content, parts)
    (newcomer,) = nodes.start()
    nodes.warm([newcomer])
    assert same(nodes.place(newcomer), model)


def test_peer_with_deleted_cache_does_not_prevent_fetch(nodes, model, source):
    (first,) = nodes.start()
    nodes.warm()
    shutil.rmtree(first.folder / "cache")
    (newcomer,) = nodes.start()
    nodes.warm([newcomer])
    assert same(nodes.place(newcomer), model)


# ---- who may have what ---------------------------------------------------------------------------


def answer(address: str, path: str, authorization: str = "") -> tuple[int, bytes]:
    host, _, port = address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.putrequest("GET", path, skip_host=False)
    connection.putheader("Authorization", authorization)
    connection.endheaders()
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def test_peer_refuses_unknown_files_and_invalid_tokens(nodes, model):
    nodes.start()
    nodes.warm()
    address = nodes.ads["node-0"][Machine.PEER]
    tree = Tree(nodes.template.files)
    content = nodes.template.files["config.json"][0]
    have, chunk = f"/{tree.digest}/have", f"/{tree.digest}/{content}/0"

    def bearer(path: str, key: str = KEY, now: float | None = None) -> str:
        return f"Bearer {token(key, path, now or time.time())}"

    assert answer(address, have, bearer(have))[0] == 200
    assert answer(address, chunk, bearer(chunk)) == (200, (model / "config.json").read_bytes())
    late = time.time() - 3600
    for wrong in ("", "Bearer", "Bearer x.y", bearer(chunk, "another key"), bearer(have), bearer(chunk, now=late)):
        assert answer(address, chunk, wrong) == (403, b""), wrong
    # Its right end with another time, by who has no key.
    expiry = int(time.time()) + 60
    forged = hmac.new(b"", f"{chunk}\n{expiry}".encode(), hashlib.sha256).hexdigest()
    assert answer(address, chunk, f"Bearer {expiry}.{forged}")[0] == 403
    # Nor does somebody who may have this tree get anything else, or learn whether it is there.
    guessed = f"/{'0' * 64}/have"
    assert answer(address, guessed, bearer(guessed)) == (403, b"")
    for path in (
        f"/{tree.digest}/../../../../etc/passwd", f"/{tree.digest}/{content}/../0", f"/{tree.digest}/%2e%2e/0",
        f"/{tree.digest}/{'0' * 64}/0", f"/{tree.digest}/{content}/99", f"/{tree.digest}/{content}/-1",
        f"/{tree.digest}//0", f"/{tree.digest}",
    ):  # fmt: skip
        assert answer(address, path, bearer(path))[0] == 404, path
    assert answer(address, "//etc/passwd", bearer("//etc/passwd"))[0] == 403


def test_fetch_succeeds_despite_silent_and_nonsense_peers(nodes, model, source):
    """Two liars stand in the collector before anybody else."""
    silent = socket.create_server(("127.0.0.1", 0))
    babbler = socket.create_server(("127.0.0.1", 0))

    def babble() -> None:
        with suppress(OSError):
            while True:
                visit, _ = babbler.accept()
                visit.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1, 2, 3]")
                visit.close()

    threading.Thread(target=babble, daemon=True).start()
    tree = Tree(nodes.template.files).digest[:16]
    for number, server in enumerate((silent, babbler)):
        line = f"liar-{number} 127.0.0.1:{server.getsockname()[1]} {tree} undefined\n"
        (nodes.folder / "ads" / f"liar-{number}").write_text(line)
    nodes.start()
    nodes.warm()
    assert same(nodes.place(nodes.servers[0]), model)


def test_peer_uploads_stay_within_rate_limit(nodes, model):
    nodes.start(upload_rate=10e6)
    nodes.warm()
    (peer,) = Directory(["sh", "-c", f"cat {nodes.folder}/ads/*"]).refresh(Tree(nodes.template.files).digest)
    tree, content = Tree(nodes.template.files), nodes.template.files["one.bin"][0]
    started = time.monotonic()
    for number in range(4):
        assert isinstance(peer, Peer)
        assert len(peer.fetch_chunk(tree.digest, content, number, CHUNK, KEY)) == CHUNK
    assert time.monotonic() - started > 3 * CHUNK / 10e6  # the first is free


# ---- from the access point -----------------------------------------------------------------------


def hidden(template: Template) -> Template:
    """As a node sees it that shares no file system with the access point."""
    return replace(template, path="/no/such/folder/here")


@pytest.fixture
def seed(tmp_path: Path) -> Iterator[Seed]:
    seed = Seed(tmp_path / "seed", "127.0.0.1")
    yield seed
    seed.stop()


def test_nodes_without_shared_folder_fetch_from_access_point(tmp_path, model, seed):
    template = replace(described(model), key=KEY)
    nodes = Nodes(tmp_path, hidden(replace(template, seed=seed.offer(template.file_set))))
    try:
        nodes.start(3)
        nodes.warm()
        assert all(same(nodes.place(server), model) for server in nodes.servers)
    finally:
        for server in nodes.servers:
            server.stop()


def test_killed_seed_process_restarts_at_same_address(model, seed):
    template = replace(described(model), key=KEY)
    address = seed.offer(template.file_set)
    assert seed.process
    seed.process.kill()
    seed.process.wait()
    assert seed.offer(template.file_set) == address
    tree, content = Tree(template.files), template.files["config.json"][0]
    assert Peer("seed", address).fetch_chunk(tree.digest, content, 0, 300, KEY) == (model / "config.json").read_bytes()


def test_seed_process_refuses_file_with_different_digest(tmp_path, model, seed):
    """Who describes a file of the factory's account does not get it: its sha256 is what one would have to know."""
    secret = tmp_path / "secret"
    secret.write_text("a token")
    guess = Template("m", "noop", str(tmp_path), {"secret": ("0" * 64, 7)}, key=KEY)
    address, tree = seed.offer(guess.file_set), Tree(guess.files)
    with pytest.raises(OSError, match="404"):
        Peer("seed", address).fetch_chunk(tree.digest, "0" * 64, 0, 7, KEY)
    assert answer(address, f"/{'../offers/' + tree.digest}/have")[0] == 403


# ---- whom to ask ---------------------------------------------------------------------------------


def test_nearer_peer_serves_more_chunks(tmp_path, model, source):
    nodes = Nodes(tmp_path, described(model, source.url))
    try:
        near, far = nodes.start(1, host="127.0.1.7")[0], nodes.start(1, host="127.200.0.1")[0]
        nodes.warm()
        given = tmp_path / "given"
        cache, wanted = Cache(tmp_path / "own"), Tree(described(model).files)
        directory = Directory(["sh", "-c", f"cat {tmp_path}/ads/*"])
        asked: list[str] = []
        plain = Peer.fetch_chunk

        def counted(self: Peer, *arguments: Any) -> bytes:
            asked.append(self.address.partition(":")[0])
            return plain(self, *arguments)

        swarm = Swarm("me", int(time.time()), directory, KEY, "127.0.1.9")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Peer, "fetch_chunk", counted)
            patch.setattr("glide.files.fetch.DOWNLOADS", 1)  # among several, the less busy peer is asked first
            Fetch(cache, wanted, FolderSource(given), swarm, lambda account: None).run()
        assert asked.count("127.0.1.7") > asked.count("127.200.0.1")
        assert near.process.poll() is None and far.process.poll() is None
    finally:
        for server in nodes.servers:
            server.stop()


@pytest.mark.parametrize(
    ("host", "address", "bits"),
    [
        ("10.1.2.3", "10.1.2.3:4000", 0), ("10.1.2.3", "10.1.2.200:4000", 8), ("10.1.2.3", "10.9.2.3:4000", 20),
        ("fd00::1", "[fd00::2]:4000", 2), ("10.1.2.3", "[fd00::2]:4000", 128), ("", "10.1.2.3:4000", 128),
    ],
)  # fmt: skip
def test_distance_of_addresses_is_bits_after_common_prefix(host, address, bits):
    assert distance(host, address) == bits
