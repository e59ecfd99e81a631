"""Check the invocation jobs in the queue: find held jobs, and settings that cost throughput, safety or results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glide.doctor.checks.knobs import races
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, Level
from glide.vocabulary import Job, JobStatus

Ad = Mapping[str, Any]
SHOWN = 3  # maximum number of jobs that a finding names


def inputs(job: Ad) -> int:
    """Return the number of files that HTCondor sends for a job. The executable and the standard input count too."""
    files = [name for name in str(job.get("TransferInput", "")).split(",") if name.strip()]
    stdin = job.get("In", "/dev/null") not in ("", "/dev/null")
    return len(files) + bool(job.get("TransferExecutable", True)) + stdin


# For each costly setting: a test of the job's ad, the level of the finding, the cost of the setting, and the line of a
# job file that fixes the problem. submit_templates/invocation.sub has all these lines.
HABITS: tuple[tuple[Callable[[Ad], bool], Level, str, str], ...] = (
    (
        lambda job: job.get("JobLeaseDuration") == 0, Level.CRITICAL,
        "have job_lease_duration = 0: the lane drops the claim at once, so they start hundreds of times a minute and"
        " starve all other jobs",
        "job_lease_duration = undefined",
    ),
    (
        lambda job: job.get("JobLeaseDuration", 0) > 0, Level.WARNING,
        "have a job lease: after a lost lane they run again only when the lease has ended (HTCondor's default: 40"
        " minutes); without a lease, after half a second",
        "job_lease_duration = undefined",
    ),
    (
        lambda job: not job.get("TransferOutput"), Level.WARNING,
        "do not name their output files: the starter then sleeps one second in each job (1 job/s on a lane that can do"
        " 20)",
        "transfer_output_files = $(results)",
    ),
    (
        lambda job: job.get("WantIOProxy") is not True and job.get(Job.STANDING) is not True, Level.WARNING,
        "cannot stream results to the access point: a lost lane loses all their records, also the finished ones",
        "want_io_proxy = true",
    ),
    (
        lambda job: job.get("WantIOProxy") is True and not job.get("LimitDirectoryAccess"), Level.CRITICAL,
        "let their node read and write every file of the access point that their user can",
        'My.LimitDirectoryAccess = "/dev/null"',
    ),
    (
        lambda job: job.get("WantIOProxy") is True and job.get("WantRemoteUpdates") is not False, Level.CRITICAL,
        "let any program on their node change the job",
        "My.WantRemoteUpdates = false",
    ),
)  # fmt: skip
MANY_INPUTS = (
    "send more than one file to the node (the executable counts): most of them lose five seconds to a race",
    "transfer_executable = false, and one file in transfer_input_files",
)


def habits(facts: Facts) -> Iterator[Finding]:
    """Find jobs in the queue with costly submit settings."""
    for applies, level, cost, line in HABITS:
        if found := [job for job in facts.jobs if applies(job)]:
            yield Finding(level, f"{_named(found)} {cost}", f"{line} in the job file (submit_templates/invocation.sub)")
    if races(facts) and (found := [job for job in facts.jobs if inputs(job) > 1]):
        cost, line = MANY_INPUTS
        yield Finding(Level.WARNING, f"{_named(found)} {cost}", f"{line}, in the job file")


def held(facts: Facts) -> Iterator[Finding]:
    """Find held jobs, grouped by their hold reason."""
    groups: dict[str, list[Ad]] = {}
    for job in facts.jobs:
        if job["JobStatus"] == JobStatus.HELD:
            groups.setdefault(str(job.get("HoldReason", "no reason given")), []).append(job)
    for reason, jobs in sorted(groups.items()):
        clusters = " ".join(sorted({str(job["ClusterId"]) for job in jobs}))
        yield Finding(
            Level.WARNING, f"{_named(jobs)} are held: {reason}", f"remove the cause; then condor_release {clusters}"
        )


def _named(jobs: list[Ad]) -> str:
    names = [f"{job['ClusterId']}.{job['ProcId']}" for job in jobs[:SHOWN]]
    more = ", …" if len(jobs) > SHOWN else ""
    return f"{len(jobs)} invocation job{'s' * (len(jobs) != 1)} ({', '.join(names)}{more})"
