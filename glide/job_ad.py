"""Read the job ad that HTCondor's starter writes into the job's folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from glide.system import open_regular

LIMIT = 1 << 24  # maximum number of bytes that are read; an ad can be large because it can contain a template


class Attributes(dict[str, str]):
    """The attributes of an ad. As in HTCondor, upper and lower case of a name are the same."""

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        return super().get(name.lower(), default)


def read_ad(path: str | None) -> Attributes:
    """Return the attributes of the ad in a file; none if the file cannot be read. All values are texts."""
    with suppress(OSError), open_regular(Path(path or "")) as file:
        lines = file.read(LIMIT).decode(errors="replace").split("\n")
        pairs = (line.partition(" = ") for line in lines)
        return Attributes((name.strip().lower(), value.strip().strip('"')) for name, _, value in pairs)
    return Attributes()
