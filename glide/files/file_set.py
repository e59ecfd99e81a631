"""Fetch the files of a file set to a node. If the only file is an archive, unpack it.

This module uses only the standard library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from glide.files.cache import Cache
from glide.files.fetch import Fetch, FetchAccount, Swarm, WrongContent
from glide.files.sources import AccessPointSource, is_remote, open_source
from glide.files.tree import Tree
from glide.files.unpack import content_root, is_archive
from glide.template import FileSet
from glide.template.private import check_path


def ensure_local(
    file_set: FileSet,
    cache: Cache,
    plugins: Path | None = None,
    swarm: Swarm | None = None,
    report: Callable[[FetchAccount], None] = lambda account: None,
) -> Path:
    """Return a folder on this node that contains the files of a file set.

    If `file_set.path` is a folder on a disk of this node, verify the files there and return this folder. Otherwise
    fetch the files into the cache.

    Args:
        plugins: HTCondor's libexec folder, which contains the file transfer plugins. None: no plugin is used.
        swarm: this node and its peers. None: no peers are asked.
        report: function that is called with the number of bytes fetched so far, several times a second and at the end
            of the fetch. It is not called if `file_set.path` is returned.

    Raises:
        OSError: the files cannot be read or stored.
        WrongContent: the content of a file is not the content that the file set describes.
        PermissionError: a file is private, and belongs to another user than the file set.
        ValueError: the path of the file set is neither absolute nor an address of a known kind.
    """
    own = Path(file_set.path)
    here = own.is_absolute() and all(map(os.path.exists, (own / name for name in file_set.files)))
    if here and not is_remote(own):
        for name, (content, size) in file_set.files.items():
            check_path(own / name, file_set.owner)
            if not cache.verify(own / name, content, size):
                raise WrongContent(
                    f"{own / name} is not the file that the template describes: the file has changed since the template"
                    " was made"
                )
        return own
    tree = Tree.of(file_set)
    seed = AccessPointSource(file_set.seed, tree, file_set.key) if file_set.seed and not here else None
    fetch = Fetch(cache, tree, open_source(file_set.path, plugins, seed, file_set.owner), swarm, report)
    folder = fetch.run()
    report(fetch.account)
    return folder


def unpacked(file_set: FileSet, folder: Path, cache: Cache) -> Path:
    """Unpack the only file of a file set, and return the folder of the unpacked files.

    If the file is not an archive, return the path of the file.

    Args:
        folder: the folder that contains the file, as `ensure_local` returns it.

    Raises:
        OSError: the archive cannot be unpacked.
    """
    (name,) = file_set.files
    return content_root(cache.unpack(Tree.of(file_set).digest, folder / name)) if is_archive(name) else folder / name


def without_other_files(folder: Path, names: Collection[str], view: Path) -> Path:
    """Return a folder that contains certain files of a folder, and no others.

    An engine could load a file that the template does not name, such as another set of weights. If `folder` has no
    other files, return `folder`. Hidden files do not count. Otherwise, return `view`, with links to the files.

    Args:
        names: names of the files, relative to `folder`.
        view: folder for the links. It is made if it does not exist.

    Raises:
        OSError: the links cannot be made.
    """
    present = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    if not any(str(path) not in names and not any(part.startswith(".") for part in path.parts) for path in present):
        return folder
    for name in names:
        link = view / name
        if not link.is_symlink() or link.readlink() != folder / name:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(folder / name)
    return view
