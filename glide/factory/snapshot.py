"""What the factory sees: one look at queues and collector, as plain values. Nothing is remembered between looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from glide.condor import AccessPoint, Collector
from glide.condor.access_point import quoted
from glide.errors import CondorError
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

DESCRIPTIONS = 10  # of a template that are looked at until one is right


@dataclass(frozen=True)
class Glidein:
    """An outer job. `started` counts its starts; `age` is seconds in its status.

    `state` is the last that its server told the job, Warm or Failed, and empty if it never came so far; `warm_seconds`
    is how long it has been warm, or was; `served` counts records, of which `errors` failed.
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
    warm_seconds: float = 0.0
    served: int = 0
    errors: int = 0

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
    start_seconds: float = 0.0  # what fetching, loading and warming up took
    retires: float = float("inf")  # Unix time from when on it takes no further job
    served: int = 0
    errors: int = 0


@dataclass(frozen=True)
class Demand:
    """One run's unfinished invocation jobs for one template; `records` are those in them and those still to come."""

    template: str
    model: str
    run: str
    user: str
    idle: int
    running: int
    wanted: int
    spec: Template | None = None
    records: int = 0

    @property
    def jobs(self) -> int:
        return self.idle + self.running


@dataclass(frozen=True)
class Snapshot:
    """One consistent look.

    Attributes:
        failed: which source did not answer, or can't be believed; then no action is safe.
        blind: the same for single entries, whose glideins are in another pool's queue.
        ended: the glideins of the last hour that are no more; their age is the time since then.
        now: Unix time.
        user: who the factory is to the access point.
    """

    glideins: tuple[Glidein, ...] = ()
    lanes: tuple[Lane, ...] = ()
    demands: tuple[Demand, ...] = ()
    failed: tuple[str, ...] = ()
    ended: tuple[Glidein, ...] = ()
    now: float = 0.0
    user: str = ""
    blind: Mapping[str, str] = field(default_factory=dict)

    def of(self, entry: str) -> tuple[list[Glidein], list[Glidein]]:
        """An entry's glideins: those that are, and those that have ended."""
        return (
            [glidein for glidein in self.glideins if glidein.entry == entry],
            [glidein for glidein in self.ended if glidein.entry == entry],
        )

    def template(self, digest: str) -> Template | None:
        """The template of that digest, as the jobs that want it describe it."""
        return next((demand.spec for demand in self.demands if demand.template == digest and demand.spec), None)


def take(
    find: Callable[[], AccessPoint],
    collector: Collector,
    outer: Iterable[tuple[Callable[[], AccessPoint], list[str]]] = (),
) -> Snapshot:
    """Look now. A source that fails is named in the snapshot, never taken for an empty one.

    Args:
        find: finds the access point of the pool that glideins join; CondorError where it is away.
        outer: the same for other pools that glideins are submitted to, with the names of the entries there.
    """
    failed: list[str] = []
    jobs: list[dict] = []
    lanes: list[dict] = []
    specs: dict[str, Template] = {}
    user = ""
    try:
        access_point = find()
        jobs += access_point.jobs(f"{Job.TEMPLATE} =!= undefined", _JOB_ATTRIBUTES)
        asked = {job[Job.TEMPLATE] for job in jobs if Job.ENTRY not in job}
        user = access_point.user if asked else ""
        specs = {digest: spec for digest in asked if (spec := _described(access_point, digest))}
    except CondorError as error:
        failed.append(str(error))
    try:
        lanes += collector.lanes(_LANE_ATTRIBUTES)
    except CondorError as error:
        failed.append(str(error))
    blind: dict[str, str] = {}
    for find_other, entries in outer:
        try:
            jobs += find_other().jobs(f"{Job.ENTRY} =!= undefined", _JOB_ATTRIBUTES)
        except CondorError as error:
            blind |= dict.fromkeys(entries, str(error))
    return replace(read(jobs, lanes, specs), failed=tuple(failed), now=time.time(), user=user, blind=blind)


def read(jobs: Iterable[dict], lanes: Iterable[dict], specs: Mapping[str, Template]) -> Snapshot:
    """What queue and collector have said, as a snapshot.

    Args:
        jobs: job ads, those of glideins among them.
        lanes: machine ads.
        specs: the templates that jobs describe, by digest.
    """
    seen = tuple(map(_lane, lanes))
    counted = {lane.glide_id: lane for lane in seen}
    glideins = []
    invocations = []
    for job in jobs:
        if Job.ENTRY in job:
            glideins.append(_glidein(job, counted))
        else:
            invocations.append(job)
    return Snapshot(
        tuple(glidein for glidein in glideins if glidein.status != JobStatus.COMPLETED),
        seen,
        tuple(_demands(invocations, specs)),
        ended=tuple(glidein for glidein in glideins if glidein.status == JobStatus.COMPLETED),
    )


def _described(access_point: AccessPoint, digest: str) -> Template | None:
    """The template of that digest, from a job that describes it. Not from all of them: a description may be long."""
    constraint = f"{Job.TEMPLATE} == {quoted(digest)} && {Job.SPEC} =!= undefined && {Job.ENTRY} =?= undefined"
    for job in access_point.jobs(constraint, [Job.SPEC], limit=DESCRIPTIONS):
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # anybody may submit anything
            described = Template.from_json(job[Job.SPEC])
            if described.digest == digest:
                return described
    return None


_JOB_ATTRIBUTES = (
    "ClusterId", "ProcId", "JobStatus", "NumShadowStarts", "EnteredCurrentStatus", "ServerTime", "HoldReason", "User",
    "RemoteHost", "LastRemoteHost", "ExitBySignal", "ExitSignal", "ExitCode", "JobCurrentStartDate",
    Job.ENTRY, Job.TEMPLATE, Job.MODEL, Job.STATE, Job.STATE_SINCE, Job.FAILURE, Job.SERVED, Job.ERRORS, Job.RUN,
    Job.RECORDS, Job.LEFT, Job.WANTED,
)  # fmt: skip
_LANE_ATTRIBUTES = (
    "Name", "State", Machine.ID, Machine.ENTRY, Machine.TEMPLATE, Machine.MODEL, Machine.STATE, Machine.FAILURE,
    Machine.STATE_SINCE, Machine.RECORD_SECONDS, Machine.FETCH_SECONDS, Machine.LOAD_SECONDS, Machine.WARM_SECONDS,
    Machine.RETIRES, Machine.SERVED, Machine.ERRORS,
)  # fmt: skip


def _glidein(job: dict, lanes: Mapping[str, Lane]) -> Glidein:
    now = job.get("ServerTime", 0)
    age = now - job.get("EnteredCurrentStatus", 0)
    glidein = Glidein(
        job["ClusterId"], job["ProcId"], job[Job.ENTRY], job[Job.TEMPLATE], job["JobStatus"],
        job.get("NumShadowStarts", 0), age, job.get("HoldReason", ""), job.get(Job.STATE, ""), _failure(job),
        (job.get("RemoteHost") or job.get("LastRemoteHost", "")).rpartition("@")[2],
        served=job.get(Job.SERVED, 0), errors=job.get(Job.ERRORS, 0),
    )  # fmt: skip
    if job.get(Job.STATE_SINCE, now) < job.get("JobCurrentStartDate", 0):
        glidein = replace(glidein, state="", failure="")  # what it said in an earlier life
    if glidein.state == State.WARM:
        until = now - age if glidein.status in (JobStatus.COMPLETED, JobStatus.IDLE) else now
        glidein = replace(glidein, warm_seconds=max(0.0, until - job.get(Job.STATE_SINCE, until)))
    lane = lanes.get(glidein.glide_id)
    return replace(glidein, served=lane.served, errors=lane.errors) if lane else glidein


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
        sum(ad.get(name, 0.0) for name in (Machine.FETCH_SECONDS, Machine.LOAD_SECONDS, Machine.WARM_SECONDS)),
        ad.get(Machine.RETIRES, float("inf")), ad.get(Machine.SERVED, 0), ad.get(Machine.ERRORS, 0),
    )  # fmt: skip


def _to_come(group: list[dict]) -> int:
    """What the run's newest job says of the records that are in no job yet."""
    return int(max(group, key=lambda job: (job["ClusterId"], job["ProcId"])).get(Job.LEFT, 0))


def _demands(jobs: Iterable[dict], specs: Mapping[str, Template]) -> list[Demand]:
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
            spec=specs.get(template),
            records=sum(job.get(Job.RECORDS, 1) for job in group) + _to_come(group),
        )
        for (template, run, user), group in groups.items()
    ]  # fmt: skip
