"""Find out what each running glidein does. The result shows how much of the glideins' time is useful work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.vocabulary import JobStatus, State


class Activity:
    """The possible activities of a running glidein. They are keys in the journal, the charts and the metrics."""

    SERVING = "serving"
    IDLE = "idle"  # the glidein is warm but has no job, or the glidein is kept ready without a model
    COMING = "getting ready"
    LOST = "failed or no lane"

    ALL = (SERVING, IDLE, COMING, LOST)


def activities(snapshot: Snapshot) -> dict[str, Counter[str]]:
    """Return, for each entry, the number of running glideins with each activity."""
    found: dict[str, Counter[str]] = {}
    for glidein in snapshot.glideins:
        if glidein.status == JobStatus.RUNNING:
            doing = activity(glidein, snapshot.lanes_of.get(glidein.glide_id, ()))
            found.setdefault(glidein.entry, Counter())[doing] += 1
    return found


def activity(glidein: Glidein, lanes: Collection[Lane]) -> str:
    """Return the activity of a running glidein.

    If the lanes of the glidein differ, the most useful lane decides. For example, the glidein is serving if one warm
    lane has a job, no matter what the other lanes do.

    Args:
        lanes: the lanes of the glidein.
    """
    states = {lane.state for lane in lanes}
    if any(lane.claimed and lane.state in (State.WARM, State.DRAINING) for lane in lanes):
        return Activity.SERVING
    if states & {State.WARM, State.DRAINING} or (states == {State.BLANK} and not glidein.template):
        return Activity.IDLE
    return Activity.COMING if states & {*State.COMING_UP, State.ASLEEP} else Activity.LOST
