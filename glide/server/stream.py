"""Finished records, appended to a file of the job's own spool directory on the access point while the job runs.

What has been appended survives the node: a restarted job skips it, and whoever gathers can read it early. Speaks
HTCondor's chirp protocol to the job's starter.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.system import open_regular

TIMEOUT = 60.0  # seconds the access point may take for an answer
LONGEST = 991  # bytes of a text that is reported: the starter refuses more than 993, the quotes included


class Chirp:
    """A connection to a job's starter, which does for the job what it asks on the access point."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, config: str) -> Chirp:
        """Connect as the file says that the starter left; OSError where the job has no proxy (want_io_proxy)."""
        host, port, cookie = Path(config).read_text("utf-8").split()
        chirp = cls(*await asyncio.wait_for(asyncio.open_connection(host, int(port)), TIMEOUT))
        await chirp._ask(f"cookie {cookie}")
        return chirp

    async def fetch(self, name: str) -> bytes:
        """A file's content; OSError when there is none."""
        length = await self._ask(f"getfile {name}")
        return await asyncio.wait_for(self.reader.readexactly(length), TIMEOUT)

    async def append(self, name: str, data: bytes) -> None:
        """Add to a file's end, creating it; OSError when the access point cannot write, to a full disk say."""
        descriptor = await self._ask(f"open {name} wac 384")  # 0600
        await self._line()  # the file's status, unasked
        try:
            # To write nothing would end the starter of 25.14, by an assertion.
            written = await self._ask(f"write {descriptor} {len(data)}", data) if data else 0
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes written")
        finally:
            await self._ask(f"close {descriptor}")

    async def report(self, name: str, value: str | int) -> None:
        """Set an attribute of the job's ad: in the queue it is after the starter's next update, or when the job ends.

        Its name begins with `Chirp`. Other attributes, and sooner, can be set only with want_io_proxy, which would let
        any code on the node change the job.
        """
        words = str(value) if isinstance(value, int) else classad_string(value)
        # The starter answers 1 where it refuses the name.
        if await self._ask(f"set_job_attr_delayed {name} {_word(words)}") != 0:
            raise OSError(f"the starter does not take {name}: CHIRP_DELAYED_UPDATE_PREFIX is not HTCondor's default")

    def close(self) -> None:
        self.writer.close()

    async def _ask(self, command: str, data: bytes = b"") -> int:
        self.writer.write(command.encode() + b"\n" + data)
        answer = int(await self._line())
        if answer < 0:
            raise OSError(f"chirp {command.split()[0]}: error {answer}")
        return answer

    async def _line(self) -> bytes:
        line = await asyncio.wait_for(self.reader.readline(), TIMEOUT)
        if not line.endswith(b"\n"):
            raise OSError("the starter is gone")
        return line


def classad_string(text: str) -> str:
    """Return the text in quotes, as much of it as the starter takes."""
    parts: list[str] = []
    room = LONGEST
    for each in text:
        part = f"\\{each}" if each in '"\\' else each if each.isprintable() else " "
        room -= len(part.encode())
        if room < 0:
            break
        parts.append(part)
    return '"' + "".join(parts) + '"'


def _word(text: str) -> str:
    """Return the text as one word of a chirp request."""
    return text.replace("\\", "\\\\").replace(" ", "\\ ")


class ResultStream:
    """A job's results: in its output file at once, and on the access point soon."""

    SECONDS = 1.0  # between appends; each costs the access point a few milliseconds
    RECORDS = 256  # or so many records, whichever comes first
    PIECE = 4_000_000  # bytes of an append: each has to be there within TIMEOUT

    def __init__(self, output: Path, errors: str, chirp_config: str):
        """Args: output: the job's output file; errors: its error output's name on the access point."""
        self.name = output.name
        self.errors = errors
        self.file = open_regular(output, "wb")
        self.reading = open_regular(output)
        self.chirp_config = chirp_config
        self.chirp: Chirp | None = None
        self.begun = 0  # records that the engine was given: an account of what a node had begun when it was lost
        self.told = 0
        self.written = 0  # bytes in the output file; always whole lines
        self.sent = 0  # of these on the access point, likewise
        self.unsent = 0  # records
        self.full = asyncio.Event()
        self.torn = b""  # what ends a line that may be half written on the access point

    async def earlier(self) -> set[str]:
        """Take over what an earlier start of this job has streamed, and return the ids of its records."""
        results: dict[str, bytes] = {}
        with suppress(OSError, ValueError, EOFError, asyncio.TimeoutError):
            self.chirp = await self._connect()
            content = await self.chirp.fetch(self.name)
            self.torn = b"" if content.endswith(b"\n") else b"\n"
            for line in content.split(b"\n"):
                with suppress(ValueError, KeyError, TypeError, RecursionError):  # a torn line is no result
                    results.setdefault(json.loads(line)["custom_id"], line)
        for line in results.values():
            self._write(line + b"\n")
        self.sent = self.written
        return set(results)

    def add(self, result: dict[str, Any]) -> None:
        """Write a result; OSError when that is impossible."""
        self._write(json.dumps(result, ensure_ascii=False).encode() + b"\n")
        self.unsent += 1
        if self.unsent >= self.RECORDS:
            self.full.set()

    def _write(self, line: bytes) -> None:
        self.file.write(line)
        self.written += len(line)

    async def run(self, say: Callable[[str], None]) -> None:
        """Append what has come together when it is time; what fails is said, and tried again with the next."""
        while self.chirp_config:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.full.wait(), self.SECONDS)
            self.full.clear()
            if self.sent == self.written and self.begun == self.told:
                continue
            self.unsent = 0
            try:
                self.file.flush()
                self.chirp = self.chirp or await self._connect()
                await self._append(self.chirp, self.written, self.begun)
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                say(f"results are not streamed: {error!r}")
                self.torn, self.chirp = b"\n", None
                await asyncio.sleep(self.SECONDS)

    async def _append(self, chirp: Chirp, end: int, begun: int) -> None:
        """Bring the output file up to an offset to the access point, and how many records were begun."""
        position = self.sent
        account = b'{"begun": %d}\n' % begun
        while True:
            piece = os.pread(self.reading.fileno(), min(self.PIECE, end - position), position)
            if position < end and not piece:
                raise OSError(f"{self.name} has become shorter")
            whole = piece.rfind(b"\n") + 1
            piece = piece[: whole or len(piece)]  # a line may be longer than a piece
            position += len(piece)
            await chirp.append(self.name, self.torn + piece + (account if position == end else b""))
            self.torn = b""
            if whole:
                self.sent = position
            if position == end:
                self.told = begun
                return

    async def _connect(self) -> Chirp:
        chirp = await Chirp.connect(self.chirp_config)
        # Without its error output, which otherwise comes at its end, the retrieval of a running job fails half-way.
        await chirp.append(self.errors, b"")
        return chirp

    def close(self) -> None:
        """What is written is in the output file; only then may the job be told to end."""
        if self.chirp is not None:
            self.chirp.close()
        self.reading.close()
        self.file.close()
