"""A node's cache: contents by sha256, shared by all glideins of one account on one host, and by those that come later.

    contents/SHA    a complete, verified file, read-only
    partial/SHA     one under way, with the chunks it has (.have) and a lock; who finds it goes on with it
    known/…         what was verified when a file looked as it does: it is not read again until it changes
    trees/DIGEST/   a folder of hard links to contents: what an engine is given; DIGEST.lock is held by who uses it
    trees/DIGEST.…/  one that is being made, or what was in a tree that is an archive, which DIGEST.unpacked then names

Locks are flock's, so a killed process leaves none. What is used least recently makes room, never what is in use.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import secrets
import shutil
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glide.files.part import Part
from glide.files.tree import Tree, digesting
from glide.files.unpack import unpack, unpacked_size
from glide.system import publish
from glide.vocabulary import POOL_VARIABLE

TAKEN = ".glide-bytes"  # in what has been or is being unpacked: how much
SPARE = 0.05  # of its disk is left to others where no limit is given


def default_folder(owner: str) -> Path | None:
    """This account's on this host; None where it is not that of the job's owner, and so everybody's.

    An embedded pool's goes with the pool.
    """
    if pool := os.environ.get(POOL_VARIABLE):
        return Path(pool, "cache")
    with suppress(KeyError):
        if pwd.getpwuid(os.geteuid()).pw_name == owner:
            return Path(f"/var/tmp/glide-{os.geteuid()}")
    return None


class NoRoom(OSError):
    """Nothing more can be evicted, and it does not suffice."""


class Cache:
    """The cache in a folder.

    Args:
        folder: made if need be, for this account alone.
        limit: bytes that it may take; None for all of the disk but SPARE.

    Raises:
        OSError: the folder can't be made, or is somebody else's.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder = folder
        self.limit = limit
        self.name = secrets.token_hex(8)  # not our pid: hosts' containers have pids of their own
        self.known: dict[Path, dict[str, Any]] = {}  # memos that have been read: peers ask for chunk after chunk
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "a cache must be a folder of this account alone (0700)", str(folder))
        for name in ("contents", "partial", "known", "trees"):
            (folder / name).mkdir(exist_ok=True, mode=0o700)

    # ---- whole trees -----------------------------------------------------------------------------

    @contextmanager
    def used(self, tree: str) -> Iterator[None]:
        """While this lasts, a tree is not evicted; it counts as used now."""
        descriptor = self.hold(tree)
        try:
            yield
        finally:
            os.close(descriptor)

    def hold(self, tree: str) -> int:
        """The same for as long as the descriptor that this returns is open, in whatever process."""
        descriptor = _lock(self._lock(tree), fcntl.LOCK_SH)
        os.utime(self._lock(tree))
        return descriptor

    def _lock(self, tree: str) -> Path:
        return self.folder / "trees" / f"{tree}.lock"

    @property
    def trees(self) -> list[str]:
        """The digests of the trees that are here, the one used last first."""
        return [lock.stem for lock in self._locks if lock.with_suffix("").is_dir()]

    @property
    def _locks(self) -> list[Path]:
        return sorted((self.folder / "trees").glob("*.lock"), key=_used, reverse=True)

    def place(self, tree: Tree) -> Path | None:
        """The tree's folder, if all of it is here and as it was when it was verified."""
        folder = self.folder / "trees" / tree.digest
        whole = all(self._is(folder / name, content, size) for name, (content, size) in tree.files.items())
        return folder if whole and folder.is_dir() else None

    def link(self, tree: Tree, content: str) -> None:
        """Put a content that is here into the folder to be, which also keeps it from being evicted."""
        building = self._building(tree)
        for name, (digest, _) in tree.files.items():
            if digest == content and not (building / name).exists():
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(self.content(content), building / name)
                self.knows(building / name, content)  # with one link more

    def publish(self, tree: Tree) -> Path:
        """Make what has been linked the tree's folder, in one step."""
        folder = self.folder / "trees" / tree.digest
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process was faster: then that is the tree's folder
            self._building(tree).rename(folder)
        shutil.rmtree(self._building(tree), ignore_errors=True)
        return folder

    def _building(self, tree: Tree) -> Path:
        return self.folder / "trees" / f"{tree.digest}.{self.name}"

    def unpack(self, tree: str, archive: Path) -> Path:
        """The folder with what is in an archive, unpacked once for all who come; OSError when that fails.

        Never where it was before: that may be in use, though something has deleted a part of it.
        """
        trees, names = self.folder / "trees", self._lock(tree).with_suffix(".unpacked")
        underway = names.with_suffix(".unpacking")
        with _locked(underway, fcntl.LOCK_EX):
            if names.exists() and (folder := trees / names.read_text("utf-8")).is_dir():
                return folder
            if left := underway.read_text("utf-8"):  # by a process that was killed
                shutil.rmtree(trees / left, ignore_errors=True)
            folder = trees / f"{tree}.{self.name}.files"
            underway.write_text(folder.name, "utf-8")
            folder.mkdir(mode=0o700)

            checked = False

            def taking(taken: int, more: int) -> None:
                nonlocal checked
                publish(folder / TAKEN, str(taken), durable=False)  # never into what the archive may have put there
                if not checked and self._room() < more:  # nothing is evicted for what turns out to be too much
                    more, checked = max(more, unpacked_size(archive) - taken), True
                self.make_room(more)

            try:
                unpack(archive, folder, taking)
                underway.write_text("", "utf-8")  # from here on nobody takes it for what a killed process has left
                publish(names, folder.name)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return folder

    # ---- what has been verified ------------------------------------------------------------------

    def knows(self, path: Path, content: str) -> bool:
        """Whether a file has been verified, and has not changed since."""
        return self.parts(path, content) is not None

    def parts(self, path: Path, content: str) -> list[str] | None:
        """sha256 of each chunk of a verified file; None when it is not one."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            looks, memo = _looks(path), self._memo(path, content)
            known = self.known.get(memo)
            if known is None or known["looks"] != looks:
                known = self.known[memo] = json.loads(memo.read_text("utf-8"))
            if known["looks"] == looks:
                return list(known["parts"])
            if _linked(known["looks"], looks):
                self.remember(path, content, known["parts"])
                return list(known["parts"])
        return None

    def verify(self, path: Path, content: str, size: int) -> bool:
        """Whether a file, of this cache or not, is what it should be: read, unless that is known."""
        for _ in self.verifying(path, content, size):
            pass
        return self.knows(path, content)

    def verifying(self, path: Path, content: str, size: int) -> Generator[None, None, None]:
        """The same in steps, a chunk each; afterwards the file is known, if it is what it should be.

        Raises:
            OSError: it can't be read, or is not a regular file.
        """
        if self.knows(path, content):
            return
        looks = _looks(path)
        digest, parts = yield from digesting(path, size)
        if digest == content and _looks(path) == looks:
            self.remember(path, content, parts)

    def remember(self, path: Path, content: str, parts: list[str]) -> None:
        """Note that a file was read and is what it should be."""
        memo = self._memo(path, content)
        # A memo that a crash has torn is not JSON, and the file is read again.
        publish(memo, json.dumps({"looks": _looks(path), "parts": parts}), durable=False)

    def _memo(self, path: Path, content: str) -> Path:
        status = path.stat()  # all links to a file are one
        return self.folder / "known" / f"{content}-{status.st_dev}-{status.st_ino}"

    # ---- single contents -------------------------------------------------------------------------

    def content(self, content: str) -> Path:
        """Where a content is, if it is here."""
        return self.folder / "contents" / content

    def has(self, content: str, size: int) -> bool:
        """Whether it is here, and what it should be."""
        return self._is(self.content(content), content, size)

    def _is(self, path: Path, content: str, size: int) -> bool:
        with suppress(OSError):
            return self.verify(path, content, size)
        return False

    def partial(self, content: str) -> Path:
        return self.folder / "partial" / content

    @contextmanager
    def part(self, content: str, size: int) -> Iterator[Part]:
        """A content under way, for this process alone: others wait here until it is done with it."""
        path = self.partial(content)
        with _locked(path.with_suffix(".lock"), fcntl.LOCK_EX):
            yield Part(self, path, content, size)

    # ---- room ------------------------------------------------------------------------------------

    def make_room(self, needed: int) -> None:
        """Evict what is used least recently until so many bytes fit; NoRoom when it does not suffice."""
        victims = list(reversed(self._locks))
        for part in (self.folder / "partial").glob("*.lock"):  # of a process that was killed, and nobody came again
            victims.insert(0, part)
        for lock in victims:
            if self._room() >= needed:
                return
            with suppress(BlockingIOError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                self._forget(lock)
        if (room := self._room()) < needed:
            raise NoRoom(
                errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {max(0, room) / 1e6:.0f} MB are to be had, as"
                " the rest is in use", str(self.folder),
            )  # fmt: skip

    def forget(self, tree: str) -> None:
        """Delete a tree, if nobody else uses it."""
        with suppress(BlockingIOError), _locked(self._lock(tree), fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._forget(self._lock(tree))

    def _forget(self, lock: Path) -> None:
        """Delete a tree or a part, and contents that no other tree needs."""
        for path in (*lock.parent.glob(f"{lock.stem}.*"), lock.with_suffix("")):  # what killed processes left, too
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path != lock:
                path.unlink(missing_ok=True)
        with suppress(OSError):
            lock.unlink()
        for path in (self.folder / "contents").iterdir():
            with suppress(OSError):
                if path.stat().st_nlink == 1 and not _is_locked(self.partial(path.name).with_suffix(".lock")):
                    self._memo(path, path.name).unlink(missing_ok=True)
                    path.unlink()

    def _room(self) -> int:
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if self.limit is None:
            return free - int(SPARE * disk.f_blocks * disk.f_frsize)
        kept = [*(self.folder / "contents").iterdir(), *(self.folder / "partial").iterdir()]
        unpacked = sum(_number(path) for path in (self.folder / "trees").glob(f"*/{TAKEN}"))
        return min(free, self.limit - sum(_taken(path) for path in kept) - unpacked)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock file."""
    descriptor = _lock(path, how)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, how: int) -> int:
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, how)
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who evicts has deleted it meanwhile


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _used(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _taken(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_blocks * 512
    return 0


def _number(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text("utf-8"))
    return 0


def _looks(path: Path) -> list[int]:
    """What changes when a file does. Programs may set st_mtime back, but not st_ctime."""
    status = path.stat()
    return [
        status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev, status.st_ctime_ns, status.st_nlink,
    ]  # fmt: skip


def _linked(before: list[int], now: list[int]) -> bool:
    """Whether what has changed of a file's looks is what links to it change: their number, and st_ctime."""
    return len(before) == len(now) and before[:4] == now[:4] and before[5] != now[5]
