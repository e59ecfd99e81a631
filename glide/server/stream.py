"""While a job runs, append its results to a file in the job's spool directory on the access point.

Appended results survive the loss of the node. If the job starts again, the records that have a result in this file are
skipped. The driver can read the results before the job ends. This module uses HTCondor's chirp protocol. The server of
this protocol is the job's starter.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from glide.system import open_regular

TIMEOUT = 60.0  # time limit for an answer of the access point, in seconds
# Maximum number of bytes in an attribute's text, without the two quotes around the text. With the quotes, the starter
# accepts 993 bytes.
LONGEST = 991


class Chirp:
    """A connection to a job's starter. The starter writes and reads files on the access point for the job."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, config: str) -> Chirp:
        """Connect to the starter of a job.

        Args:
            config: path of the file to which the starter has written its address and its cookie.

        Raises:
            OSError: the connection failed, for example because the job has no proxy (want_io_proxy).
        """
        host, port, cookie = Path(config).read_text("utf-8").split()
        chirp = cls(*await asyncio.wait_for(asyncio.open_connection(host, int(port)), TIMEOUT))
        await chirp._command(f"cookie {cookie}")
        return chirp

    async def fetch(self, name: str) -> bytes:
        """Return the content of a file on the access point.

        Raises:
            OSError: the file does not exist.
        """
        length = await self._command(f"getfile {name}")
        return await asyncio.wait_for(self.reader.readexactly(length), TIMEOUT)

    async def append(self, name: str, data: bytes) -> None:
        """Append data to a file on the access point, and create the file if it does not exist.

        Raises:
            OSError: the access point cannot write the data, for example because its disk is full.
        """
        descriptor = await self._command(f"open {name} wac 384")  # 384 is the mode 0600
        await self._read_line()  # the starter also sends the file's status, which is not needed
        try:
            # Do not write empty data: the starter of HTCondor 25.14 would end with a failed assertion.
            written = await self._command(f"write {descriptor} {len(data)}", data) if data else 0
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes written")
        finally:
            await self._command(f"close {descriptor}")

    async def set_attribute(self, name: str, value: str | int) -> None:
        """Set an attribute of the job's ad. The queue gets the value at the starter's next update or at the job's end.

        The attribute's name must begin with `Chirp`. To set another attribute, or to update the queue immediately, the
        job would need want_io_proxy. With want_io_proxy, any code on the node could change the job.
        """
        expression = str(value) if isinstance(value, int) else classad_string(value)
        # The starter answers 1 if it refuses the attribute's name.
        if await self._command(f"set_job_attr_delayed {name} {_escaped(expression)}") != 0:
            raise OSError(f"starter refused {name}: CHIRP_DELAYED_UPDATE_PREFIX on this node is not HTCondor's default")

    def close(self) -> None:
        self.writer.close()

    async def _command(self, command: str, data: bytes = b"") -> int:
        """Send a command and return the starter's answer, a number. Raise OSError if the number is negative."""
        self.writer.write(command.encode() + b"\n" + data)
        answer = int(await self._read_line())
        if answer < 0:
            raise OSError(f"chirp {command.split()[0]}: error {answer}")
        return answer

    async def _read_line(self) -> bytes:
        line = await asyncio.wait_for(self.reader.readline(), TIMEOUT)
        if not line.endswith(b"\n"):
            raise OSError("the starter has closed the connection")
        return line


def classad_string(text: str) -> str:
    """Return the text as a ClassAd string. The text is shortened to the length that the starter accepts."""
    parts: list[str] = []
    room = LONGEST
    for each in text:
        part = f"\\{each}" if each in '"\\' else each if each.isprintable() else " "
        room -= len(part.encode())
        if room < 0:
            break
        parts.append(part)
    return '"' + "".join(parts) + '"'


def _escaped(text: str) -> str:
    """Escape a text, so that a chirp command takes the whole text as one argument."""
    return text.replace("\\", "\\\\").replace(" ", "\\ ")


class ResultStream:
    """The results of a job. They are written to the job's output file, and then appended to a file on the access point.

    Args:
        output: the job's output file.
        errors: name of the job's error output on the access point.
        chirp_config: path of the file with the starter's address and cookie; empty if nothing is to be streamed.

    Attributes:
        begun: number of records that were sent to the engine. If the node is lost, the driver learns from this number
            how many records were tried.
        reported_begun: value of `begun` that was last sent to the access point.
        written: number of bytes in the output file. The file always ends with a complete line.
        sent: number of bytes of the output file that are on the access point.
        unsent_records: number of results that were written since the last append.
        batch_full: event that is set when many results are unsent (`RECORDS` or more). The next append then begins
            immediately.
        line_break: a line end if the last line on the access point may be incomplete; otherwise empty. The next append
            sends `line_break` before its data.
    """

    SECONDS = 1.0  # seconds between appends; each append costs the access point a few milliseconds
    RECORDS = 256  # if this number of results is unsent, they are appended immediately
    PIECE = 4_000_000  # maximum number of bytes in one append; each append must be finished within TIMEOUT seconds

    def __init__(self, output: Path, errors: str, chirp_config: str):
        self.name = output.name
        self.errors = errors
        self.file = open_regular(output, "wb")
        self.reading = open_regular(output)
        self.chirp_config = chirp_config
        self.chirp: Chirp | None = None
        self.begun = 0
        self.reported_begun = 0
        self.written = 0
        self.sent = 0
        self.unsent_records = 0
        self.batch_full = asyncio.Event()
        self.line_break = b""

    async def resume(self) -> set[str]:
        """Fetch the results that an earlier start of this job has streamed, and return the ids of their records.

        Write the fetched results to the output file.
        """
        results: dict[str, bytes] = {}
        with suppress(OSError, ValueError, EOFError, asyncio.TimeoutError):
            self.chirp = await self._connect()
            content = await self.chirp.fetch(self.name)
            self.line_break = b"" if content.endswith(b"\n") else b"\n"
            for line in content.split(b"\n"):
                with suppress(ValueError, KeyError, TypeError, RecursionError):  # skip incomplete lines
                    results.setdefault(json.loads(line)["custom_id"], line)
        for line in results.values():
            self._write(line + b"\n")
        self.sent = self.written
        return set(results)

    def add(self, line: bytes) -> None:
        """Write the line with a result to the output file.

        Raises:
            OSError: the line cannot be written.
        """
        self._write(line)
        self.unsent_records += 1
        if self.unsent_records >= self.RECORDS:
            self.batch_full.set()

    def _write(self, line: bytes) -> None:
        self.file.write(line)
        self.written += len(line)

    async def run(self, report: Callable[[str], None]) -> None:
        """Append new results to the file on the access point, again and again.

        The next append begins in either of these cases:

        - A certain time has passed (`SECONDS`).
        - Many results are unsent (`RECORDS` or more).

        If an append fails, report the failure and try again later.

        Args:
            report: function that gets the message about a failed append.
        """
        while self.chirp_config:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.batch_full.wait(), self.SECONDS)
            self.batch_full.clear()
            if self.sent == self.written and self.begun == self.reported_begun:
                continue
            self.unsent_records = 0
            try:
                self.file.flush()
                self.chirp = self.chirp or await self._connect()
                await self._append(self.chirp, self.written, self.begun)
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                report(f"results could not be streamed to the access point: {error!r}; trying again")
                self.line_break, self.chirp = b"\n", None
                await asyncio.sleep(self.SECONDS)

    async def _append(self, chirp: Chirp, end: int, begun: int) -> None:
        """Append the new bytes of the output file to its copy on the access point. Then append a line to the copy.

        This line contains the number `begun`.

        Args:
            end: offset in the output file at which the new bytes end. The new bytes begin at the offset `self.sent`.
            begun: number of records that were sent to the engine.
        """
        position = self.sent
        account = b'{"begun": %d}\n' % begun
        while True:
            piece = os.pread(self.reading.fileno(), min(self.PIECE, end - position), position)
            if position < end and not piece:
                raise OSError(f"output file {self.name} has become shorter")
            whole = piece.rfind(b"\n") + 1
            # The piece is a part of the new bytes. If the piece contains a line end, append only the complete lines.
            # Otherwise, the piece is a part of one long line. Then append the whole piece.
            piece = piece[: whole or len(piece)]
            position += len(piece)
            await chirp.append(self.name, self.line_break + piece + (account if position == end else b""))
            self.line_break = b""
            if whole:
                self.sent = position
            if position == end:
                self.reported_begun = begun
                return

    async def _connect(self) -> Chirp:
        chirp = await Chirp.connect(self.chirp_config)
        # The access point gives out the files of a running job only if all of them exist. HTCondor transfers the job's
        # error output only when the job ends. So create an empty error output on the access point now.
        await chirp.append(self.errors, b"")
        return chirp

    def close(self) -> None:
        """Close the files. Until then, the output file may be incomplete, so the job must not end before this call."""
        if self.chirp is not None:
            self.chirp.close()
        self.reading.close()
        self.file.close()
