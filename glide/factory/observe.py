"""Observe the queues and the collector. Discard invalid values in ads, because other users can write into ads."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Literal

from glide.condor import AccessPoint, Collector
from glide.errors import CondorError, describe_bug
from glide.factory.ads import (
    JOB_ATTRIBUTES,
    LANE_ATTRIBUTES,
    RETARGET_ATTRIBUTES,
    START_SECONDS,
    is_glidein,
    is_invocation,
    is_lane,
    valid_attributes,
)  # fmt: skip
from glide.factory.descriptions import find_templates
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot, StickyJob
from glide.ssh.access_point import RemoteAccessPoint
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

Queue = AccessPoint | RemoteAccessPoint


def observe(
    find_access_point: Callable[[], AccessPoint],
    collector: Collector,
    outer_queues: Iterable[tuple[Callable[[], Queue], list[str]]] = (),
    owners: Collection[str] = (),
    accounts: Literal["own", "all"] = "own",
    earlier_accounts: Collection[str] = (),
) -> Snapshot:
    """Observe the pool now, and return a snapshot.

    The sources are the queues and the collector. If a source does not answer, the snapshot lists the source as
    unavailable. So the factory does not take the source for empty.

    Args:
        find_access_point: function that returns the access point of the pool that glideins join. If no access point
            answers, the function raises CondorError.
        outer_queues: one pair for each outer pool. The first value of a pair is a function that returns the pool's
            queue. The second value has the names of the entries that use the pool.
        owners: values of the job attribute User. Only jobs with such a value may describe templates. The value ""
            stands for the factory's own user. If `owners` is empty, all jobs may describe templates.
        accounts: with "own", the snapshot contains only the glideins of this account; with "all", the glideins of all
            accounts. A factory needs "own".
        earlier_accounts: names of accounts, without domain, under which this factory has submitted glideins.
    """
    failed: list[str] = []
    jobs: list[dict] = []
    lanes: list[dict] = []
    specs: dict[str, Template] = {}
    user = ""
    sticky_jobs: list[dict] = []
    try:
        access_point = find_access_point()
        constraint = f"{Job.TEMPLATE} =!= undefined || {Job.ENTRY} =!= undefined"
        jobs += _valid_jobs(access_point, constraint, accounts, earlier_accounts)
        sticky_jobs = _sticky_jobs(access_point)
        # `access_point.user` needs a ping, and a ping has no time limit of its own. A query has a time limit. So query
        # first: if the access point does not answer, the query fails, and no ping is sent.
        user = access_point.user
        invocations = [job for job in jobs if Job.ENTRY not in job]
        specs = find_templates(access_point, invocations, {owner or user for owner in owners})
    except CondorError as error:
        failed.append(str(error))
    try:
        lanes += filter(is_lane, (valid_attributes(ad, LANE_ATTRIBUTES) for ad in collector.lanes(LANE_ATTRIBUTES)))
    except CondorError as error:
        failed.append(str(error))
    unavailable: dict[str, str] = {}
    for find_queue, entries in outer_queues:
        try:
            jobs += _valid_jobs(find_queue(), f"{Job.ENTRY} =!= undefined", accounts, earlier_accounts)
        except CondorError as error:
            unavailable |= dict.fromkeys(entries, str(error))
        except Exception as error:  # a bug in glide must affect only the entries of this queue
            unavailable |= dict.fromkeys(entries, describe_bug(error))
    retargets = tuple(
        StickyJob(
            job[Job.BRINGS], job[Job.LANE], job.get("HoldReason", "") if job["JobStatus"] == JobStatus.HELD else ""
        )
        for job in sticky_jobs
        if job.get("User") == user
    )
    return replace(
        build_snapshot(jobs, lanes, specs), unavailable_sources=tuple(failed), now=time.time(), user=user,
        unavailable_entries=unavailable, retargets=retargets,
    )  # fmt: skip


def build_snapshot(jobs: Iterable[dict], lanes: Iterable[dict], specs: Mapping[str, Template]) -> Snapshot:
    """Build a snapshot from ads that have been checked.

    Args:
        jobs: job ads of glideins and invocation jobs.
        lanes: machine ads.
        specs: for each digest, the template that a job's ad describes.
    """
    advertised = tuple(map(_lane, lanes))
    by_glidein = {(lane.glide_id, lane.template): lane for lane in advertised}
    glideins = []
    invocations = []
    for job in jobs:
        if Job.ENTRY in job:
            glideins.append(_glidein(job, by_glidein))
        else:
            invocations.append(job)
    return Snapshot(
        tuple(glidein for glidein in glideins if glidein.status != JobStatus.COMPLETED),
        advertised,
        tuple(_demands(invocations, specs)),
        ended=tuple(glidein for glidein in glideins if glidein.status == JobStatus.COMPLETED),
    )


def _valid_jobs(access_point: Queue, constraint: str, accounts: str, earlier_accounts: Collection[str]) -> list[dict]:
    """Return the valid ads of this account's glideins and of all users' invocation jobs.

    If `accounts` is "all", the glideins of all accounts are returned. The ads are checked because any user can submit
    any job. Without the checks, a bad ad could end the factory, or bring commands into the factory's own job files.

    Raises:
        CondorError: the queue has glideins that this factory submitted with an earlier account name. The factory would
            not recognize these glideins, and would submit them again.
    """
    jobs = access_point.jobs(constraint, JOB_ATTRIBUTES)
    own = _account(access_point.user)
    ads = (valid_attributes(job, JOB_ATTRIBUTES) for job in jobs if Job.ENTRY in job)
    glideins = [job for job in ads if is_glidein(job)]
    names = {_account(job.get("User", "")) for job in glideins}
    if accounts != "all" and (other := (names & set(earlier_accounts)) - {own}):
        raise CondorError(
            f"this factory submitted glideins under the account {min(other)}, but now uses the account {own}; remove"
            " the earlier glideins (condor_rm), or use the credentials of the earlier account"
        )
    mine = [job for job in glideins if accounts == "all" or _account(job.get("User", "")) == own]
    invocations = [valid_attributes(job, JOB_ATTRIBUTES) for job in jobs if Job.ENTRY not in job and is_invocation(job)]
    return [{Job.TEMPLATE: "", "JobStatus": 0, **job} for job in mine] + invocations


def _account(user: str) -> str:
    """Return a User's name without the domain. An access point and its jobs may spell the domain differently."""
    return user.partition("@")[0]


def _sticky_jobs(access_point: AccessPoint) -> list[dict]:
    """Return the valid ads of all users' sticky jobs that name a lane. The newest job is last."""
    jobs = access_point.jobs(f"{Job.LANE} =!= undefined", RETARGET_ATTRIBUTES)
    ads = [valid_attributes(job, RETARGET_ATTRIBUTES) for job in jobs]
    complete = [job for job in ads if {Job.BRINGS, Job.LANE, "JobStatus", "ClusterId"} <= job.keys()]
    return sorted(complete, key=lambda job: job["ClusterId"])


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
        # The outer job has started again since the last report, so the report is out of date.
        glidein = replace(glidein, state="", failure="", served=0, errors=0)
    # If the glidein was retargeted, its lanes have a different template than the outer job. Then `lane` is None.
    lane = lanes.get((glidein.glide_id, glidein.template))
    if lane and lane.state in (State.WARM, State.FAILED) and glidein.status == JobStatus.RUNNING:
        # Use the lane's ad, because it is newer than the outer job's ad.
        glidein = replace(glidein, state=lane.state, failure=lane.failure)
    if glidein.state == State.WARM:
        until = now - age if glidein.status in (JobStatus.COMPLETED, JobStatus.IDLE) else now
        glidein = replace(glidein, warm_seconds=max(0.0, until - job.get(Job.STATE_SINCE, until)))
    return replace(glidein, served=lane.served, errors=lane.errors) if lane else glidein


def _failure(job: dict) -> str:
    """Return the reason for a glidein's failure. Use the first source that gives a reason:

    1. the report of the model server
    2. the signal or the exit code with which the outer job ended

    If neither source gives a reason, return an empty text.
    """
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


def _records_in_no_job(group: list[dict]) -> int:
    """Return the number of a run's records that are in no job yet. The ad of the run's newest job has this number."""
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
            records=sum(job.get(Job.RECORDS, 1) for job in group) + _records_in_no_job(group),
            best_effort=all(job.get(Job.BEST_EFFORT) is True for job in group),
        )
        for (template, run, user), group in groups.items()
    ]  # fmt: skip
