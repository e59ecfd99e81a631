"""Options that several commands share, and the output of `--json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Sites = Annotated[list[Path], typer.Option("-c", "--config", help="A site file; repeat for several.")]


def print_json(document: Any) -> None:
    """Print a JSON document, for a command that was called with `--json`."""
    print(json.dumps(document, indent=1))
