"""Observe the queues and the collector. Discard invalid values in ads, because other users can write into ads."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Literal

from glide.condor import AccessPoint, Collector
from glide.errors import CondorError, describe_bug
from glide.factory.descriptions import find_templates
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot, StickyJob
from glide.protocol.ads import InvocationAd, LaneAd, OuterAd, StickyAd, attributes, from_ad
from glide.ssh.access_point import RemoteAccessPoint
from glide.template import Template
from glide.vocabulary import Job, JobStatus, State

RUNNING = (JobStatus.RUNNING, JobStatus.TRANSFERRING, JobStatus.SUSPENDED)
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
    outer_jobs: list[OuterAd] = []
    invocations: list[InvocationAd] = []
    lanes: list[LaneAd] = []
    specs: dict[str, Template] = {}
    user = ""
    sticky_jobs: list[StickyAd] = []
    try:
        access_point = find_access_point()
        constraint = f"{Job.TEMPLATE} =!= undefined || {Job.ENTRY} =!= undefined"
        outer_jobs, invocations = _valid_jobs(access_point, constraint, accounts, earlier_accounts)
        sticky_jobs = _sticky_jobs(access_point)
        # `access_point.user` needs a ping, and a ping has no time limit of its own. A query has a time limit. So query
        # first: if the access point does not answer, the query fails, and no ping is sent.
        user = access_point.user
        specs = find_templates(access_point, invocations, {owner or user for owner in owners})
    except CondorError as error:
        failed.append(str(error))
    try:
        lanes = [lane for ad in collector.lanes(attributes(LaneAd)) if (lane := from_ad(LaneAd, ad))]
    except CondorError as error:
        failed.append(str(error))
    unavailable: dict[str, str] = {}
    for find_queue, entries in outer_queues:
        try:
            outer_jobs += _valid_jobs(find_queue(), f"{Job.ENTRY} =!= undefined", accounts, earlier_accounts)[0]
        except CondorError as error:
            unavailable |= dict.fromkeys(entries, str(error))
        except Exception as error:  # a bug in glide must affect only the entries of this queue
            unavailable |= dict.fromkeys(entries, describe_bug(error))
    retargets = tuple(
        StickyJob(job.brings, job.lane, job.hold_reason if job.status == JobStatus.HELD else "")
        for job in sticky_jobs
        if job.user == user
    )
    return replace(
        build_snapshot(outer_jobs, invocations, lanes, specs), unavailable_sources=tuple(failed), now=time.time(),
        user=user, unavailable_entries=unavailable, retargets=retargets,
    )  # fmt: skip


def build_snapshot(
    outer_jobs: Iterable[OuterAd], invocations: Iterable[InvocationAd], lanes: Iterable[LaneAd],
    specs: Mapping[str, Template],
) -> Snapshot:  # fmt: skip
    """Build a snapshot from ads.

    Args:
        specs: a dict from the digest of each template to the template, as the ads of jobs describe it.
    """
    invocations = list(invocations)
    users = {job.slot: job.user for job in invocations if job.slot and job.status in RUNNING}
    advertised = tuple(_lane(ad, users.get(ad.name, "")) for ad in lanes)
    by_glidein = {(lane.glide_id, lane.template): lane for lane in advertised}
    glideins = [_glidein(job, by_glidein) for job in outer_jobs]
    return Snapshot(
        tuple(glidein for glidein in glideins if glidein.status != JobStatus.COMPLETED),
        advertised,
        tuple(_demands(invocations, specs)),
        ended=tuple(glidein for glidein in glideins if glidein.status == JobStatus.COMPLETED),
    )


def _valid_jobs(
    access_point: Queue, constraint: str, accounts: str, earlier_accounts: Collection[str]
) -> tuple[list[OuterAd], list[InvocationAd]]:
    """Return the valid ads of this account's glideins and of all users' invocation jobs.

    If `accounts` is "all", the glideins of all accounts are returned. The ads are checked because any user can submit
    any job. Without the checks, a bad ad could end the factory, or bring commands into the factory's own job files.

    Raises:
        CondorError: the queue has glideins that this factory submitted with an earlier account name. The factory would
            not recognize these glideins, and would submit them again.
    """
    jobs = access_point.jobs(constraint, {*attributes(OuterAd), *attributes(InvocationAd)})
    own = _account(access_point.user)
    glideins = [ad for job in jobs if Job.ENTRY in job and (ad := from_ad(OuterAd, job))]
    names = {_account(job.user) for job in glideins}
    if accounts != "all" and (other := (names & set(earlier_accounts)) - {own}):
        raise CondorError(
            f"this factory submitted glideins under the account {min(other)}, but now uses the account {own}; remove"
            " the earlier glideins (condor_rm), or use the credentials of the earlier account"
        )
    mine = [job for job in glideins if accounts == "all" or _account(job.user) == own]
    others = (from_ad(InvocationAd, job, strict=True) for job in jobs if Job.ENTRY not in job)
    return mine, [job for job in others if job and job.template and job.model != ""]


def _account(user: str) -> str:
    """Return a User's name without the domain. An access point and its jobs may spell the domain differently."""
    return user.partition("@")[0]


def _sticky_jobs(access_point: AccessPoint) -> list[StickyAd]:
    """Return the valid ads of all users' sticky jobs that name a lane. The newest job is last."""
    jobs = access_point.jobs(f"{Job.LANE} =!= undefined", attributes(StickyAd))
    return sorted((ad for job in jobs if (ad := from_ad(StickyAd, job))), key=lambda ad: ad.cluster)


def _glidein(job: OuterAd, lanes: Mapping[tuple[str, str], Lane]) -> Glidein:
    now = job.server_time
    age = max(0.0, now - job.status_since)
    since = now if job.state_since is None else job.state_since
    glidein = Glidein(
        job.cluster, job.proc, job.entry, job.template, job.status, starts=job.starts, age=age,
        hold_reason=job.hold_reason, state=job.state, failure=_failure(job),
        host=(job.slot or job.last_slot).rpartition("@")[2], served=job.served, errors=job.errors, model=job.model,
        devices=job.gpus or job.cpus,
    )  # fmt: skip
    if _is_outdated(job, since):
        glidein = replace(glidein, state="", failure="", served=0, errors=0)
    # If the glidein was retargeted, its lanes have a different template than the outer job. Then `lane` is None.
    lane = lanes.get((glidein.glide_id, glidein.template))
    if lane and lane.state in (State.WARM, State.FAILED) and glidein.status == JobStatus.RUNNING:
        # Use the lane's ad, because it is newer than the outer job's ad.
        glidein = replace(glidein, state=lane.state, failure=lane.failure)
    if glidein.state == State.WARM:
        until = now - age if glidein.status in (JobStatus.COMPLETED, JobStatus.IDLE) else now
        since = until if job.state_since is None else job.state_since
        glidein = replace(glidein, warm_seconds=max(0.0, until - since))
    return replace(glidein, served=lane.served, errors=lane.errors) if lane else glidein


def _is_outdated(job: OuterAd, since: float) -> bool:
    """Return whether the outer job has started again since the last report of its glidein.

    Args:
        since: Unix time of the report. It is from the node's clock, which may differ from the access point's.
    """
    if job.reported_start is None:
        return job.starts > 1 and since < job.started
    return job.reported_start != job.starts


def _failure(job: OuterAd) -> str:
    """Return the reason for a glidein's failure. Use the first source that gives a reason:

    1. the report of the model server
    2. the signal or the exit code with which the outer job ended

    If neither source gives a reason, return an empty text.
    """
    if job.failure or job.status != JobStatus.COMPLETED:
        return job.failure
    return f"killed by signal {job.signal}" if job.by_signal else f"exit code {job.code}"


def _lane(ad: LaneAd, user: str) -> Lane:
    times = (ad.fetch_seconds, ad.import_seconds, ad.load_seconds, ad.warm_seconds)
    return Lane(
        glide_id=ad.glide_id, entry=ad.entry, template=ad.template, model=ad.model, state=ad.state,
        claimed=ad.claim == "Claimed", failure=ad.failure, since=ad.state_since or 0.0,
        record_seconds=ad.record_seconds, start_seconds=sum(seconds or 0.0 for seconds in times),
        retires=ad.retires, served=ad.served, errors=ad.errors, name=ad.name, fetched=ad.fetched,
        cached=tuple(ad.cached.split(",")), asleep=tuple(ad.asleep.split(",")), gpu_capability=ad.gpu_capability,
        joules=ad.joules, user=user,
    )  # fmt: skip


def _demands(jobs: Iterable[InvocationAd], specs: Mapping[str, Template]) -> list[Demand]:
    groups: dict[tuple[str, str, str], list[InvocationAd]] = {}
    for job in jobs:
        if job.status in (JobStatus.IDLE, JobStatus.RUNNING, JobStatus.TRANSFERRING):
            run = str(job.cluster) if job.run is None else job.run
            groups.setdefault((job.template, run, job.user), []).append(job)
    return [
        Demand(
            template, group[0].model or "", run, user,
            idle=sum(job.status == JobStatus.IDLE for job in group),
            running=sum(job.status != JobStatus.IDLE for job in group),
            wanted=max(job.wanted for job in group),
            spec=specs.get(template),
            # The ad of the run's newest job has the number of the run's records that are in no job yet.
            records=sum(job.records for job in group) + max(group, key=lambda job: (job.cluster, job.proc)).left,
            best_effort=all(job.best_effort for job in group),
            standing=any(job.standing for job in group),
        )
        for (template, run, user), group in groups.items()
    ]  # fmt: skip
