"""Objects that stand for files and modules in the pickle of a user's function. Nodes replace these objects.

This module uses only the standard library.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class FileArgument:
    """Stands for an argument that is the path of one of the template's files or folders.

    Attributes:
        name: path of the file or folder, relative to the template's `path`.
        text: whether the user's function gets the path as a str. If not, it gets a Path.
    """

    name: str
    text: bool

    def on_node(self, root: str) -> str | Path:
        """Return the path of the file on this node. `root` is the folder with the template's files on this node."""
        path = Path(root) / self.name
        return str(path) if self.text else path


def on_node(argument: Any, root: str | None) -> Any:
    """Return the argument that the user's function gets on this node. A FileArgument becomes a path.

    Args:
        root: the folder with the template's files on this node; None if the template has no files.
    """
    return argument.on_node(root or "") if isinstance(argument, FileArgument) else argument


@dataclass(frozen=True)
class WithModules:
    """A function or other value, and the user's modules that its code imports when the code runs.

    Attributes:
        value: the function or other value.
        modules: the user's modules. The keys are the modules' names.
    """

    value: Any
    modules: dict[str, ModuleType]


def unwrap(value: Any) -> Any:
    """Make the modules of a WithModules importable, and return its value. Return any other value unchanged."""
    if not isinstance(value, WithModules):
        return value
    sys.modules.update(value.modules)
    for name, module in value.modules.items():
        parent, _, last = name.rpartition(".")
        if parent in value.modules:
            setattr(value.modules[parent], last, module)
    return value.value
