"""What engines are to run in, as users and admins name it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from glide.files.listing import listing
from glide.files.unpack import BROKEN, SUFFIXES, is_archive
from glide.template import Parcel
from glide.template.spec import files_of

SANDBOX = ".singularity.d"  # what a folder has that is a container's, and no packed environment
REGISTRIES = ("docker://", "oras://", "library://")  # of which the node's container runtime fetches images
IMAGES = (".sif", ".simg", ".sqfs")


def environment(name: str, parent: Path) -> Parcel:
    """What nodes are told of an environment.

    Args:
        name: an archive (SUFFIXES) or an image (IMAGES), which travel, their names relative to `parent` or at an
            address; an image of a registry; or a folder with bin/python or a container's files. Of a folder or an image
            that is not here the whole path will do: nodes have it.

    Raises:
        ValueError: it is none of these.
    """
    if name.startswith(REGISTRIES):
        return Parcel(name)
    if "://" in name:
        return _at_address(name)
    path = (parent / Path(name).expanduser()).absolute()
    if not path.exists() and Path(name).is_absolute() and not is_archive(name):
        return Parcel(name)
    try:
        if path.is_dir():
            if not (path / "bin" / "python").exists() and not (path / SANDBOX).is_dir():
                raise ValueError(f"{path} has no bin/python, so it is no environment")
            return Parcel(str(path))
        if is_archive(path.name):
            with tarfile.open(path) as archive:
                archive.next()
        else:
            _check_image(path.name)
        return Parcel(str(path.parent), files_of(path, path.parent))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except BROKEN as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from None


def _at_address(name: str) -> Parcel:
    folder, _, file = name.rpartition("/")
    if not is_archive(file):
        _check_image(file)
    try:
        path, files = listing(folder)
    except OSError as error:
        raise ValueError(str(error)) from None
    if file not in files:
        raise ValueError(f"{path} has no {file}, or does not list it")
    return Parcel(path, {file: files[file]})


def _check_image(name: str) -> None:
    if not name.endswith(IMAGES):
        kinds = f"an archive ({', '.join(SUFFIXES)}) nor an image ({', '.join(IMAGES)})"
        raise ValueError(f"{name} is neither {kinds}, nor a folder")
