"""Archives of programs, which are to run where they are unpacked: packed environments, and HTCondor itself.

Standard library only.
"""

from __future__ import annotations

import lzma
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from glide.files.elf import repoint

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
BROKEN = (tarfile.TarError, EOFError, ValueError, lzma.LZMAError, zlib.error)  # what damaged archives raise
STEP = 32 << 20  # bytes for which room is made at a time


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked on the node."""
    return name.endswith(SUFFIXES)


def unpack(archive: Path, folder: Path, taking: Callable[[int, int], None]) -> None:
    """Unpack an archive, and have its programs know where they are now; OSError when that is impossible.

    Args:
        taking: is told bytes that have been taken, and how many more there have to be room for.
    """
    taken = promised = 0
    try:
        with tarfile.open(archive) as members:
            # Nothing is written outside, but links may lead there: a packed venv's to the Python that it was made of.
            members.extraction_filter = getattr(tarfile, "tar_filter", None)
            for member in members:
                if taken + member.size >= promised:
                    taking(taken, member.size + STEP)
                    promised = taken + member.size + STEP
                # Its owner may read and write: what is left to do writes, and one day it is to be deleted.
                member.mode |= 0o700 if member.isdir() else 0o600
                members.extract(member, folder)
                taken += member.size
    except BROKEN as error:
        raise OSError(f"{archive.name} cannot be unpacked: {error}") from None
    taking(taken, 0)
    _settle(root(folder))


def root(folder: Path) -> Path:
    """Where what was unpacked begins: some pack a folder, some what is in it."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name not in ("bin", "usr") else folder


def _settle(folder: Path) -> None:
    """What has to be done once where it is going to stay."""
    repoint(folder, folder.resolve())
    conda = folder / "bin" / "conda-unpack"  # conda-pack's own: texts and programs that name their folder
    if conda.exists():
        done = subprocess.run(
            [folder / "bin" / "python", conda], capture_output=True, encoding="utf-8", errors="replace"
        )
        if done.returncode:
            raise OSError(f"conda-unpack failed: {' '.join((done.stderr or done.stdout).split())[-300:]}")
