"""Placeholders in the pickle of a user's function. Nodes replace a placeholder by the path of a file, or by modules.

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
    """An argument that names one of a template's files or folders.

    Attributes:
        name: path of the file or folder, relative to the template's `path`.
        text: whether the function gets the path as a str and not as a Path.
    """

    name: str
    text: bool

    def on_node(self, root: str) -> str | Path:
        """Return the path of the file on this node. `root` is the folder of the template's files."""
        path = Path(root) / self.name
        return str(path) if self.text else path


def on_node(argument: Any, root: str | None) -> Any:
    """Return the argument that the function gets on this node. `root` is the folder of the template's files."""
    return argument.on_node(root or "") if isinstance(argument, FileArgument) else argument


@dataclass(frozen=True)
class WithModules:
    """A value, and the user's modules that the value's code imports when the code runs.

    Attributes:
        value: the value.
        modules: the modules, by name.
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
