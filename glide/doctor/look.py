"""Gather the facts: everything that the doctor asks HTCondor and the operating system for."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from glide.condor import AccessPoint, Collector, EmbeddedPool, connect, home, install, tokens
from glide.condor.access_point import parameter
from glide.condor.bindings import version
from glide.condor.bounded import Unseen, ask
from glide.condor.configuration import configuration
from glide.condor.rights import Right, right
from glide.config import Entry, Login, SiteFile, load
from glide.doctor.checks import knobs
from glide.doctor.facts import US, Disk, EventLog, Facts, Folder, Node, Programs, Site, Token
from glide.errors import CondorError, InputError
from glide.factory.daemon import folder, known_sites
from glide.factory.journal import Journal
from glide.factory.snapshot import Snapshot
from glide.files.unpack import is_archive
from glide.report.status import look as look_at_status
from glide.report.status import view
from glide.ssh import access_point_at
from glide.vocabulary import Job, JobStatus, Machine

TIMEOUT = 25.0  # seconds; a query of HTCondor's that nobody answers ends after 20
_AD = (
    "MyType", "Name", "CondorVersion", "LastHeardFrom", "MyCurrentTime",
    Machine.ID, Machine.ENTRY, Machine.STATE, Machine.BATCHING, Machine.GPU_NAME,
)  # fmt: skip
_JOB = (
    "ClusterId", "ProcId", "HoldReason", "TransferInput", "TransferExecutable", "In", "TransferOutput",
    "JobLeaseDuration", "WantIOProxy", "LimitDirectoryAccess", "WantRemoteUpdates",
)  # fmt: skip
_NODE = ("TotalSlotCpus", "TotalSlotMemory", "TotalGPUs", "GPUs_GlobalMemoryMb")
_NODES = f'MyType == "Machine" && {Machine.ID} =?= undefined'
# Anybody may submit and advertise anything: what is of another type counts as not said.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("LastHeardFrom", "MyCurrentTime", "JobLeaseDuration", *_NODE), (int, float)),
    **dict.fromkeys(("MyType", "Name", Machine.ID, Machine.ENTRY), (str,)),
}


def gather(files: Sequence[Path] = (), timeout: float = TIMEOUT) -> Facts:
    """Look at the pool in force, at this GLIDE_HOME, and at what factories have run from it.

    Args:
        files: of sites; by default those whose factories have run from here.
        timeout: seconds for everything.

    Raises:
        CondorError: there is no pool.
    """
    connect()
    sites = tuple(map(_site, files or known_sites()))
    views = [site.view for site in sites if site.view]
    entries = [(view.site, entry) for view in views for entry in view.site.entries]
    questions: dict[str, Callable[[], Any]] = {
        "programs": _programs,
        "folders": _folders,
        "tokens": partial(_tokens, entries),
        "disks": _disks,
        "ads": _ads,
        "negotiator": partial(configuration, "Negotiator", knobs.NEGOTIATOR),
        "schedd": partial(configuration, "Schedd", knobs.SCHEDD),
        "event_log": _event_log,
        "rights": partial(_rights, entries),
        "clock": _clock,
        "jobs": _jobs,
        "nodes": partial(_nodes, entries),
        "snapshot": partial(_snapshot, [view.site for view in views]),
    }
    answers = ask(questions, timeout)
    unseen = {name: answer.reason for name, answer in answers.items() if isinstance(answer, Unseen)}
    embedded = os.environ.get("CONDOR_CONFIG") == str(EmbeddedPool(home()).config)
    seen = {name: answer for name, answer in answers.items() if name not in unseen}
    return Facts(now=time.time(), embedded=embedded, sites=sites, unseen=unseen, **seen)


# ---- this machine --------------------------------------------------------------------------------


def _programs() -> Programs:
    classad = ""
    with suppress(importlib.metadata.PackageNotFoundError):
        classad = importlib.metadata.version("classad")
    return Programs(version(), classad)


def _site(path: Path) -> Site:
    try:
        site = load(path, SiteFile)
    except InputError as error:
        return Site(str(path), problems=error.problems)
    journal = Journal(folder(site))
    told = journal.latest()
    return Site(
        str(path), view(site), missing=tuple(_missing(site)),
        cycle_age=journal.age(), troubles=(*told.get("unseen", ()), *told.get("refused", ())),
    )  # fmt: skip


def _missing(site: SiteFile) -> Iterator[str]:
    for entry in site.entries:
        for key, name in (("environment", entry.environment), ("condor", entry.condor)):
            if name and name.startswith("/") and is_archive(name) and not Path(name).exists():
                yield f"{entry.name}: {key}: {name}"


def _folders() -> tuple[Folder, ...]:
    secrets = [home(), home() / "pool", home() / "sessions", *(home() / "factory").glob("*"), *_own_tokens()]
    secrets += (home() / "factory").glob("*/*/*/token")
    return tuple(
        Folder(str(path), stat.S_IMODE(path.stat().st_mode), path.stat().st_uid == os.geteuid())
        for path in secrets
        if path.exists()
    )


def _own_tokens() -> list[Path]:
    place = Path(parameter("SEC_TOKEN_DIRECTORY") or Path.home() / ".condor" / "tokens.d")
    return sorted(path for path in place.glob("*") if path.is_file())


def _entry_tokens(site: SiteFile, entry: Entry) -> list[Path]:
    """An entry's, the newest first."""
    found = (folder(site) / entry.name).glob("*/token")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _tokens(entries: Sequence[tuple[SiteFile, Entry]]) -> tuple[Token, ...]:
    now = time.time()
    theirs = [(path, entry.name, path.parent.name) for site, entry in entries for path in _entry_tokens(site, entry)]
    every = [*((path, "", "") for path in _own_tokens()), *theirs]
    return tuple(Token(str(path), tokens.seconds_left(path, now), *whose) for path, *whose in every)


def _disks() -> tuple[Disk, ...]:
    """One for each disk, however many of the folders are on it."""
    folders = {"GLIDE_HOME": home(), "the access point's SPOOL": Path(parameter("SPOOL") or "/nowhere"),
               "the cache of what is downloaded": install.cache_dir()}  # fmt: skip
    found: dict[int, Disk] = {}
    for what, path in folders.items():
        if not path.exists():
            continue
        usage, device = shutil.disk_usage(path), path.stat().st_dev
        names = f"{found[device].what}, {what}" if device in found else what
        found[device] = Disk(found[device].path if device in found else str(path), names, usage.free, usage.total)
    return tuple(found.values())


def _event_log() -> EventLog:
    path = parameter("EVENT_LOG") or ""
    there = Path(path) if Path(path).exists() else Path(path).parent  # a fresh access point has none as yet
    return EventLog(path, os.access(there, os.R_OK))


# ---- the pool ------------------------------------------------------------------------------------


def _ads() -> tuple[dict[str, Any], ...]:
    ads = map(_sound, Collector().ads(_AD, ["Start"]))
    return tuple(ad for ad in ads if "MyType" in ad and "Name" in ad)


def _clock() -> float:
    access_point = AccessPoint()
    before = time.time()
    theirs = access_point.time()
    return theirs + 0.5 - (before + time.time()) / 2


def _rights(entries: Sequence[tuple[SiteFile, Entry]]) -> tuple[Right, ...]:
    AccessPoint().jobs("false", [])  # gives up where nobody answers, as what follows does not
    rights = [right(US, daemon, level) for daemon, level in (("Schedd", "READ"), ("Schedd", "WRITE"))]
    if entries:  # a factory takes dead glideins' ads away
        rights.append(right(US, "Collector", "ADVERTISE_STARTD"))
    for site, entry in entries:
        for path in _entry_tokens(site, entry)[:1]:
            left = tokens.seconds_left(path, time.time())
            if left is None or left > 0:  # an old one is renewed before it is used
                who, token = f"glidein-{entry.name}", path.read_text("utf-8").strip()
                rights += [right(who, "Collector", f"ADVERTISE_{kind}", token) for kind in ("STARTD", "MASTER")]
    return tuple(rights)


def _jobs() -> tuple[dict[str, Any], ...]:
    constraint = f"{Job.TEMPLATE} =!= undefined && {Job.ENTRY} =?= undefined && JobStatus != {JobStatus.COMPLETED}"
    return tuple(map(_sound, AccessPoint().jobs(constraint, _JOB)))


def _nodes(entries: Sequence[tuple[SiteFile, Entry]]) -> dict[str, tuple[Node, ...]]:
    """A pool that does not answer is left out: the factory's view of it says why."""
    found: dict[str, tuple[Node, ...]] = {}
    for place in {entry.away for _, entry in entries}:
        with suppress(CondorError):
            if isinstance(place, Login):
                ads = access_point_at(place).nodes(_NODE)
            else:
                ads = Collector(place.collector if place else None).ads(_NODE, constraint=_NODES)
            nodes = tuple(map(_node, ads))
            found |= {entry.name: nodes for _, entry in entries if entry.away == place}
    return found


def _node(ad: dict[str, Any]) -> Node:
    cpus, memory, gpus, gpu_memory = map(_sound(ad).get, _NODE)
    return Node(cpus or 0, memory or 0, gpus or 0, gpu_memory)


def _sound(ad: Mapping[str, Any]) -> dict[str, Any]:
    """An ad without what is not of its type."""
    return {name: value for name, value in ad.items() if type(value) in _TYPES.get(name, (type(value),))}


def _snapshot(sites: Sequence[SiteFile]) -> Snapshot:
    snapshot, _ = look_at_status(sites)
    if snapshot.failed:
        raise CondorError(snapshot.failed[0])
    return snapshot
