"""Manage the factory's files under GLIDE_HOME.

The folder of a site contains the site's lock and the names of closed entries. It also contains a subfolder for each
pair of an entry and a template. In such a subfolder, the factory stores the files that it sends to nodes, and the
outputs of the glideins.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glide.condor import home
from glide.config import SiteFile
from glide.errors import InputError
from glide.files import Tree
from glide.system import publish
from glide.template import FileSet

LOCK_ATTEMPTS = 10  # number of attempts to get a site's lock, with pauses of 0.05 s
JOB_LOG = "glideins.log"  # HTCondor's log of a template's glideins, named in glidein.sub
LARGEST_JOB_LOG = 10_000_000  # maximum size of a job log in bytes; a larger one is renamed, and replaces an earlier one


def drained(site: SiteFile) -> set[str]:
    """Return the names of the entries that an admin has closed with `glide factory drain`.

    The folder of the site contains a file for each closed entry. So the entry stays closed when the factory restarts.
    """
    return {path.name for path in (site_folder(site) / "drained").glob("*")}


def close(site: SiteFile, entry: str) -> None:
    """Close an entry. The factory submits nothing to a closed entry until `reopen` opens it."""
    (site_folder(site) / "drained").mkdir(exist_ok=True, mode=0o700)
    (site_folder(site) / "drained" / entry).touch()


def reopen(site: SiteFile, entry: str) -> None:
    """Open an entry that was closed."""
    (site_folder(site) / "drained" / entry).unlink(missing_ok=True)


def site_folder(site: SiteFile) -> Path:
    """Return the site's folder. Create it with mode 0700 if it does not exist.

    Raises:
        InputError: the folder cannot be created.
    """
    path = home() / "factory" / site.site
    try:
        for each in (home(), path.parent, path):  # mkdir sets the mode of the last folder only, not of its parents
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; set GLIDE_HOME to a writable folder") from None
    return path


def known_sites() -> list[Path]:
    """Return the site files of all factories that have run with this GLIDE_HOME. Leave out deleted files."""
    files = [Path(file.read_text("utf-8")) for file in sorted((home() / "factory").glob("*/file")) if file.is_file()]
    return [file for file in files if file.exists()]


def is_running(site: SiteFile) -> bool:
    """Return whether a factory for this site is running with this GLIDE_HOME."""
    with (site_folder(site) / "lock").open("a+", encoding="utf-8") as file:
        try:
            # The lock is shared, because several processes may call `is_running` at the same time.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def factory_lock(site: SiteFile) -> Iterator[None]:
    """Hold the site's lock while the block runs, so that a site has only one factory at a time.

    If this process is killed, the kernel releases the lock.

    Raises:
        InputError: another factory holds the lock.
    """
    with (site_folder(site) / "lock").open("a+", encoding="utf-8") as file:
        if not _acquire(file):
            raise InputError(f"a factory for site {site.site} is running (pid {_lock_owner(file)}); stop it first")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _acquire(file) -> bool:
    """Try for 0.5 s to get the lock, and return whether this process got the lock.

    One attempt is not enough, because `is_running` in another process may hold the lock for a moment.
    """
    for _ in range(LOCK_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _lock_owner(file) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


def subfolder_name(template: str) -> str:
    """Return the name of the subfolder for a template. The subfolder is in the folder of an entry.

    Args:
        template: digest of the template; empty for blank glideins.
    """
    return (template or "blank")[:16]


def entry_folder(site: Path, entry: str, template: str) -> Path:
    """Return the folder for the glideins of an entry and a template.

    Args:
        site: the site's folder.
        template: digest of the template; empty for blank glideins.
    """
    return site / entry / subfolder_name(template)


def file_set_key(file_set: FileSet, folder: Path) -> str:
    """Return the key of a file set. With this key, nodes get the files from the factory's seed and from peers.

    Args:
        folder: the site's folder. The first call stores a random secret there. All keys of the site are computed from
            this secret.
    """
    return _key(folder, Tree.of(file_set).digest)


def compiled_key(entry: str, folder: Path) -> str:
    """Return the key with which the glideins of an entry exchange compiled code.

    Args:
        folder: the site's folder.
    """
    return _key(folder, f"compiled code of {entry}")


def _key(folder: Path, purpose: str) -> str:
    secret = folder / "peers"
    if not secret.exists():
        publish(secret, secrets.token_bytes(32))
    return hmac.new(secret.read_bytes(), purpose.encode(), "sha256").hexdigest()


def delete_old_files(entry: Path, used: Collection[Path], before: float, running: Collection[str], most: int) -> None:
    """Delete old outputs of glideins from an entry's subfolders.

    Delete a whole subfolder if it is not in use, and if the subfolder and all its outputs are old. Rename a job log of
    more than LARGEST_JOB_LOG bytes, so that HTCondor begins a new one.

    Args:
        entry: the folder of the entry.
        used: the subfolders that are in use and must stay.
        before: Unix time. A file or folder is old if its last change was before this time.
        running: the jobs of the glideins that have not ended, as CLUSTER.PROC. Their outputs stay until they are old.
        most: maximum number of ended glideins whose outputs stay. The outputs of all earlier ones are old, too.
    """
    kinds = ("*.out", "*.err", "*.logs")
    outputs = {
        folder: {path: path.stat().st_mtime for kind in kinds for path in folder.glob(kind)}
        for folder in filter(Path.is_dir, entry.iterdir())
    }  # fmt: skip
    changed: dict[str, float] = {}
    for found in outputs.values():
        for path, at in found.items():
            changed[path.stem] = max(at, changed.get(path.stem, 0.0))
    ended = sorted(changed.keys() - set(running), key=lambda job: changed[job], reverse=True)
    surplus = set(ended[most:])
    for folder, found in outputs.items():
        old = [path for path, at in found.items() if at < before or path.stem in surplus]
        if folder not in used and len(old) == len(found) and folder.stat().st_mtime < before:
            shutil.rmtree(folder)
            continue
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        log = folder / JOB_LOG
        if log.exists() and log.stat().st_size > LARGEST_JOB_LOG:
            log.replace(log.with_name(f"{JOB_LOG}.old"))
