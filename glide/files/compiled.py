"""The code that a serving program compiles for a model, such as the kernels of torch.compile.

A node keeps this code in its cache, so that later glideins start faster. If the entry allows it, a node also gets the
code from a peer. Nobody can check such code, so it comes only from glideins of the same entry. They share a key, which
is needed for both the request and the answer. This module uses only the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import random
import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from glide.files.cache import locked, take_lock
from glide.files.peers import Directory, Peer, PeerBusy, distance
from glide.files.tree import Tree, chunks, digests_of, extent
from glide.files.unpack import extract
from glide.system import files_below

ARCHIVE = re.compile(r"([0-9a-f]{64})\.tar")  # name of the file that nodes exchange; it contains the file's sha256
MOST_BYTES = 4 << 30  # maximum size of an archive that a node packs or fetches
MOST_KEPT = 16  # number of folders with code that stay in a cache
MOST_ASKED = 3  # maximum number of peers that are asked for code
FETCH_SECONDS = 60.0  # after this time, no further peer is asked, and the program compiles the code itself
LEFTOVER_SECONDS = 3600.0  # temporary folders of killed processes are deleted after this time


@dataclass(frozen=True)
class CompiledCode:
    """The compiled code of a template on nodes of one kind.

    Attributes:
        folder: folder in which the cache keeps the code of all templates.
        name: sha256 of everything on which the code depends.
    """

    folder: Path
    name: str

    @classmethod
    def of(cls, folder: Path, template: str, environment: str, devices: Sequence[str], key: str = "") -> CompiledCode:
        """Return the compiled code of a template on this node.

        Args:
            template: digest of the template.
            environment: text that identifies the environment.
            devices: names of the GPUs.
            key: key that the glideins of an entry share; empty if they share no code. Glideins with other keys do not
                use this code.
        """
        parts = [key, template, environment, *devices, _cpu(), platform.machine(), *platform.libc_ver()]
        return cls(folder, hashlib.sha256(json.dumps(parts).encode()).hexdigest())

    @property
    def place(self) -> Path:
        """The folder of the code. Programs write into it."""
        return self.folder / self.name[:24]

    @property
    def packed(self) -> Path:
        """The folder with the archives that peers get."""
        return self.folder / f"{self.name[:24]}.packed"

    @property
    def _own(self) -> Path:
        """A file that exists if this node must compile the code itself, because the code of a peer did not work."""
        return self.folder / f"{self.name[:24]}.own"

    @property
    def is_unproven(self) -> bool:
        """Whether a peer has sent the code, and no program has become warm with it on this node yet."""
        return self._unproven.exists()

    @property
    def _unproven(self) -> Path:
        return self.folder / f"{self.name[:24]}.unproven"

    @property
    def is_missing(self) -> bool:
        """Whether this node has no code, and may get it from a peer."""
        return not self.place.exists() and not self._own.exists()

    def use(self) -> int:
        """Make the folder if it does not exist. Keep the folders that were used last, and delete the others.

        Returns:
            A file descriptor. While it is open, no process deletes the folder.
        """
        self.place.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(self.place)
        descriptor = take_lock(self.folder / f"{self.name[:24]}.lock", fcntl.LOCK_SH)
        kept = sorted((each for each in self.folder.iterdir() if "." not in each.name), key=_last_use, reverse=True)
        for old in kept[MOST_KEPT:]:
            with suppress(BlockingIOError), locked(old.with_suffix(".lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
                for path in self.folder.glob(f"{old.name}*"):
                    shutil.rmtree(path, ignore_errors=True)
                old.with_suffix(".unproven").unlink(
                    missing_ok=True
                )  # the next code in this place may be the node's own
        for path in self.folder.glob("*.new-*"):
            if time.time() - _last_use(path) > LEFTOVER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        return descriptor

    def prove(self) -> None:
        """Note that a program has become warm with the code."""
        self._unproven.unlink(missing_ok=True)

    def distrust(self) -> None:
        """Delete code that did not work, unless another process uses it. Never get it from peers again."""
        self._own.touch()
        lock = self.folder / f"{self.name[:24]}.lock"
        with suppress(BlockingIOError), locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(self.place, ignore_errors=True)
            self._unproven.unlink(missing_ok=True)

    def pack(self) -> Tree | None:
        """Pack the code into an archive, and return the archive's tree. Return None if there is no code, or too much.

        Raises:
            OSError: the archive cannot be written.
        """
        files = {}
        for path in (each for each in files_below(self.place) if not each.is_symlink()):
            with suppress(FileNotFoundError):  # a program may delete temporary files
                files[path] = path.stat()
        if not files or sum(each.st_size for each in files.values()) > MOST_BYTES:
            return None
        newest = max(each.st_mtime for each in files.values())
        for archive in self.packed.glob("*.tar"):
            if archive.stat().st_mtime >= newest:
                return _tree(archive)
        new = self._temporary_folder()
        try:
            with tarfile.open(new / "archive", "w") as target:
                for path in sorted(files):
                    with suppress(FileNotFoundError):
                        target.add(path, str(path.relative_to(self.place)), recursive=False)
            return self._publish(new / "archive")
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def fetch(self, directory: Directory, key: str, host: str, glide_id: str) -> Tree | None:
        """Get the code from a peer, and return the archive's tree. Return None if no peer has it.

        Args:
            directory: object that lists the peers.
            key: key that the glideins of an entry share.
            host: address of this node.
            glide_id: name of this glidein.

        Raises:
            OSError: the disk is full, or no peer sends a valid archive in time.
        """
        deadline = time.monotonic() + FETCH_SECONDS
        peers = [peer for peer in directory.refresh(self.name) if peer.glide_id != glide_id and peer.has_all]
        failure: OSError | None = None
        for peer in sorted(peers, key=lambda peer: distance(host, peer.address))[:MOST_ASKED]:
            new = self._temporary_folder()
            try:
                self._fetch_archive(peer, key, new / "archive", deadline)
                extract(new / "archive", new / "code", lambda taken, more: None)
                with suppress(OSError):  # another glidein on this host has put code there
                    (new / "code").rename(self.place)
                    self._unproven.touch()
                return self._publish(new / "archive")
            except OSError as error:
                failure = error
            finally:
                shutil.rmtree(new, ignore_errors=True)
        if failure:
            raise failure
        return None

    def _fetch_archive(self, peer: Peer, key: str, file: Path, deadline: float) -> None:
        files = _until(deadline, lambda: peer.listing(self.name, key))
        name, (digest, size) = next(iter(files.items()), ("", ("", 0)))
        found = ARCHIVE.fullmatch(name)
        if len(files) != 1 or not found or found[1] != digest or not 0 < size <= MOST_BYTES:
            raise OSError(f"{peer.glide_id} does not offer one archive of compiled code, or it is too large")
        with file.open("xb") as target:
            for number in chunks(size):
                target.write(_until(deadline, partial(self._chunk, peer, key, digest, number, size)))
        if digests_of(file, size)[0] != digest:
            raise OSError(f"{peer.glide_id} sent damaged compiled code")

    def _chunk(self, peer: Peer, key: str, digest: str, number: int, size: int) -> bytes:
        return peer.fetch_chunk(self.name, digest, number, extent(number, size)[1], key)

    def _temporary_folder(self) -> Path:
        folder = self.folder / f"{self.name[:24]}.new-{secrets.token_hex(8)}"
        (folder / "code").mkdir(parents=True, mode=0o700)
        return folder

    def _publish(self, archive: Path) -> Tree:
        """Move an archive from a temporary folder to its final place, and return its tree."""
        self.packed.mkdir(exist_ok=True, mode=0o700)
        digest, _ = digests_of(archive, archive.stat().st_size)
        for old in self.packed.glob("*.tar"):  # peers may still be fetching the newest ones
            if time.time() - _last_use(old) > LEFTOVER_SECONDS:
                old.unlink(missing_ok=True)
        return _tree(archive.rename(self.packed / f"{digest}.tar"))


Answer = TypeVar("Answer")


def _until(deadline: float, ask: Callable[[], Answer]) -> Answer:
    """Ask a peer again while it is busy, until the time `deadline` of the monotonic clock. Then raise OSError."""
    while time.monotonic() < deadline:
        try:
            return ask()
        except PeerBusy:
            time.sleep(random.uniform(0.1, 0.5))
    raise OSError(f"no peer sent the compiled code within {FETCH_SECONDS:g} s")


def _tree(archive: Path) -> Tree:
    return Tree({archive.name: (archive.stem, archive.stat().st_size)})


def _cpu() -> str:
    """Return a text that identifies the CPU's instruction set."""
    with suppress(OSError), Path("/proc/cpuinfo").open("rb") as file:
        for line in file:
            if line.startswith((b"flags", b"Features")):
                return hashlib.sha256(line).hexdigest()
    return ""


def _last_use(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
