"""Compiled code of serving programs: nodes keep it, and get it from peers of their own entry only."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glide.files.compiled import MOST_KEPT, CompiledCode
from glide.files.peers import DIGEST_HEADER, Directory, Peer, PeerBusy
from glide.system import files_below
from glide.template import Template
from glide.vocabulary import Machine, State
from tests.conftest import eventually
from tests.test_peers import Nodes

FAKE = Path(__file__).with_name("fake_program.py")
ENTRY = "the key of this entry"


def template(user: str = "") -> Template:
    command = f"{sys.executable} {FAKE} --socket {{socket}} --compiles 1.5"
    return Template("fake", "server", options={"command": command}, user=user)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path, template())
    yield nodes
    for server in nodes.servers:
        server.stop()


def log_of(nodes: Nodes, number: int) -> str:
    return (nodes.folder / f"node-{number}" / "server.log").read_text()


def first(nodes: Nodes, **supply: Any) -> None:
    """Start a node, and wait until it offers its code."""
    (server,) = nodes.start(compiled_key=ENTRY, **supply)
    server.reached(State.WARM)
    assert "kernel compiled" in log_of(nodes, 0)
    eventually(lambda: nodes.ads["node-0"].get(Machine.SHARES), "the code is offered", budget=20)


def test_second_node_gets_the_code_from_the_first(nodes):
    first(nodes)
    (second,) = nodes.start(compiled_key=ENTRY)
    second.reached(State.WARM)
    assert "kernel found" in log_of(nodes, 1)
    assert "fake: compiled code came from a peer: 12.0 MB" in log_of(nodes, 1)
    loads = [nodes.ads[f"node-{number}"][Machine.LOAD_SECONDS] for number in range(2)]
    assert loads[0] > 1.5 > loads[1]
    places = [next(files_below(nodes.folder / f"node-{n}" / "cache" / "compiled", "kernel.so")) for n in range(2)]
    assert places[0].read_bytes() == places[1].read_bytes()
    # The second node offers the code, too, so the third gets it even after the first has ended.
    eventually(lambda: nodes.ads["node-1"].get(Machine.SHARES), "the second node offers the code", budget=20)
    nodes.forget(nodes.servers[0])
    nodes.servers[0].stop()
    (third,) = nodes.start(compiled_key=ENTRY)
    third.reached(State.WARM)
    assert "kernel found" in log_of(nodes, 2)


def test_next_glidein_on_the_node_finds_the_code(nodes):
    first(nodes)
    nodes.servers[0].stop()
    nodes.forget(nodes.servers[0])
    (again,) = nodes.start(compiled_key=ENTRY, cache=str(nodes.folder / "node-0" / "cache"))
    again.reached(State.WARM)
    assert "kernel found" in log_of(nodes, 1)


def test_glidein_with_another_key_does_not_use_the_code_on_its_host(nodes):
    first(nodes)
    (second,) = nodes.start(cache=str(nodes.folder / "node-0" / "cache"))
    second.reached(State.WARM)
    assert "kernel compiled" in log_of(nodes, 1)


@pytest.mark.parametrize("key", ["", "the key of another entry"])
def test_glidein_with_another_key_compiles_the_code(nodes, key):
    first(nodes)
    (second,) = nodes.start(compiled_key=key)
    second.reached(State.WARM)
    assert "kernel compiled" in log_of(nodes, 1)


def test_users_code_is_neither_kept_nor_offered(nodes):
    nodes.template = template("ann@pool")
    (server,) = nodes.start(compiled_key=ENTRY)
    server.reached(State.WARM)
    time.sleep(1.0)
    assert not server.now().get(Machine.SHARES) and not (server.folder / "cache" / "compiled").exists()


class Impostor(http.server.BaseHTTPRequestHandler):
    """A peer without the key. It answers each request, whatever its token."""

    def do_GET(self) -> None:
        body = json.dumps(listed(GOOD)).encode() if self.path.endswith("/files") else GOOD
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(DIGEST_HEADER, hashlib.sha256(body).hexdigest())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_code_of_a_peer_without_the_key_is_refused(tmp_path):
    code = CompiledCode.of(tmp_path / "compiled", "template", "environment", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Impostor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        peer = Peer("impostor", f"127.0.0.1:{server.server_port}", has_all=True)
        with pytest.raises(OSError, match="impostor does not know the key"):
            code.fetch(Peers(peer), ENTRY, "127.0.0.1", "me")
        server.shutdown()
    assert not code.place.exists()


# ---- what peers send -----------------------------------------------------------------------------


class Liar(Peer):
    """A peer that sends what a test gives it."""

    def __init__(self, listing: Any, data: bytes):
        super().__init__("liar", "127.0.0.1:1", has_all=True)
        self.sent, self.data = listing, data

    def listing(self, tree: str, key: str) -> Any:
        return self.sent

    def fetch_chunk(self, tree: str, content: str, chunk: int, length: int, key: str) -> bytes:
        return self.data


class Peers(Directory):
    def __init__(self, *peers: Peer):
        super().__init__([])
        self.known = list(peers)

    def refresh(self, tree: str) -> list[Peer]:
        return self.known


def archive(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"code"))
    return buffer.getvalue()


def listed(data: bytes) -> dict[str, tuple[str, int]]:
    digest = hashlib.sha256(data).hexdigest()
    return {f"{digest}.tar": (digest, len(data))}


GOOD, OUTSIDE = archive("a/kernel.so"), archive("../outside")


@pytest.mark.parametrize(
    ("listing", "data"),
    [
        ({}, b""),
        ({"other.tar": ("0" * 64, 10)}, b""),
        ({f"{'0' * 64}.tar": ("0" * 64, 1 << 40)}, b""),
        ({f"{'0' * 64}.tar": ("1" * 64, len(GOOD))}, GOOD),
        ({f"{'0' * 64}.tar": ("0" * 64, len(GOOD))}, GOOD),
        (listed(b"no archive"), b"no archive"),
        (listed(OUTSIDE), OUTSIDE),
    ],
)
def test_wrong_code_is_refused_and_next_peer_asked(tmp_path, listing, data):
    code = CompiledCode.of(tmp_path / "compiled", "template", "environment", [])
    with pytest.raises(OSError):
        code.fetch(Peers(Liar(listing, data)), "key", "127.0.0.1", "me")
    assert not code.place.exists() and not (tmp_path / "outside").exists()
    assert not list((tmp_path / "compiled").iterdir())  # no partial files stay
    tree = code.fetch(Peers(Liar(listing, data), Liar(listed(GOOD), GOOD)), "key", "127.0.0.1", "me")
    assert tree and (code.place / "a" / "kernel.so").read_bytes() == b"code"


def test_code_depends_on_template_environment_and_device(tmp_path):
    names = {
        CompiledCode.of(tmp_path, template, environment, devices).name
        for template in ("a", "b") for environment in ("e", "f") for devices in ([], ["H200"], ["A100"])
    }  # fmt: skip
    assert len(names) == 12


def test_cache_keeps_the_most_recently_used_code(tmp_path):
    codes = [CompiledCode.of(tmp_path, str(number), "", []) for number in range(MOST_KEPT + 3)]
    for number, code in enumerate(codes):
        os.close(code.use())
        (code.place / "kernel.so").write_bytes(b"code")
        assert code.pack()
        os.utime(code.place, (number, number))
    os.close(codes[0].use())
    kept = [code.place.exists() for code in codes]
    assert kept == [True, False, False, False, *[True] * (MOST_KEPT - 1)]
    assert [code.packed.exists() for code in codes[1:]] == kept[1:]


def test_deleted_code_leaves_no_mark_on_later_code(tmp_path):
    """Otherwise, code that this node has compiled itself would count as code of a peer."""
    code, *others = [CompiledCode.of(tmp_path, str(number), "", []) for number in range(MOST_KEPT + 1)]
    assert code.fetch(Peers(Liar(listed(GOOD), GOOD)), "key", "127.0.0.1", "me") and code.is_unproven
    os.utime(code.place, (0, 0))
    for other in others:
        os.close(other.use())
    assert not code.place.exists() and not code.is_unproven


def test_code_in_use_is_not_deleted(tmp_path):
    used, *others = [CompiledCode.of(tmp_path, str(number), "", []) for number in range(MOST_KEPT + 3)]
    lock = used.use()
    os.utime(used.place, (0, 0))
    for code in others:
        os.close(code.use())
    assert used.place.exists()
    os.close(lock)
    os.close(others[0].use())
    assert not used.place.exists()


def test_unchanged_code_is_packed_only_once(tmp_path):
    code = CompiledCode.of(tmp_path, "template", "", [])
    os.close(code.use())
    (code.place / "kernel.so").write_bytes(b"code")
    first = code.pack()
    assert first and code.pack() == first
    (code.place / "other.so").write_bytes(b"more")
    assert code.pack() != first
    assert (code.packed / next(iter(first.files))).exists()  # peers may still be fetching it
    for archive in code.packed.iterdir():
        os.utime(archive, (1, 1))
    code.pack()
    assert len(list(code.packed.iterdir())) == 1


def test_code_that_does_not_work_here_is_not_fetched_again(nodes, monkeypatch):
    first(nodes)
    monkeypatch.setenv("FAKE_REFUSES_KERNEL", "1")
    (second,) = nodes.start(compiled_key=ENTRY)
    next(ad for ad in second.states() if ad[Machine.STATE] == State.FAILED)
    eventually(lambda: "compiled code of a peer is deleted" in log_of(nodes, 1), "the code is deleted", budget=20)
    (third,) = nodes.start(compiled_key=ENTRY, cache=str(nodes.folder / "node-1" / "cache"))
    third.reached(State.WARM)
    assert "kernel compiled" in log_of(nodes, 2)


class Busy(Peer):
    """A peer that is always busy."""

    def _get(self, path: str, key: str, most: int) -> Any:
        raise PeerBusy


def test_busy_peer_delays_the_start_only_for_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("glide.files.compiled.FETCH_SECONDS", 1.0)
    code = CompiledCode.of(tmp_path / "compiled", "template", "environment", [])
    with pytest.raises(OSError, match="no peer sent the compiled code within"):
        code.fetch(Peers(Busy("busy", "127.0.0.1:1", has_all=True)), "key", "127.0.0.1", "me")
