"""Read text files and compressed text files line by line."""

from __future__ import annotations

import gzip
import io
import zlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from glide.errors import InputError

COMPRESSED = (".gz", ".zst")
# A row: the number of its line, its content or an UnusableRow, and the offset of its line in bytes. The offset is None
# if the row cannot be read from there again.
Row = tuple[int, Any, int | None]


class UnusableRow(Exception):
    """The error for a line that holds no record. The message is the reason."""


def duplicate(names: Iterable[str]) -> str | None:
    """Return a name that occurs more than once, or None if all names are different."""
    name, times = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
    return name if times > 1 else None


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file. Decompress it if its name ends in .gz or .zst. Errors of reading become an InputError."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".gz":
                yield gzip.GzipFile(fileobj=file)  # type: ignore[misc]
            elif path.suffix.lower() == ".zst":
                yield io.BufferedReader(ZstdFile(file), 1 << 18)  # type: ignore[misc]
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the compressed file is damaged or incomplete: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


class ZstdFile(io.RawIOBase):
    """Decompresses a file of zstd frames. zstandard's own reader would not notice that the last frame is incomplete."""

    BLOCK = 1 << 17  # number of compressed bytes in each read

    def __init__(self, file: BinaryIO):
        self.file = file
        self.frame: Any = None  # decompressor of the present frame; None between two frames
        self.data = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read decompressed bytes into a buffer, and return their number; 0 at the end.

        Raises:
            EOFError: the compressed data is damaged or incomplete.
        """
        while not self.data:
            block = self.file.read(self.BLOCK)
            if not block:
                if self.frame is not None:
                    raise EOFError("the last part is missing")
                return 0
            self.data = self._decompressed(block)
        count = min(len(buffer), len(self.data))
        buffer[:count], self.data = self.data[:count], self.data[count:]
        return count

    def _decompressed(self, block: bytes) -> bytes:
        import zstandard

        parts = []
        while block:
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                parts.append(self.frame.decompress(block))
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            block = self.frame.unused_data if self.frame.eof else b""
            self.frame = None if self.frame.eof else self.frame
        return b"".join(parts)


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without its byte order mark. The file may be larger than memory.

    Only a newline character ends a line. Other characters that Python may accept as line ends can be part of a text.
    """
    return (line for _, line, _ in places_of(path))


def places_of(path: Path) -> Iterator[tuple[int, str, int | None]]:
    """Yield the number of each line, the line as `lines_of` yields it, and its offset in bytes.

    The offset is None if the file is compressed.
    """
    offset = 0
    compressed = path.suffix.lower() in COMPRESSED
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = (line.removeprefix(BOM_UTF8) if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                problem = f"{path}:{number}: not UTF-8: {error.reason}; save the file as UTF-8"
                raise InputError(problem) from None
            yield number, text, None if compressed else offset
            offset += len(line)
