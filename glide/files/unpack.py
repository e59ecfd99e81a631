"""Unpack an archive into the folder where its programs will run. The archive contains an environment or HTCondor.

An archive is not trusted. Jobs of several users may run as the same account on a node. So one user's archive could
overwrite another user's files. To prevent this, nothing is written outside the folder, even if a file name or a link in
the archive leads out of the folder. The filters of tarfile are not used, because they do not stop all such links. This
module uses only the standard library.
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
)  # if an archive is damaged, one of these exceptions is raised  # fmt: skip
STEP = 32 << 20  # number of bytes that are reserved in addition to the size of the next file
# The maximum size of the unpacked files is RATIO times the size of the archive, but at least LEAST bytes. Environments
# have a ratio of 3 to 5. LEAST is needed, because a small archive that contains mostly zeros has a higher ratio.
RATIO = 25
LEAST = 1 << 30
BLOCK = 4096  # for each file, link and folder, this number of bytes is added to the unpacked size
LARGEST_HEADER = 16 << 20  # maximum size of a header in an archive, in bytes; tarfile reads each header into memory
CONDA_SECONDS = 1800.0  # time limit of conda-unpack, in seconds
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))


def is_archive(name: str) -> bool:
    """Return whether a file with this name is an archive that nodes unpack."""
    return name.endswith(SUFFIXES)


def unpack(archive: Path, folder: Path, reserve: Callable[[int, int], None]) -> None:
    """Unpack an archive into a folder, and write the path of the folder into the unpacked programs.

    The arguments and the errors are those of `extract`.
    """
    extract(archive, folder, reserve)
    try:
        _relocate(content_root(folder))
    except BROKEN as error:
        raise OSError(f"{archive.name} cannot be unpacked: {error}") from None


def extract(archive: Path, folder: Path, reserve: Callable[[int, int], None]) -> None:
    """Write the files of an archive into a folder.

    Args:
        reserve: function that frees space on the disk. Its first argument is the number of bytes written so far. Its
            second argument is the number of bytes that must be free for the next files.

    Raises:
        OSError: the archive is damaged, or its files are too large, or the disk is full. Or a file name in the archive
            leads out of the folder, directly or through a link.
    """
    taken = promised = 0
    made: set[Path] = {folder}
    try:
        for archived, member in _members(archive):
            needed = max(0, member.size)
            if taken + needed >= promised:
                reserve(taken, needed + STEP)
                promised = taken + needed + STEP
            _extract(archived, member, folder, made)
            taken += needed
        reserve(taken, 0)
    except BROKEN as error:
        raise OSError(f"{archive.name} cannot be unpacked: {error}") from None


def unpacked_size(archive: Path) -> int:
    """Return the total size of an archive's files in bytes. This reads the whole archive.

    Raises:
        OSError: the archive is damaged, or its files are too large.
    """
    try:
        return sum(max(0, member.size) for _, member in _members(archive))
    except BROKEN as error:
        raise OSError(f"{archive.name} cannot be unpacked: {error}") from None


def _members(archive: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """For each member, yield the open archive and the member. Raises ValueError if the unpacked files are too large."""
    limit = max(LEAST, RATIO * archive.stat().st_size)
    taken = 0
    with (
        _decompressed(archive) as stream,
        tarfile.open(fileobj=cast(IO[bytes], _Headers(stream)), mode="r:") as archived,
    ):
        for member in archived:
            cast(Any, archived).members = []  # keeps tarfile from collecting all members in memory
            taken += BLOCK + max(0, member.size)
            if taken > limit:
                raise ValueError(
                    f"the unpacked files exceed {limit / 1e6:.0f} MB, which is the limit for an archive of this size"
                )
            yield archived, member


@contextmanager
def _decompressed(archive: Path) -> Iterator[IO[bytes]]:
    with archive.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        opener: Callable[..., Any] | None = next((each for magic, each in _COMPRESSED if head.startswith(magic)), None)
        with opener(file) if opener else file as stream:
            yield stream


class _Headers:
    """A stream that refuses headers of more than LARGEST_HEADER bytes. tarfile itself accepts headers of any size."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > LARGEST_HEADER:
            raise ValueError(f"a header in it is longer than {LARGEST_HEADER} bytes")
        return self.stream.read(size)


def _extract(archived: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, made: set[Path]) -> None:
    target = _place(folder, member.name, made)
    if target == folder:
        return
    if member.isdir():
        if target not in made:
            _clear(target)
            target.mkdir()
            made.add(target)
        # The folder's owner gets all rights. Without these rights, glide could not create files in the folder.
        target.chmod(member.mode & 0o777 | 0o700)
        return
    _clear(target)
    if member.issym():
        # A link may lead anywhere, for example from a packed venv to its Python. No file is written through a link,
        # because `_place` refuses such paths.
        target.symlink_to(member.linkname)
    elif member.islnk():
        os.link(_place(folder, member.linkname, made), target, follow_symlinks=False)
    elif member.isreg():
        content = archived.extractfile(member)
        assert content is not None
        with content, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
        os.utime(target, (member.mtime, member.mtime))  # if a .py has a new mtime, Python ignores its .pyc
    else:
        raise ValueError(f"{member.name!r} is neither a file, a folder nor a link")


def _place(folder: Path, name: str, made: set[Path]) -> Path:
    """Return the path at which a member with this name is unpacked. Create the missing folders above this path.

    Args:
        made: the folders created so far. This function adds the folders that it creates.

    Raises:
        ValueError: the path is outside `folder`, or a folder above the path is a link.
    """
    path = PurePosixPath(name.lstrip("/"))
    if ".." in path.parts:
        raise ValueError(f"{name!r} is outside of the folder")
    for above in reversed((folder / path).parents[: len(path.parts) - 1] if path.parts else ()):
        if above not in made:
            if above.is_symlink():
                raise ValueError(f"{name!r} is in a folder that is a link")
            above.mkdir()
            made.add(above)
    return folder / path


def _clear(target: Path) -> None:
    """Delete the file or link at this path, so that nothing is written through a link."""
    target.unlink(missing_ok=True)


def content_root(folder: Path) -> Path:
    """Return the top folder of the unpacked files: `folder`, or the single folder in it that contains all files."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    alone = len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink()
    return inside[0] if alone and inside[0].name not in ("bin", "usr") else folder


def _relocate(folder: Path) -> None:
    """Write the path of the folder into the unpacked programs and texts that need this path."""
    repoint(folder, folder.resolve())
    conda = folder / "bin" / "conda-unpack"  # conda-pack puts this program into its archives
    if conda.exists():
        done = run([folder / "bin" / "python", conda], CONDA_SECONDS)
        if done.code:
            raise OSError(f"conda-unpack failed: {' '.join((done.errors or done.output).split())[-300:]}")
