"""A tree of files by content, and its chunks: what travels. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 4 << 20  # bytes: what is asked of a peer at a time, verified, and gone on from after a kill


@dataclass(frozen=True)
class Tree:
    """Files by name relative to the tree's folder: (sha256, size in bytes)."""

    files: dict[str, tuple[str, int]]

    @property
    def digest(self) -> str:
        """sha256 over names and contents: equal trees have equal folders."""
        content = {name: digest for name, (digest, _) in self.files.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def contents(self) -> dict[str, int]:
        """Sizes by sha256: a content that stands there under several names is needed once."""
        return dict(self.files.values())

    @property
    def size(self) -> int:
        return sum(self.contents.values())

    def name(self, content: str) -> str:
        """A name that a content has."""
        return next(name for name, (digest, _) in self.files.items() if digest == content)


def chunks(size: int) -> range:
    """The numbers of a file's chunks."""
    return range((size + CHUNK - 1) // CHUNK)


def extent(number: int, size: int) -> tuple[int, int]:
    """Where a chunk begins, and how long it is."""
    start = number * CHUNK
    return start, min(CHUNK, size - start)


def digests_of(path: Path) -> tuple[str, list[str]]:
    """sha256 of a file, and of its chunks; OSError when it can't be read."""
    whole = hashlib.sha256()
    parts = []
    for data in blocks(path):
        whole.update(data)
        parts.append(hashlib.sha256(data).hexdigest())
    return whole.hexdigest(), parts


def blocks(path: Path) -> Iterator[bytes]:
    """A file's content, chunk by chunk."""
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            yield data
