"""What the factory sees: one look at queue and collector, as plain values. Nothing is remembered between looks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from glide.condor import AccessPoint, Collector
from glide.errors import CondorError
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State


@dataclass(frozen=True)
class Glidein:
    """An outer job. `started` counts its starts; `age` is seconds in its status.

    `state` is the last that its server told the job, Warm or Failed, and empty if it never came so far.
    """

    cluster: int
    proc: int
    entry: str
    template: str
    status: int
    started: int = 0
    age: float = 0.0
    hold_reason: str = ""
    state: str = ""
    failure: str = ""
    host: str = ""

    @property
    def job(self) -> str:
        return f"{self.cluster}.{self.proc}"

    @property
    def glide_id(self) -> str:
        """The GlideId that its present life advertises."""
        restarts = f"r{self.started - 1}" if self.started > 1 else ""
        return f"{self.entry}-{self.cluster}.{self.proc}{restarts}"


@dataclass(frozen=True)
class Lane:
    """A slot of a glidein, as the collector has it."""

    glide_id: str
    entry: str
    template: str
    model: str
    state: str
    claimed: bool
    failure: str = ""
    since: int = 0
    record_seconds: float = 0.0


@dataclass(frozen=True)
class Demand:
    """One run's unfinished invocation jobs for one template."""

    template: str
    model: str
    run: str
    user: str
    idle: int
    running: int
    wanted: int
    spec: str = ""

    @property
    def jobs(self) -> int:
        return self.idle + self.running


@dataclass(frozen=True)
class Snapshot:
    """One consistent look. `failed` says which source did not answer; then no action is safe.

    `ended` are the glideins of the last hour that are no more; their age is the time since then. `now` is Unix time.
    """

    glideins: tuple[Glidein, ...] = ()
    lanes: tuple[Lane, ...] = ()
    demands: tuple[Demand, ...] = ()
    failed: tuple[str, ...] = ()
    ended: tuple[Glidein, ...] = ()
    now: float = 0.0

    def of(self, entry: str) -> tuple[list[Glidein], list[Glidein]]:
        """An entry's glideins: those that are, and those that have ended."""
        return (
            [glidein for glidein in self.glideins if glidein.entry == entry],
            [glidein for glidein in self.ended if glidein.entry == entry],
        )

    def template(self, digest: str) -> Template | None:
        """The template of that digest, as the jobs that want it describe it."""
        spec = next((demand.spec for demand in self.demands if demand.template == digest and demand.spec), None)
        return Template.from_json(spec) if spec else None


def take(access_point: AccessPoint, collector: Collector, outer: Iterable[AccessPoint] = ()) -> Snapshot:
    """Look now. A source that fails is named in the snapshot, never taken for an empty one.

    Args:
        outer: access points of other pools that glideins are submitted to.
    """
    try:
        jobs = access_point.jobs(f"{Job.TEMPLATE} =!= undefined", _JOB_ATTRIBUTES)
        for other in outer:
            jobs += other.jobs(f"{Job.ENTRY} =!= undefined", _JOB_ATTRIBUTES)
        lanes = collector.lanes(_LANE_ATTRIBUTES)
    except CondorError as error:
        return Snapshot(failed=(str(error),))
    glideins = [_glidein(job) for job in jobs if Job.ENTRY in job]
    return Snapshot(
        tuple(glidein for glidein in glideins if glidein.status != JobStatus.COMPLETED),
        tuple(map(_lane, lanes)),
        tuple(_demands(job for job in jobs if Job.ENTRY not in job)),
        ended=tuple(glidein for glidein in glideins if glidein.status == JobStatus.COMPLETED),
        now=time.time(),
    )


_JOB_ATTRIBUTES = (
    "ClusterId", "ProcId", "JobStatus", "NumJobStarts", "EnteredCurrentStatus", "ServerTime", "HoldReason", "User",
    "RemoteHost", "LastRemoteHost", "ExitBySignal", "ExitSignal", "ExitCode",
    Job.ENTRY, Job.TEMPLATE, Job.MODEL, Job.STATE, Job.FAILURE, Job.RUN, Job.WANTED, Job.SPEC,
)  # fmt: skip
_LANE_ATTRIBUTES = (
    "Name", "State", Machine.ID, Machine.ENTRY, Machine.TEMPLATE, Machine.MODEL, Machine.STATE, Machine.FAILURE,
    Machine.STATE_SINCE, Machine.RECORD_SECONDS,
)  # fmt: skip


def _glidein(job: dict) -> Glidein:
    age = job.get("ServerTime", 0) - job.get("EnteredCurrentStatus", 0)
    return Glidein(
        job["ClusterId"], job["ProcId"], job[Job.ENTRY], job[Job.TEMPLATE], job["JobStatus"],
        job.get("NumJobStarts", 0), age, job.get("HoldReason", ""), job.get(Job.STATE, ""), _failure(job),
        (job.get("RemoteHost") or job.get("LastRemoteHost", "")).rpartition("@")[2],
    )  # fmt: skip


def _failure(job: dict) -> str:
    """Why it failed, as its server told its job, else how it ended."""
    if job.get(Job.FAILURE) or job["JobStatus"] != JobStatus.COMPLETED:
        return job.get(Job.FAILURE, "")
    by_signal = job.get("ExitBySignal")
    return f"killed by signal {job.get('ExitSignal')}" if by_signal else f"exit code {job.get('ExitCode')}"


def _lane(ad: dict) -> Lane:
    return Lane(
        ad[Machine.ID], ad.get(Machine.ENTRY, ""), ad.get(Machine.TEMPLATE, ""), ad.get(Machine.MODEL, ""),
        ad.get(Machine.STATE, State.BLANK), ad.get("State") == "Claimed", ad.get(Machine.FAILURE, ""),
        ad.get(Machine.STATE_SINCE, 0), ad.get(Machine.RECORD_SECONDS, 0.0),
    )  # fmt: skip


def _demands(jobs: Iterable[dict]) -> list[Demand]:
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for job in jobs:
        if job["JobStatus"] in (JobStatus.IDLE, JobStatus.RUNNING, JobStatus.TRANSFERRING):
            key = (job[Job.TEMPLATE], job.get(Job.RUN, str(job["ClusterId"])), job.get("User", ""))
            groups.setdefault(key, []).append(job)
    return [
        Demand(
            template, group[0].get(Job.MODEL, ""), run, user,
            idle=sum(job["JobStatus"] == JobStatus.IDLE for job in group),
            running=sum(job["JobStatus"] != JobStatus.IDLE for job in group),
            wanted=max(job.get(Job.WANTED, 1) for job in group),
            spec=next((job[Job.SPEC] for job in group if Job.SPEC in job), ""),
        )
        for (template, run, user), group in groups.items()
    ]  # fmt: skip
