"""Trees of files, and the chunks of files that nodes exchange.

This module uses only the standard library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glide.system import open_regular

if TYPE_CHECKING:
    from glide.template import FileSet

# A chunk is a part of a file. Nodes request and verify files chunk by chunk. If a fetch is interrupted, the complete
# chunks are kept, and not fetched again. Large files have larger chunks, so that the number of chunks stays small.
CHUNK = 4 << 20  # minimum size of a chunk in bytes
LARGEST_CHUNK = 64 << 20  # maximum size of a chunk in bytes
MOST_CHUNKS = 512  # if a file would have more chunks than this, its chunks are made larger, up to LARGEST_CHUNK


@dataclass(frozen=True)
class Tree:
    """The description of a folder of files.

    Attributes:
        files: a dict from each file's path in the folder to its sha256 and size in bytes.
        owner: the User who alone may use the files; empty if everybody may.
    """

    files: dict[str, tuple[str, int]]
    owner: str = ""

    @classmethod
    def of(cls, file_set: FileSet) -> Tree:
        """Return the tree that has the files of a file set."""
        return cls(file_set.files, file_set.owner)

    @property
    def digest(self) -> str:
        """Return a sha256 of the names and contents of all files, and of the owner.

        Trees with equal digests have equal files.
        """
        content: dict[str, Any] = {name: digest for name, (digest, _) in self.files.items()}
        whole = [content, self.owner] if self.owner else content
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @property
    def contents(self) -> dict[str, int]:
        """Return a dict from each content's sha256 to its size in bytes. Several files may have the same content."""
        return dict(self.files.values())

    @property
    def size(self) -> int:
        return sum(self.contents.values())

    def name(self, content: str) -> str:
        """Return the name of the first file that has this content (a sha256)."""
        return next(name for name, (digest, _) in self.files.items() if digest == content)


def chunk_bytes(size: int) -> int:
    """Return the size of a file's chunks in bytes; the last chunk may be smaller. `size` is the size of the file."""
    length = CHUNK
    while length < LARGEST_CHUNK and size > length * MOST_CHUNKS:
        length *= 2
    return length


def chunks(size: int) -> range:
    """Return the numbers of all chunks of a file. `size` is the size of the file in bytes."""
    return range(-(-size // chunk_bytes(size)))


def extent(number: int, size: int) -> tuple[int, int]:
    """Return the offset and the length of a chunk in bytes. `size` is the size of the file in bytes."""
    length = chunk_bytes(size)
    return number * length, min(length, size - number * length)


def digesting(path: Path, size: int) -> Generator[None, None, tuple[str, list[str]]]:
    """Compute the sha256 of a file, and the list of its chunks' sha256s. Both are empty if the file's size is wrong.

    Yield after each chunk, so that a caller can alternate between several files. At the end, return the results.

    Args:
        size: the expected size in bytes.

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
    """Return the sha256 of a file, and a list of the sha256 of each chunk.

    If the file does not have `size` bytes, return an empty text and an empty list. Raises OSError if the file cannot be
    read, or is not a regular file.
    """
    steps = digesting(path, size)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def blocks(path: Path, length: int, most: int) -> Iterator[bytes]:
    """Yield a file's data in pieces of `length` bytes. Stop after `most` bytes. The last piece may be shorter."""
    with open_regular(path) as file:
        while most > 0 and (data := file.read(min(length, most))):
            most -= len(data)
            yield data
