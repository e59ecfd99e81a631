"""Finished records, appended to a file of the job's own spool directory on the access point while the job runs.

What has been appended survives the node: a restarted job skips it, and whoever gathers can read it early. Speaks
HTCondor's chirp protocol to the job's starter.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TIMEOUT = 60.0  # seconds the access point may take for an answer


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

    async def set_attribute(self, name: str, value: str | int) -> None:
        """Set an attribute of the job's ad in the queue."""
        words = json.dumps(value[:1000] if isinstance(value, str) else value).replace("\\", "\\\\").replace(" ", "\\ ")
        await self._ask(f"set_job_attr {name} {words}")

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


class ResultStream:
    """A job's results: in its output file at once, and on the access point soon."""

    SECONDS = 1.0  # between appends; each costs the access point a few milliseconds
    RECORDS = 256  # or so many records, whichever comes first

    def __init__(self, output: Path, errors: str, chirp_config: str):
        """Args: output: the job's output file; errors: its error output's name on the access point."""
        self.name = output.name
        self.errors = errors
        self.file = output.open("wb")
        self.chirp_config = chirp_config
        self.chirp: Chirp | None = None
        self.begun = 0  # records that the engine was given: an account of what a node had begun when it was lost
        self.told = 0
        self.unsent: list[bytes] = []
        self.full = asyncio.Event()
        self.torn = b""

    async def earlier(self) -> set[str]:
        """Take over what an earlier start of this job has streamed, and return the ids of its records."""
        with suppress(OSError, ValueError, EOFError, asyncio.TimeoutError):
            self.chirp = await self._connect()
            results: dict[str, bytes] = {}
            for line in (await self.chirp.fetch(self.name)).split(b"\n"):
                with suppress(ValueError, KeyError, TypeError):  # a torn line is no result
                    results.setdefault(json.loads(line)["custom_id"], line)
            self.file.writelines(line + b"\n" for line in results.values())
            return set(results)
        return set()

    def add(self, result: dict[str, Any]) -> None:
        line = json.dumps(result, ensure_ascii=False).encode() + b"\n"
        self.file.write(line)
        if self.chirp_config:
            self.unsent.append(line)
            if len(self.unsent) >= self.RECORDS:
                self.full.set()

    async def run(self, say: Callable[[str], None]) -> None:
        """Append what has come together when it is time; what fails is said, and tried again with the next."""
        while self.chirp_config:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.full.wait(), self.SECONDS)
            self.full.clear()
            lines, begun = len(self.unsent), self.begun
            if not lines and begun == self.told:
                continue
            try:
                self.chirp = self.chirp or await self._connect()
                data = b"".join(self.unsent[:lines]) + b'{"begun": %d}\n' % begun
                await self.chirp.append(self.name, self.torn + data)
                self.torn, self.told = b"", begun
                del self.unsent[:lines]
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                say(f"results are not streamed: {error!r}")
                self.torn, self.chirp = b"\n", None  # ends what was half written
                await asyncio.sleep(self.SECONDS)

    async def _connect(self) -> Chirp:
        chirp = await Chirp.connect(self.chirp_config)
        # Without its error output, which otherwise comes at its end, the retrieval of a running job fails half-way.
        await chirp.append(self.errors, b"")
        return chirp

    def close(self) -> None:
        """What is written is in the output file; only then may the job be told to end."""
        self.file.close()
        if self.chirp is not None:
            self.chirp.close()
