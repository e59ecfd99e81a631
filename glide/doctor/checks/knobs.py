"""Check HTCondor's settings: find values that slow down short jobs or are unsafe, and recommend better values.

Many default values suit jobs that run for hours, but delay jobs that run for seconds. The numbers in the findings were
measured with glide's benchmarks on HTCondor 25.14.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from glide.condor.configuration import Configuration
from glide.condor.knobs import VITAL, protected
from glide.doctor.checks.programs import number
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, critical, warning

PROTECTING = ("PROTECTED_JOB_ATTRS", "IMMUTABLE_JOB_ATTRS")
STARTS = 15.0  # jobs per second that an access point can start, unless its configuration sets a lower limit
MATCH_LIMIT = (25, 11, 0)  # since this version, MAX_CONCURRENT_UPLOADS_PER_USER limits the matches of each user
# A job's records and results usually have less than this number of bytes. HTCondor's transfer queue should not delay
# files of this size.
JOB_BYTES = 10_000_000
QUEUED_BYTES = 100 << 20  # HTCondor's default: files up to this number of bytes do not wait in the transfer queue


@dataclass(frozen=True)
class Knob:
    """A setting in seconds that should not exceed `most`.

    Attributes:
        default: HTCondor's default value.
        most: the largest value that is not reported.
        cost: the effect of a larger value, as a phrase. `{value}` in the phrase stands for this value.
        better: the value that the fix recommends.
    """

    name: str
    default: float
    most: float
    cost: str
    better: str


MATCHING = (
    Knob("NEGOTIATOR_INTERVAL", 60, 5, "a job without an idle claim waits up to {value} s for a match", "2"),
    Knob("NEGOTIATOR_CYCLE_DELAY", 20, 2, "the negotiator starts at most one cycle per {value} s", "0"),
    Knob("NEGOTIATOR_MIN_INTERVAL", 5, 2, "a request for a match waits up to {value} s", "1"),
)
QUEUE = (
    Knob(
        "SCHEDD_INTERVAL",
        300,
        30,
        "work that only this timer starts, such as a job for an idle claim, waits up to {value} s",
        "1",
    ),
    Knob("SCHEDD_MIN_INTERVAL", 5, 2, "new jobs are announced up to {value} s late", "0"),
)
PREEMPTION = "NEGOTIATOR_CONSIDER_PREEMPTION"
NEGOTIATOR = (*(knob.name for knob in MATCHING), "NEGOTIATOR_UPDATE_INTERVAL", "CLASSAD_LIFETIME", PREEMPTION)
SCHEDD = (
    *(knob.name for knob in QUEUE), "JOB_START_COUNT", "JOB_START_DELAY", "MAX_JOBS_RUNNING", "MAX_JOBS_PER_OWNER",
    "MAX_JOBS_SUBMITTED", "MAX_JOBS_PER_SUBMISSION", "MAX_PENDING_STARTD_CONTACTS",
    "MAX_CONCURRENT_UPLOADS_PER_USER", "SCHEDD_ENABLE_PER_USER_MATCH_LIMITS",
    "BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER", "FILE_TRANSFER_DISK_LOAD_THROTTLE", "MAX_CONCURRENT_UPLOADS",
    "MAX_CONCURRENT_DOWNLOADS", "USE_PROCD", "GUIDANCE_KEEP_CALM_AND", "CONDOR_FSYNC",
    *PROTECTING, "LIMIT_DIRECTORY_ACCESS",
)  # fmt: skip
# Suppose that a node changes one of these attributes of a job. There are two cases:
# - Without the setting LIMIT_DIRECTORY_ACCESS: After the change, the node can reach more folders of the access point.
# - With the setting: Nodes can reach only the folders that the setting lists. So the change does no harm.
LIMITED = ("LimitDirectoryAccess", "Iwd", "TransferInput")
# Users write HTCondor settings for glideins into the `knobs` of an entry. Some settings harm the glideins. This is a
# dict from the name of such a setting to a pair. The pair consists of a function that returns whether a value is
# harmful, and a text that describes the harm.
GLIDEIN: dict[str, tuple[Callable[[str], bool], str]] = {
    "CLAIM_WORKLIFE": (lambda value: 0 <= float(value) < 600, "each lane waits for a new match after these seconds"),
    "USE_PROCD": (lambda value: value.lower() == "false", "lanes start half as many jobs per second"),
    "UPDATE_INTERVAL": (lambda value: float(value) > 60, "the collector gets lanes' ads this number of seconds late"),
    "GLIDE_RUNS": (
        lambda value: True,
        "its lanes run any program of their owners, not only glide's own client, as the glideins' account",
    ),
    "START": (lambda value: True, "it replaces the condition that accepts only jobs for a lane's own model and owner"),
}


def matching(facts: Facts) -> Iterator[Finding]:
    """Find settings of the negotiator that delay matches."""
    yield from _too_large(MATCHING, facts.negotiator, "central manager")
    values = facts.negotiator.values
    every, lifetime = values.get("NEGOTIATOR_UPDATE_INTERVAL", 300), values.get("CLASSAD_LIFETIME", 900)
    if isinstance(every, float | int) and isinstance(lifetime, float | int) and every >= lifetime:
        yield warning(
            f"NEGOTIATOR_UPDATE_INTERVAL = {every} with CLASSAD_LIFETIME = {lifetime}: the collector takes the"
            " negotiator for dead most of the time",
            _write("NEGOTIATOR_UPDATE_INTERVAL", str(int(lifetime // 4)), "central manager"),
        )
    if values.get(PREEMPTION, True) is False:
        yield warning(
            f"{PREEMPTION} = False: live calls wait until a lane of their model is free",
            _write(PREEMPTION, "True", "central manager"),
        )


def source(facts: Facts) -> str:
    """Return a text that tells where the negotiator's settings are from."""
    return "as the negotiator reports" if facts.negotiator.from_daemon else "as in this machine's configuration"


def queue(facts: Facts) -> Iterator[Finding]:
    """Find settings of the schedd and of its shadows that limit or delay jobs."""
    yield from _too_large(QUEUE, facts.schedd, "access point")
    yield from _limits(facts)
    yield from _matches_per_cycle(facts)
    yield from _transfer_queue(facts)
    values = facts.schedd.values
    delay, count = values.get("JOB_START_DELAY", 0), values.get("JOB_START_COUNT", 1)
    if isinstance(delay, float | int) and isinstance(count, float | int) and delay > 0 and count / delay < STARTS:
        yield warning(
            f"JOB_START_COUNT = {count}, JOB_START_DELAY = {delay}: {count / delay:.3g} jobs start per second, and an"
            f" access point can start about {STARTS:.0f}",
            _write("JOB_START_DELAY", "0", "access point"),
        )
    if values.get("USE_PROCD", True) is False:
        yield warning(
            "USE_PROCD = False: half as many jobs start per second, because each daemon reads all of /proc by itself",
            "remove USE_PROCD = False from the access point's configuration; then condor_restart",
        )
    if races(facts):
        yield warning(
            "GUIDANCE_KEEP_CALM_AND is not True: most jobs with several input files lose five seconds to a race, other"
            " jobs sometimes",
            _write("GUIDANCE_KEEP_CALM_AND", "True", "access point"),
        )
    if facts.embedded and values.get("CONDOR_FSYNC", True) is not False:
        yield warning(
            "CONDOR_FSYNC = True: each job costs a disk flush, but an embedded pool's queue need not survive a power"
            " failure",
            _write("CONDOR_FSYNC", "False", "embedded pool"),
        )


def protection(facts: Facts) -> Iterator[Finding]:
    """Find important job attributes that HTCondor does not protect from changes by a node."""
    listed = " ".join(str(facts.schedd.values.get(name, "")) for name in PROTECTING)
    safe = {name.lower() for name in re.split(r"[\s,]+", listed)}
    # With the setting LIMIT_DIRECTORY_ACCESS, nodes can reach only the folders in this setting. So the attributes in
    # LIMITED need no protection.
    limit = str(facts.schedd.values.get("LIMIT_DIRECTORY_ACCESS", "")).strip()
    if missing := [name for name in VITAL if name.lower() not in safe and not (limit and name in LIMITED)]:
        yield critical(
            f"nodes can change {', '.join(missing)} of the jobs they run: so they can read and write the user's files"
            " on the access point, and run programs as the user on other nodes",
            _write("PROTECTED_JOB_ATTRS", protected(), "access point"),
        )


def losses(facts: Facts) -> Iterator[Finding]:
    """Report a missing or unreadable event log. Without the log, glide needs 14 s longer to notice a lost lane."""
    log = facts.event_log
    cost = "a lost node is noticed 14 s later, when the queue shows it, and its records wait until then"
    if not log.path:
        yield warning(f"no EVENT_LOG is configured: {cost}", _write("EVENT_LOG", "$(LOG)/EventLog", "access point"))
    elif not log.readable:
        yield warning(
            f"EVENT_LOG {log.path} cannot be read by this account: {cost}",
            f"chmod a+r {log.path}, and a+x on its folder; or give a group of this account these rights",
        )


def glideins(facts: Facts) -> Iterator[Finding]:
    """Check the `knobs` of entries, and find settings that harm glideins."""
    for site in facts.files:
        for entry in site.entries:
            for name, value in entry.knobs.items():
                is_harmful, cost = GLIDEIN.get(name, (lambda _: False, ""))
                if _holds(is_harmful, value):
                    yield warning(
                        f"entry {entry.name} sets {name} = {value} on its glideins: {cost}",
                        f"remove {name} from the `knobs` of {entry.name} in the file of site {site.site}",
                    )


def races(facts: Facts) -> bool:
    """Return whether a race in HTCondor can delay the start of jobs.

    In this race, a starter asks its shadow for guidance too early, and must wait five seconds before it asks again.
    """
    return facts.schedd.values.get("GUIDANCE_KEEP_CALM_AND") is not True


def _limits(facts: Facts) -> Iterator[Finding]:
    """Find limits of the schedd that are too low for the sites.

    In the site files, each entry has a maximum number of glideins. Suppose that all entries have reached this number.
    Then L lanes exist, and J outer jobs are in this schedd's queue. A limit is too low in these cases:

    - A limit on jobs is lower than L + J.
    - A limit on the jobs of one submission is lower than L, because a driver submits jobs for all lanes together.
    - A limit on simultaneous claim requests is lower than L, and also lower than 20.
    """
    lanes = _lanes(facts)
    here = sum(entry.max_glideins for site in facts.files for entry in site.entries if entry.outer_pool is None)
    for name, needed, then in (
        ("MAX_JOBS_RUNNING", lanes + here, "jobs on the sites' lanes and as glideins; the rest does not run"),
        ("MAX_JOBS_PER_OWNER", lanes + here, "jobs on the sites' lanes and as glideins; the schedd refuses the rest"),
        ("MAX_JOBS_SUBMITTED", lanes + here, "jobs on the sites' lanes and as glideins; the schedd refuses the rest"),
        ("MAX_JOBS_PER_SUBMISSION", lanes, "jobs of one submission; the schedd refuses the whole submission"),
        ("MAX_PENDING_STARTD_CONTACTS", min(lanes, 20), "lanes that are claimed together; the rest waits"),
    ):
        most = facts.schedd.values.get(name)
        unlimited = name == "MAX_PENDING_STARTD_CONTACTS" and most == 0
        if isinstance(most, bool) or not isinstance(most, float | int) or unlimited or most >= max(needed, 1):
            continue
        finding = critical if most == 0 else warning
        better = "0" if name == "MAX_PENDING_STARTD_CONTACTS" else str(2 * max(needed, 1))
        yield finding(f"{name} = {most}: too low for {needed} {then}", _write(name, better, "access point"))


def _matches_per_cycle(facts: Facts) -> Iterator[Finding]:
    """Find a limit on a user's matches per negotiation cycle that fills the lanes slowly.

    Since HTCondor 25.11, the schedd requests at most MAX_CONCURRENT_UPLOADS_PER_USER matches for a user in one cycle.
    Jobs of this user in the transfer queue reduce the number further. By default, it is a fifth of
    MAX_CONCURRENT_UPLOADS, which is 20. This limit also applies if no file waits in the transfer queue: with 5 instead
    of no limit, jobs started on 24 static slots within five cycles instead of one (measured on 25.14). Only the first
    job on a lane needs a match, because later jobs reuse the claim.

    Sources: Scheduler::negotiate in schedd.cpp, and HTCONDOR-3664 in HTCondor's version history.
    """
    most = facts.schedd.values.get("MAX_CONCURRENT_UPLOADS_PER_USER")
    versions = [number(str(ad.get("CondorVersion", ""))) for ad in facts.ads if ad["MyType"] == "Scheduler"]
    is_old = bool(versions) and max(versions) < MATCH_LIMIT
    is_off = facts.schedd.values.get("SCHEDD_ENABLE_PER_USER_MATCH_LIMITS", True) is False
    interval = facts.negotiator.values.get("NEGOTIATOR_INTERVAL", 60)
    if is_old or is_off or not isinstance(interval, float | int) or isinstance(most, bool) or not isinstance(most, int):
        return
    lanes = _lanes(facts)
    if 0 < most < lanes and most < STARTS * interval:
        cycles = ceil(lanes / most)
        yield warning(
            f"MAX_CONCURRENT_UPLOADS_PER_USER = {most}: a user gets at most {most} matches in each negotiation cycle,"
            f" so {lanes} lanes get their first jobs within {cycles} cycles, in up to {cycles * interval:.0f} s",
            _write("MAX_CONCURRENT_UPLOADS_PER_USER", "0", "access point"),
        )


def _transfer_queue(facts: Facts) -> Iterator[Finding]:
    """Find a setting that sends the small files of invocation jobs through the schedd's transfer queue.

    By default, files of up to 100 MiB do not wait in this queue, so its limits do not concern invocation jobs. Larger
    files, such as a glidein's container image, wait there. FILE_TRANSFER_DISK_LOAD_THROTTLE (2.0 by default) allows one
    transfer at a time after a start of the schedd. It allows one more each minute in which the queue is full.

    Sources: FileTransfer::DoObtainAndSendTransferGoAhead in file_transfer.cpp, and
    TransferQueueManager::CheckTransferQueue in transfer_queue.cpp.
    """
    values = facts.schedd.values
    size = values.get("BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER", QUEUED_BYTES)
    if not isinstance(size, float | int) or size >= JOB_BYTES:
        return
    throttle = values.get("FILE_TRANSFER_DISK_LOAD_THROTTLE", "")
    limits = [values.get(name, 0) for name in ("MAX_CONCURRENT_UPLOADS", "MAX_CONCURRENT_DOWNLOADS")]
    most = min((limit for limit in limits if isinstance(limit, float | int) and limit > 0), default=None)
    if throttle != "":
        effect = f"few at a time, and one more each minute (FILE_TRANSFER_DISK_LOAD_THROTTLE = {throttle})"
    elif most is not None:
        effect = f"at most {most} at a time in each direction"
    else:
        return
    yield warning(
        f"BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER = {size}: files of invocation jobs wait in the transfer queue, where the"
        f" schedd allows transfers {effect}; so slow nodes delay the jobs of all others",
        _write("BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER", str(QUEUED_BYTES), "access point"),
    )


def _lanes(facts: Facts) -> int:
    """Return the number of lanes if each entry has its maximum number of glideins."""
    return sum(entry.max_glideins * entry.lanes for site in facts.files for entry in site.entries)


def _too_large(knobs: tuple[Knob, ...], configuration: Configuration, who: str) -> Iterator[Finding]:
    for knob in knobs:
        value = configuration.values.get(knob.name, knob.default)
        if isinstance(value, bool) or not isinstance(value, float | int) or value <= knob.most:
            continue
        source = ""
        if not configuration.from_daemon:
            source = f" (as in this machine's configuration; the {who} does not report its own)"
        yield warning(
            f"{knob.name} = {value}{source}: {knob.cost.format(value=value)}", _write(knob.name, knob.better, who)
        )


def _write(name: str, value: str, who: str) -> str:
    return f"{name} = {value} in the {who}'s configuration; then condor_reconfig"


def _holds(condition: Callable[[str], bool], value: str) -> bool:
    try:
        return condition(value)
    except ValueError:  # the value is a ClassAd expression, which cannot be evaluated here
        return False
