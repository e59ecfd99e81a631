"""A tree of files by content, and its chunks: what travels. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from glide.system import open_regular

# Bytes: what is asked of a peer at a time, verified, and gone on from after a kill. Large files have larger ones: what
# is known of a file is a line for each.
CHUNK = 4 << 20
LARGEST_CHUNK = 64 << 20
MOST_CHUNKS = 512


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


def chunk_bytes(size: int) -> int:
    """How long the chunks of a file of this size are, but for the last."""
    length = CHUNK
    while length < LARGEST_CHUNK and size > length * MOST_CHUNKS:
        length *= 2
    return length


def chunks(size: int) -> range:
    """The numbers of a file's chunks."""
    return range(-(-size // chunk_bytes(size)))


def extent(number: int, size: int) -> tuple[int, int]:
    """Where a chunk begins, and how long it is."""
    length = chunk_bytes(size)
    return number * length, min(length, size - number * length)


def digesting(path: Path, size: int) -> Generator[None, None, tuple[str, list[str]]]:
    """Compute sha256 of a file, and of its chunks, a step for each chunk: others may have theirs read in between.

    Args:
        size: bytes that it should have; with another size it is not read, and its digest is empty.

    Raises:
        OSError: it can't be read, or is not a regular file.
    """
    if path.stat().st_size != size:
        return "", []
    whole = hashlib.sha256()
    parts = []
    for data in blocks(path, chunk_bytes(size), size):
        whole.update(data)
        parts.append(hashlib.sha256(data).hexdigest())
        yield
    return whole.hexdigest(), parts


def digests_of(path: Path, size: int) -> tuple[str, list[str]]:
    """The same in one go."""
    steps = digesting(path, size)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def blocks(path: Path, length: int, most: int) -> Iterator[bytes]:
    """A file's content in pieces of so many bytes, and no more than `most` in all."""
    with open_regular(path) as file:
        while most > 0 and (data := file.read(min(length, most))):
            most -= len(data)
            yield data
