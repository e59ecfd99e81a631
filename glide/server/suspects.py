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
    """Find the record that made an engine die. If several records are suspects, divide these records into two calls.

    A single suspect is certainly the cause in two cases:

    - The engine exited, or the model server killed the engine because of the engine's behaviour (`self_inflicted`).
    - Two engines have died while they served only this record.

    In all other cases, the single suspect is served alone again.

    Args:
        suspects: records of the call in which the engine died.
        self_inflicted: False if another process may have killed the engine; otherwise True.

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
