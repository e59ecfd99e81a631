"""The ad of a job, as its starter leaves it beside the job."""

from __future__ import annotations

from contextlib import suppress


def read_ad(path: str | None) -> dict[str, str]:
    """An ad's simple attributes as text; none where there is no such file."""
    with suppress(OSError), open(path or "", encoding="utf-8") as file:
        pairs = (line.partition(" = ") for line in file)
        return {name: value.strip().strip('"') for name, _, value in pairs}
    return {}
