"""A node's cache of files. All present and later glideins of one account on one host share the cache.

A *tree* is a folder of files, such as the files of a model. DIGEST is the sha256 of a tree (`Tree.digest`). A *content*
is the data in a file. Several files may have the same content. SHA is the sha256 of a content.

    contents/SHA            a complete, verified and read-only file with this content
    partial/SHA             a file that is being fetched. SHA.have lists the chunks that are already written
    known/…                 a *memo* of a verified file: chunk digests, and stat data to notice changes of the file
    trees/DIGEST/           a complete tree for engines. Its files are hard links to files in contents/
    trees/DIGEST.…/         an incomplete tree
    trees/DIGEST.….files/   the unpacked files of an archive. DIGEST.unpacked contains the name of this folder
    trees/DIGEST.lock       a lock file. Each process that uses the tree or its unpacked files holds the lock

The locks use flock, so a killed process loses its locks. If the cache needs space, it evicts (deletes) the least
recently used tree first. A tree that a process uses is never evicted.
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

from glide.files.tree import Tree, digesting
from glide.files.unpack import unpack, unpacked_size
from glide.system import publish
from glide.vocabulary import POOL_VARIABLE

SIZE_FILE = ".glide-bytes"  # file in each folder of unpacked files; it contains the number of unpacked bytes
RESERVED_SHARE = 0.05  # fraction of the disk that stays free if the cache has no limit


def default_folder(owner: str) -> Path | None:
    """Return the folder of the cache for jobs of `owner` on this host. In an embedded pool, return the pool's cache.

    In any other pool, return a folder in /var/tmp if the account of this process is `owner`. If the account is not
    `owner`, return None, because several users may share the account of this process.
    """
    if pool := os.environ.get(POOL_VARIABLE):
        return Path(pool, "cache")
    with suppress(KeyError):
        if pwd.getpwuid(os.geteuid()).pw_name == owner:
            return Path(f"/var/tmp/glide-{os.geteuid()}")
    return None


class CacheFull(OSError):
    """The cache has too little free space, and processes use all trees in it."""


class Cache:
    """A cache of files in a folder.

    Args:
        folder: the folder of the cache. If it does not exist, it is created with access for this account only.
        limit: maximum size of the cache in bytes. None: the cache leaves only RESERVED_SHARE of the disk free.

    Raises:
        OSError: the folder cannot be created, or another account owns it or has access to it.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder = folder
        self.limit = limit
        self.name = secrets.token_hex(8)  # makes folder names unique; two containers may have equal pids
        self.memos: dict[Path, dict[str, Any]] = {}  # a dict from the path of a file in known/ to the file's content
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "a cache must be a folder of this account alone (0700)", str(folder))
        for name in ("contents", "partial", "known", "trees"):
            (folder / name).mkdir(exist_ok=True, mode=0o700)

    # ---- trees -----------------------------------------------------------------------------------

    @contextmanager
    def in_use(self, tree: str) -> Iterator[None]:
        """Protect a tree from eviction inside the `with` block, and mark the tree as used now. `tree` is its digest."""
        descriptor = self.hold(tree)
        try:
            yield
        finally:
            os.close(descriptor)

    def hold(self, tree: str) -> int:
        """Protect a tree from eviction until this process and its children have closed the returned file descriptor."""
        descriptor = take_lock(self._lock_path(tree), fcntl.LOCK_SH)
        os.utime(self._lock_path(tree))
        return descriptor

    def _lock_path(self, tree: str) -> Path:
        return self.folder / "trees" / f"{tree}.lock"

    @property
    def trees(self) -> list[str]:
        """Return the digests of the cached trees, most recently used first."""
        return [lock.stem for lock in self._locks if lock.with_suffix("").is_dir()]

    @property
    def _locks(self) -> list[Path]:
        return sorted((self.folder / "trees").glob("*.lock"), key=_last_use, reverse=True)

    def tree_folder(self, tree: Tree) -> Path | None:
        """Return the tree's folder; None if the folder does not exist, or if one of its files is missing or damaged."""
        folder = self.folder / "trees" / tree.digest
        complete = all(self._is_valid(folder / name, content, size) for name, (content, size) in tree.files.items())
        return folder if complete and folder.is_dir() else None

    def link(self, tree: Tree, content: str) -> None:
        """Add a cached file to an incomplete tree, as a hard link. The link also protects the file from eviction."""
        building = self._building(tree)
        for name, (digest, _) in tree.files.items():
            if digest == content and not (building / name).exists():
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(self.content_path(content), building / name)
                self.is_verified(building / name, content)  # this call also stores the file's new number of links

    def publish(self, tree: Tree) -> Path:
        """Move a tree that is now complete to its final path in one step, and return this path."""
        folder = self.folder / "trees" / tree.digest
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # `rename` fails if another process has already published the tree
            self._building(tree).rename(folder)
        shutil.rmtree(self._building(tree), ignore_errors=True)
        return folder

    def _building(self, tree: Tree) -> Path:
        return self.folder / "trees" / f"{tree.digest}.{self.name}"

    def unpack(self, tree: str, archive: Path) -> Path:
        """Return the folder of an archive's unpacked files. If there is none, unpack the archive. May raise OSError."""
        trees, finished = self.folder / "trees", self._lock_path(tree).with_suffix(".unpacked")
        unfinished = finished.with_suffix(".unpacking")  # contains the name of the folder that is being filled
        with locked(unfinished, fcntl.LOCK_EX):
            if finished.exists() and (folder := trees / finished.read_text("utf-8")).is_dir():
                return folder
            if leftover := unfinished.read_text("utf-8"):  # the name of a folder that a killed process left behind
                shutil.rmtree(trees / leftover, ignore_errors=True)
            folder = trees / f"{tree}.{self.name}.files"  # a new name: jobs may still use an older, damaged folder
            unfinished.write_text(folder.name, "utf-8")
            folder.mkdir(mode=0o700)
            checked = False

            def reserve(taken: int, more: int) -> None:
                nonlocal checked
                publish(folder / SIZE_FILE, str(taken), durable=False)  # a link at this path is replaced, not followed
                if not checked and self._free_bytes() < more:
                    # An archive that is too large is refused here, before a tree is evicted to make room for it.
                    more, checked = max(more, unpacked_size(archive) - taken), True
                self.make_room(more)

            try:
                unpack(archive, folder, reserve)
                unfinished.write_text("", "utf-8")  # from now on, other processes do not delete the folder
                publish(finished, folder.name)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return folder

    # ---- verified files --------------------------------------------------------------------------

    def is_verified(self, path: Path, content: str) -> bool:
        """Return whether the file was verified, and has not changed since. `content` is the expected sha256."""
        return self.chunk_digests(path, content) is not None

    def chunk_digests(self, path: Path, content: str) -> list[str] | None:
        """Return the sha256 of each chunk of a verified file; None if the file is not verified (`is_verified`)."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            signature, path_of_memo = _signature(path), self._memo_path(path, content)
            memo = self.memos.get(path_of_memo)
            if memo is None or memo["looks"] != signature:
                memo = self.memos[path_of_memo] = json.loads(path_of_memo.read_text("utf-8"))
            if memo["looks"] == signature:
                return list(memo["parts"])
            if _only_links_differ(memo["looks"], signature):
                self.mark_verified(path, content, memo["parts"])
                return list(memo["parts"])
        return None

    def verify(self, path: Path, content: str, size: int) -> bool:
        """Return whether the sha256 of a file is `content`. Read the file only if `is_verified` returns False."""
        for _ in self.verifying(path, content, size):
            pass
        return self.is_verified(path, content)

    def verifying(self, path: Path, content: str, size: int) -> Generator[None, None, None]:
        """Verify a file. Yield after each chunk. At the end, mark the file as verified if its sha256 is `content`.

        Raises OSError if the file cannot be read or is not a regular file.
        """
        if self.is_verified(path, content):
            return
        before = _signature(path)
        digest, parts = yield from digesting(path, size)
        if digest == content and _signature(path) == before:
            self.mark_verified(path, content, parts)

    def mark_verified(self, path: Path, content: str, parts: list[str]) -> None:
        """Mark a file as verified: it has the sha256 `content`, and its chunks have the sha256s in `parts`."""
        memo = self._memo_path(path, content)
        # To save time, the result is not flushed to disk. If a crash damages the result, the file is verified again.
        publish(memo, json.dumps({"looks": _signature(path), "parts": parts}), durable=False)

    def _memo_path(self, path: Path, content: str) -> Path:
        status = path.stat()  # all hard links to a file have the same inode, so they get the same path
        return self.folder / "known" / f"{content}-{status.st_dev}-{status.st_ino}"

    # ---- single contents -------------------------------------------------------------------------

    def content_path(self, content: str) -> Path:
        """Return the path of a content (a sha256) in contents/. The file exists only if the content is cached."""
        return self.folder / "contents" / content

    def has(self, content: str, size: int) -> bool:
        """Return whether the cache has a complete, undamaged file with this content (a sha256)."""
        return self._is_valid(self.content_path(content), content, size)

    def _is_valid(self, path: Path, content: str, size: int) -> bool:
        with suppress(OSError):
            return self.verify(path, content, size)
        return False

    def partial_path(self, content: str) -> Path:
        return self.folder / "partial" / content

    # ---- space -----------------------------------------------------------------------------------

    def make_room(self, needed: int) -> None:
        """Evict the least recently used trees until `needed` bytes are free. Raises CacheFull if this is impossible."""
        victims = list(reversed(self._locks))
        for part in (self.folder / "partial").glob("*.lock"):  # partial files of killed processes are evicted first
            victims.insert(0, part)
        for lock in victims:
            if self._free_bytes() >= needed:
                return
            with suppress(BlockingIOError), locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                self._delete(lock)
        if (free := self._free_bytes()) < needed:
            raise CacheFull(
                errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {max(0, free) / 1e6:.0f} MB are available;"
                " processes use all files in the cache; delete other files on the disk, or increase the cache's limit",
                str(self.folder),
            )  # fmt: skip

    def delete_tree(self, tree: str) -> None:
        """Delete a tree if no process uses the tree. `tree` is its digest."""
        with suppress(BlockingIOError), locked(self._lock_path(tree), fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._delete(self._lock_path(tree))

    def _delete(self, lock: Path) -> None:
        """Delete the tree or partial file that a lock protects, and then all files in contents/ that are in no tree."""
        for path in (*lock.parent.glob(f"{lock.stem}.*"), lock.with_suffix("")):  # glob finds incomplete trees, too
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path != lock:
                path.unlink(missing_ok=True)
        with suppress(OSError):
            lock.unlink()
        for path in (self.folder / "contents").iterdir():
            with suppress(OSError):
                if path.stat().st_nlink == 1 and not _is_locked(self.partial_path(path.name).with_suffix(".lock")):
                    self._memo_path(path, path.name).unlink(missing_ok=True)
                    path.unlink()

    def _free_bytes(self) -> int:
        """Return the number of bytes that can still be added within the cache's limit and the disk's free space."""
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if self.limit is None:
            return free - int(RESERVED_SHARE * disk.f_blocks * disk.f_frsize)
        kept = [*(self.folder / "contents").iterdir(), *(self.folder / "partial").iterdir()]
        unpacked = sum(_read_number(path) for path in (self.folder / "trees").glob(f"*/{SIZE_FILE}"))
        return min(free, self.limit - sum(_disk_bytes(path) for path in kept) - unpacked)


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Lock a file inside the `with` block. `how` contains flags of flock, such as LOCK_EX."""
    descriptor = take_lock(path, how)
    try:
        yield
    finally:
        os.close(descriptor)


def take_lock(path: Path, how: int) -> int:
    """Lock a file, and return a file descriptor. The lock ends when the descriptor is closed."""
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
        os.close(descriptor)  # another process has deleted this lock file, so create and lock a new one


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _last_use(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _disk_bytes(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_blocks * 512
    return 0


def _read_number(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text("utf-8"))
    return 0


def _signature(path: Path) -> list[int]:
    """Return the stat data that show whether a file has changed. Programs can reset st_mtime, but not st_ctime."""
    status = path.stat()
    return [
        status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev, status.st_ctime_ns, status.st_nlink,
    ]  # fmt: skip


def _only_links_differ(before: list[int], now: list[int]) -> bool:
    """Return whether a file's old and new signature differ only because a hard link was added or removed."""
    return len(before) == len(now) and before[:4] == now[:4] and before[5] != now[5]
