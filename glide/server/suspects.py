"""Find the record that has ended an engine.

The suspects are the records of the call in which the engine died. They are divided into halves, and each half is served
in a separate call. If an engine dies again, its call is halved again, until a record is alone in its call.
"""

from __future__ import annotations

from collections.abc import Sequence

from glide.server.job import QueuedRecord


def next_calls(
    suspects: Sequence[QueuedRecord], self_inflicted: bool
) -> tuple[list[list[QueuedRecord]], QueuedRecord | None]:
    """Return the record that has ended an engine, or the calls that help to find this record.

    A record is the cause in two cases:

    - The record was alone in its call, and the engine certainly caused its own death.
    - Two engines have died while they served only this record.

    Args:
        suspects: records of the call in which the engine died.
        self_inflicted: whether the engine certainly caused its own death.

    Returns:
        A pair: the next calls, and the record that is the cause. The record is None while the cause is unknown. The
        calls must be sent one after the other. While one of these calls runs, the engine must not get another call.
    """
    if len(suspects) > 1:
        middle = len(suspects) // 2
        return [list(suspects[:middle]), list(suspects[middle:])], None
    if not suspects:
        return [], None
    (one,) = suspects
    one.deaths += 1
    if one.deaths == 1 and not self_inflicted:
        return [[one]], None
    return [], one
