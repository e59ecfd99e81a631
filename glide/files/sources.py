"""Read a template's files from a source: a folder, the seed, a web server, a model hub or a file transfer plugin.

This module uses only the standard library. For a model hub, it also uses the hub's own client.
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

from glide.files.peers import Peer, PeerBusy
from glide.files.program import run
from glide.files.tree import Tree, chunk_bytes, extent
from glide.system import open_regular
from glide.template.private import check_open, check_path

BLOCK = 1 << 20  # number of bytes that are read in one step
TIMEOUT = 60.0  # an attempt to read fails if no byte arrives for this time, in seconds
PLUGIN_SECONDS = 600.0  # a plugin is killed if it writes no byte for this time, in seconds; it may wait for a tape
TRIES = 5  # after this number of consecutive attempts without any data, reading fails
PAUSE = 1.0  # pause before the second attempt, in seconds; the pause doubles before each further attempt
NETWORK_FILESYSTEMS = (
    "nfs", "nfs4", "lustre", "ceph", "gpfs", "beegfs", "beegfs_nodev", "panfs", "wekafs", "afs", "cifs", "smb3",
    "9p", "glusterfs", "orangefs", "virtiofs",
)  # fmt: skip


class Source(Protocol):
    """A place from which the files of a template are read."""

    def read(self, name: str, start: int) -> Iterator[bytes]:
        """Yield the data of a file in pieces, from byte `start` on. An OSError contains the file's name or address."""


def open_source(path: str, plugins: Path | None = None, seed: Source | None = None, owner: str = "") -> Source:
    """Return the source of the files at a path or an address.

    Args:
        path: absolute path of a folder, or address of a folder or repository.
        plugins: HTCondor's libexec folder, which contains the file transfer plugins. None: no plugin is used.
        seed: source to read if `path` is a folder that this node lacks. None: this node has the folder. If `path` is an
            address, `seed` has no effect.
        owner: the User who alone may use the files; empty if everybody may.

    Raises:
        ValueError: the path is neither absolute nor an address of a known kind.
        FileNotFoundError: no plugin supports the address.
    """
    scheme = path.partition("://")[0]
    if path.startswith("/"):
        return seed or FolderSource(Path(path), owner)
    if scheme in ("http", "https"):
        return WebSource(path)
    if scheme == "hf":
        return HubSource(path)
    if scheme == "osdf":
        return PluginSource(path, plugins)
    raise ValueError(
        f"{path}: the path of a model is a folder's absolute path, or begins with https://, hf:// or osdf://"
    )


def is_remote(folder: Path) -> bool:
    """Return whether a folder is on a network file system, which is slower than a disk of this machine."""
    best = ("", "")
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, place, kind, *_ = line.split()
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place)
            inside = place == "/" or folder == Path(place) or Path(place) in folder.parents
            best = max(best, (place, kind), key=lambda mount: len(mount[0])) if inside else best
    return best[1] in NETWORK_FILESYSTEMS or best[1].startswith("fuse.")


class FolderSource:
    """A source: a folder in a file system of this node. It refuses to read the private files of other users."""

    def __init__(self, folder: Path, owner: str = ""):
        self.folder = folder
        self.owner = owner

    def read(self, name: str, start: int) -> Iterator[bytes]:
        check_path(self.folder / name, self.owner)
        with open_regular(self.folder / name) as file:
            check_open(file, self.owner)
            file.seek(start)
            while data := file.read(BLOCK):
                yield data


class AccessPointSource:
    """A source: a folder of the access point. The seed (glide.factory.seed) sends the files."""

    def __init__(self, address: str, tree: Tree, key: str):
        # The seed verifies a whole file before it sends the first chunk. So a request to the seed has a longer timeout
        # than a request to a node.
        self.peer = Peer("the access point", address, timeout=TIMEOUT)
        self.tree = tree
        self.key = key

    def read(self, name: str, start: int) -> Iterator[bytes]:
        return resuming(lambda at: self._stream(name, at), start, f"{name} is not in that folder on this node")

    def _stream(self, name: str, start: int) -> Iterator[bytes]:
        content, size = self.tree.files[name]
        while start < size:
            number = start // chunk_bytes(size)
            begin, length = extent(number, size)
            try:
                data = self.peer.fetch_chunk(self.tree.digest, content, number, length, self.key)
            except PeerBusy:
                time.sleep(0.2)
                continue
            yield data[start - begin :]
            start = begin + length


class WebSource:
    """A source: a folder of a web server.

    If a connection breaks, only the rest of the file is requested. Some servers still send the whole file. Then the
    data that was already read is skipped.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def read(self, name: str, start: int) -> Iterator[bytes]:
        url = f"{self.url}/{urllib.parse.quote(name)}"
        return resuming(lambda at: self._stream(url, at), start, url)

    def _stream(self, url: str, start: int) -> Iterator[bytes]:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            skip = start if start and answer.status == 200 else 0  # with status 200, the server sends the whole file
            length = answer.headers.get("Content-Length", "")
            left = int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else -1
            while data := answer.read(BLOCK):
                left -= len(data)
                if skip:
                    skip, data = max(0, skip - len(data)), data[skip:]
                if data:
                    yield data
            if left > 0:  # the connection broke; http.client reports this as the end of the file
                raise OSError(f"{left} bytes are missing")


class HubSource:
    """A source: a repository of a model hub, hf://ORGANISATION/NAME@REVISION. The hub's client reads the files."""

    def __init__(self, url: str):
        self.place = url.partition("://")[2]
        self.client: Any = None

    def read(self, name: str, start: int) -> Iterator[bytes]:
        return resuming(lambda at: self._stream(f"{self.place}/{name}", at), start, f"hf://{self.place}/{name}")

    def _stream(self, path: str, start: int) -> Iterator[bytes]:
        from huggingface_hub import HfFileSystem

        self.client = self.client or HfFileSystem()
        with self.client.open(path, "rb", block_size=4 * BLOCK, cache_type="readahead") as file:
            file.seek(start)
            while data := file.read(BLOCK):
                yield data


class PluginSource:
    """A source: an address that one of HTCondor's file transfer plugins supports. A plugin fetches whole files."""

    def __init__(self, url: str, plugins: Path | None):
        self.url = url.rstrip("/")
        self.plugin = _find_plugin(url.partition("://")[0], plugins)

    def read(self, name: str, start: int) -> Iterator[bytes]:
        url = f"{self.url}/{name}"
        with tempfile.TemporaryDirectory(prefix="glide-") as folder:
            work = Path(folder)
            (work / "in").write_text(
                f"[ Url = {_classad_string(url)}; LocalFileName = {_classad_string(folder + '/file')} ]\n", "utf-8"
            )
            command = [str(self.plugin), "-infile", f"{work}/in", "-outfile", f"{work}/out"]
            done = run(command, PLUGIN_SECONDS, work, lambda: sum(_size(path) for path in work.iterdir()))
            if done.code or not (work / "file").exists():
                raise OSError(
                    f"{url}: {self.plugin.name}: {_plugin_message(work / 'out') or done.errors[:300] or done.code}"
                )
            yield from FolderSource(work).read("file", start)


def _classad_string(text: str) -> str:
    """Return a text as a quoted ClassAd string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _plugin_message(path: Path) -> str:
    """Return the first 300 characters of a plugin's report about its transfers."""
    try:
        with open_regular(path) as file:
            return " ".join(file.read(BLOCK).decode("utf-8", "replace").split())[:300]
    except OSError:
        return ""


def _find_plugin(scheme: str, folder: Path | None) -> Path:
    """Return the plugin for addresses with this scheme, such as osdf. `folder` is HTCondor's libexec folder."""
    for path in sorted(folder.glob("*plugin*") if folder else ()):
        if os.access(path, os.X_OK):
            try:
                output = run([path, "-classad"], TIMEOUT).output
            except OSError:  # the plugin hangs, or is built for another kind of machine
                continue
            line = next((line for line in output.splitlines() if line.startswith("SupportedMethods")), "")
            if scheme in line.partition("=")[2].strip(' "').split(","):
                return path
    raise FileNotFoundError(f"no file transfer plugin of this node's HTCondor supports {scheme}://")


def resuming(stream: Callable[[int], Iterator[bytes]], start: int, what: str) -> Iterator[bytes]:
    """Yield the data of a stream. If the stream breaks, open it again where it broke.

    Args:
        stream: function that opens the stream at an offset in bytes, and yields its data.
        start: offset at which the stream is first opened, in bytes.
        what: name of the stream in error messages.

    Raises:
        OSError: the source refuses the request, or sends no data in TRIES consecutive attempts.
    """
    at, failures = start, 0
    while True:
        try:
            for data in stream(at):
                yield data
                at, failures = at + len(data), 0
            return
        except (OSError, HTTPException) as error:
            answer = getattr(error, "response", None)  # huggingface_hub's errors have the attribute `response`
            status = int(getattr(error, "code", 0) or getattr(answer, "status_code", 0) or 500)
            failures += 1
            if failures == TRIES or (400 <= status < 500 and status not in (408, 425, 429)):
                raise OSError(f"{what}: {error}") from None
            time.sleep(PAUSE * 2 ** (failures - 1))
