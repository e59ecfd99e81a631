"""The factory's look at queues and collector, with nothing believed that a stranger may have written."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Literal

from glide.condor import AccessPoint, Collector
from glide.errors import CondorError, mistake
from glide.factory.ads import (
    JOB_ATTRIBUTES,
    LANE_ATTRIBUTES,
    MOVE_ATTRIBUTES,
    START_SECONDS,
    is_glidein,
    is_invocation,
    is_lane,
    mended,
)  # fmt: skip
from glide.factory.descriptions import described
from glide.factory.snapshot import Demand, Glidein, Lane, Move, Snapshot
from glide.ssh.access_point import RemoteAccessPoint
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

Queue = AccessPoint | RemoteAccessPoint


def take(
    find: Callable[[], AccessPoint],
    collector: Collector,
    outer: Iterable[tuple[Callable[[], Queue], list[str]]] = (),
    owners: Collection[str] = (),
    whose: Literal["ours", "all"] = "ours",
    earlier: Collection[str] = (),
) -> Snapshot:
    """Look now. A source that fails is named in the snapshot, never taken for an empty one.

    Args:
        find: finds the access point of the pool that glideins join; CondorError where it is away.
        outer: the same for other pools that glideins are submitted to, with the names of the entries there.
        owners: whose jobs may describe templates; "" is the factory's own user, and none is anybody.
        whose: glideins are to be seen: a factory goes by its own, people may look at another account's.
        earlier: names of accounts, without domain, under which this factory has submitted glideins.
    """
    failed: list[str] = []
    jobs: list[dict] = []
    lanes: list[dict] = []
    specs: dict[str, Template] = {}
    user = ""
    moves: list[dict] = []
    try:
        access_point = find()
        jobs += _believed(access_point, f"{Job.TEMPLATE} =!= undefined || {Job.ENTRY} =!= undefined", whose, earlier)
        moves = _moves(access_point)
        user = access_point.user  # only now: a query gives up after a while, a ping waits for ever
        asked = [job for job in jobs if Job.ENTRY not in job]
        specs = described(access_point, asked, {owner or user for owner in owners})
    except CondorError as error:
        failed.append(str(error))
    try:
        lanes += filter(is_lane, (mended(ad, LANE_ATTRIBUTES) for ad in collector.lanes(LANE_ATTRIBUTES)))
    except CondorError as error:
        failed.append(str(error))
    blind: dict[str, str] = {}
    for find_other, entries in outer:
        try:
            jobs += _believed(find_other(), f"{Job.ENTRY} =!= undefined", whose, earlier)
        except CondorError as error:
            blind |= dict.fromkeys(entries, str(error))
        except Exception as error:  # costs these entries alone
            blind |= dict.fromkeys(entries, mistake(error))
    brought = tuple(
        Move(job[Job.BRINGS], job[Job.LANE], job.get("HoldReason", "") if job["JobStatus"] == JobStatus.HELD else "")
        for job in moves
        if job.get("User") == user
    )
    return replace(
        read(jobs, lanes, specs), failed=tuple(failed), now=time.time(), user=user, blind=blind, moves=brought
    )


def read(jobs: Iterable[dict], lanes: Iterable[dict], specs: Mapping[str, Template]) -> Snapshot:
    """What queue and collector have said, as a snapshot.

    Args:
        jobs: job ads, those of glideins among them.
        lanes: machine ads.
        specs: the templates that jobs describe, by digest.
    """
    seen = tuple(map(_lane, lanes))
    counted = {(lane.glide_id, lane.template): lane for lane in seen}
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


def _believed(access_point: Queue, constraint: str, whose: str, earlier: Collection[str]) -> list[dict]:
    """Jobs that may be believed: glideins of this account, and jobs whose attributes are what they should be.

    Anybody may submit anything, and a factory must neither stumble over it nor submit it in its own name.

    Raises:
        CondorError: this factory has glideins under another name. Taken for absent, they would be submitted again.
    """
    jobs = access_point.jobs(constraint, JOB_ATTRIBUTES)
    me = _account(access_point.user)
    glideins = [job for job in (mended(job, JOB_ATTRIBUTES) for job in jobs if Job.ENTRY in job) if is_glidein(job)]
    names = {_account(job.get("User", "")) for job in glideins}
    if whose != "all" and (other := (names & set(earlier)) - {me}):
        raise CondorError(
            f"this factory has glideins that are queued under the name {min(other)}, and we are {me} now: remove them"
            " (condor_rm), or use the earlier account's credentials"
        )
    mine = [job for job in glideins if whose == "all" or _account(job.get("User", "")) == me]
    asking = [mended(job, JOB_ATTRIBUTES) for job in jobs if Job.ENTRY not in job and is_invocation(job)]
    return [{Job.TEMPLATE: "", "JobStatus": 0, **job} for job in mine] + asking


def _account(user: str) -> str:
    """A User's name without its domain, which an access point and its jobs may spell differently."""
    return user.partition("@")[0]


def _moves(access_point: AccessPoint) -> list[dict]:
    """Sticky jobs that say which lane they are for, the newest last; ours are among them."""
    jobs = access_point.jobs(f"{Job.LANE} =!= undefined", MOVE_ATTRIBUTES)
    known = [mended(job, MOVE_ATTRIBUTES) for job in jobs]
    sound = [job for job in known if {Job.BRINGS, Job.LANE, "JobStatus", "ClusterId"} <= job.keys()]
    return sorted(sound, key=lambda job: job["ClusterId"])


def _glidein(job: dict, lanes: Mapping[tuple[str, str], Lane]) -> Glidein:
    now = job.get("ServerTime", 0)
    age = max(0.0, now - job.get("EnteredCurrentStatus", 0))
    glidein = Glidein(
        job["ClusterId"], job["ProcId"], job[Job.ENTRY], job[Job.TEMPLATE], job["JobStatus"],
        job.get("NumShadowStarts", 0), age, job.get("HoldReason", ""), job.get(Job.STATE, ""), _failure(job),
        (job.get("RemoteHost") or job.get("LastRemoteHost", "")).rpartition("@")[2],
        served=job.get(Job.SERVED, 0), errors=job.get(Job.ERRORS, 0), model=job.get(Job.MODEL, ""),
    )  # fmt: skip
    if job.get(Job.STATE_SINCE, now) < job.get("JobCurrentStartDate", 0):
        glidein = replace(glidein, state="", failure="", served=0, errors=0)  # what it said in an earlier life
    lane = lanes.get((glidein.glide_id, glidein.template))  # what it has loaded since is another matter
    if lane and lane.state in (State.WARM, State.FAILED) and glidein.status == JobStatus.RUNNING:
        glidein = replace(glidein, state=lane.state, failure=lane.failure)  # where the job has not been told
    if glidein.state == State.WARM:
        until = now - age if glidein.status in (JobStatus.COMPLETED, JobStatus.IDLE) else now
        glidein = replace(glidein, warm_seconds=max(0.0, until - job.get(Job.STATE_SINCE, until)))
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
        sum(ad.get(name, 0.0) for name in START_SECONDS),
        ad.get(Machine.RETIRES, float("inf")), ad.get(Machine.SERVED, 0), ad.get(Machine.ERRORS, 0), ad["Name"],
        ad.get(Machine.FETCHED), tuple(ad.get(Machine.CACHED, "").split(",")),
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
            modest=all(job.get(Job.MODEST) is True for job in group),
        )
        for (template, run, user), group in groups.items()
    ]  # fmt: skip
