"""What running glideins do with the nodes that they have: the account of goodput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.vocabulary import JobStatus, State


class Activity:
    """What a running glidein does."""

    SERVING = "serving"
    IDLE = "idle"  # warm, or kept in readiness without a model
    COMING = "getting ready"
    LOST = "failed or no lane"

    ALL = (SERVING, IDLE, COMING, LOST)


def activities(snapshot: Snapshot) -> dict[str, Counter[str]]:
    """How many running glideins of each entry do what."""
    found: dict[str, Counter[str]] = {}
    for glidein in snapshot.glideins:
        if glidein.status == JobStatus.RUNNING:
            did = activity(glidein, snapshot.lanes_of.get(glidein.glide_id, ()))
            found.setdefault(glidein.entry, Counter())[did] += 1
    return found


def activity(glidein: Glidein, lanes: Collection[Lane]) -> str:
    """What a running glidein with these lanes does; the best of them counts, for they share its node."""
    states = {lane.state for lane in lanes}
    if any(lane.claimed and lane.state in (State.WARM, State.DRAINING) for lane in lanes):
        return Activity.SERVING
    if states & {State.WARM, State.DRAINING} or (states == {State.BLANK} and not glidein.template):
        return Activity.IDLE
    return Activity.COMING if states & set(State.COMING_UP) else Activity.LOST
