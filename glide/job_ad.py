"""The ad of a job, as its starter leaves it beside the job."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from glide.system import open_regular

LIMIT = 1 << 24  # bytes: a job's ad may hold a template


def read_ad(path: str | None) -> dict[str, str]:
    """An ad's simple attributes as text; none where there is no such file."""
    with suppress(OSError), open_regular(Path(path or "")) as file:
        lines = file.read(LIMIT).decode(errors="replace").split("\n")
        pairs = (line.partition(" = ") for line in lines)
        return {name: value.strip().strip('"') for name, _, value in pairs}
    return {}
