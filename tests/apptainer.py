"""The real Apptainer, from Debian and without root, for those who have none."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.debian import relocated

SUITE = "sid"  # the one that has it


def program_folder() -> Path:
    """Where `apptainer` is, fetched once if need be."""
    if found := shutil.which("apptainer"):
        return Path(found).parent
    return relocated("apptainer", SUITE, _adapt) / "usr" / "bin"


def _adapt(tree: Path) -> None:
    # It takes the folder above its libraries' for its prefix.
    for place in ("usr/etc", "usr/lib/etc"):
        shutil.copytree(tree / "etc" / "apptainer", tree / place / "apptainer")
        (tree / place / "apptainer" / "capability.json").write_text("{}")
    (tree / "usr/lib/var/lib/apptainer/mnt/session").mkdir(parents=True)
