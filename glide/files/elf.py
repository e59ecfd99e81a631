"""Write the path of the dynamic loader into programs that are unpacked together with their own loader.

A program must contain the absolute path of its dynamic loader (ld-linux.so). This path is unknown until the program is
in its final folder. So glide.condor.install reserves space in each program, and `repoint` writes the path there later.

This module uses only the standard library.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from glide.system import open_regular

# Name of a file in the folder to which programs were unpacked. The first line of this file is the path of the dynamic
# loader (ld.so). Each further line is the path of a program that needs this loader. Paths are relative to the folder.
PROGRAMS = ".glide-programs"
LARGEST_LIST = 16 << 20  # maximum number of bytes that are read from the PROGRAMS file
ROOM = "/" * 1023  # placeholder for the loader's path; real paths are much shorter
_INTERP = 3  # PT_INTERP, the type of the program header that contains the loader's path


def repoint(folder: Path, place: Path) -> None:
    """Write the path of the loader into the programs of a folder.

    Do nothing if the folder has no PROGRAMS file.

    Args:
        place: path that the folder will have when its programs run. It may differ from the present path, `folder`.
    """
    if not (folder / PROGRAMS).exists():
        return
    with open_regular(folder / PROGRAMS) as file:
        loader, *programs = file.read(LARGEST_LIST).decode("utf-8").splitlines()
    path = str(place / loader).encode()
    for program in programs:
        # Skip programs that this node lacks. A malicious user may have written the list of programs. So also skip paths
        # that lead out of the folder.
        found = folder / program
        if found.is_file() and not found.is_symlink() and folder.resolve() in found.resolve().parents:
            _write_loader(found, path)


def _write_loader(program: Path, path: bytes) -> None:
    with program.open("r+b") as file:
        try:
            at, room = _loader(file)
        except (struct.error, IndexError):
            raise OSError(f"{program} is not a 64-bit program") from None
        if len(path) >= room:
            raise OSError(f"{path.decode()} is too long: the path of the loader may have at most {room - 1} bytes")
        file.seek(at)
        file.write(path.ljust(room, b"\0"))


def _loader(file: BinaryIO) -> tuple[int, int]:
    """Return the offset of the loader's path in a 64-bit ELF program, and the size of the space for it, in bytes."""
    head = file.read(0x40)
    order = "<" if head[5] == 1 else ">"
    (headers,) = struct.unpack_from(f"{order}Q", head, 0x20)
    size, count = struct.unpack_from(f"{order}HH", head, 0x36)
    file.seek(headers)
    for _ in range(count):
        kind, _, at, _, _, room = struct.unpack_from(f"{order}IIQQQQ", file.read(size))
        if kind == _INTERP:
            return at, room
    raise OSError(f"{file.name} contains no path of a dynamic loader")
