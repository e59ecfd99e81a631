"""A site's folder: what its factory sends to nodes and what comes back, a folder for each entry and template in it."""

from __future__ import annotations

import hmac
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from glide.files import Tree
from glide.system import publish
from glide.template import Parcel


def entry_folder(site: Path, entry: str, template: str) -> Path:
    """The folder of an entry's glideins that start with a template, or as blank ones (empty).

    Args:
        site: the site's folder.
        template: its digest.
    """
    return site / entry / (template or "blank")[:16]


def key_to(parcel: Parcel, folder: Path) -> str:
    """What opens the doors of nodes that have a parcel from the factory that works in a folder."""
    secret = folder / "peers"
    if not secret.exists():
        publish(secret, secrets.token_bytes(32))
    return hmac.new(secret.read_bytes(), Tree(parcel.files).digest.encode(), "sha256").hexdigest()


def tidy(place: Path, used: Collection[Path], before: float) -> None:
    """Delete what glideins of long ago have left of an entry's folders, and those that nobody uses any more."""
    for folder in filter(Path.is_dir, place.iterdir()):
        left = (*folder.glob("*.out"), *folder.glob("*.err"), *folder.glob("*.logs"))
        old = [path for path in left if path.stat().st_mtime < before]
        if folder not in used and len(old) == len(left) and folder.stat().st_mtime < before:
            shutil.rmtree(folder)
            continue
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
