"""What the factory reads of ads, and what each attribute has to be: whatever is not that is taken for absent.

Anybody may submit anything, and whatever runs on a node may write into the ads of its job and its lanes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from glide.condor import names
from glide.vocabulary import Job, JobStatus, Machine

LARGEST_COUNT = 1e15  # of anything; a ClassAd's number may be infinite
SHORTEST = 1e-6  # seconds of a record; the pace of one that takes next to nothing would be infinite
Type = Callable[[object], bool]


def mended(ad: Mapping[str, Any], types: Mapping[str, Type]) -> dict[str, Any]:
    """An ad without what is not of its type, and with texts that are safe to show."""
    return {
        name: names.printable(value) if isinstance(value, str) else value
        for name, value in ad.items() if name in types and types[name](value)
    }  # fmt: skip


def is_invocation(job: Mapping[str, Any]) -> bool:
    """Whether a job of anybody's is one that asks for a template, and all that is read of it is right."""
    typed = all(is_right(job[name]) for name, is_right in JOB_ATTRIBUTES.items() if name in job)
    return typed and bool(job.get(Job.TEMPLATE)) and job.get(Job.MODEL) != "" and job.keys() >= _NEEDED


def is_glidein(job: Mapping[str, Any]) -> bool:
    """Whether enough of a glidein's mended ad is left to know which it is."""
    return {"ClusterId", "ProcId", Job.ENTRY} <= job.keys()


def is_lane(ad: Mapping[str, Any]) -> bool:
    """Whether enough of a lane's mended ad is left to know which it is."""
    return {Machine.ID, "Name"} <= ad.keys()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _matches(pattern: re.Pattern[str], empty: bool = False) -> Type:
    """Whether a value is a text of this pattern, or empty where that is allowed."""
    return lambda value: isinstance(value, str) and (pattern.fullmatch(value) is not None or (empty and not value))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and 0 <= value < LARGEST_COUNT  # type: ignore[operator]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and _is_count(value)


def _is_pace(value: object) -> bool:
    return _is_count(value) and value >= SHORTEST  # type: ignore[operator]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_status(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < len(JobStatus.NAMES)


START_SECONDS = (Machine.FETCH_SECONDS, Machine.IMPORT_SECONDS, Machine.LOAD_SECONDS, Machine.WARM_SECONDS)
_NEEDED = {"ClusterId", "ProcId", "JobStatus", Job.TEMPLATE}
JOB_ATTRIBUTES: dict[str, Type] = {
    **dict.fromkeys(("HoldReason", "User", Job.STATE, Job.FAILURE, Job.RUN), _is_text),
    **dict.fromkeys(("RemoteHost", "LastRemoteHost"), _matches(names.SLOT)),
    Job.ENTRY: _matches(names.ENTRY),
    Job.TEMPLATE: _matches(names.DIGEST, empty=True),
    Job.MODEL: _matches(names.MODEL, empty=True),
    **dict.fromkeys((
        "ClusterId", "ProcId", "NumShadowStarts", "ExitSignal", "ExitCode",
        Job.SERVED, Job.ERRORS, Job.RECORDS, Job.LEFT, Job.WANTED,
    ), _is_whole),
    **dict.fromkeys(("EnteredCurrentStatus", "ServerTime", "JobCurrentStartDate", Job.STATE_SINCE), _is_count),
    **dict.fromkeys(("ExitBySignal", Job.MODEST), _is_flag),
    "JobStatus": _is_status,
}  # fmt: skip
MOVE_ATTRIBUTES: dict[str, Type] = {
    **dict.fromkeys(("User", "HoldReason"), _is_text),
    Job.BRINGS: _matches(names.DIGEST), Job.LANE: _matches(names.SLOT),
    "ClusterId": _is_whole, "JobStatus": _is_status,
}  # fmt: skip
LANE_ATTRIBUTES: dict[str, Type] = {
    **dict.fromkeys(("State", Machine.STATE, Machine.FAILURE, Machine.CACHED), _is_text),
    "Name": _matches(names.SLOT),
    Machine.ID: _matches(names.GLIDE_ID),
    Machine.ENTRY: _matches(names.ENTRY),
    Machine.TEMPLATE: _matches(names.DIGEST, empty=True),
    Machine.MODEL: _matches(names.MODEL, empty=True),
    **dict.fromkeys((Machine.SERVED, Machine.ERRORS), _is_whole),
    **dict.fromkeys((Machine.FETCHED, Machine.STATE_SINCE, Machine.RETIRES, *START_SECONDS), _is_count),
    Machine.RECORD_SECONDS: _is_pace,
}  # fmt: skip
