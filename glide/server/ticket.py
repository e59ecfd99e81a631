"""An invocation job as the model server sees it: a ticket, handed in by glide/invoke/ticket.sh.

Input: a JSON object a line with `custom_id` and `prompt`; a line without `custom_id` gives defaults for the
lines after it (`{"generate": {"max_new_tokens": 4}}`).
Output: `{"custom_id","text","tokens","error","seconds","glidein","attempts"}` a line, as they finish. The same lines
are streamed to the job's spool directory meanwhile; a restarted job finds them there and skips their records.

A ticket is a line each of: cookie, folder, input, output, the job ad's file, chirp's file, GlideId. The answer is
words for the job's error output, and at last "exit CODE". Who hands in the cookie and the word `watch` gets the status.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from glide.job_ad import read_ad
from glide.system import publish
from glide.vocabulary import Job

HAND_IN_SECONDS = 30.0  # a visitor who takes longer has no ticket


@dataclass(frozen=True)
class Ticket:
    """What a job asks for.

    `template` is empty for a job that takes what there is; `starts` counts earlier starts; `lane` counts from 0; a
    `sticky` job brings a template; `user` is whose it is. It `came` at this monotonic time, which a `timed` one
    is told.
    """

    input: Path
    output: Path
    chirp: str
    template: str
    starts: int
    glidein: str
    lane: int
    sticky: bool
    user: str
    came: float
    timed: bool


class Watch:
    """What a visitor wants who asks for the status, now and at each change."""


class Door:
    """Where the server is reached: a port of this host's own, and the secret that those of this account can read."""

    def __init__(self, path: Path):
        self.path = path
        self.cookie = secrets.token_hex(16)

    def open(self, port: int) -> None:
        publish(self.path, f"{port} {self.cookie}\n")

    async def visit(self, reader: asyncio.StreamReader) -> Ticket | Watch | None:
        """What a visitor wants; nothing from one who does not know the secret."""
        came = time.monotonic()
        cookie, folder = await _lines(reader, 2)
        if not hmac.compare_digest(cookie, self.cookie):
            return None
        if folder == "watch":
            return Watch()
        source, target, ad, chirp, glidein = await _lines(reader, 5)
        job, machine = read_ad(ad), read_ad(ad and str(Path(ad).with_name(".machine.ad")))
        return Ticket(
            Path(folder, source), Path(folder, target), chirp, job.get(Job.TEMPLATE, ""),
            int(job.get("NumJobStarts", 0)), glidein, int(machine.get("SlotID", 1)) - 1,
            job.get(Job.STICKY) == "true", job.get("User", ""), came, job.get(Job.TIMED) == "true",
        )  # fmt: skip

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


async def _lines(reader: asyncio.StreamReader, count: int) -> list[str]:
    return [(await asyncio.wait_for(reader.readline(), HAND_IN_SECONDS)).decode().rstrip("\n") for _ in range(count)]
