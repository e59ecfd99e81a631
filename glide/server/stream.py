"""While a job runs, append its results to a file in the job's folder on the access point.

Appended results survive the loss of the node. If the job starts again, the records that have a result in this file are
skipped. The driver can read the results before the job ends.

The file also contains lines that are not results. Such a line has these fields:

- `begun`: number of records that this start of the job has sent to the engine.
- `kept`: number of records, from the start of the input, that the job keeps. The job gives back the other records.
- `asked`: the value of GlideKeep that `kept` is the answer to.
- `refused`: true if this start of the job has ended, and has sent no record to the engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glide.protocol import keep
from glide.protocol.result import is_count
from glide.server.chirp import FAILURES, Chirp
from glide.system import open_regular

# Time limit for the last append of a job that will start again, in seconds. The job ends only after this append.
LAST_SECONDS = 5.0


@dataclass
class EarlierStarts:
    """Facts from the lines that earlier starts of a job have appended to the file on the access point.

    Attributes:
        ids: ids of the records that have a result.
        kept: the smallest number of records that the job keeps; None if the job keeps all its records.
        asked: the value of GlideKeep that `kept` is the answer to; None if it is unknown.
        refused: number of starts that have sent no record to the engine, according to the server that ended them.
    """

    ids: set[str] = field(default_factory=set)
    kept: int | None = None
    asked: int | None = None
    refused: int = 0

    def add(self, line: bytes) -> bool:
        """Add the facts from a line. Return whether the line is the first result of a record.

        Incomplete and invalid lines are ignored.
        """
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            fields: dict[str, Any] = json.loads(line)
            if "custom_id" in fields:
                before = len(self.ids)
                self.ids.add(fields["custom_id"])
                return len(self.ids) > before
            self.refused += fields.get("refused") is True
            kept: Any = fields.get("kept")
            asked: Any = fields.get("asked")
            if is_count(kept) and (self.kept is None or kept <= self.kept):
                self.kept, self.asked = kept, asked if is_count(asked) else None
        return False


class ResultStream:
    """The results of a job. They are written to the job's output file, and then appended to a file on the access point.

    Args:
        output: the job's output file.
        errors: name of the job's error output on the access point.
        chirp_config: path of the file with the starter's address and cookie; empty if nothing is to be streamed.
        seconds: seconds between appends. Each append costs the access point a few milliseconds.

    Attributes:
        begun: number of records that were sent to the engine. If the node is lost, the driver learns from this number
            how many records were tried.
        reported_begun: value of `begun` that was last sent to the access point.
        written: number of bytes in the output file. The file always ends with a complete line.
        sent: number of bytes of the output file that are on the access point.
        unsent_records: number of results that were written since the last append.
        ready: event that is set when `run` may begin. Until then, `resume` may use the connection to the starter.
        append_now: event that is set when the next append must begin immediately.
        line_break: a line end if the last line on the access point may be incomplete; otherwise empty. The next append
            sends `line_break` before its data.
    """

    RECORDS = 256  # if this number of results is unsent, they are appended immediately; but see LONG_SECONDS
    # With more seconds between appends than this, a number of unsent results never makes an append begin immediately.
    # Only PIECE bytes do. Otherwise, a fast engine would cause many appends in spite of the long time.
    LONG_SECONDS = 1.0
    PIECE = 4_000_000  # maximum number of bytes in one append; each append must be finished within the chirp time limit
    RETRY_SECONDS = 2.0  # seconds between a failed append and the next try

    def __init__(self, output: Path, errors: str, chirp_config: str, seconds: float = 1.0):
        self.name = output.name
        self.errors = errors
        self.file = open_regular(output, "wb")
        self.reading = open_regular(output)
        self.chirp_config = chirp_config
        self.seconds = seconds
        self.chirp: Chirp | None = None
        self.begun = 0
        self.reported_begun = 0
        self.written = 0
        self.sent = 0
        self.unsent_records = 0
        self.ready = asyncio.Event()
        self.append_now = asyncio.Event()
        self.line_break = b""

    async def resume(self) -> EarlierStarts:
        """Fetch what earlier starts of this job have streamed, and return it.

        Write the fetched results to the output file, and also the number of records that the job keeps.
        """
        earlier = EarlierStarts()
        content = b""
        try:
            self.chirp = await self._connect()
            content = await self.chirp.fetch(self.name)
            self.line_break = b"" if content.endswith(b"\n") else b"\n"
        except FAILURES:  # for example, there is no such file
            self._disconnect()
        for line in content.split(b"\n"):
            if earlier.add(line):
                self._write(line + b"\n")
        if earlier.kept is not None:
            self._write(self._kept_line(earlier.kept, earlier.asked))
        self.sent = self.written
        return earlier

    def add(self, line: bytes) -> None:
        """Write the line with a result to the output file.

        Raises:
            OSError: the line cannot be written.
        """
        self._write(line)
        self.unsent_records += 1
        if self._many_are_unsent:
            self.append_now.set()

    @property
    def _many_are_unsent(self) -> bool:
        if self.seconds > self.LONG_SECONDS:
            return self.written - self.sent >= self.PIECE
        return self.unsent_records >= self.RECORDS

    def add_kept(self, kept: int, asked: int) -> None:
        """Write the number of records that the job keeps to the output file, and append it immediately.

        Args:
            asked: the value of GlideKeep that `kept` is the answer to.

        Raises:
            OSError: the line cannot be written.
        """
        self._write(self._kept_line(kept, asked))
        self.append_now.set()

    def _kept_line(self, kept: int, asked: int | None) -> bytes:
        return json.dumps({"begun": self.begun, "kept": kept, "asked": asked}).encode() + b"\n"

    def _write(self, line: bytes) -> None:
        self.file.write(line)
        self.written += len(line)

    async def run(self, report: Callable[[str], None], on_keep: Callable[[int], None] | None = None) -> None:
        """Append new results to the file on the access point, again and again. Begin when `ready` is set.

        The next append begins in either of these cases:

        - A certain time has passed (`seconds`).
        - Many results are unsent (see `RECORDS` and `PIECE`), or the number of records that the job keeps has changed.

        If an append fails, report the failure and try again later.

        Args:
            report: function that gets the message about a failed append.
            on_keep: function that gets the value of GlideKeep in the job's ad, every `seconds` while it is a number;
                None if the value is not to be read.
        """
        await self.ready.wait()
        read_at = time.monotonic()
        while self.chirp_config:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.append_now.wait(), self.seconds)
            if on_keep is not None and time.monotonic() - read_at >= self.seconds:
                read_at = time.monotonic()
                await self._read_keep(on_keep)
            self.append_now.clear()
            if self.sent == self.written and self.begun == self.reported_begun:
                continue
            self.unsent_records = 0
            try:
                await self._append_unsent()
                if not self._many_are_unsent:
                    self.append_now.clear()
            except FAILURES as error:
                report(f"results could not be streamed to the access point: {error!r}; trying again")
                self.line_break = b"\n"
                self._disconnect()
                await asyncio.sleep(self.RETRY_SECONDS)
                self.append_now.set()

    async def _read_keep(self, on_keep: Callable[[int], None]) -> None:
        """Read GlideKeep in the job's ad. If it is a number, pass it to `on_keep`. If this fails, try again later."""
        try:
            self.chirp = self.chirp or await self._connect()
            number = keep.number_in_name(await self.chirp.lookup(keep.FILE))
            if number is not None:
                on_keep(number)
        except FAILURES:
            self._disconnect()

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
        return await _connect(self.chirp_config, self.errors)

    def _disconnect(self) -> None:
        if self.chirp is not None:
            self.chirp.close()
            self.chirp = None

    async def append_rest(self) -> None:
        """Append all unsent results, for a job that will start again. Ignore failures. `run` must have been cancelled.

        If the job is not spooled, HTCondor copies the output file to another file than the one with the streamed
        results. The job's next start reads only the streamed results.
        """
        if not self.chirp_config or self.sent == self.written:
            return
        self._disconnect()  # `run` may have been cancelled in the middle of an append
        self.line_break = b"\n"
        with suppress(*FAILURES):
            await asyncio.wait_for(self._append_unsent(), LAST_SECONDS)

    async def _append_unsent(self) -> None:
        self.chirp = self.chirp or await self._connect()
        self.file.flush()  # after the last wait, so that the file has all bytes that `written` counts
        await self._append(self.chirp, self.written, self.begun)

    def close(self) -> None:
        """Close the files. Until then, the output file may be incomplete, so the job must not end before this call."""
        self._disconnect()
        self.reading.close()
        self.file.close()


async def _connect(chirp_config: str, errors: str) -> Chirp:
    chirp = await Chirp.connect(chirp_config)
    # The access point gives out the files of a running job only if all of them exist. HTCondor transfers the job's
    # error output only when the job ends. So create an empty error output on the access point now.
    await chirp.append(errors, b"")
    return chirp


async def report_refusal(chirp_config: str, output: str, errors: str) -> None:
    """Append a line to a job's streamed results: this start of the job sends no record to the engine.

    The next start of the job then does not count this start as an attempt. If the line cannot be appended, do nothing.
    Call this function after the job's stream has been closed.

    Args:
        chirp_config, errors: as in ResultStream.
        output: name of the job's output file on the access point.
    """

    async def append() -> None:
        chirp = await _connect(chirp_config, errors)
        try:
            await chirp.append(output, b'\n{"begun": 0, "refused": true}\n')  # the last line may be incomplete
        finally:
            chirp.close()

    if chirp_config:
        with suppress(*FAILURES):
            await asyncio.wait_for(append(), LAST_SECONDS)
