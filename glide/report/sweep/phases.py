"""Compute when a lane's model server entered each state, from the facts that the lane advertised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glide.vocabulary import State

ORDER = (State.FETCHING, State.IMPORTING, State.LOADING, State.WARMING, State.WARM)


def state_starts(facts: Mapping[str, Any], last: tuple[float, str] | None) -> list[tuple[float, str]]:
    """Return a lane's new states in order of time, as pairs: the Unix time when a state began, and the state.

    `last` is the pair before the new pairs, or None. If a lane passes quickly through a state, the history file can
    lack this state. The time of a missing state is computed from the phase durations that the lane advertises.
    """
    state, since = str(facts["state"]), float(facts.get("since") or facts["at"])
    fetch = facts.get("fetch") or 0.0
    spent = {
        State.FETCHING: fetch, State.IMPORTING: max(0.0, (facts.get("import") or 0.0) - fetch),  # these phases overlap
        State.LOADING: facts.get("load") or 0.0, State.WARMING: facts.get("warm") or 0.0,
    }  # fmt: skip
    if last:  # old versions of glide round `since` down; the previous state's start plus its duration is more exact
        since = max(since, min(since + 1, last[0] + spent.get(last[1], 0.0)))
    marks = [(since, state)]
    if state in ORDER:
        after = ORDER.index(last[1]) + 1 if last and last[1] in ORDER else 0
        earliest = last[0] if last else float(facts.get("born") or 0.0)
        for phase in reversed(ORDER[after : ORDER.index(state)]):
            began = max(earliest, marks[0][0] - spent[phase])
            marks.insert(0, (began, phase))
    return marks
