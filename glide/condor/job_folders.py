"""Find the folder in which each of this user's jobs can have its own folder, so that no job needs to be spooled."""

from __future__ import annotations

import logging
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from glide.condor.access_point import AccessPoint, parameter
from glide.condor.pool import account

JOBS_PARAMETER = "GLIDE_JOBS"  # HTCondor configuration parameter of the access point; glide alone reads it
# A job that is not spooled may wait for SCHEDD_INTERVAL until the schedd announces it. If this interval is longer than
# MOST_INTERVAL seconds, jobs are spooled: a spooled job is announced at once, after the second that spooling takes.
MOST_INTERVAL = 5.0
# A schedd has a second address for administrators. HTCondor uses it if it can read the file with this address.
ADDRESS_FILES = ("SCHEDD_ADDRESS_FILE", "SCHEDD_SUPER_ADDRESS_FILE")
_log = logging.getLogger("glide")


def job_folders(access_point: AccessPoint) -> Path | None:
    """Return this user's folder in GLIDE_JOBS if jobs can use it. Create the folder if it does not exist.

    The result is None in these cases, and then jobs must be spooled:

    - The configuration has no GLIDE_JOBS.
    - The access point is on another machine.
    - The jobs run as another account, which could not use this user's files.
    - The schedd would announce jobs that are not spooled too late (SCHEDD_INTERVAL).
    - LIMIT_DIRECTORY_ACCESS does not include the folder.
    - The folder cannot be used.

    Raises:
        CondorError: the access point does not answer.
    """
    folder = parameter(JOBS_PARAMETER)
    if not folder or not _is_here(access_point) or access_point.user.partition("@")[0] != account().pw_name:
        return None
    own = Path(folder).resolve() / str(os.getuid())
    interval = float(parameter("SCHEDD_INTERVAL") or 300)
    limits = re.split(r"[,\s]+", (parameter("LIMIT_DIRECTORY_ACCESS") or "").strip())
    try:
        if interval > MOST_INTERVAL:
            raise PermissionError(f"SCHEDD_INTERVAL = {interval:g} is more than {MOST_INTERVAL:g}")
        if limits != [""] and not any(own.is_relative_to(each) for each in limits):
            raise PermissionError("LIMIT_DIRECTORY_ACCESS does not include it")
        with suppress(FileExistsError):
            own.mkdir(mode=0o700)
        found = own.lstat()  # other users may be able to create files in GLIDE_JOBS
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError("it is not a folder that only its owner can use")
    except OSError as error:
        _log.warning(
            "%s %s: %s; jobs are spooled instead, which takes a second for each job", JOBS_PARAMETER, own, error
        )
        return None
    return own


def _is_here(access_point: AccessPoint) -> bool:
    """Return whether the access point is the schedd of this machine: one of this schedd's files has its address."""
    addresses = set()
    for name in ADDRESS_FILES:
        with suppress(OSError, UnicodeDecodeError, IndexError):
            addresses.add(Path(parameter(name) or "/nowhere").read_text("utf-8").splitlines()[0])
    return str(access_point.location["MyAddress"]) in addresses
