"""What the model server reports, in the log that it shares with its engines."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

FRONT = "model server:"  # how its lines begin, unlike an engine's
LIMIT = 10_000_000  # bytes of the log, and again of what was moved aside


def say(words: str) -> None:
    """Write a line to the log, with the time in UTC."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    with suppress(OSError):  # the disk is full
        print(f"{FRONT} {now} {words}".rstrip(), flush=True)


def trim(log: Path, limit: int = LIMIT) -> None:
    """Move a log's last bytes aside when it is too long, and empty it.

    Not by renaming: engines append to the open file.
    """
    with suppress(OSError), log.open("r+b") as file:
        size = file.seek(0, 2)
        if size > limit:
            file.seek(size - limit)
            log.with_name(f"{log.name}.old").write_bytes(file.read(limit))
            file.truncate(0)
