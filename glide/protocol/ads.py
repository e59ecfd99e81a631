"""The ads that glide reads, as typed values: which attribute each field comes from, and which values are valid.

No reader can trust the ads. Any user can submit any job. Any program on a node can change the ad of its job and the
machine ads of the node's lanes. So `from_ad` checks each attribute. An attribute that fails its check counts as absent,
and its field gets the default. This module uses only the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from glide.protocol import names
from glide.vocabulary import Job, JobStatus, Machine, State

LARGEST_COUNT = 1e15  # every valid count is smaller than this number; without a limit, a count could be infinite
SHORTEST_RECORD = 1e-6  # smallest accepted time per record, in seconds; 0 would make the throughput infinite
LARGEST_BATCH = 1 << 20  # largest accepted number of records in an engine call
Check = Callable[[object], bool]
Ad = TypeVar("Ad")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _matches(pattern: re.Pattern[str], empty: bool = False) -> Check:
    """Return a check that accepts a text if the whole text matches a pattern.

    Args:
        empty: whether the check also accepts an empty text.
    """
    return lambda value: isinstance(value, str) and (pattern.fullmatch(value) is not None or (empty and not value))


def _is_count(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < LARGEST_COUNT


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and _is_count(value)


def _is_record_seconds(value: object) -> bool:
    return _is_count(value) and value >= SHORTEST_RECORD  # type: ignore[operator]


def _is_batch(value: object) -> bool:
    return _is_whole_number(value) and 1 <= value <= LARGEST_BATCH  # type: ignore[operator]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_status(value: object) -> bool:
    return _is_whole_number(value) and 0 < value < len(JobStatus.NAMES)  # type: ignore[operator]


def _from(attribute: str, check: Check, default: Any = MISSING) -> Any:
    """Return a field that `from_ad` reads from an attribute. Without a default, the attribute is required."""
    return field(default=default, metadata={"attribute": attribute, "check": check})


_SLOT, _GLIDE_ID, _ENTRY = map(_matches, (names.SLOT, names.GLIDE_ID, names.ENTRY))
_DIGEST, _MODEL = _matches(names.DIGEST, empty=True), _matches(names.MODEL, empty=True)


@dataclass(frozen=True)
class LaneAd:
    """The machine ad of a lane. If the collector's ad lacks an attribute, its field has the default.

    Attributes:
        claim: HTCondor's state of the slot, such as Claimed or Unclaimed.
        heard: Unix time when the collector received the ad.
        born: Unix time when the glidein's startd started.
        protocol: version of the requests that the glidein serves.

    The other fields have the names and meanings of the attributes in glide.vocabulary.Machine.
    """

    name: str = _from("Name", _SLOT)
    glide_id: str = _from(Machine.ID, _GLIDE_ID)
    entry: str = _from(Machine.ENTRY, _ENTRY, "")
    template: str = _from(Machine.TEMPLATE, _DIGEST, "")
    model: str = _from(Machine.MODEL, _MODEL, "")
    state: str = _from(Machine.STATE, _is_text, State.BLANK)
    state_since: float | None = _from(Machine.STATE_SINCE, _is_count, None)
    failure: str = _from(Machine.FAILURE, _is_text, "")
    host: str = _from("Machine", _SLOT, "")
    claim: str = _from("State", _is_text, "")
    slot: int | None = _from("SlotID", _is_whole_number, None)
    heard: float = _from("LastHeardFrom", _is_count, 0)
    born: float | None = _from("DaemonStartTime", _is_count, None)
    served: int = _from(Machine.SERVED, _is_whole_number, 0)
    errors: int = _from(Machine.ERRORS, _is_whole_number, 0)
    record_seconds: float = _from(Machine.RECORD_SECONDS, _is_record_seconds, 0.0)
    fetch_seconds: float | None = _from(Machine.FETCH_SECONDS, _is_count, None)
    import_seconds: float | None = _from(Machine.IMPORT_SECONDS, _is_count, None)
    load_seconds: float | None = _from(Machine.LOAD_SECONDS, _is_count, None)
    warm_seconds: float | None = _from(Machine.WARM_SECONDS, _is_count, None)
    busy_seconds: float | None = _from(Machine.BUSY_SECONDS, _is_count, None)
    fetched: float | None = _from(Machine.FETCHED, _is_count, None)
    retires: float = _from(Machine.RETIRES, _is_count, float("inf"))
    cached: str = _from(Machine.CACHED, _is_text, "")
    asleep: str = _from(Machine.ASLEEP, _is_text, "")
    batch: int = _from(Machine.BATCH, _is_batch, 1)
    batching: str | None = _from(Machine.BATCHING, _is_text, None)
    prefix_hits: float | None = _from(Machine.PREFIX_HITS, _is_count, None)
    gpu_name: str | None = _from(Machine.GPU_NAME, _is_text, None)
    gpu_capability: float = _from(Machine.GPU_CAPABILITY, _is_count, 0.0)
    joules: float | None = _from(Machine.GPU_JOULES, _is_count, None)
    devices: float = _from(Machine.DEVICES, _is_count, 0.0)
    price: float | None = _from(Machine.PRICE, _is_count, None)
    service: str | None = _from(Machine.SERVICE, _is_text, None)
    protocol: int = _from(Machine.PROTOCOL, _is_whole_number, 1)

    @property
    def is_warm(self) -> bool:
        return self.state == State.WARM


@dataclass(frozen=True)
class InvocationAd:
    """The ad of an invocation job, as the factory reads it.

    Attributes:
        records: number of records that the job carries.
        left: number of the run's records that are in no job yet.
        wanted: maximum number of glideins that the run may have at the same time.
        standing: whether the job serves live calls and runs until `glide serve` ends it.
        slot: name of the slot that the job runs on; empty if it does not run.
    """

    cluster: int = _from("ClusterId", _is_whole_number)
    proc: int = _from("ProcId", _is_whole_number)
    status: int = _from("JobStatus", _is_status)
    template: str = _from(Job.TEMPLATE, _DIGEST)
    model: str | None = _from(Job.MODEL, _MODEL, None)
    user: str = _from("User", _is_text, "")
    run: str | None = _from(Job.RUN, _is_text, None)
    records: int = _from(Job.RECORDS, _is_whole_number, 1)
    left: int = _from(Job.LEFT, _is_whole_number, 0)
    wanted: int = _from(Job.WANTED, _is_whole_number, 1)
    best_effort: bool = _from(Job.BEST_EFFORT, _is_flag, False)
    standing: bool = _from(Job.STANDING, _is_flag, False)
    slot: str = _from("RemoteHost", _SLOT, "")


@dataclass(frozen=True)
class OuterAd:
    """The ad of a glidein's outer job.

    Attributes:
        template: digest of the template that the glidein was submitted with; empty for a blank glidein.
        starts: number of times that the outer job has started to run.
        status_since, server_time, started: Unix times when the job got its present status, when the ad was read, and
            when the job last started.
        state, state_since, failure, served, errors: the last report of the glidein's model server.
        reported_start: the value of `starts` when the reporting glidein started; None from older glideins.
    """

    cluster: int = _from("ClusterId", _is_whole_number)
    proc: int = _from("ProcId", _is_whole_number)
    entry: str = _from(Job.ENTRY, _ENTRY)
    template: str = _from(Job.TEMPLATE, _DIGEST, "")
    model: str = _from(Job.MODEL, _MODEL, "")
    status: int = _from("JobStatus", _is_status, 0)
    user: str = _from("User", _is_text, "")
    starts: int = _from("NumShadowStarts", _is_whole_number, 0)
    status_since: float = _from("EnteredCurrentStatus", _is_count, 0)
    server_time: float = _from("ServerTime", _is_count, 0)
    started: float = _from("JobCurrentStartDate", _is_count, 0)
    hold_reason: str = _from("HoldReason", _is_text, "")
    slot: str = _from("RemoteHost", _SLOT, "")
    last_slot: str = _from("LastRemoteHost", _SLOT, "")
    state: str = _from(Job.STATE, _is_text, "")
    state_since: float | None = _from(Job.STATE_SINCE, _is_count, None)
    reported_start: int | None = _from(Job.REPORTED_START, _is_whole_number, None)
    failure: str = _from(Job.FAILURE, _is_text, "")
    served: int = _from(Job.SERVED, _is_whole_number, 0)
    errors: int = _from(Job.ERRORS, _is_whole_number, 0)
    by_signal: bool = _from("ExitBySignal", _is_flag, False)
    signal: int | None = _from("ExitSignal", _is_whole_number, None)
    code: int | None = _from("ExitCode", _is_whole_number, None)
    cpus: int = _from("RequestCpus", _is_whole_number, 1)
    gpus: int = _from("RequestGPUs", _is_whole_number, 0)


@dataclass(frozen=True)
class StickyAd:
    """The ad of a sticky job.

    Attributes:
        brings: digest of the template that the lane must load.
        lane: name of the slot that must load the template.
    """

    cluster: int = _from("ClusterId", _is_whole_number)
    status: int = _from("JobStatus", _is_status)
    brings: str = _from(Job.BRINGS, _matches(names.DIGEST))
    lane: str = _from(Job.LANE, _SLOT)
    user: str = _from("User", _is_text, "")
    hold_reason: str = _from("HoldReason", _is_text, "")


@dataclass(frozen=True)
class RunAd:
    """The ad of an invocation job, as the driver that has submitted the job reads it.

    Attributes:
        part: name of the group of records that the job carries.
        starts: number of times that the job has started.
        queued, started, executing, completed: Unix times of the job's events; 0 if an event has not happened. If the
            job has started more than once, `started` and `executing` are those of the last start.
        folder: the job's folder on the access point. For a spooled job, this is its spool directory.
        keep: number of records that the driver has asked the job to keep; None if it has not asked.
    """

    cluster: int = _from("ClusterId", _is_whole_number)
    proc: int = _from("ProcId", _is_whole_number)
    status: int = _from("JobStatus", _is_status)
    part: str = _from(Job.PART, _is_text, "")
    template: str = _from(Job.TEMPLATE, _DIGEST, "")
    records: int = _from(Job.RECORDS, _is_whole_number, 0)
    starts: int = _from("NumJobStarts", _is_whole_number, 0)
    status_since: int = _from("EnteredCurrentStatus", _is_whole_number, 0)
    server_time: int = _from("ServerTime", _is_whole_number, 0)
    slot: str = _from("RemoteHost", _is_text, "")
    last_slot: str = _from("LastRemoteHost", _is_text, "")
    hold_reason: str = _from("HoldReason", _is_text, "")
    queued: int = _from("QDate", _is_whole_number, 0)
    started: int = _from("JobCurrentStartDate", _is_whole_number, 0)
    executing: int = _from("JobCurrentStartExecutingDate", _is_whole_number, 0)
    completed: int = _from("CompletionDate", _is_whole_number, 0)
    folder: str = _from("Iwd", _is_text, "")
    keep: int | None = _from(Job.KEEP, _is_whole_number, None)


@cache
def _schema(kind: type) -> tuple[tuple[str, str, Check, bool], ...]:
    """Return the fields of a kind of ad: name, attribute, check, and whether the attribute is required."""
    found = fields(kind)
    return tuple(
        (each.name, each.metadata["attribute"], each.metadata["check"], each.default is MISSING) for each in found
    )


@cache
def attributes(kind: type) -> tuple[str, ...]:
    """Return the names of the attributes that a kind of ad has."""
    return tuple(attribute for _, attribute, _, _ in _schema(kind))


def from_ad(kind: type[Ad], ad: Mapping[str, Any], strict: bool = False) -> Ad | None:
    """Return the typed value of an ad, or None if a required attribute is missing or invalid.

    Texts are made safe to print.

    Args:
        strict: whether to return None also if any other attribute is invalid.
    """
    values = {}
    for name, attribute, is_valid, is_required in _schema(kind):  # type: ignore[arg-type]
        if attribute in ad and is_valid(value := ad[attribute]):
            values[name] = names.printable(value) if isinstance(value, str) else value
        elif is_required or (strict and attribute in ad):
            return None
    return kind(**values)
