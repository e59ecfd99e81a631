"""Gather facts for the doctor's checks. All queries of the doctor are here, except those for the test record."""

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
from glide.condor.bounded import NoReply, ask
from glide.condor.configuration import configuration
from glide.condor.job_folders import JOBS_PARAMETER
from glide.condor.rights import Authorization, check_authorization
from glide.config import Entry, Login, SiteFile, load
from glide.doctor.checks import knobs
from glide.doctor.facts import US, Disk, EventLogState, Facts, PrivatePath, Programs, Site, SlotOffer, Token
from glide.errors import CondorError, InputError
from glide.factory.home import known_sites, site_folder
from glide.factory.journal import Journal
from glide.factory.snapshot import Snapshot
from glide.files.unpack import is_archive
from glide.live.status import read_status
from glide.report.status import observe_pool, queue_view
from glide.ssh import access_point_at
from glide.vocabulary import Job, JobStatus, Machine

TIMEOUT = 25.0  # time limit of all queries together, in seconds; HTCondor itself ends an unanswered query after 20 s
_AD = (
    "MyType", "Name", "CondorVersion", "LastHeardFrom", "MyCurrentTime",
    Machine.ID, Machine.ENTRY, Machine.STATE, Machine.BATCHING, Machine.GPU_NAME,
)  # fmt: skip
_JOB = (
    "ClusterId", "ProcId", "HoldReason", "TransferInput", "TransferExecutable", "In", "TransferOutput",
    "JobLeaseDuration", "WantIOProxy", "LimitDirectoryAccess", "WantRemoteUpdates", Job.STANDING,
)  # fmt: skip
_NODE = ("TotalSlotCpus", "TotalSlotMemory", "TotalGPUs", "GPUs_GlobalMemoryMb")
_NODES = f'MyType == "Machine" && {Machine.ID} =?= undefined'
# For some attributes: the types that values must have. A value of another type is dropped, because anybody can submit
# and advertise any value.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("LastHeardFrom", "MyCurrentTime", "JobLeaseDuration", *_NODE), (int, float)),
    **dict.fromkeys(("MyType", "Name", Machine.ID, Machine.ENTRY), (str,)),
}


def gather_facts(files: Sequence[Path] = (), timeout: float = TIMEOUT) -> Facts:
    """Observe the active pool, this GLIDE_HOME, and the factories that have run with this GLIDE_HOME.

    Args:
        files: paths of site files; if empty, all site files whose factories have run with this GLIDE_HOME.
        timeout: time limit of all queries together, in seconds.

    Raises:
        CondorError: no pool was found.
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
        "serve": read_status,
        "nodes": partial(_nodes, entries),
        "snapshot": partial(_snapshot, [view.site for view in views]),
    }
    answers = ask(questions, timeout)
    unavailable = {name: answer.reason for name, answer in answers.items() if isinstance(answer, NoReply)}
    embedded = os.environ.get("CONDOR_CONFIG") == str(EmbeddedPool(home()).config)
    seen = {name: answer for name, answer in answers.items() if name not in unavailable}
    return Facts(now=time.time(), embedded=embedded, sites=sites, unavailable=unavailable, **seen)


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
    journal = Journal(site_folder(site))
    latest = journal.latest()
    return Site(
        str(path), queue_view(site), missing=tuple(_missing(site)),
        cycle_age=journal.age(), troubles=(*latest.get("unseen", ()), *latest.get("refused", ())),
    )  # fmt: skip


def _missing(site: SiteFile) -> Iterator[str]:
    for entry in site.entries:
        for key, name in (("environment", entry.environment), ("condor", entry.condor)):
            if name and name.startswith("/") and is_archive(name) and not Path(name).exists():
                yield f"{entry.name}: {key}: {name}"


def _folders() -> tuple[PrivatePath, ...]:
    secrets = [home(), home() / "pool", home() / "sessions", *(home() / "factory").glob("*"), *_own_tokens()]
    secrets += (home() / "factory").glob("*/*/*/token")
    return tuple(
        PrivatePath(str(path), stat.S_IMODE(path.stat().st_mode), path.stat().st_uid == os.geteuid())
        for path in secrets
        if path.exists()
    )


def _own_tokens() -> list[Path]:
    place = Path(parameter("SEC_TOKEN_DIRECTORY") or Path.home() / ".condor" / "tokens.d")
    return sorted(path for path in place.glob("*") if path.is_file())


def _entry_tokens(site: SiteFile, entry: Entry) -> list[Path]:
    """Return the token files of an entry's glideins, the newest first."""
    found = (site_folder(site) / entry.name).glob("*/token")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _tokens(entries: Sequence[tuple[SiteFile, Entry]]) -> tuple[Token, ...]:
    now = time.time()
    of_glideins = [
        (path, entry.name, path.parent.name) for site, entry in entries for path in _entry_tokens(site, entry)
    ]
    every = [*((path, "", "") for path in _own_tokens()), *of_glideins]
    return tuple(Token(str(path), tokens.seconds_left(path, now), *whose) for path, *whose in every)


def _disks() -> tuple[Disk, ...]:
    """Return the disks that hold glide's folders. A disk with several of these folders is returned once."""
    folders = {"GLIDE_HOME": home(), "the access point's SPOOL": Path(parameter("SPOOL") or "/nowhere"),
               "the folder of jobs without spooling": Path(parameter(JOBS_PARAMETER) or "/nowhere"),
               "the cache of what is downloaded": install.cache_dir()}  # fmt: skip
    found: dict[int, Disk] = {}
    for what, path in folders.items():
        if not path.exists():
            continue
        usage, device = shutil.disk_usage(path), path.stat().st_dev
        names = f"{found[device].what}, {what}" if device in found else what
        found[device] = Disk(found[device].path if device in found else str(path), names, usage.free, usage.total)
    return tuple(found.values())


def _event_log() -> EventLogState:
    path = parameter("EVENT_LOG") or ""
    existing = Path(path) if Path(path).exists() else Path(path).parent  # a new access point has no event log yet
    return EventLogState(path, os.access(existing, os.R_OK))


# ---- the pool ------------------------------------------------------------------------------------


def _ads() -> tuple[dict[str, Any], ...]:
    ads = map(_sound, Collector().ads(_AD, ["Start"]))
    return tuple(ad for ad in ads if "MyType" in ad and "Name" in ad)


def _clock() -> float:
    access_point = AccessPoint()
    before = time.time()
    # HTCondor rounds its time down to whole seconds. On average, the true time is 0.5 s later.
    remote = access_point.time()
    return remote + 0.5 - (before + time.time()) / 2


def _rights(entries: Sequence[tuple[SiteFile, Entry]]) -> tuple[Authorization, ...]:
    # Calls of `check_authorization` have no time limit. So first make a query with a time limit. If no schedd answers,
    # the query raises an error, and `check_authorization` is not called.
    AccessPoint().jobs("false", [])
    rights = [check_authorization(US, daemon, level) for daemon, level in (("Schedd", "READ"), ("Schedd", "WRITE"))]
    if entries:  # a factory needs ADVERTISE_STARTD to remove dead glideins' ads
        rights.append(check_authorization(US, "Collector", "ADVERTISE_STARTD"))
    for site, entry in entries:
        for path in _entry_tokens(site, entry)[:1]:
            left = tokens.seconds_left(path, time.time())
            if left is None or left > 0:  # skip an expired token: the factory renews it before the next submission
                who, token = f"glidein-{entry.name}", path.read_text("utf-8").strip()
                levels = ("ADVERTISE_STARTD", "ADVERTISE_MASTER")
                rights += [check_authorization(who, "Collector", level, token) for level in levels]
    return tuple(rights)


def _jobs() -> tuple[dict[str, Any], ...]:
    constraint = f"{Job.TEMPLATE} =!= undefined && {Job.ENTRY} =?= undefined && JobStatus != {JobStatus.COMPLETED}"
    return tuple(map(_sound, AccessPoint().jobs(constraint, _JOB)))


def _nodes(entries: Sequence[tuple[SiteFile, Entry]]) -> dict[str, tuple[SlotOffer, ...]]:
    """Return a dict from the name of an entry to the slots of the pool to which the entry submits.

    If a pool does not answer, leave out the pool's entries. The function `_snapshot` asks the same pool, and
    reports the reason.
    """
    found: dict[str, tuple[SlotOffer, ...]] = {}
    for place in {entry.outer_pool for _, entry in entries}:
        with suppress(CondorError):
            if isinstance(place, Login):
                ads = access_point_at(place).slots(_NODE)
            else:
                ads = Collector(place.collector if place else None).ads(_NODE, constraint=_NODES)
            nodes = tuple(map(_node, ads))
            found |= {entry.name: nodes for _, entry in entries if entry.outer_pool == place}
    return found


def _node(ad: dict[str, Any]) -> SlotOffer:
    cpus, memory, gpus, gpu_memory = map(_sound(ad).get, _NODE)
    return SlotOffer(cpus or 0, memory or 0, gpus or 0, gpu_memory)


def _sound(ad: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of an ad without the values that have a wrong type."""
    return {name: value for name, value in ad.items() if type(value) in _TYPES.get(name, (type(value),))}


def _snapshot(sites: Sequence[SiteFile]) -> Snapshot:
    snapshot, _ = observe_pool(sites)
    if snapshot.unavailable_sources:
        raise CondorError(snapshot.unavailable_sources[0])
    return snapshot
