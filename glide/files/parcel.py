"""A parcel on a node: where its files are, brought there if need be, and what is in them. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glide.files.cache import Cache
from glide.files.fetch import Account, Fetch, Swarm, Wrong
from glide.files.sources import AccessPoint, is_remote, open_source
from glide.files.tree import Tree
from glide.files.unpack import is_archive, root
from glide.template import Parcel


def in_place(
    parcel: Parcel,
    cache: Cache,
    plugins: Path | None = None,
    swarm: Swarm | None = None,
    tell: Callable[[Account], None] = lambda account: None,
) -> Path:
    """The folder with a parcel's files: its own where that is on this node's disk, else one of the cache's.

    Args:
        plugins: HTCondor's libexec, with its file transfer plugins.
        swarm: None to ask no peers.
        tell: is told now and then how it goes, and in the end, if anything had to be looked for in the cache.

    Raises:
        OSError, Wrong, ValueError: it is not to be had, or not what it should be.
    """
    own = Path(parcel.path)
    here = own.is_absolute() and all((own / name).exists() for name in parcel.files)
    if here and not is_remote(own):
        for name, (content, size) in parcel.files.items():
            if not cache.verify(own / name, content, size):
                raise Wrong(f"{own / name} is not what the template was made of: it has changed since")
        return own
    tree = Tree(parcel.files)
    seed = AccessPoint(parcel.seed, tree, parcel.key) if parcel.seed and not here else None
    fetch = Fetch(cache, tree, open_source(parcel.path, plugins, seed), swarm, tell)
    folder = fetch.run()
    tell(fetch.account)
    return folder


def opened(parcel: Parcel, folder: Path, cache: Cache) -> Path:
    """What is in a parcel of one archive, unpacked once for all who come; the file itself where it is none.

    Raises:
        OSError: it cannot be unpacked.
    """
    (name,) = parcel.files
    return root(cache.unpack(Tree(parcel.files).digest, folder / name)) if is_archive(name) else folder / name
