"""Peers, seeds, sources and directories that lie, hang or flood: over real sockets, in real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from glide.bench.origin import origin
from glide.factory.seed import Seed
from glide.files import Cache, Tree
from glide.files.listing import MANIFEST, listing
from glide.files.peers import Directory, Peer, PeerBusy, PeerRefused, is_address, token
from glide.files.program import MOST_OUTPUT, run
from glide.files.share import CONNECTIONS_EACH
from glide.files.sources import FolderSource, open_source
from glide.files.tree import CHUNK
from glide.template import FileSet, Template
from tests.conftest import eventually
from tests.file_trees import Process, described, fetched, same, tree, written
from tests.test_hostile_archives import running

KEY = "the key of this tree"
SHA = "0123456789abcdef" * 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model", {"config.json": 300, "one.bin": CHUNK + 17})


# ---- what is offered -----------------------------------------------------------------------------


@pytest.fixture
def seed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Seed]:
    """A seed that must not print a traceback, nor keep what was opened."""
    seed = Seed(tmp_path / "seed", "127.0.0.1")
    yield seed
    seed.stop()
    assert "Traceback" not in capfd.readouterr().err


def descriptors(seed: Seed) -> int:
    assert seed.process
    return len(os.listdir(f"/proc/{seed.process.pid}/fd"))


def test_pipes_or_huge_files_never_block_seed_process(tmp_path, model, seed):
    """A pipe, a device and files that take days to read: more of them than a seed has threads."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    names = {"pipe": 17, "zero": 0}
    for number in range(8):
        with (tmp_path / f"huge-{number}").open("wb") as file:
            file.truncate(1 << 40)
        names[f"huge-{number}"] = 1 << 40
    digests = {name: f"{number:064x}" for number, name in enumerate(names)}
    offered = FileSet(str(tmp_path), {name: (digests[name], size) for name, size in names.items()}, KEY)
    honest = replace(described(model), key=KEY)
    address, _ = seed.offer(offered), seed.offer(honest.file_set)

    def ask(file_set: FileSet, name: str) -> bytes | None:
        content, size = file_set.files[name]
        with suppress(PeerBusy):
            digest = Tree(file_set.files).digest
            return Peer("seed", address, timeout=60).fetch_chunk(digest, content, 0, min(size, 300), KEY)
        return None

    huge = [name for name in names if name.startswith("huge")]
    started = [threading.Thread(target=ask, args=(offered, name), daemon=True) for name in huge]
    for thread in started:
        thread.start()
    for name in ("pipe", "zero"):
        with pytest.raises(PeerRefused, match="404"):
            eventually(lambda name=name: ask(offered, name), "an answer")
    given = eventually(lambda: ask(honest.file_set, "config.json"), "its turn among those that take days")
    assert given == (model / "config.json").read_bytes()
    for thread in started:
        thread.join()


def test_pipes_and_devices_are_refused_as_model_files(tmp_path, model):
    os.mkfifo(tmp_path / "pipe")
    file_set = {"pipe": (SHA, 5)}
    said = Process(tmp_path / "cache", Template("m", "noop", str(tmp_path), file_set)).end()
    assert "no regular file" in said["failed"] or "has changed since" in said["failed"]
    with pytest.raises(OSError, match="no regular file"):
        next(FolderSource(tmp_path).read("pipe", 0))
    cache = Cache(tmp_path / "other")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, size in (("pipe", 0), ("zero", 0)):
        with pytest.raises(OSError, match="no regular file"):
            cache.verify(tmp_path / name, SHA, size)
    assert not cache.verify(model / "one.bin", SHA, 1 << 50)


@pytest.mark.parametrize(
    "sent",
    [
        b"x" * (1 << 17), b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000, b"\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n",
        "GET {path} HTTP/1.1\r\nAuthorization: Bearer \xe9.\xe9\r\n\r\n".encode("latin-1"),
        b"GET {path} HTTP/1.1\r\nAuthorization: Bearer " + b"9" * 5000 + b".00\r\n\r\n",
        b"GET {path}" + b"9" * 4000 + b" HTTP/1.1\r\nAuthorization: {token}\r\n\r\n",
        b"GET {path}\xb2 HTTP/1.1\r\nAuthorization: {token}\r\n\r\n",
    ],
)  # fmt: skip
def test_malformed_requests_do_not_stop_seed_process(model, seed, sent):
    template = replace(described(model), key=KEY)
    address = seed.offer(template.file_set)
    host, _, port = address.rpartition(":")
    whole, (content, size) = Tree(template.files), template.files["config.json"]
    Peer("seed", address).refresh(whole, KEY)
    before = descriptors(seed)
    path = f"/{whole.digest}/{content}/"
    number = sent.split(b" HTTP")[0].split(b"}")[-1].decode("latin-1") if b"{path}" in sent else ""
    bearer = f"Bearer {token(KEY, path + number, time.time())}".encode()
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=60) as connection, suppress(ConnectionError):
            connection.sendall(sent.replace(b"{path}", path.encode()).replace(b"{token}", bearer))
            answer = connection.recv(100)
            assert not answer or answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 404")), answer
    eventually(lambda: descriptors(seed) <= before, "the end of its connections")
    given = Peer("seed", address).fetch_chunk(whole.digest, content, 0, size, KEY)
    assert given == (model / "config.json").read_bytes()


def test_one_host_cannot_use_up_all_seed_connections(model, seed):
    """One host opens as many as it can; another one is served."""
    template = replace(described(model), key=KEY)
    host, _, port = seed.offer(template.file_set).rpartition(":")
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection((host, int(port)), 60, ("127.0.0.2", 0)))
            for _ in range(CONNECTIONS_EACH + 40)
        ]
        ended = [connection for connection in held[CONNECTIONS_EACH:] if connection.recv(1) == b""]
        assert len(ended) == 40
        Peer("seed", f"{host}:{port}", timeout=60).refresh(Tree(template.files), KEY)


# ---- what peers answer ---------------------------------------------------------------------------


class Liar:
    """A peer that answers each request in its own way."""

    def __init__(self, answer: Callable[[socket.socket], None]):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                visit, _ = self.server.accept()
                with suppress(OSError), visit:
                    visit.recv(4096)
                    self.answer(visit)

    @property
    def peer(self) -> Peer:
        return Peer("liar", f"127.0.0.1:{self.server.getsockname()[1]}")


def saying(body: str) -> Callable[[socket.socket], None]:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return lambda visit: visit.sendall((head + body).encode())


@pytest.mark.parametrize(
    "some",
    [
        '"all"', "1", "[true]", "[-1]", "[2]", "[0, 1.0]", '["0"]', f"[{'9' * 5000}]", "[[0]]", '{"0": 0}', "[1e400]",
        "[NaN]", "[" * 100_000,
    ],
)  # fmt: skip
def test_peer_with_invalid_chunk_list_is_ignored(model, some):
    wanted, content = tree(model), described(model).files["one.bin"][0]
    peer = Liar(saying(f'{{"{content}": {some}}}')).peer
    with pytest.raises(OSError, match="liar"):
        peer.refresh(wanted, KEY)
    assert not peer.available


def test_list_of_chunks_with_unknown_file_is_refused(model):
    wanted, files = tree(model), described(model).files
    one, other = files["one.bin"][0], files["config.json"][0]
    peer = Liar(saying(json.dumps({one: [0, 1], other: None}))).peer
    peer.refresh(wanted, KEY)
    assert peer.available == {one: {0, 1}, other: None}
    stranger = Liar(saying(json.dumps({SHA: None}))).peer
    with pytest.raises(OSError, match="sent an invalid list of chunks"):
        stranger.refresh(wanted, KEY)


def test_very_slow_peer_is_abandoned(model, monkeypatch):
    """It says something now and then, and would for ever."""
    monkeypatch.setattr("glide.files.peers.SLOWEST", 1 << 30)
    content, finished = described(model).files["one.bin"][0], []

    def drip(visit: socket.socket) -> None:
        visit.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n")
        for _ in range(600):
            visit.sendall(b"x")
            time.sleep(0.1)
        finished.append(True)

    peer = replace(Liar(drip).peer, timeout=0.5)
    with pytest.raises(OSError, match="liar"):
        peer.fetch_chunk(tree(model).digest, content, 0, CHUNK, KEY)
    assert not finished


def test_fetch_succeeds_despite_lying_peers(model, tmp_path):
    """A directory with every kind of line; chunks that are not what they should be."""
    big = written(tmp_path / "big", {"one.bin": 9 * CHUNK})
    wanted, short = tree(big), tree(big).digest[:16]
    wrong = Liar(
        lambda visit: visit.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n" + b"x" * 9999)
    )
    lines = [
        b"good 127.0.0.1:9 %s undefined", b"\xff\xfe 127.0.0.1:9 %s undefined", b"a.b \xff:9 %s undefined",
        b"host collector.example:9 %s undefined", b"port 127.0.0.1:99999 %s undefined",
        b"p 127.0.0.1:\xd9\xa3 %s undefined",
        b"many 127.0.0.1:7 none %s:" + b"9" * 5000, b"colons 127.0.0.1:8 none %s:1:2", b"few words",
        b"liar " + wrong.peer.address.encode() + b" %s undefined",
    ]  # fmt: skip
    (tmp_path / "ads").write_bytes(b"".join(line.replace(b"%s", short.encode()) + b"\n" for line in lines))
    directory = Directory(["cat", str(tmp_path / "ads")])
    assert [peer.glide_id for peer in directory.refresh(wanted.digest)] == ["good", "many", "colons", "liar"]
    swarm = {"glide_id": "me", "since": int(time.time()), "directory": directory.command, "key": KEY, "host": ""}
    with origin(big) as server:
        said = Process(tmp_path / "cache", described(big, server.url), swarm=swarm).end()
    assert same(Path(said["folder"]), big)


@pytest.mark.parametrize(
    ("address", "right"),
    [
        ("10.0.0.1:80", True), ("[fd00::1]:80", True), ("localhost:80", False), ("10.0.0.1", False),
        ("10.0.0.1:0", False),
        ("10.0.0.1:65536", False), ("10.0.0.1:1e3", False), ("http://10.0.0.1:80", False), ("10.0.0.1/x:80", False),
    ],
)  # fmt: skip
def test_peer_address_must_be_ip_and_port(address, right):
    assert is_address(address) is right


# ---- programs and sources ------------------------------------------------------------------------


def test_external_program_leaves_no_processes_or_excess_output(tmp_path):
    flood = run(["sh", "-c", "sleep 1000 & echo $! >child; yes | head -c 9000000; echo done >&2"], 60, tmp_path)
    assert flood.code == 0 and len(flood.output) == MOST_OUTPUT and flood.errors == "done\n"
    eventually(lambda: not running(int((tmp_path / "child").read_text())), "the end of what it left behind")
    looks: list[int] = []

    def progress() -> int:
        """Progress at the first looks, and none after them."""
        looks.append(1)
        return min(len(looks), 4)

    with pytest.raises(TimeoutError, match="sleep has not ended in 0"):
        run(["sleep", "1000"], 0.3, progress=progress)
    assert len(looks) > 4, "what moves has the time again"
    words = ["sh", "-c", f"echo $$ >{tmp_path}/pid; exec sleep 1000"]
    started = subprocess.Popen([sys.executable, "-c", f"from glide.files.program import run; run({words}, 999)"])
    child = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it runs"))
    assert running(child)
    started.kill()
    started.wait()
    eventually(lambda: not running(child), "its end with its parent")


def test_hanging_or_broken_transfer_plugin_raises_error(tmp_path, monkeypatch):
    plugins = tmp_path / "libexec"
    plugins.mkdir()
    for name, script in {
        "a_plugin": "#!/no/such/interpreter\n",
        "b_plugin": '#!/bin/sh\n[ "$1" = -classad ] && { echo \'SupportedMethods = "osdf"\'; exit; }\n'
        f"cp $2 {tmp_path}/asked; [ -e {tmp_path}/hangs ] && sleep 1000; printf '\\377' >$4; exit 3\n",
    }.items():
        (plugins / name).write_text(script)
        (plugins / name).chmod(0o755)
    source = open_source('osdf:///x"y', plugins)
    with pytest.raises(OSError, match=r"b_plugin: \N{REPLACEMENT CHARACTER}"):
        next(source.read('a"; LocalFileName = "/etc/b\\', 0))
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(r'[ Url = "osdf:///x\"y/a\"; LocalFileName = \"/etc/b\\"; LocalFileName = "')
    (tmp_path / "hangs").touch()
    monkeypatch.setattr("glide.files.sources.PLUGIN_SECONDS", 0.5)
    with pytest.raises(OSError, match="b_plugin has not ended"):
        next(source.read("a", 0))


def test_oversized_file_list_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("glide.files.listing.LARGEST_MANIFEST", 1000)
    (tmp_path / MANIFEST).write_text(json.dumps({f"file-{number}": [SHA, 1] for number in range(100)}))
    with origin(tmp_path) as server, pytest.raises(OSError, match="more than 1000 bytes"):
        listing(server.url)


# ---- the cache -----------------------------------------------------------------------------------


def test_cache_detects_changes_despite_restored_file_times(tmp_path, model):
    cache, wanted = Cache(tmp_path / "cache"), tree(model)
    folder, _ = fetched(cache, wanted, FolderSource(model))
    path = folder / "one.bin"
    status = path.stat()
    assert status.st_mode & 0o777 == 0o400
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"?")
    path.chmod(0o400)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns and path.stat().st_size == status.st_size
    assert not Cache(tmp_path / "cache").is_verified(path, described(model).files["one.bin"][0])
    folder, account = fetched(Cache(tmp_path / "cache"), wanted, FolderSource(model))
    assert same(folder, model) and account.source == CHUNK + 17


def test_hard_links_to_cached_file_cause_no_reverification(tmp_path, model, monkeypatch):
    """What jobs get are links; they come and go."""
    cache, wanted = Cache(tmp_path / "cache"), tree(model)
    folder, _ = fetched(cache, wanted, FolderSource(model))
    monkeypatch.setattr("glide.files.cache.digesting", None)
    content = described(model).files["one.bin"][0]
    for number in range(3):
        assert Cache(tmp_path / "cache").tree_folder(wanted) == folder
        os.link(folder / "one.bin", tmp_path / f"job-{number}")
        assert cache.is_verified(folder / "one.bin", content)
    for number in range(3):
        (tmp_path / f"job-{number}").unlink()
    assert Cache(tmp_path / "cache").tree_folder(wanted) == folder
