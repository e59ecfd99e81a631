"""How programs are started in the node's own Python, in a Python environment, or in a container."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glide.files.environment import SANDBOX

CODE = Path(__file__).resolve().parents[2]  # folder from which the Python of an environment imports glide
RUNTIMES = ("apptainer", "singularity")
# A dict from the device file of a GPU driver to an option of apptainer and singularity. With this option, a container
# can use the GPUs of this driver.
DEVICES = {"/dev/nvidiactl": "--nv", "/dev/kfd": "--rocm"}


class UnusableEnvironment(Exception):
    """An engine cannot run in an environment. The message says why."""


@dataclass(frozen=True)
class Surroundings:
    """How programs are started in an environment.

    Attributes:
        prefix: words before each command. They start a container; empty without a container.
        python: the environment's Python.
        variables: environment variables of the commands.
    """

    prefix: list[str]
    python: str
    variables: dict[str, str]

    @property
    def python_command(self) -> list[str]:
        return [*self.prefix, self.python]


def surroundings(place: str | None, visible_folders: Iterable[str]) -> Surroundings:
    """Return how programs are started in an environment.

    Args:
        place: a folder that contains bin/python, or a container image (a file, an address, or a folder); None for the
            node's own Python.
        visible_folders: folders of this node that are visible in a container.

    Raises:
        UnusableEnvironment: `place` is not a usable environment, or this node cannot run containers.
    """
    if place is None:
        return Surroundings([], sys.executable, dict(os.environ))
    # Packages for the node's own Python may be in the account's home folder or in PYTHONPATH. Set PYTHONPATH and
    # PYTHONNOUSERSITE, so that the environment does not import these packages.
    variables = {**os.environ, "PYTHONPATH": str(CODE), "PYTHONNOUSERSITE": "1"}
    variables.pop("PYTHONHOME", None)
    folder = Path(place)
    if "://" in place or folder.is_file() or (folder / SANDBOX).is_dir():
        return Surroundings(_container_command(place, [str(CODE), *visible_folders]), "python3", variables)
    program = folder / "bin" / "python"
    if program.is_symlink() and not program.exists():
        raise UnusableEnvironment(
            f"{place} needs a Python that this node lacks: its bin/python is a link to {os.readlink(program)}"
        )
    if not program.exists():
        raise UnusableEnvironment(f"environment not usable: {place} has no bin/python")
    # Set the variables that the environment's activation script would set.
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    return Surroundings([], str(program), {**variables, "PATH": path, "CONDA_PREFIX": place, "VIRTUAL_ENV": place})


def _container_command(image: str, visible_folders: Iterable[str]) -> list[str]:
    """Return the words that start a command in a container."""
    runtime = next(filter(None, map(shutil.which, RUNTIMES)), None)
    if runtime is None:
        raise UnusableEnvironment(f"{image} needs {' or '.join(RUNTIMES)}, but neither is on this node's PATH")
    binds = [word for folder in visible_folders for word in ("--bind", folder)]
    devices = [option for device, option in DEVICES.items() if Path(device).exists()]
    return [runtime, "--quiet", "--nocolor", "exec", *devices, *binds, image]
