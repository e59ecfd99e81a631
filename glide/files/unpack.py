"""Archives of programs, which are to run where they are unpacked: packed environments, and HTCondor itself.

Who has made an archive is nobody to trust: the account that unpacks it has other users' files. So nothing is written
outside of the folder, neither by name nor through a link that is in the archive; tarfile's own filters leave the latter
to some extent open. Standard library only.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from glide.files.elf import repoint
from glide.files.program import run

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
BROKEN = (
    tarfile.TarError, EOFError, ValueError, lzma.LZMAError, zlib.error, struct.error, ArithmeticError, LookupError,
    RecursionError,
)  # what damaged archives raise  # fmt: skip
STEP = 32 << 20  # bytes for which room is made at a time
# An archive may be this many times its size when it is unpacked, or have LEAST bytes: packed environments have 3 to 5
# times, and small ones of mostly zeros more.
RATIO = 25
LEAST = 1 << 30
BLOCK = 4096  # bytes that a file of one byte takes, as links and folders do
LARGEST_HEADER = 16 << 20  # bytes that tarfile may read at a time: of a header, as contents are read in pieces
CONDA_SECONDS = 1800.0
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked on the node."""
    return name.endswith(SUFFIXES)


def unpack(archive: Path, folder: Path, taking: Callable[[int, int], None]) -> None:
    """Unpack an archive, and have its programs know where they are now.

    Args:
        taking: is told bytes that have been taken, and how many more there have to be room for.

    Raises:
        OSError: it is damaged, has more in it than an archive of its size can have, or a name or link in it that leads
            out of the folder; or the disk is full.
    """
    taken = promised = 0
    real: set[Path] = {folder}
    try:
        for archived, member in _members(archive):
            needed = max(0, member.size)
            if taken + needed >= promised:
                taking(taken, needed + STEP)
                promised = taken + needed + STEP
            _extract(archived, member, folder, real)
            taken += needed
        taking(taken, 0)
        _settle(root(folder))
    except BROKEN as error:
        raise OSError(f"{archive.name} cannot be unpacked: {error}") from None


def unpacked_size(archive: Path) -> int:
    """Bytes that an archive takes when it is unpacked: all of it is read.

    Raises:
        OSError: as unpack does.
    """
    try:
        return sum(max(0, member.size) for _, member in _members(archive))
    except BROKEN as error:
        raise OSError(f"{archive.name} cannot be unpacked: {error}") from None


def _members(archive: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """What is in an archive; an error as soon as that is more than an archive of its size can have."""
    limit = max(LEAST, RATIO * archive.stat().st_size)
    taken = 0
    with (
        _decompressed(archive) as stream,
        tarfile.open(fileobj=cast(IO[bytes], _Headers(stream)), mode="r:") as archived,
    ):
        for member in archived:
            cast(Any, archived).members = []  # tarfile would keep all
            taken += BLOCK + max(0, member.size)
            if taken > limit:
                raise ValueError(f"more than {limit / 1e6:.0f} MB are in it, {RATIO} times its size")
            yield archived, member


@contextmanager
def _decompressed(archive: Path) -> Iterator[IO[bytes]]:
    with archive.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        opened: Callable[..., Any] | None = next((each for magic, each in _COMPRESSED if head.startswith(magic)), None)
        with opened(file) if opened else file as stream:
            yield stream


class _Headers:
    """A stream as tarfile reads it, who believes what a header says of its own length."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > LARGEST_HEADER:
            raise ValueError("a header in it has no end")
        return self.stream.read(size)


def _extract(archived: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, real: set[Path]) -> None:
    target = _place(folder, member.name, real)
    if target == folder:
        return
    if member.isdir():
        if target not in real:
            _vacate(target)
            target.mkdir()
            real.add(target)
        target.chmod(member.mode & 0o777 | 0o700)  # what is left to do writes, and one day it is to be deleted
        return
    _vacate(target)
    if member.issym():
        target.symlink_to(member.linkname)  # it may lead anywhere: a packed venv's to the Python that it was made of
    elif member.islnk():
        os.link(_place(folder, member.linkname, real), target, follow_symlinks=False)
    elif member.isreg():
        content = archived.extractfile(member)
        assert content is not None
        with content, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
        os.utime(target, (member.mtime, member.mtime))  # compiled modules know their sources by it
    else:
        raise ValueError(f"{member.name!r} is neither a file, a folder nor a link")


def _place(folder: Path, name: str, real: set[Path]) -> Path:
    """Where a member belongs, its folder made; ValueError where that is not within the folder, or behind a link.

    Args:
        real: folders that were made here.
    """
    path = PurePosixPath(name.lstrip("/"))
    if ".." in path.parts:
        raise ValueError(f"{name!r} is outside of it")
    for above in reversed((folder / path).parents[: len(path.parts) - 1] if path.parts else ()):
        if above not in real:
            if above.is_symlink():
                raise ValueError(f"{name!r} is behind a link")
            above.mkdir()
            real.add(above)
    return folder / path


def _vacate(target: Path) -> None:
    """Have nothing at a name: what a link there leads to is not to be written."""
    target.unlink(missing_ok=True)


def root(folder: Path) -> Path:
    """Where what was unpacked begins: some pack a folder, some what is in it."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    alone = len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink()
    return inside[0] if alone and inside[0].name not in ("bin", "usr") else folder


def _settle(folder: Path) -> None:
    """What has to be done once where it is going to stay."""
    repoint(folder, folder.resolve())
    conda = folder / "bin" / "conda-unpack"  # conda-pack's own: texts and programs that name their folder
    if conda.exists():
        done = run([folder / "bin" / "python", conda], CONDA_SECONDS)
        if done.code:
            raise OSError(f"conda-unpack failed: {' '.join((done.errors or done.output).split())[-300:]}")
