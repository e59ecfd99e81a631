"""Trees of files, and the chunks of files that nodes exchange.

This module uses only the standard library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from glide.system import open_regular

# Nodes request and verify files chunk by chunk. If a process is killed, a later process does not fetch the complete
# chunks again. Large files have larger chunks, because the cache writes one line of text for each chunk.
CHUNK = 4 << 20  # minimum size of a chunk in bytes
LARGEST_CHUNK = 64 << 20  # maximum size of a chunk in bytes
MOST_CHUNKS = 512  # maximum number of chunks of a file; a file with chunks of LARGEST_CHUNK bytes may have more


@dataclass(frozen=True)
class Tree:
    """A folder of files.

    Attributes:
        files: sha256 and size in bytes of each file. The keys are the file names relative to the folder.
    """

    files: dict[str, tuple[str, int]]

    @property
    def digest(self) -> str:
        """Return the sha256 over all names and contents. Trees with equal digests have equal files."""
        content = {name: digest for name, (digest, _) in self.files.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def contents(self) -> dict[str, int]:
        """Return the size in bytes of each content, by sha256. If several files share a content, it occurs once."""
        return dict(self.files.values())

    @property
    def size(self) -> int:
        return sum(self.contents.values())

    def name(self, content: str) -> str:
        """Return the name of the first file that has this content."""
        return next(name for name, (digest, _) in self.files.items() if digest == content)


def chunk_bytes(size: int) -> int:
    """Return the size of a chunk in bytes. `size` is the size of the file. The last chunk may be shorter."""
    length = CHUNK
    while length < LARGEST_CHUNK and size > length * MOST_CHUNKS:
        length *= 2
    return length


def chunks(size: int) -> range:
    """Return the numbers of all chunks of a file. `size` is the size of the file in bytes."""
    return range(-(-size // chunk_bytes(size)))


def extent(number: int, size: int) -> tuple[int, int]:
    """Return the offset and the length of a chunk in bytes. `size` is the size of the file."""
    length = chunk_bytes(size)
    return number * length, min(length, size - number * length)


def digesting(path: Path, size: int) -> Generator[None, None, tuple[str, list[str]]]:
    """Compute the sha256 of a file and of its chunks. Yield after each chunk, so that a caller can alternate files.

    Args:
        size: the expected size in bytes. If the file has another size, it is not read, and the digest is empty.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
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
    """Return the sha256 of a file and of each of its chunks, as `digesting` computes them."""
    steps = digesting(path, size)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def blocks(path: Path, length: int, most: int) -> Iterator[bytes]:
    """Yield the data of a file in pieces of `length` bytes. Stop after `most` bytes in total."""
    with open_regular(path) as file:
        while most > 0 and (data := file.read(min(length, most))):
            most -= len(data)
            yield data
