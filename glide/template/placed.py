"""What nodes unpickle of a user's function, its arguments and its modules. Standard library only."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Placed:
    """Stands for one of a template's files or folders; `name` is relative to the template's `path`."""

    name: str
    text: bool  # whether the function was given a str, not a Path

    def on_node(self, root: str) -> str | Path:
        path = Path(root) / self.name
        return str(path) if self.text else path


def on_node(argument: Any, root: str | None) -> Any:
    """The argument as the function is to get it where the template's files are in `root`."""
    return argument.on_node(root or "") if isinstance(argument, Placed) else argument


@dataclass(frozen=True)
class WithModules:
    """A value and the user's own modules that its code imports when it runs, by name."""

    value: Any
    modules: dict[str, ModuleType]


def opened(value: Any) -> Any:
    """Return what was pickled, ready to be used: the modules that it imports can be imported from now on."""
    if not isinstance(value, WithModules):
        return value
    sys.modules.update(value.modules)
    for name, module in value.modules.items():
        parent, _, last = name.rpartition(".")
        if parent in value.modules:
            setattr(value.modules[parent], last, module)
    return value.value
