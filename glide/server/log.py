"""Write the model server's lines to the log, and limit the size of the log. The engines write to the same log."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

SERVER_PREFIX = "model server:"  # start of each line that the model server writes; lines of engines start differently
LIMIT = 10_000_000  # maximum size of the log in bytes, and also of the file LOG.old


def log_line(text: str) -> None:
    """Write a line to the log. The line contains the time in UTC."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    with suppress(OSError):  # for example, the disk may be full
        print(f"{SERVER_PREFIX} {now} {text}".rstrip(), flush=True)


def trim(log: Path, limit: int = LIMIT) -> None:
    """If the log is longer than `limit` bytes, copy its last `limit` bytes to `LOG.old`, and empty the log.

    The log is not renamed, because engines have it open and would continue to write to the renamed file.
    """
    with suppress(OSError), log.open("r+b") as file:
        size = file.seek(0, 2)
        if size > limit:
            file.seek(size - limit)
            log.with_name(f"{log.name}.old").write_bytes(file.read(limit))
            file.truncate(0)
