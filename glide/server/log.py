"""What the model server says of itself, in the log that it shares with its engines."""

from __future__ import annotations

from datetime import datetime, timezone

FRONT = "model server:"  # how its lines begin, unlike an engine's


def say(words: str) -> None:
    """A line in the log, with the time in UTC."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    print(f"{FRONT} {now} {words}".rstrip(), flush=True)
