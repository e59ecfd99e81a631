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
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from glide.job_ad import read_ad
from glide.server.engines import printable
from glide.system import publish
from glide.vocabulary import Job

HAND_IN_SECONDS = 10.0  # a visitor who takes longer has no ticket
LINE_BYTES = 1 << 15  # of what a visitor says


@dataclass(frozen=True)
class Ticket:
    """What a job asks for.

    `template` is empty for a job that takes what there is; `starts` counts earlier starts. A job that is `resumed`
    may have streamed results although it counts no start: an access point that was killed forgets some. `lane` counts
    from 0; a `sticky` job brings a template; `user` is whose it is. It `came` at this monotonic time, which a `timed`
    one is told.
    """

    input: Path
    output: Path
    chirp: str
    template: str
    starts: int
    resumed: bool
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
        publish(self.path, f"{port} {self.cookie}\n", durable=False)

    async def knows(self, reader: asyncio.StreamReader) -> bool:
        """Whether a visitor knows the secret: any account of this host can connect."""
        (cookie,) = await _lines(reader, 1)
        return hmac.compare_digest(cookie, self.cookie.encode())

    async def visit(self, reader: asyncio.StreamReader) -> Ticket | Watch:
        """What a visitor wants who knows the secret; ValueError where it makes no sense."""
        came = time.monotonic()
        (folder,) = map(os.fsdecode, await _lines(reader, 1))
        if folder == "watch":
            return Watch()
        source, target, ad, chirp, glidein = map(os.fsdecode, await _lines(reader, 5))
        job, machine = read_ad(ad), read_ad(ad and str(Path(ad).with_name(".machine.ad")))
        return Ticket(
            Path(folder, source), Path(folder, target), chirp, job.get(Job.TEMPLATE, ""),
            int(job.get("NumJobStarts", 0)), int(job.get("NumShadowStarts", 1)) > 1, printable(glidein),
            int(machine.get("SlotID", 1)) - 1, job.get(Job.STICKY) == "true", job.get("User", ""), came,
            job.get(Job.TIMED) == "true",
        )  # fmt: skip

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


async def _lines(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    """The next lines; EOFError where there are no more, asyncio.TimeoutError where they do not come."""

    async def read() -> list[bytes]:
        lines = [await reader.readline() for _ in range(count)]
        if not all(line.endswith(b"\n") for line in lines):
            raise EOFError
        return [line.rstrip(b"\n") for line in lines]

    return await asyncio.wait_for(read(), HAND_IN_SECONDS)
