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
    """Return whether a folder, or a folder above it, has the marker."""
    return any((each / MARKER).exists() for each in (folder, *folder.parents))


def check_path(path: Path, owner: str) -> None:
    """Raise PermissionError if a file is private, and `owner` is not its user.

    Args:
        owner: the User whose jobs are to use the file; empty if jobs of all users are to use it.
    """
    for folder in path.resolve().parents:
        try:
            account = _account((folder / MARKER).lstat().st_uid)
        except OSError:  # there is no marker, or this account must not look into the folder
            continue
        if account != owner.partition("@")[0]:
            raise PermissionError(f"{path}: only jobs of {account} may use this file")


def check_open(file: IO[bytes], owner: str) -> None:
    """Do the same as `check_path` for an open file. So nobody can put another file in its place after the check."""
    check_path(Path(os.readlink(f"/proc/self/fd/{file.fileno()}")), owner)


def _account(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
