"""The front's handle on the engine's process: start it, talk to it, and say how it died."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glide.server import frames
from glide.server.engine_process import DUMP, INTERRUPT
from glide.server.environment import python
from glide.server.log import FRONT
from glide.system import end_with_parent
from glide.template import Template

if TYPE_CHECKING:
    from glide.server.front import Front

GRACE_SECONDS = 5.0  # for a call that was interrupted to end by itself
DUMP_SECONDS = 0.5  # for the stacks to be written before the end


class DeadEngine(Exception):
    """The engine's process has ended; the message says how, as a predicate.

    `own_doing` when that was beyond doubt by what it did itself, an exit or a hang: what a signal from elsewhere ended,
    memory running out say, may have been another process's fault.
    """

    def __init__(self, how: str, own_doing: bool):
        super().__init__(how)
        self.own_doing = own_doing


class EngineHandle:
    """One engine process. `slots` bounds the calls it has been given; `begun` are the keys it works on."""

    def __init__(self, process: asyncio.subprocess.Process, reader: Any, writer: Any, log: Path):
        self.process = process
        self.reader = reader
        self.writer = writer
        self.log = log
        self.slots = asyncio.Semaphore(2)
        self.begun: list[int] = []
        self.begun_at: float | None = None  # None while no call runs
        self.overdue = ""  # why we killed it, if we did
        self.started = time.time()
        self.warm = False  # whether it has loaded
        self.unused = False  # whether we ended it because nobody needs it
        self.calls: list[int] = []  # sizes of the calls given and not come back, oldest first
        self.empty = asyncio.Event()
        self.heard = time.monotonic()
        self.log_start = log.stat().st_size if log.exists() else 0

    @classmethod
    async def start(cls, template: Template, log: Path, environment: str | None, seen: Iterable[str]) -> EngineHandle:
        """Start an engine in an environment, from where it sees some of the node's folders; Unusable as `python`."""
        program, variables = python(environment, seen)
        ours, theirs = socket.socketpair()
        with theirs:
            # Its input: other descriptors do not reach into containers.
            process = await asyncio.create_subprocess_exec(
                *program, "-m", "glide.server.engine_process", stdin=theirs.fileno(), env=variables,
                preexec_fn=end_with_parent,  # the engine itself ends with a container's runtime
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        engine = cls(process, reader, writer, log)
        await engine.send({"template": template.to_json()})
        return engine

    async def send(self, message: dict[str, Any]) -> None:
        self.writer.write(frames.encode(message))
        try:
            await self.writer.drain()
        except ConnectionError:
            return  # `receive` is about to learn how it died

    async def receive(self) -> Any:
        """The next message; DeadEngine when there will be none."""
        try:
            message = await frames.read(self.reader)
            self.heard = time.monotonic()
            return message
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self.process.wait()
            said = self.log.read_bytes()[self.log_start :].decode(errors="replace")  # by it, not by another before
            lines = [line for line in said.splitlines() if FRONT not in line]
            if self.overdue:
                raise DeadEngine(f"{self.overdue}, so it was killed{_where_it_was(lines)}", own_doing=True) from None
            raise DeadEngine(_how_it_ended(code, lines), own_doing=code >= 0) from None

    def begin(self, keys: list[int]) -> None:
        """A call has begun."""
        self.begun = keys
        self.begun_at = time.monotonic()

    async def hurry(self, timeout: float) -> None:
        """Interrupt a call that is over its time; kill the engine when that does not help."""
        over = time.monotonic() - (self.begun_at or time.monotonic()) - timeout
        if over > GRACE_SECONDS:
            await self.give_up(f"gave no result within {timeout:g} s and did not react")
        elif over > 0:
            self.interrupt()

    async def give_up(self, why: str) -> None:
        """Kill the engine; the log gets the stacks of its threads first."""
        if not self.overdue:
            self.overdue = why
            self.process.send_signal(DUMP)
            await asyncio.sleep(DUMP_SECONDS)
            self.process.kill()

    @property
    def silent(self) -> float:
        """Seconds since it said anything, while it has calls to make and makes none."""
        return time.monotonic() - self.heard if self.calls and self.begun_at is None else 0.0

    def interrupt(self) -> None:
        """Have the running call end with an exception, if it is one that notices."""
        self.process.send_signal(INTERRUPT)

    def sent(self, records: int) -> None:
        self.calls.append(records)
        self.empty.clear()

    def idle(self, seconds: float, front: Front) -> None:
        """A call came back after so many seconds of work."""
        front.status = front.status.served_more(self.calls.pop(0), seconds)
        self.slots.release()
        self.begun_at = None
        if not self.calls:
            self.empty.set()

    async def drained(self) -> None:
        await self.empty.wait()

    async def stop(self) -> None:
        """End the process if it has not ended."""
        self.writer.close()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


def _how_it_ended(code: int, log: Sequence[str]) -> str:
    said = [line for line in log if line.strip()]
    words = f"; it last said: {' '.join(said[-1].split())[:300]}" if said else ""
    if code >= 0:
        return f"exited with code {code}{words}"
    hint = " (which is what happens when memory runs out)" if -code == signal.SIGKILL else ""
    return f"was killed by signal {-code} ({signal.Signals(-code).name}){hint}{words}"


def _where_it_was(log: Sequence[str]) -> str:
    """The frame that the main thread, which faulthandler writes last, was in."""
    heads = [number for number, line in enumerate(log) if line.endswith("(most recent call first):")]
    frame = log[heads[-1] + 1].strip() if heads and len(log) > heads[-1] + 1 else ""
    return f"; it was in {frame[:300]} (all stacks are in its log)" if frame else ""
