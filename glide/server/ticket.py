"""The requests that the model server accepts on its endpoint, and the files that these requests name.

An invocation job runs the script glide/invoke/ticket.sh on its lane, and this script sends a request. The request has
seven lines: the server's secret, the job's folder, the input, the output, the file with the job ad, the file with
chirp's address, and the GlideId. The server answers with lines for the job's error output, and then with the line
`exit CODE`. If a client sends the secret and then the line `watch`, the server sends the status of all lanes.

The input has one JSON object per line, with `custom_id` and `prompt`. A line without `custom_id` gives default values
for the lines after it, for example `{"generate": {"max_new_tokens": 4}}`.

The output has one line `{"custom_id","text","tokens","error","seconds","glidein","attempts"}` per record, in the order
in which the records finish. While the job runs, these lines are also streamed to the job's folder on the access
point. If the job starts again, the server reads the streamed lines and skips the records that already have a
line. If the job gives back records (glide.protocol.keep), the output also has a line with the number of records that
the job keeps (glide.server.stream).
"""

from __future__ import annotations

import asyncio
import hmac
import math
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from glide.job_ad import read_ad
from glide.protocol import keep
from glide.server.engines import printable
from glide.system import publish
from glide.vocabulary import Job, Machine

# Seconds between two transfers of a job's results to the access point: the default, the minimum and the maximum.
STREAM_SECONDS, LEAST_STREAM_SECONDS, MOST_STREAM_SECONDS = 1.0, 0.25, 60.0
REQUEST_SECONDS = 10.0  # time limit for the lines of a request, in seconds; a slower client is disconnected
LINE_BYTES = 1 << 15  # maximum number of bytes in a line that a client sends


@dataclass(frozen=True)
class JobRequest:
    """The request that a job sends to the model server.

    Attributes:
        chirp: path of the file with chirp's address and cookie; empty if the job has no such file.
        template: digest of the template that the job needs; empty if the job accepts the template of its lane.
        starts: number of earlier starts of the job, according to the job's ad.
        resumed: whether an earlier start of the job may have streamed results. This can be true although `starts` is 0,
            because an access point that is killed forgets some starts.
        glidein: GlideId of the glidein, which is written into the job's results.
        lane: number of the lane; the first lane has the number 0.
        sticky: whether this is a sticky job, which brings a template.
        standing: whether this is a standing job, which serves live calls and brings no records.
        retires: Unix time after which the lane accepts no further job; 0 if it is unknown.
        user: the job's user, in the form of HTCondor's attribute User.
        arrived: time by the monotonic clock when the request arrived.
        timed: whether the job's error output must contain the arrival time of this request and the end time of the job.
        keep: number of records that the job keeps, according to its ad; None if it keeps all its records.
        keep_can_change: whether the job can read later values of `keep` from the access point (glide.protocol.keep).
        stream_seconds: seconds between two transfers of results to the access point.
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
    arrived: float
    timed: bool
    keep: int | None = None
    keep_can_change: bool = False
    stream_seconds: float = STREAM_SECONDS
    standing: bool = False
    retires: int = 0

    @property
    def errors(self) -> str:
        """The name of the job's error output on the access point."""
        return f"{self.input.name}.err"


class ConnectionWatch:
    """A request for the status of all lanes. The server sends the status immediately and after each change."""


class Endpoint:
    """The port of this host on which the model server listens, and a secret that clients must send.

    A file that only this account can read contains the port and the secret.
    """

    def __init__(self, path: Path):
        self.path = path
        self.cookie = secrets.token_hex(16)

    def open(self, port: int) -> None:
        """Write the port and the secret to the endpoint's file."""
        publish(self.path, f"{port} {self.cookie}\n", durable=False)

    async def authenticate(self, reader: asyncio.StreamReader) -> bool:
        """Return whether a client sends the secret. A secret is needed because any account of this host can connect."""
        (cookie,) = await _read_lines(reader, 1)
        return hmac.compare_digest(cookie, self.cookie.encode())

    async def read_request(self, reader: asyncio.StreamReader) -> JobRequest | ConnectionWatch:
        """Read the request of an authenticated client and return it.

        Raises:
            ValueError: the request is not valid.
        """
        arrived = time.monotonic()
        (folder,) = map(os.fsdecode, await _read_lines(reader, 1))
        if folder == "watch":
            return ConnectionWatch()
        source, target, ad, chirp, glidein = map(os.fsdecode, await _read_lines(reader, 5))
        job, machine = read_ad(ad), read_ad(ad and str(Path(ad).with_name(".machine.ad")))
        return JobRequest(
            Path(folder, source), Path(folder, target), chirp, job.get(Job.TEMPLATE, ""),
            int(job.get("NumJobStarts", "0")), int(job.get("NumShadowStarts", "1")) > 1, printable(glidein),
            int(machine.get("SlotID", "1")) - 1, job.get(Job.STICKY) == "true", job.get("User", ""), arrived,
            job.get(Job.TIMED) == "true", keep.number(job.get(Job.KEEP)), keep.FILE in job.get("FileRemaps"),
            _stream_seconds(job.get(Job.STREAM)), job.get(Job.STANDING) == "true",
            _unix_time(machine.get(Machine.RETIRES)),
        )  # fmt: skip

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


def _unix_time(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) else 0


def _stream_seconds(text: str) -> float:
    """Return the seconds between two transfers of results, from the value of the attribute in the job's ad."""
    try:
        seconds = float(text)
    except ValueError:
        return STREAM_SECONDS
    if not math.isfinite(seconds):
        return STREAM_SECONDS
    return min(max(seconds, LEAST_STREAM_SECONDS), MOST_STREAM_SECONDS)


async def _read_lines(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    """Read the next `count` lines and return them without their line ends.

    Raises:
        EOFError: the connection has ended.
        asyncio.TimeoutError: the lines did not arrive within REQUEST_SECONDS.
    """

    async def read() -> list[bytes]:
        lines = [await reader.readline() for _ in range(count)]
        if not all(line.endswith(b"\n") for line in lines):
            raise EOFError
        return [line.rstrip(b"\n") for line in lines]

    return await asyncio.wait_for(read(), REQUEST_SECONDS)
