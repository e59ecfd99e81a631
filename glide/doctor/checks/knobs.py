"""HTCondor's settings that are for hour-long jobs: what they cost jobs of seconds, and what to set instead.

The numbers were measured with glide's benchmarks on HTCondor 25.14.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from glide.condor.configuration import Configuration
from glide.condor.knobs import VITAL, protected
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, critical, warning

PROTECTING = ("PROTECTED_JOB_ATTRS", "IMMUTABLE_JOB_ATTRS")
STARTS = 15.0  # jobs a second that an access point can start: less than that is the knob's fault


@dataclass(frozen=True)
class Knob:
    """A number of seconds that is too large from `most` on.

    Attributes:
        default: HTCondor's own.
        cost: of a larger one, `{value}`.
        better: what to set.
    """

    name: str
    default: float
    most: float
    cost: str
    better: str


MATCHING = (
    Knob("NEGOTIATOR_INTERVAL", 60, 5, "a job that finds no idle claim waits up to {value} s for a match", "2"),
    Knob("NEGOTIATOR_CYCLE_DELAY", 20, 2, "no two matchings within {value} s, whatever the other intervals say", "0"),
    Knob("NEGOTIATOR_MIN_INTERVAL", 5, 2, "a request for a match is put off for up to {value} s", "1"),
)
QUEUE = (
    Knob(
        "SCHEDD_INTERVAL",
        300,
        30,
        "what only this timer notices, jobs for an idle claim say, waits up to {value} s",
        "5",
    ),
    Knob("SCHEDD_MIN_INTERVAL", 5, 2, "new jobs are announced up to {value} s late", "1"),
)
NEGOTIATOR = (*(knob.name for knob in MATCHING), "NEGOTIATOR_UPDATE_INTERVAL", "CLASSAD_LIFETIME")
SCHEDD = (
    *(knob.name for knob in QUEUE), "JOB_START_COUNT", "JOB_START_DELAY", "MAX_JOBS_RUNNING", "MAX_JOBS_PER_OWNER",
    "MAX_CONCURRENT_UPLOADS_PER_USER", "USE_PROCD", "GUIDANCE_KEEP_CALM_AND", "CONDOR_FSYNC",
    *PROTECTING, "LIMIT_DIRECTORY_ACCESS",
)  # fmt: skip
LIMITED = ("LimitDirectoryAccess", "Iwd", "TransferInput")  # what an access point's own limit makes harmless
# What an entry's `knobs` had better not say of its glideins.
GLIDEIN: dict[str, tuple[Callable[[str], bool], str]] = {
    "CLAIM_WORKLIFE": (lambda value: float(value) >= 0, "after that many seconds each job waits for a match again"),
    "USE_PROCD": (lambda value: value.lower() == "false", "lanes start half as many jobs a second"),
    "UPDATE_INTERVAL": (lambda value: float(value) > 60, "what lanes are is known so many seconds late"),
    "GLIDE_RUNS": (
        lambda value: True,
        "its lanes run programs of their owners, and not tickets alone, as the glideins' account",
    ),
    "START": (lambda value: True, "it replaces the condition that a lane takes jobs of its own model and owner alone"),
}


def matching(facts: Facts) -> Iterator[Finding]:
    """The negotiator's knobs."""
    yield from _too_large(MATCHING, facts.negotiator, "central manager")
    values = facts.negotiator.values
    every, lifetime = values.get("NEGOTIATOR_UPDATE_INTERVAL", 300), values.get("CLASSAD_LIFETIME", 900)
    if isinstance(every, float | int) and isinstance(lifetime, float | int) and every >= lifetime:
        yield warning(
            f"NEGOTIATOR_UPDATE_INTERVAL = {every} with CLASSAD_LIFETIME = {lifetime}: the negotiator is taken for dead"
            " most of the time",
            _write("NEGOTIATOR_UPDATE_INTERVAL", str(int(lifetime // 4)), "central manager"),
        )


def source(facts: Facts) -> str:
    return "as it tells" if facts.negotiator.asked else "by this machine's configuration"


def queue(facts: Facts) -> Iterator[Finding]:
    """The schedd's knobs, and those of its shadows."""
    yield from _too_large(QUEUE, facts.schedd, "access point")
    yield from _limits(facts)
    values = facts.schedd.values
    delay, count = values.get("JOB_START_DELAY", 0), values.get("JOB_START_COUNT", 1)
    if isinstance(delay, float | int) and isinstance(count, float | int) and delay > 0 and count / delay < STARTS:
        yield warning(
            f"JOB_START_COUNT = {count}, JOB_START_DELAY = {delay}: {count / delay:.3g} jobs start a second, of about"
            f" {STARTS:.0f} that an access point can start",
            _write("JOB_START_DELAY", "0", "access point"),
        )
    if values.get("USE_PROCD", True) is False:
        yield warning(
            "USE_PROCD = False: half as many jobs a second, for each daemon reads all of /proc by itself",
            "remove USE_PROCD = False from the access point's configuration; then condor_restart",
        )
    if races(facts):
        yield warning(
            "GUIDANCE_KEEP_CALM_AND is not True: five seconds per job are lost to a race in most jobs that have several"
            " input files, and at times in others",
            _write("GUIDANCE_KEEP_CALM_AND", "True", "access point"),
        )
    if facts.embedded and values.get("CONDOR_FSYNC", True) is not False:
        yield warning(
            "CONDOR_FSYNC = True: a disk flush for each job of a queue that need not outlive a power cut",
            _write("CONDOR_FSYNC", "False", "embedded pool"),
        )


def protection(facts: Facts) -> Iterator[Finding]:
    """What a node may change in a job that streams its results."""
    told = " ".join(str(facts.schedd.values.get(name, "")) for name in PROTECTING)
    kept = {name.lower() for name in re.split(r"[\s,]+", told)}
    limit = str(facts.schedd.values.get("LIMIT_DIRECTORY_ACCESS", "")).strip()  # which comes before a job's own
    if missing := [name for name in VITAL if name.lower() not in kept and not (limit and name in LIMITED)]:
        yield critical(
            f"nodes can change {', '.join(missing)} of the jobs they run: with that they read and write the user's"
            " files here, and run programs as the user on other nodes",
            _write("PROTECTED_JOB_ATTRS", protected(), "access point"),
        )


def losses(facts: Facts) -> Iterator[Finding]:
    """The access point's event log, which knows of a lost lane first."""
    log = facts.event_log
    cost = "a lost node is noticed 14 s later, when the queue shows it, and its records wait so long"
    if not log.path:
        yield warning(f"no EVENT_LOG is configured: {cost}", _write("EVENT_LOG", "$(LOG)/EventLog", "access point"))
    elif not log.readable:
        yield warning(
            f"EVENT_LOG {log.path} cannot be read by this account: {cost}",
            f"chmod a+r {log.path}, and its folder a+x; or a group that this account is in",
        )


def glideins(facts: Facts) -> Iterator[Finding]:
    """What entries say of their glideins' HTCondor."""
    for site in facts.files:
        for entry in site.entries:
            for name, value in entry.knobs.items():
                hurts, cost = GLIDEIN.get(name, (lambda _: False, ""))
                if _holds(hurts, value):
                    yield warning(
                        f"entry {entry.name} sets {name} = {value} on its glideins: {cost}",
                        f"remove {name} from the `knobs` of {entry.name} in the file of site {site.site}",
                    )


def races(facts: Facts) -> bool:
    """Whether starters that ask too early are told to ask again in five seconds."""
    return facts.schedd.values.get("GUIDANCE_KEEP_CALM_AND") is not True


def _limits(facts: Facts) -> Iterator[Finding]:
    """How many jobs may be, against how many the sites' lanes and the glideins of this access point come to."""
    lanes = sum(entry.max_glideins * entry.lanes for site in facts.files for entry in site.entries)
    here = sum(entry.max_glideins for site in facts.files for entry in site.entries if entry.away is None)
    for name, needed, then in (
        ("MAX_JOBS_RUNNING", lanes + here, "that the sites' lanes and glideins come to, no more run"),
        ("MAX_JOBS_PER_OWNER", lanes + here, "that the sites' lanes and glideins come to, the rest is refused"),
        ("MAX_CONCURRENT_UPLOADS_PER_USER", min(lanes, 20), "that start together, the rest wait for their input"),
    ):
        most = facts.schedd.values.get(name)
        unlimited = name.startswith("MAX_CONCURRENT") and most == 0
        if isinstance(most, bool) or not isinstance(most, float | int) or unlimited or most >= max(needed, 1):
            continue
        finding = critical if most == 0 else warning
        better = "0" if name.startswith("MAX_CONCURRENT") else str(2 * max(needed, 1))
        yield finding(f"{name} = {most}: of {needed} jobs {then}", _write(name, better, "access point"))


def _too_large(knobs: tuple[Knob, ...], told: Configuration, who: str) -> Iterator[Finding]:
    for knob in knobs:
        value = told.values.get(knob.name, knob.default)
        if isinstance(value, bool) or not isinstance(value, float | int) or value <= knob.most:
            continue
        source = "" if told.asked else f" (by this machine's configuration; the {who} does not tell its own)"
        yield warning(
            f"{knob.name} = {value}{source}: {knob.cost.format(value=value)}", _write(knob.name, knob.better, who)
        )


def _write(name: str, value: str, who: str) -> str:
    return f"{name} = {value} in the {who}'s configuration; then condor_reconfig"


def _holds(condition: Callable[[str], bool], value: str) -> bool:
    try:
        return condition(value)
    except ValueError:  # an expression of HTCondor's, which is the admin's to judge
        return False
