"""Options that several commands have, and how they print JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Sites = Annotated[list[Path], typer.Option("-c", "--config", help="A site's file.")]


def print_json(document: Any) -> None:
    """The one document of a --json command."""
    print(json.dumps(document, indent=1))
