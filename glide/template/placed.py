"""Files among a function's arguments, which may lie elsewhere on a node. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
