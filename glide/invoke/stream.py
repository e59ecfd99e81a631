"""Finished records, appended to a file of the job's own spool directory on the access point while the job runs.

What has been appended survives the node: a restarted job skips it, and whoever gathers can read it early. Speaks
HTCondor's chirp protocol to the job's starter. As cheap to import as glide.invoke.client, and for the same reason.
"""

import os
import sys
from _socket import AF_INET, AF_INET6, socket

TIMEOUT = 60.0  # seconds the access point may take for an append


class Chirp:
    """The job's connection to its starter, which does for it what it asks on the access point."""

    def __init__(self) -> None:
        """Connect; OSError or KeyError where the job has no proxy (want_io_proxy)."""
        with open(os.environ["_CONDOR_CHIRP_CONFIG"], encoding="utf-8") as file:
            host, port, cookie = file.read().split()
        self.socket = socket(AF_INET6 if ":" in host else AF_INET)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect((host, int(port)))
        self.buffer = b""
        self._ask(f"cookie {cookie}")

    def fetch(self, name: str) -> bytes:
        """A file's content; OSError when there is none."""
        length = self._ask(f"getfile {name}")
        while len(self.buffer) < length:
            self._receive()
        content, self.buffer = self.buffer[:length], self.buffer[length:]
        return content

    def append(self, name: str, data: bytes) -> None:
        """Add to a file's end, creating it; OSError when the access point cannot write, to a full disk say."""
        descriptor = self._ask(f"open {name} wac 384")  # 0600
        self._line()  # the file's status, unasked
        try:
            written = self._ask(f"write {descriptor} {len(data)}", data)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes written")
        finally:
            self._ask(f"close {descriptor}")

    def _ask(self, command: str, data: bytes = b"") -> int:
        self.socket.sendall(command.encode() + b"\n" + data)
        answer = int(self._line())
        if answer < 0:
            raise OSError(f"chirp {command.split()[0]}: error {answer}")
        return answer

    def _line(self) -> bytes:
        while b"\n" not in self.buffer:
            self._receive()
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def _receive(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise OSError("the starter is gone")
        self.buffer += data


class ResultStream:
    """Collects lines and appends them now and then."""

    SECONDS = 1.0  # between appends; each costs the access point a few milliseconds
    RECORDS = 256  # or so many records, whichever comes first

    def __init__(self, name: str):
        self.file = name
        self.lines: list[bytes] = []
        self.begun = 0  # records that the engine was given: an account of what a node had begun when it was lost
        self.told = 0
        self.flushed = 0.0
        self.chirp: Chirp | None = None
        self.torn = b""
        self.works = True

    def add(self, lines: list[bytes]) -> None:
        self.lines += lines

    def flush(self, now: float) -> None:
        """Append what has come together, if it is time; what fails is said and tried again with the next."""
        self.flushed = self.flushed or now
        due = now - self.flushed >= self.SECONDS or len(self.lines) >= self.RECORDS
        if not due or not self.works or (not self.lines and self.told == self.begun):
            return
        lines, self.lines = self.lines, []
        try:
            self.chirp = self.chirp or Chirp()
            self.chirp.append(self.file, self.torn + b"".join(lines) + b'{"begun": %d}\n' % self.begun)
            self.torn, self.told = b"", self.begun
        except KeyError:
            self.works = False  # a job without a proxy; its output has all results anyway
        except (OSError, ValueError) as error:
            print(f"results are not streamed: {error!r}", file=sys.stderr, flush=True)
            self.torn, self.chirp = b"\n", None  # ends what was half written
        self.flushed = now


def fetched(name: str) -> bytes:
    """What an earlier start of this job has streamed; nothing where it can't be had."""
    try:
        return Chirp().fetch(name)
    except (OSError, KeyError, ValueError):
        return b""
