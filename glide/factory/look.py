"""The factory's look at queues and collector, with nothing believed that a stranger may have written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from glide.condor import AccessPoint, Collector
from glide.condor.access_point import quoted
from glide.errors import CondorError
from glide.factory.snapshot import Demand, Glidein, Lane, Move, Snapshot
from glide.ssh.access_point import RemoteAccessPoint
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

Queue = AccessPoint | RemoteAccessPoint

NAME = re.compile(r"[\w./:+-]{1,200}")  # of templates and models: nothing that means something in a job file
LARGEST_COUNT = 1e15  # of anything; a ClassAd's number may be infinite
SHORTEST = 1e-6  # seconds of a record; the pace of one that takes next to nothing would be infinite
DESCRIPTIONS = 10  # of a template that are looked at until one is right


def take(
    find: Callable[[], AccessPoint],
    collector: Collector,
    outer: Iterable[tuple[Callable[[], Queue], list[str]]] = (),
    owners: Collection[str] = (),
    whose: Literal["ours", "all"] = "ours",
) -> Snapshot:
    """Look now. A source that fails is named in the snapshot, never taken for an empty one.

    Args:
        find: finds the access point of the pool that glideins join; CondorError where it is away.
        outer: the same for other pools that glideins are submitted to, with the names of the entries there.
        owners: whose jobs may describe templates; "" is the factory's own user, and none is anybody.
        whose: glideins are to be seen: a factory goes by its own, people may look at another account's.
    """
    failed: list[str] = []
    jobs: list[dict] = []
    lanes: list[dict] = []
    specs: dict[str, Template] = {}
    user = ""
    moves: list[dict] = []
    try:
        access_point = find()
        jobs += _believed(access_point, f"{Job.TEMPLATE} =!= undefined || {Job.ENTRY} =!= undefined", whose)
        moves = _moves(access_point)
        user = access_point.user  # only now: a query gives up after a while, a ping waits for ever
        asked = {job[Job.TEMPLATE] for job in jobs if Job.ENTRY not in job}
        specs = {
            digest: spec
            for digest in asked
            if (spec := _described(access_point, digest, {owner or user for owner in owners}))
        }
    except CondorError as error:
        failed.append(str(error))
    try:
        lanes += filter(_is_lane, (_mended(ad, LANE_ATTRIBUTES) for ad in collector.lanes(LANE_ATTRIBUTES)))
    except CondorError as error:
        failed.append(str(error))
    blind: dict[str, str] = {}
    for find_other, entries in outer:
        try:
            jobs += _believed(find_other(), f"{Job.ENTRY} =!= undefined", whose)
        except CondorError as error:
            blind |= dict.fromkeys(entries, str(error))
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


def _believed(access_point: Queue, constraint: str, whose: str) -> list[dict]:
    """Jobs that may be believed: glideins of this account, and jobs whose attributes are what they should be.

    Anybody may submit anything, and a factory must neither stumble over it nor submit it in its own name.
    """
    jobs = access_point.jobs(constraint, JOB_ATTRIBUTES)
    me = access_point.user.partition("@")[0]
    glideins = [job for job in jobs if isinstance(job.get(Job.ENTRY), str)]
    mine = [
        {Job.TEMPLATE: "", "JobStatus": 0, **_mended(job, JOB_ATTRIBUTES)}
        for job in glideins
        if whose == "all" or job.get("User", "").partition("@")[0] == me
    ]
    if glideins and not mine:  # taken for absent, they would be submitted anew, again and again
        raise CondorError(f"glideins are queued under the name {glideins[0].get('User')}, and we are {me}")
    return mine + [job for job in jobs if Job.ENTRY not in job and _is_sound(job)]


def _moves(access_point: AccessPoint) -> list[dict]:
    """Sticky jobs that say which lane they are for, the newest last; ours are among them."""
    jobs = access_point.jobs(f"{Job.LANE} =!= undefined", MOVE_ATTRIBUTES)
    mended = [_mended(job, MOVE_ATTRIBUTES) for job in jobs]
    sound = [job for job in mended if Job.BRINGS in job and Job.LANE in job and "JobStatus" in job]
    return sorted(sound, key=lambda job: job["ClusterId"])


def _mended(ad: dict, types: Mapping[str, Type]) -> dict:
    """An ad without what is not of its type: whatever runs on a node may write into the ads of its job and lanes."""
    return {name: value for name, value in ad.items() if name in types and types[name](value)}


def _is_sound(job: dict) -> bool:
    typed = all(is_right(job[name]) for name, is_right in JOB_ATTRIBUTES.items() if name in job)
    whole = typed and Job.TEMPLATE in job and "JobStatus" in job
    return whole and all(map(NAME.fullmatch, (job[Job.TEMPLATE], job.get(Job.MODEL, "-"))))


def _is_lane(ad: dict) -> bool:
    return Machine.ID in ad and "Name" in ad


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < LARGEST_COUNT


def _is_pace(value: object) -> bool:
    return isinstance(value, (int, float)) and SHORTEST <= value < LARGEST_COUNT


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_status(value: object) -> bool:
    return isinstance(value, int) and 0 < value < len(JobStatus.NAMES)


def _described(access_point: AccessPoint, digest: str, owners: Collection[str]) -> Template | None:
    """The template of that digest, from a job that describes it. Not from all of them: a description may be long.

    Where the files lie is not in the digest, so it has to be one of these owners' words.
    """
    constraint = f"{Job.TEMPLATE} == {quoted(digest)} && {Job.SPEC} =!= undefined && {Job.ENTRY} =?= undefined"
    if owners:
        constraint += f" && ({' || '.join(f'User == {quoted(owner)}' for owner in owners)})"
    for job in access_point.jobs(constraint, [Job.SPEC, "User"], limit=DESCRIPTIONS):
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            described = Template.from_json(job[Job.SPEC])
            sound = described.digest == digest and NAME.fullmatch(described.model)
            own = not described.function or described.owner == job["User"]  # code runs for whom it is from alone
            if sound and own:
                return replace(described, service=None)  # where records go is the entry's to say
    return None


_START_SECONDS = (Machine.FETCH_SECONDS, Machine.IMPORT_SECONDS, Machine.LOAD_SECONDS, Machine.WARM_SECONDS)
Type = Callable[[object], bool]
# What is read of ads, and what it has to be.
JOB_ATTRIBUTES: dict[str, Type] = {
    **dict.fromkeys((
        "HoldReason", "User", "RemoteHost", "LastRemoteHost",
        Job.ENTRY, Job.TEMPLATE, Job.MODEL, Job.STATE, Job.FAILURE, Job.RUN,
    ), _is_text),
    **dict.fromkeys((
        "ClusterId", "ProcId", "NumShadowStarts", "EnteredCurrentStatus", "ServerTime", "JobCurrentStartDate",
        "ExitBySignal", "ExitSignal", "ExitCode",
        Job.STATE_SINCE, Job.SERVED, Job.ERRORS, Job.RECORDS, Job.LEFT, Job.WANTED,
    ), _is_count),
    Job.MODEST: _is_flag,
    "JobStatus": _is_status,
}  # fmt: skip
MOVE_ATTRIBUTES: dict[str, Type] = {
    **dict.fromkeys((Job.BRINGS, Job.LANE, "User", "HoldReason"), _is_text),
    "ClusterId": _is_count, "JobStatus": _is_status,
}  # fmt: skip
LANE_ATTRIBUTES: dict[str, Type] = {
    **dict.fromkeys((
        "Name", "State", Machine.ID, Machine.ENTRY, Machine.TEMPLATE, Machine.MODEL, Machine.STATE, Machine.FAILURE,
        Machine.CACHED,
    ), _is_text),
    **dict.fromkeys((
        Machine.FETCHED, Machine.STATE_SINCE, Machine.RETIRES, Machine.SERVED, Machine.ERRORS, *_START_SECONDS,
    ), _is_count),
    Machine.RECORD_SECONDS: _is_pace,
}  # fmt: skip


def _glidein(job: dict, lanes: Mapping[tuple[str, str], Lane]) -> Glidein:
    now = job.get("ServerTime", 0)
    age = now - job.get("EnteredCurrentStatus", 0)
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
        sum(ad.get(name, 0.0) for name in _START_SECONDS),
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
