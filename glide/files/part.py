"""A content on its way into the cache. Standard library only."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from glide.files.tree import blocks, chunk_bytes, chunks, digests_of, extent

if TYPE_CHECKING:
    from glide.files.cache import Cache


class Part:
    """A content under way. Chunks may come in any order, each is on disk before it counts."""

    def __init__(self, cache: Cache, path: Path, content: str, size: int):
        self.cache = cache
        self.path = path
        self.content = content
        self.size = size
        self.have: dict[int, str] = {}  # sha256 by chunk
        if not cache.has(content, size):
            self._resume()

    def _resume(self) -> None:
        """What a process before us had, as far as it is still what it was."""
        self.have = read_have(self.path)
        if not self.have:
            return
        with suppress(OSError):
            for number, data in enumerate(blocks(self.path, chunk_bytes(self.size), self.size)):
                if number in self.have and hashlib.sha256(data).hexdigest() != self.have[number]:
                    del self.have[number]

    @property
    def missing(self) -> list[int]:
        return [] if self.cache.has(self.content, self.size) else [n for n in chunks(self.size) if n not in self.have]

    def write(self, number: int, data: bytes) -> None:
        """Keep a chunk; OSError when the disk does not."""
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
            self.drop()  # a full disk is not to stay full for our sake
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.have[number] = digest

    def drop(self) -> None:
        """Forget it all: it is wrong, or in the way."""
        self.have = {}
        for path in (self.path, self.path.with_suffix(".have")):
            path.unlink(missing_ok=True)

    def finish(self) -> bool:
        """Whether the whole is what it should be; then it is a content, else it is gone."""
        if self.cache.has(self.content, self.size):
            return True
        if self.size == 0:
            self.path.touch(mode=0o600)
        digest, parts = digests_of(self.path, self.size)
        if digest != self.content:
            self.drop()
            return False
        self.path.chmod(0o400)
        target = self.cache.content(self.content)
        self.path.rename(target)
        self.cache.remember(target, self.content, parts)
        self.path.with_suffix(".have").unlink(missing_ok=True)
        return True


def read_have(partial: Path) -> dict[int, str]:
    """The chunks of a content under way, with their digests; a line that was cut short does not count."""
    have = {}
    with suppress(OSError):
        for line in partial.with_suffix(".have").read_text("utf-8").splitlines():
            number, _, digest = line.partition(" ")
            if number.isdigit() and len(digest) == 64:
                have[int(number)] = digest
    return have
