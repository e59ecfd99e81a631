"""Files that are being fetched into the cache.

This module uses only the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glide.files.cache import Cache, locked
from glide.files.tree import blocks, chunk_bytes, chunks, digests_of, extent


@contextmanager
def partial_file(cache: Cache, content: str, size: int) -> Iterator[PartialFile]:
    """Lock the partial file for a content (a sha256), and yield it. If another process has locked it, wait."""
    path = cache.partial_path(content)
    with locked(path.with_suffix(".lock"), fcntl.LOCK_EX):
        yield PartialFile(cache, path, content, size)


class PartialFile:
    """A file that is being fetched into the cache. Its chunks may arrive in any order.

    Args:
        cache: the cache to which the complete file is moved.
        path: path of the incomplete file. Chunks of an earlier, interrupted fetch are used.
        content: the sha256 that the whole file must have.
        size: the size of the whole file in bytes.
    """

    def __init__(self, cache: Cache, path: Path, content: str, size: int):
        self.cache = cache
        self.path = path
        self.content = content
        self.size = size
        self.digests: dict[int, str] = {}  # a dict from the number of each written chunk to its sha256
        if not cache.has(content, size):
            self._resume()

    def _resume(self) -> None:
        """Find the chunks that an earlier process has written. Ignore a chunk if its sha256 is wrong."""
        self.digests = read_digests(self.path)
        if not self.digests:
            return
        with suppress(OSError):
            for number, data in enumerate(blocks(self.path, chunk_bytes(self.size), self.size)):
                if number in self.digests and hashlib.sha256(data).hexdigest() != self.digests[number]:
                    del self.digests[number]

    @property
    def missing(self) -> list[int]:
        return (
            [] if self.cache.has(self.content, self.size) else [n for n in chunks(self.size) if n not in self.digests]
        )

    def write(self, number: int, data: bytes) -> None:
        """Write a chunk. Raises OSError if the disk fails."""
        start, length = extent(number, self.size)
        if len(data) != length:
            raise ValueError(f"chunk {number} has {len(data)} bytes, not {length}")
        digest = hashlib.sha256(data).hexdigest()
        try:
            with open(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
                file.seek(start)
                file.write(data)
            with self.path.with_suffix(".have").open("a", encoding="utf-8") as have:
                have.write(f"{number} {digest}\n")
        except OSError as error:
            self.discard()  # the disk may be full, so free the space that this file uses
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.digests[number] = digest

    def discard(self) -> None:
        """Delete the file with all its chunks."""
        self.digests = {}
        for path in (self.path, self.path.with_suffix(".have")):
            path.unlink(missing_ok=True)

    def finish(self) -> bool:
        """Return whether the file has the right sha256. If so, move it to the cache's contents/. If not, delete it."""
        if self.cache.has(self.content, self.size):
            return True
        if self.size == 0:
            self.path.touch(mode=0o600)
        digest, parts = digests_of(self.path, self.size)
        if digest != self.content:
            self.discard()
            return False
        self.path.chmod(0o400)
        target = self.cache.content_path(self.content)
        self.path.rename(target)
        self.cache.mark_verified(target, self.content, parts)
        self.path.with_suffix(".have").unlink(missing_ok=True)
        return True


def read_digests(partial: Path) -> dict[int, str]:
    """Return the chunks that a partial file has: a dict from a chunk's number to the chunk's sha256."""
    have = {}
    with suppress(OSError):
        for line in partial.with_suffix(".have").read_text("utf-8").splitlines():
            number, _, digest = line.partition(" ")
            if number.isdigit() and len(digest) == 64:
                have[int(number)] = digest
    return have
