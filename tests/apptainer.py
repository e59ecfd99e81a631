"""The real Apptainer, from Debian and without root, for those who have none."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from glide.condor import install
from glide.files.elf import repoint

SUITE = "sid"  # the one that has it


def program_folder() -> Path:
    """Where `apptainer` is, fetched once if need be."""
    if found := shutil.which("apptainer"):
        return Path(found).parent
    prefix = install.cache_dir() / "apptainer"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with prefix.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not prefix.exists():
            _fetch(prefix)
    return prefix / "usr" / "bin"


def _fetch(prefix: Path) -> None:
    apt = install.PrivateApt(prefix.with_suffix(".apt"))
    apt.update()
    apt.use(SUITE)
    staging = prefix.with_suffix(".unpacking")
    install.unpack(apt.download("apptainer"), staging)
    # It takes the folder above its libraries' for its prefix.
    for place in ("usr/etc", "usr/lib/etc"):
        shutil.copytree(staging / "etc" / "apptainer", staging / place / "apptainer")
        (staging / place / "apptainer" / "capability.json").write_text("{}")
    (staging / "usr/lib/var/lib/apptainer/mnt/session").mkdir(parents=True)
    repoint(staging, prefix)
    staging.rename(prefix)
    shutil.rmtree(apt.state)
