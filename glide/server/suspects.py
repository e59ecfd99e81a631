"""Which record took an engine down: the records of the call that ran are called again in halves until one is alone."""

from __future__ import annotations

from collections.abc import Sequence

from glide.server.job import Item


def next_calls(suspects: Sequence[Item], own_doing: bool) -> tuple[list[list[Item]], Item | None]:
    """Return the calls to make next, each alone in an engine, and the record that is the culprit, if it is known.

    Args:
        suspects: the records of the call in which the engine died.
        own_doing: whether nothing but the engine itself can have ended it.
    """
    if len(suspects) > 1:
        middle = len(suspects) // 2
        return [list(suspects[:middle]), list(suspects[middle:])], None
    if not suspects:
        return [], None
    (one,) = suspects
    one.deaths += 1
    if one.deaths == 1 and not own_doing:
        return [[one]], None
    return [], one
