"""Make the file set of an environment: a Python environment or a container image in which an engine runs."""

from __future__ import annotations

import tarfile
from pathlib import Path

from glide.files.listing import listing
from glide.files.unpack import BROKEN, SUFFIXES, is_archive
from glide.template import FileSet
from glide.template.spec import files_of

SANDBOX = ".singularity.d"  # name of a folder that is in unpacked container images, but not in Python environments
# If an image's address begins with one of these prefixes, the node's container runtime fetches the image.
REGISTRIES = ("docker://", "oras://", "library://")
IMAGES = (".sif", ".simg", ".sqfs")


def environment(name: str, parent: Path) -> FileSet:
    """Return the file set of an environment.

    If the name is the path or the address of an archive (SUFFIXES) or of an image (IMAGES), the file set contains this
    file, and nodes fetch it. For the names below, the file set has no files, and nodes fetch nothing:

    - an image in a registry (REGISTRIES)
    - a folder that contains either bin/python or the files of an unpacked image
    - the absolute path of a folder or an image that exists only on the nodes

    Args:
        name: the name of the environment, as the user or the admin has written it.
        parent: folder from which a relative path starts.

    Raises:
        ValueError: the name has none of these forms, or the file cannot be read.
    """
    if name.startswith(REGISTRIES):
        return FileSet(name)
    if "://" in name:
        return _at_address(name)
    path = (parent / Path(name).expanduser()).absolute()
    if not path.exists() and Path(name).is_absolute() and not is_archive(name):
        return FileSet(name)
    try:
        if path.is_dir():
            if not (path / "bin" / "python").exists() and not (path / SANDBOX).is_dir():
                raise ValueError(f"{path} has no bin/python, so it is not an environment")
            return FileSet(str(path))
        if is_archive(path.name):
            with tarfile.open(path) as archive:
                archive.next()
        else:
            _check_image(path.name)
        return FileSet(str(path.parent), files_of(path, path.parent))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except BROKEN as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from None


def _at_address(name: str) -> FileSet:
    folder, _, file = name.rpartition("/")
    if not is_archive(file):
        _check_image(file)
    try:
        path, files = listing(folder)
    except OSError as error:
        raise ValueError(str(error)) from None
    if file not in files:
        raise ValueError(
            f"{file} is not in the file list of {path}; check that the file exists and that the list is complete"
        )
    return FileSet(path, {file: files[file]})


def _check_image(name: str) -> None:
    if not name.endswith(IMAGES):
        kinds = f"an archive ({', '.join(SUFFIXES)}) nor an image ({', '.join(IMAGES)})"
        raise ValueError(f"{name} is neither {kinds}, nor a folder")
