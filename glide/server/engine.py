"""The front's handle on the engine's process: start it, talk to it, and say how it died."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glide.server import frames, keeper
from glide.server.engine_process import DUMP, INTERRUPT
from glide.server.environment import python
from glide.server.log import FRONT
from glide.system import end_with_parent, tail
from glide.template import Template
from glide.vocabulary import ENGINE_VARIABLE

if TYPE_CHECKING:
    from glide.server.front import Front

GRACE_SECONDS = 5.0  # for a call that was interrupted, or a process that has closed its channel, to end by itself
DUMP_SECONDS = 0.5  # for the stacks to be written before the end
DRAIN_SECONDS = 1.0  # after its end, for what it has sent to be read; a descriptor that it gave away may stay open
SAID_BYTES = 1 << 16  # of its output, that are read after its end


class DeadEngine(Exception):
    """The engine's process has ended; the message says how, as a predicate.

    `own_doing` when that was beyond doubt by what it did itself, an exit or a hang: what a signal from elsewhere ended,
    memory running out say, may have been another process's fault.
    """

    def __init__(self, how: str, own_doing: bool):
        super().__init__(how)
        self.own_doing = own_doing


class EngineHandle:
    """One engine process, under its keeper. `slots` bounds the calls it has been given.

    `begun` are the keys it works on. Signals to the keeper reach the engine. SIGTERM ends the engine and everything
    that it has started.
    """

    def __init__(self, process: asyncio.subprocess.Process, reader: Any, writer: Any, log: Path, mark: str):
        self.process = process
        self.reader = reader
        self.writer = writer
        self.log = log
        self.mark = mark  # in the environment of all that it starts
        self.slots = asyncio.Semaphore(2)
        self.begun: list[int] = []
        self.begun_at: float | None = None  # None while no call runs
        self.overdue = ""  # why we killed it, if we did
        self.started = time.monotonic()
        self.warm = False  # whether it has loaded
        self.unused = False  # whether we ended it because nobody needs it
        self.calls: list[int] = []  # sizes of the calls given and not come back, oldest first
        self.empty = asyncio.Event()
        self.heard = time.monotonic()
        self.log_start = log.stat().st_size if log.exists() else 0
        self.ending = asyncio.create_task(self._end_channel())

    @classmethod
    async def start(cls, template: Template, log: Path, environment: str | None, seen: Iterable[str]) -> EngineHandle:
        """Start an engine in an environment, from where it sees some of the node's folders; Unusable as `python`."""
        program, variables = python(environment, seen)
        mark = f"{_mark(log)}{secrets.token_hex(8)}"
        ours, theirs = socket.socketpair()
        with theirs:
            # Its input: other descriptors do not reach into containers.
            process = await asyncio.create_subprocess_exec(
                *keeper.kept([*program, "-m", "glide.server.engine_process"]),
                stdin=theirs.fileno(), env={**variables, ENGINE_VARIABLE: mark}, start_new_session=True,
                preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        engine = cls(process, reader, writer, log, mark)
        engine.writer.write(frames.encode({"template": template.to_json()}))
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
        except ValueError as error:  # a user's code has written to the engine's channel
            self.overdue = self.overdue or f"sent {error}"
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        raise await self._death()

    async def _death(self) -> DeadEngine:
        """Wait until nothing of it is left, and return how it ended."""
        if not self.overdue:  # else it would not end by itself
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.process.wait(), GRACE_SECONDS)
        code = await self.stop()
        said = tail(self.log, SAID_BYTES, self.log_start)  # by it, not by another before
        lines = [line for line in said.splitlines() if FRONT not in line]
        if self.overdue:
            return DeadEngine(f"{self.overdue}, so it was killed{_where_it_was(lines)}", own_doing=True)
        return DeadEngine(_how_it_ended(code, lines), own_doing=code >= 0)

    async def _end_channel(self) -> None:
        """Know an engine's death by its process: a copy of it may hold the channel open for ever."""
        await self.process.wait()
        await asyncio.sleep(DRAIN_SECONDS)
        self.writer.transport.abort()

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
            self._signal(DUMP)
            await asyncio.sleep(DUMP_SECONDS)
            self._signal(signal.SIGTERM)

    @property
    def silent(self) -> float:
        """Seconds since it said anything, while it has calls to make and makes none."""
        return time.monotonic() - self.heard if self.calls and self.begun_at is None else 0.0

    def interrupt(self) -> None:
        """Have the running call end with an exception, if it is one that notices."""
        self._signal(INTERRUPT)

    def sent(self, records: int) -> None:
        self.calls.append(records)
        self.empty.clear()

    def idle(self, seconds: float, front: Front) -> None:
        """A call came back after so many seconds of work."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"{seconds} seconds")
        front.status = front.status.served_more(self.calls.pop(0), seconds)
        self.slots.release()
        self.begun_at = None
        if not self.calls:
            self.empty.set()

    async def drained(self) -> None:
        await self.empty.wait()

    def _signal(self, number: int) -> None:
        # Not by the process's own method: that reaps it, and then asyncio does not learn its exit code.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def stop(self) -> int:
        """End the process and everything that it has started, if they have not ended; return its exit code."""
        self.writer.close()
        self._signal(signal.SIGTERM)
        code = await self.process.wait()
        self.ending.cancel()
        if code == -signal.SIGKILL:  # the keeper itself was killed
            await asyncio.to_thread(keeper.end_marked, ENGINE_VARIABLE, self.mark)
        return -signal.SIGKILL if code == keeper.KILLED else code


def end_strays(log: Path) -> None:
    """Kill what engines have left behind of an earlier server that wrote the same log."""
    keeper.end_marked(ENGINE_VARIABLE, _mark(log))


def _mark(log: Path) -> str:
    return f"{log}#"


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
