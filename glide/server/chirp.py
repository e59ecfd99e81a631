"""Use a job's connection to the access point: HTCondor's chirp protocol. Its server is the job's starter."""

from __future__ import annotations

import asyncio
from pathlib import Path

TIMEOUT = 60.0  # time limit for an answer of the access point, in seconds
# The errors of a lost connection, and of an answer that is late or not valid.
FAILURES = (OSError, ValueError, EOFError, asyncio.TimeoutError)
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

    async def lookup(self, name: str) -> str:
        """Return the access point's name for a file. The job's attribute FileRemaps can determine this name.

        Raises:
            OSError: the starter refuses the command.
        """
        length = await self._command(f"lookup {name}")
        return (await asyncio.wait_for(self.reader.readexactly(length), TIMEOUT)).decode(errors="replace")

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
