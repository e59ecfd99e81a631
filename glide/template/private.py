"""Protect files that were downloaded with a user's access token: only this user's jobs may use them.

The folder of such files contains an empty file MARKER, which belongs to the user's account. The seed and the model
servers may run as another account that can read the folder. So they look for the marker before they use a file, because
another user may have named this file in a template. This module uses only the standard library.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import IO

MARKER = ".glide-private"


def is_private(folder: Path) -> bool:
    """Return whether a folder, or a folder above it, has a marker."""
    return any(_marker_account(each) is not None for each in _folders(folder / MARKER))


def check_path(path: Path, owner: str) -> None:
    """Raise PermissionError if a file is private, and belongs to another user than `owner`.

    Args:
        owner: the User whose jobs are to use the file; empty if jobs of all users are to use it.
    """
    for folder in _folders(path):
        account = _marker_account(folder)
        if account is not None and account != owner.partition("@")[0]:
            raise PermissionError(f"{path}: only jobs of {account} may use this file")


def check_open(file: IO[bytes], owner: str) -> None:
    """Do the same as `check_path` for an open file. So nobody can put another file in its place after the check."""
    check_path(Path(os.readlink(opened_path(file))), owner)


def opened_path(file: IO[bytes]) -> Path:
    """Return a path that always leads to an open file, even if another file has taken its place."""
    return Path(f"/proc/self/fd/{file.fileno()}")


def _folders(path: Path) -> dict[Path, None]:
    """Return the folders above a path: those in the path as it is, and those in the path without links."""
    return dict.fromkeys((*path.absolute().parents, *path.resolve().parents))


def _marker_account(folder: Path) -> str | None:
    """Return the account that owns the marker in a folder; None if there is no marker.

    In a folder where everybody can create files, a marker counts only if the same account owns the folder.
    """
    try:
        marker, status = (folder / MARKER).lstat(), folder.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    if status.st_mode & 0o002 and status.st_uid != marker.st_uid:
        return None
    try:
        return pwd.getpwuid(marker.st_uid).pw_name
    except KeyError:
        return str(marker.st_uid)
