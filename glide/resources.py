"""Find the job files and site files that come with glide. Users can also read and copy these files."""

from __future__ import annotations

import sys
from pathlib import Path


def find(folder: str, name: str) -> Path:
    """Return the path of a file in the folder `submit_templates` or `site_configs`.

    A checkout contains these folders. The wheel installs them under `sys.prefix`.
    """
    checkout = Path(__file__).resolve().parent.parent / folder / name
    return checkout if checkout.exists() else Path(sys.prefix) / "share" / "glide" / folder / name
