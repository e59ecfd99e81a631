"""Finished records, appended to a file of the job's own spool directory on the access point while the job runs.

What has been appended survives the node: a restarted job skips it, and whoever gathers can read it early. Speaks
HTCondor's chirp protocol to the job's starter. Standard library only, for it runs on the lane.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

SECONDS = 1.0  # between appends; each costs the access point a few milliseconds
RECORDS = 256  # or so many records, whichever comes first


class Chirp:
    """The job's connection to its starter, which does for it what it asks on the access point."""

    def __init__(self) -> None:
        """Connect; OSError or KeyError where the job has no proxy (want_io_proxy)."""
        with open(os.environ["_CONDOR_CHIRP_CONFIG"], encoding="utf-8") as file:
            host, port, cookie = file.read().split()
        self.stream = socket.create_connection((host, int(port)), timeout=60).makefile("rwb")
        self._ask(f"cookie {cookie}")

    def fetch(self, name: str) -> bytes:
        """A file's content; OSError when there is none."""
        return self._read(self._ask(f"getfile {name}"))

    def append(self, name: str, data: bytes) -> None:
        """Add to a file's end, creating it; OSError when the access point cannot write, to a full disk say."""
        descriptor = self._ask(f"open {name} wac 384")  # 0600
        self.stream.readline()  # the file's status, unasked
        try:
            written = self._ask(f"write {descriptor} {len(data)}", data)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes written")
        finally:
            self._ask(f"close {descriptor}")

    def _ask(self, command: str, data: bytes = b"") -> int:
        self.stream.write(command.encode() + b"\n" + data)
        self.stream.flush()
        answer = int(self.stream.readline() or b"-1")
        if answer < 0:
            raise OSError(f"chirp {command.split()[0]}: error {answer}")
        return answer

    def _read(self, length: int) -> bytes:
        data = self.stream.read(length)
        if len(data) != length:
            raise OSError("the starter is gone")
        return data


class ResultStream(threading.Thread):
    """Appends lines in the background, so that the reader of results never waits for the access point."""

    def __init__(self, name: str):
        super().__init__(daemon=True)
        self.file = name
        self.lines: list[bytes] = []
        self.begun = 0  # records that the engine was given, for an account of what a lost node had begun
        self.wake = threading.Event()

    def add(self, line: str) -> None:
        self.lines.append(line.encode())
        if len(self.lines) >= RECORDS:
            self.wake.set()

    def run(self) -> None:
        chirp: Chirp | None = None
        torn = b""
        told = 0
        while True:
            self.wake.wait(SECONDS)
            self.wake.clear()
            lines, self.lines = self.lines, []
            if not lines and told == self.begun:
                continue
            told = self.begun
            try:
                chirp = chirp or Chirp()
                chirp.append(self.file, torn + b"".join(lines) + b'{"begun": %d}\n' % told)
                torn = b""
            except (OSError, KeyError, ValueError) as error:
                # The results are in the job's output all the same. What was half written ends with this newline.
                print(f"results are not streamed: {error!r}", file=sys.stderr, flush=True)
                torn = b"\n"
                chirp = None
                if isinstance(error, KeyError):
                    return


def fetched(name: str) -> bytes:
    """What an earlier start of this job has streamed; nothing where it can't be had."""
    try:
        return Chirp().fetch(name)
    except (OSError, KeyError, ValueError):
        return b""
