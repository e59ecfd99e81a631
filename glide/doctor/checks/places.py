"""Find the queue that contains an entry's glideins, and write HTCondor commands for the jobs in this queue."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from glide.config import Login, Pool
from glide.doctor.facts import Facts

Place = Pool | Login | None  # an entry's outer pool, or the pool's login host; None: the outer pool is the overlay pool


def places(facts: Facts) -> Mapping[str, Place]:
    """Return for each entry the place where its glideins are queued. The key is the name of the entry."""
    return {entry.name: entry.outer_pool for site in facts.files for entry in site.entries}


def key(place: Place) -> str:
    """Return `ssh` if the place is behind a login host, otherwise `pool`. These are keys of an entry in a site file."""
    return "ssh" if isinstance(place, Login) else "pool"


def command(name: str, job: str, place: Place) -> str:
    """Return a command line that applies an HTCondor command to an outer job.

    The command line also names the job's queue, because another queue can have a job with the same id.

    Args:
        name: a command of HTCondor, such as condor_rm.
        job: id of the job, as CLUSTER.PROC.
        place: the outer pool, or the login host of this pool; None: the outer pool is the overlay pool.
    """
    if place is None:
        return f"{name} {job}"
    schedd = f" -name {shlex.quote(place.schedd)}" if place.schedd else ""
    if isinstance(place, Login):
        return f"on {place.name}: {name}{schedd} {job}"
    pool = f"-pool {shlex.quote(place.collector)}"
    # Always add -name: with -pool alone, HTCondor's commands can use the access point of this machine.
    return f"{name} {pool}{schedd or f' -name $(condor_status {pool} -schedd -af Name)'} {job}"
