"""The front's handle on the engine's process: start it, talk to it, and say how it died."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glide.server import frames
from glide.server.engine_process import INTERRUPT
from glide.template import Template

if TYPE_CHECKING:
    from glide.server.front import Front

GRACE_SECONDS = 5.0  # for a call that was interrupted to end by itself
FRONT = "model server:"  # how the front's own lines begin in the log it shares with the engine


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
        self.calls: list[int] = []  # sizes of the calls given and not come back, oldest first
        self.empty = asyncio.Event()

    @classmethod
    async def start(cls, template: Template, log: Path) -> EngineHandle:
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "glide.server.engine_process", str(theirs.fileno()),
            pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
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
            return await frames.read(self.reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self.process.wait()
            how = f"{self.overdue} {_how_it_ended(code, self.log)}".strip()
            raise DeadEngine(how, own_doing=code >= 0 or bool(self.overdue)) from None

    def begin(self, keys: list[int]) -> None:
        """A call has begun."""
        self.begun = keys
        self.begun_at = time.monotonic()

    def hurry(self, timeout: float) -> None:
        """Interrupt a call that is over its time; kill the engine when that does not help."""
        over = time.monotonic() - (self.begun_at or time.monotonic()) - timeout
        if over > GRACE_SECONDS and not self.overdue:
            self.overdue = f"gave no result within {timeout:g} s and did not react, so it was killed; it"
            self.process.kill()
        elif over > 0:
            self.interrupt()

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


def _how_it_ended(code: int, log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and FRONT not in line]
    words = f"; it last said: {' '.join(lines[-1].split())[:300]}" if lines else ""
    if code >= 0:
        return f"exited with code {code}{words}"
    hint = " (which is what happens when memory runs out)" if -code == signal.SIGKILL else ""
    return f"was killed by signal {-code} ({signal.Signals(-code).name}){hint}{words}"
