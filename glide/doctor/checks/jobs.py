"""Invocation jobs as users have written them: what each costs by how it asks for its files, and for its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glide.doctor.checks.knobs import races
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, Level
from glide.vocabulary import JobStatus

Ad = Mapping[str, Any]
SHOWN = 3  # jobs that are named


def inputs(job: Ad) -> int:
    """How many files are sent to the node, the executable and the standard input among them."""
    files = [name for name in str(job.get("TransferInput", "")).split(",") if name.strip()]
    stdin = job.get("In", "/dev/null") not in ("", "/dev/null")
    return len(files) + bool(job.get("TransferExecutable", True)) + stdin


# What a job may be like, how bad that is, what it costs, and the line of the job file that ends it. All these lines are
# in submit_templates/invocation.sub.
HABITS: tuple[tuple[Callable[[Ad], bool], Level, str, str], ...] = (
    (
        lambda job: job.get("JobLeaseDuration") == 0, Level.CRITICAL,
        "have job_lease_duration = 0: the lane drops the claim at once, so that they start hundreds of times a minute"
        " and starve all others",
        "job_lease_duration = undefined",
    ),
    (
        lambda job: job.get("JobLeaseDuration", 0) > 0, Level.WARNING,
        "have a lease: from a lost lane they come back when it has ended, with HTCondor's default after 40 minutes;"
        " without one in half a second",
        "job_lease_duration = undefined",
    ),
    (
        lambda job: not job.get("TransferOutput"), Level.WARNING,
        "do not name their outputs: one second per job is lost to a sleep of the starter's (1 job/s on a lane that"
        " could do 20)",
        "transfer_output_files = $(results)",
    ),
    (
        lambda job: job.get("WantIOProxy") is not True, Level.WARNING,
        "cannot stream to the access point: with a lost lane all their records are lost, those that are finished too",
        "want_io_proxy = true",
    ),
    (
        lambda job: job.get("WantIOProxy") is True and not job.get("LimitDirectoryAccess"), Level.CRITICAL,
        "let their node read and write every file here that their user can",
        'My.LimitDirectoryAccess = "/dev/null"',
    ),
    (
        lambda job: job.get("WantIOProxy") is True and job.get("WantRemoteUpdates") is not False, Level.CRITICAL,
        "let whatever runs on their node change the job",
        "My.WantRemoteUpdates = false",
    ),
)  # fmt: skip
MANY_INPUTS = (
    "send more than one file to the node, the executable counted: five seconds per job are lost in most of them",
    "transfer_executable = false, and one file in transfer_input_files",
)


def habits(facts: Facts) -> Iterator[Finding]:
    """How jobs in the queue are written."""
    for has, level, cost, line in HABITS:
        if found := [job for job in facts.jobs if has(job)]:
            yield Finding(level, f"{_named(found)} {cost}", f"{line} in the job file (submit_templates/invocation.sub)")
    if races(facts) and (found := [job for job in facts.jobs if inputs(job) > 1]):
        cost, line = MANY_INPUTS
        yield Finding(Level.WARNING, f"{_named(found)} {cost}", f"{line}, in the job file")


def held(facts: Facts) -> Iterator[Finding]:
    """Jobs that will not run until somebody does something."""
    groups: dict[str, list[Ad]] = {}
    for job in facts.jobs:
        if job["JobStatus"] == JobStatus.HELD:
            groups.setdefault(str(job.get("HoldReason", "no reason given")), []).append(job)
    for reason, jobs in sorted(groups.items()):
        clusters = " ".join(sorted({str(job["ClusterId"]) for job in jobs}))
        yield Finding(
            Level.WARNING, f"{_named(jobs)} are held: {reason}", f"end the cause; then condor_release {clusters}"
        )


def _named(jobs: list[Ad]) -> str:
    names = [f"{job['ClusterId']}.{job['ProcId']}" for job in jobs[:SHOWN]]
    more = ", …" if len(jobs) > SHOWN else ""
    return f"{len(jobs)} invocation job{'s' * (len(jobs) != 1)} ({', '.join(names)}{more})"
