"""Files that come with glide but are meant to be read and copied by people: job files and site files."""

from __future__ import annotations

import sys
from pathlib import Path


def find(folder: str, name: str) -> Path:
    """Path of a file of submit_templates/ or site_configs/: in a checkout, else where the wheel puts them."""
    checkout = Path(__file__).resolve().parent.parent / folder / name
    return checkout if checkout.exists() else Path(sys.prefix) / "share" / "glide" / folder / name
