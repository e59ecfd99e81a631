"""Programs that bring their own dynamic loader: which one, is written in each as a whole path.

The kernel wants it so. Room for any path is left in them where they are prepared (glide.condor.install), and the path
is written where they come to lie. Standard library only.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from glide.system import open_regular

PROGRAMS = ".glide-programs"  # in the folder: the loader and the programs that need it, a line each, relative to it
LARGEST_LIST = 16 << 20  # bytes
ROOM = "/" * 1023  # a path that leaves room for any other
_INTERP = 3  # PT_INTERP, the program header that names the loader


def repoint(folder: Path, place: Path) -> None:
    """Have the programs of a folder find their loader when the folder is at a place; nothing where none brings one."""
    if not (folder / PROGRAMS).exists():
        return
    with open_regular(folder / PROGRAMS) as file:
        loader, *programs = file.read(LARGEST_LIST).decode("utf-8").splitlines()
    path = str(place / loader).encode()
    for program in programs:
        # Not all of them travel. And whoever made the folder may have listed what is not in it.
        found = folder / program
        if found.is_file() and not found.is_symlink() and folder.resolve() in found.resolve().parents:
            _write_loader(found, path)


def _write_loader(program: Path, path: bytes) -> None:
    with program.open("r+b") as file:
        try:
            at, room = _loader(file)
        except (struct.error, IndexError):
            raise OSError(f"{program} is no program of 64 bits") from None
        if len(path) >= room:
            raise OSError(f"{path.decode()} is too long a path for programs to name their loader by")
        file.seek(at)
        file.write(path.ljust(room, b"\0"))


def _loader(file: BinaryIO) -> tuple[int, int]:
    """Where a 64-bit ELF program names its loader, and how much room there is."""
    head = file.read(0x40)
    order = "<" if head[5] == 1 else ">"
    (headers,) = struct.unpack_from(f"{order}Q", head, 0x20)
    size, count = struct.unpack_from(f"{order}HH", head, 0x36)
    file.seek(headers)
    for _ in range(count):
        kind, _, at, _, _, room = struct.unpack_from(f"{order}IIQQQQ", file.read(size))
        if kind == _INTERP:
            return at, room
    raise OSError("a program that names no loader")
