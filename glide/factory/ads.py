"""Check the attributes that the factory reads from ads. An attribute that fails its check counts as absent.

The factory cannot trust the ads. Any user can submit any job. Any program on a node can change the ad of its job and
the machine ads of the node's lanes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from glide.condor import names
from glide.vocabulary import Job, JobStatus, Machine

LARGEST_COUNT = 1e15  # every valid count is smaller than this number; without a limit, a count could be infinite
SHORTEST_RECORD = 1e-6  # smallest accepted time per record, in seconds; 0 would make the throughput infinite
Check = Callable[[object], bool]


def valid_attributes(ad: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """Return the valid attributes of an ad. Text values are made safe to print.

    An attribute is valid if its check in `checks` accepts the value. Attributes without a check are left out.
    """
    return {
        name: names.printable(value) if isinstance(value, str) else value
        for name, value in ad.items() if name in checks and checks[name](value)
    }  # fmt: skip


def is_invocation(job: Mapping[str, Any]) -> bool:
    """Return whether a job ad is valid and belongs to an invocation job, which is a job that asks for a template."""
    valid = all(is_valid(job[name]) for name, is_valid in JOB_ATTRIBUTES.items() if name in job)
    return valid and bool(job.get(Job.TEMPLATE)) and job.get(Job.MODEL) != "" and job.keys() >= _REQUIRED


def is_glidein(job: Mapping[str, Any]) -> bool:
    """Return whether a job is the outer job of a glidein. `job` contains only valid attributes."""
    return {"ClusterId", "ProcId", Job.ENTRY} <= job.keys()


def is_lane(ad: Mapping[str, Any]) -> bool:
    """Return whether a machine ad belongs to a lane of a glidein. `ad` contains only valid attributes."""
    return {Machine.ID, "Name"} <= ad.keys()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _matches(pattern: re.Pattern[str], empty: bool = False) -> Check:
    """Return a check that accepts a text if the whole text matches a pattern.

    Args:
        empty: whether the check also accepts an empty text.
    """
    return lambda value: isinstance(value, str) and (pattern.fullmatch(value) is not None or (empty and not value))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and 0 <= value < LARGEST_COUNT  # type: ignore[operator]


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and _is_count(value)


def _is_record_seconds(value: object) -> bool:
    return _is_count(value) and value >= SHORTEST_RECORD  # type: ignore[operator]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_status(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < len(JobStatus.NAMES)


START_SECONDS = (Machine.FETCH_SECONDS, Machine.IMPORT_SECONDS, Machine.LOAD_SECONDS, Machine.WARM_SECONDS)
_REQUIRED = {"ClusterId", "ProcId", "JobStatus", Job.TEMPLATE}
JOB_ATTRIBUTES: dict[str, Check] = {
    **dict.fromkeys(("HoldReason", "User", Job.STATE, Job.FAILURE, Job.RUN), _is_text),
    **dict.fromkeys(("RemoteHost", "LastRemoteHost"), _matches(names.SLOT)),
    Job.ENTRY: _matches(names.ENTRY),
    Job.TEMPLATE: _matches(names.DIGEST, empty=True),
    Job.MODEL: _matches(names.MODEL, empty=True),
    **dict.fromkeys((
        "ClusterId", "ProcId", "NumShadowStarts", "ExitSignal", "ExitCode",
        Job.SERVED, Job.ERRORS, Job.RECORDS, Job.LEFT, Job.WANTED,
    ), _is_whole_number),
    **dict.fromkeys(("EnteredCurrentStatus", "ServerTime", "JobCurrentStartDate", Job.STATE_SINCE), _is_count),
    **dict.fromkeys(("ExitBySignal", Job.BEST_EFFORT), _is_flag),
    "JobStatus": _is_status,
}  # fmt: skip
RETARGET_ATTRIBUTES: dict[str, Check] = {
    **dict.fromkeys(("User", "HoldReason"), _is_text),
    Job.BRINGS: _matches(names.DIGEST), Job.LANE: _matches(names.SLOT),
    "ClusterId": _is_whole_number, "JobStatus": _is_status,
}  # fmt: skip
LANE_ATTRIBUTES: dict[str, Check] = {
    **dict.fromkeys(("State", Machine.STATE, Machine.FAILURE, Machine.CACHED), _is_text),
    "Name": _matches(names.SLOT),
    Machine.ID: _matches(names.GLIDE_ID),
    Machine.ENTRY: _matches(names.ENTRY),
    Machine.TEMPLATE: _matches(names.DIGEST, empty=True),
    Machine.MODEL: _matches(names.MODEL, empty=True),
    **dict.fromkeys((Machine.SERVED, Machine.ERRORS), _is_whole_number),
    **dict.fromkeys((Machine.FETCHED, Machine.STATE_SINCE, Machine.RETIRES, *START_SECONDS), _is_count),
    Machine.RECORD_SECONDS: _is_record_seconds,
}  # fmt: skip
