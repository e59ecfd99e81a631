"""Where entries' glideins are queued, in the words of what is to be typed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from glide.config import Login, Pool
from glide.doctor.facts import Facts

Place = Pool | Login | None  # None is the pool that glideins join


def places(facts: Facts) -> Mapping[str, Place]:
    """Of all entries, by name."""
    return {entry.name: entry.away for site in facts.files for entry in site.entries}


def key(place: Place) -> str:
    """The key of a site file that names it."""
    return "ssh" if isinstance(place, Login) else "pool"


def command(name: str, job: str, place: Place) -> str:
    """One of HTCondor's commands on a job of the queue there: another queue may have a job of the same number."""
    if place is None:
        return f"{name} {job}"
    schedd = f" -name {shlex.quote(place.schedd)}" if place.schedd else ""
    if isinstance(place, Login):
        return f"on {place.name}: {name}{schedd} {job}"
    pool = f"-pool {shlex.quote(place.collector)}"
    # With a pool alone, HTCondor's commands may mean the access point of this machine.
    return f"{name} {pool}{schedd or f' -name $(condor_status {pool} -schedd -af Name)'} {job}"
