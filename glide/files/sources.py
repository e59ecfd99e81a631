"""Where a template's files come from when no peer has them: a folder, a web server, a model hub, HTCondor's plugins.

Standard library only, but for the hub's own client.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from glide.files.peers import Busy, Peer
from glide.files.program import run
from glide.files.tree import Tree, chunk_bytes, extent
from glide.system import open_regular

BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
PLUGIN_SECONDS = 600.0  # the same of a file transfer plugin, which may wait for a tape
TRIES = 5  # in a row without a byte more
PAUSE = 1.0  # seconds before the second of them, then twice as long each time
NETWORK_FILESYSTEMS = (
    "nfs", "nfs4", "lustre", "ceph", "gpfs", "beegfs", "beegfs_nodev", "panfs", "wekafs", "afs", "cifs", "smb3",
    "9p", "glusterfs", "orangefs", "virtiofs",
)  # fmt: skip


class Source(Protocol):
    """What files are read from."""

    def read(self, name: str, start: int) -> Iterator[bytes]:
        """A file from an offset on, in pieces; OSError, naming what was tried, when it can't be read."""


def open_source(path: str, plugins: Path | None = None, seed: Source | None = None) -> Source:
    """The source that a template's path names.

    Args:
        plugins: HTCondor's libexec, with its file transfer plugins.
        seed: what has a folder's files, where they are not on this node.
    """
    scheme = path.partition("://")[0]
    if path.startswith("/"):
        return seed or Folder(Path(path))
    if scheme in ("http", "https"):
        return Web(path)
    if scheme == "hf":
        return Hub(path)
    if scheme == "osdf":
        return Plugin(path, plugins)
    raise ValueError(f"{path}: a model is a folder's whole path, or begins with https://, hf:// or osdf://")


def is_remote(folder: Path) -> bool:
    """Whether a folder is not on a disk of this machine, so that a copy is worth having."""
    best = ("", "")
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, place, kind, *_ = line.split()
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place)
            inside = place == "/" or folder == Path(place) or Path(place) in folder.parents
            best = max(best, (place, kind), key=lambda mount: len(mount[0])) if inside else best
    return best[1] in NETWORK_FILESYSTEMS or best[1].startswith("fuse.")


class Folder:
    """A folder of a file system."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, name: str, start: int) -> Iterator[bytes]:
        with open_regular(self.folder / name) as file:
            file.seek(start)
            while data := file.read(BLOCK):
                yield data


class AccessPoint:
    """A folder of the access point, of which the factory gives what the template names (glide.factory.seed)."""

    def __init__(self, address: str, tree: Tree, key: str):
        self.peer = Peer("the access point", address, patience=TIMEOUT)  # it reads a file in full before it gives any
        self.tree = tree
        self.key = key

    def read(self, name: str, start: int) -> Iterator[bytes]:
        return resumed(lambda at: self._stream(name, at), start, f"{name} is in no such folder on this node")

    def _stream(self, name: str, start: int) -> Iterator[bytes]:
        content, size = self.tree.files[name]
        while start < size:
            number = start // chunk_bytes(size)
            begin, length = extent(number, size)
            try:
                data = self.peer.chunk(self.tree.digest, content, number, length, self.key)
            except Busy:
                time.sleep(0.2)
                continue
            yield data[start - begin :]
            start = begin + length


class Web:
    """A folder behind a web server, which need not know ranges but had better."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def read(self, name: str, start: int) -> Iterator[bytes]:
        url = f"{self.url}/{urllib.parse.quote(name)}"
        return resumed(lambda at: self._stream(url, at), start, url)

    def _stream(self, url: str, start: int) -> Iterator[bytes]:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            skip = start if start and answer.status == 200 else 0  # it begins at the beginning
            length = answer.headers.get("Content-Length", "")
            left = int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else -1
            while data := answer.read(BLOCK):
                left -= len(data)
                if skip:
                    skip, data = max(0, skip - len(data)), data[skip:]
                if data:
                    yield data
            if left > 0:  # http.client takes a connection that breaks for the end
                raise OSError(f"{left} bytes are missing")


class Hub:
    """A repository of a model hub, `hf://ORGANISATION/NAME@REVISION`, by the hub's own client."""

    def __init__(self, url: str):
        self.place = url.partition("://")[2]
        self.client: Any = None

    def read(self, name: str, start: int) -> Iterator[bytes]:
        return resumed(lambda at: self._stream(f"{self.place}/{name}", at), start, f"hf://{self.place}/{name}")

    def _stream(self, path: str, start: int) -> Iterator[bytes]:
        from huggingface_hub import HfFileSystem

        self.client = self.client or HfFileSystem()
        with self.client.open(path, "rb", block_size=4 * BLOCK, cache_type="readahead") as file:
            file.seek(start)
            while data := file.read(BLOCK):
                yield data


class Plugin:
    """Whatever one of HTCondor's file transfer plugins fetches: whole files, as that is what they do."""

    def __init__(self, url: str, plugins: Path | None):
        self.url = url.rstrip("/")
        self.plugin = _plugin(url.partition("://")[0], plugins)

    def read(self, name: str, start: int) -> Iterator[bytes]:
        url = f"{self.url}/{name}"
        with tempfile.TemporaryDirectory(prefix="glide-") as folder:
            work = Path(folder)
            (work / "in").write_text(
                f"[ Url = {_string(url)}; LocalFileName = {_string(folder + '/file')} ]\n", "utf-8"
            )
            command = [str(self.plugin), "-infile", f"{work}/in", "-outfile", f"{work}/out"]
            done = run(command, PLUGIN_SECONDS, work, lambda: sum(_size(path) for path in work.iterdir()))
            if done.code or not (work / "file").exists():
                raise OSError(f"{url}: {self.plugin.name}: {_answer(work / 'out') or done.errors[:300] or done.code}")
            yield from Folder(work).read("file", start)


def _string(text: str) -> str:
    """A text as ClassAds write it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _answer(path: Path) -> str:
    """The beginning of what a plugin has written about its transfers."""
    try:
        with open_regular(path) as file:
            return " ".join(file.read(BLOCK).decode("utf-8", "replace").split())[:300]
    except OSError:
        return ""


def _plugin(scheme: str, folder: Path | None) -> Path:
    """The program in HTCondor's libexec that says it fetches such addresses."""
    for path in sorted(folder.glob("*plugin*") if folder else ()):
        if os.access(path, os.X_OK):
            try:
                said = run([path, "-classad"], TIMEOUT).output
            except OSError:  # it is of another machine's kind, or it hangs
                continue
            line = next((line for line in said.splitlines() if line.startswith("SupportedMethods")), "")
            if scheme in line.partition("=")[2].strip(' "').split(","):
                return path
    raise FileNotFoundError(f"no file transfer plugin of this node's HTCondor fetches {scheme}://")


def resumed(stream: Callable[[int], Iterator[bytes]], start: int, what: str) -> Iterator[bytes]:
    """A stream that goes on where it broke, for as long as there is progress; OSError when there is none."""
    at, failures = start, 0
    while True:
        try:
            for data in stream(at):
                yield data
                at, failures = at + len(data), 0
            return
        except (OSError, HTTPException) as error:
            answer = getattr(error, "response", None)  # of the hub's client
            status = int(getattr(error, "code", 0) or getattr(answer, "status_code", 0) or 500)
            failures += 1
            if failures == TRIES or (400 <= status < 500 and status not in (408, 425, 429)):
                raise OSError(f"{what}: {error}") from None
            time.sleep(PAUSE * 2 ** (failures - 1))
