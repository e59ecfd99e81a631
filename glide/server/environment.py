"""What an engine runs in: the node's own Python, an environment's, or a container's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from glide.files.environment import SANDBOX

CODE = Path(__file__).resolve().parents[2]  # glide's own, for any Python
RUNTIMES = ("apptainer", "singularity")
DEVICES = {"/dev/nvidiactl": "--nv", "/dev/kfd": "--rocm"}


class Unusable(Exception):
    """It is not what an engine can run in, and why."""


def python(place: str | None, seen: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """How Python is called in an environment, and the variables that it is called with.

    Args:
        place: a folder with bin/python, a container's image (a file, an address, or a folder); None for our own.
        seen: folders of this node that a container is to see as well.

    Raises:
        Unusable: it is none of these, or nothing here runs containers.
    """
    if place is None:
        return [sys.executable], dict(os.environ)
    # What is installed for this account or told to the node's own Python is not for this one.
    variables = {**os.environ, "PYTHONPATH": str(CODE), "PYTHONNOUSERSITE": "1"}
    variables.pop("PYTHONHOME", None)
    folder = Path(place)
    if "://" in place or folder.is_file() or (folder / SANDBOX).is_dir():
        return _container(place, [str(CODE), *seen]), variables
    program = folder / "bin" / "python"
    if program.is_symlink() and not program.exists():
        raise Unusable(f"{place} is of a Python that this node lacks: its bin/python leads to {os.readlink(program)}")
    if not program.exists():
        raise Unusable(f"no environment: {place} has no bin/python")
    # As its activation would.
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    return [str(program)], {**variables, "PATH": path, "CONDA_PREFIX": place, "VIRTUAL_ENV": place}


def _container(image: str, seen: Iterable[str]) -> list[str]:
    runtime = next(filter(None, map(shutil.which, RUNTIMES)), None)
    if runtime is None:
        raise Unusable(f"no {' or '.join(RUNTIMES)} on this node's PATH, which {image} needs")
    binds = [word for folder in seen for word in ("--bind", folder)]
    devices = [option for device, option in DEVICES.items() if Path(device).exists()]
    return [runtime, "--quiet", "--nocolor", "exec", *devices, *binds, image, "python3"]
