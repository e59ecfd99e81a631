"""Start an engine process for the model server, exchange messages with the engine, and report how the engine ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.protocol import frames
from glide.server import keeper
from glide.server.engine_process import DUMP
from glide.server.engines import runs_in_environment
from glide.server.engines.base import INTERRUPT
from glide.server.environment import surroundings
from glide.server.log import SERVER_PREFIX
from glide.system import ending_with_us, tail
from glide.template import Template
from glide.vocabulary import ENGINE_VARIABLE

# In two cases, the model server waits for this number of seconds, and then kills the engine:
# - The server has interrupted a call of the engine, but the call still runs.
# - The engine has closed its connection to the server, but the engine's process still runs.
GRACE_SECONDS = 5.0
DUMP_SECONDS = 0.5  # seconds in which an engine can write its threads' stacks to the log, before the engine is killed
# After an engine's process has ended, the model server still accepts messages for this number of seconds. Then the
# server closes the connection, because another process could keep the connection open forever.
DRAIN_SECONDS = 1.0
STACK = "(most recent call first):"  # end of a line after which faulthandler writes the stack of a thread
OUTPUT_CHARACTERS = 800  # maximum length of an engine's last output in a message
OUTPUT_BYTES = 1 << 16  # this number of bytes, at the end of the log, is searched for an engine's last output


class DeadEngine(Exception):
    """The engine's process has ended. The message describes this end, for example "exited with code 1".

    Attributes:
        self_inflicted: True if the engine certainly caused its own end: the engine exited, or the model server killed
            the engine because of its behaviour. False if the engine was ended by a signal that the model server did
            not send. The cause of such a signal may be another process, for example one that used up the memory.
    """

    def __init__(self, how: str, self_inflicted: bool):
        super().__init__(how)
        self.self_inflicted = self_inflicted


class EngineHandle:
    """An engine process that runs under a keeper (keeper.py).

    The keeper forwards the signals INTERRUPT and DUMP to the engine. When the keeper gets SIGTERM, it kills the engine
    and all processes that the engine has started.

    The model server sends lists of records to the engine. A list is a *pending call* until the engine has served all
    records of the list. The engine serves a list in one or more engine calls. The *running records* are the records of
    the engine call that runs now.

    A concurrent engine serves many records at the same time. For it, each record counts as a pending call of its own.
    Its running records are those that it has started to serve.

    Attributes:
        mark: value of the environment variable ENGINE_VARIABLE in the engine's process and in all processes that the
            engine starts. Every engine has a different mark.
        concurrent: whether the engine is a concurrent engine. This is known when the engine is warm.
        running: for each running record, its key, and the time by the monotonic clock when it was started. Between two
            calls, these are the records of the last call.
        is_calling: whether an engine call is running.
        kill_reason: reason why the model server has killed the engine; empty if the server has not killed the engine.
        started: time by the monotonic clock when the process was started.
        warm: whether the engine has loaded its template.
        can_sleep: whether the engine can free its GPU memory without ending. This is known when the engine is warm.
        unused: whether the model server has ended the engine because no job was left.
        pending_calls: for each pending call, its number of records; the oldest call is first.
        call_ended: event that is set when a pending call has ended.
        last_message_at: time by the monotonic clock when the engine's last message arrived, or when the engine got work
            after it was idle.
        log_start: size of the log, in bytes, when this engine was started.
    """

    def __init__(self, process: asyncio.subprocess.Process, reader: Any, writer: Any, log: Path, mark: str):
        self.process = process
        self.reader = reader
        self.writer = writer
        self.log = log
        self.mark = mark
        self.concurrent = False
        self.running: dict[int, float] = {}
        self.is_calling = False
        self.kill_reason = ""
        self.started = time.monotonic()
        self.warm = False
        self.can_sleep = False
        self.unused = False
        self.pending_calls: deque[int] = deque()
        self.call_ended = asyncio.Event()
        self.last_message_at = time.monotonic()
        self.log_start = log.stat().st_size if log.exists() else 0
        self.ending = asyncio.create_task(self._end_channel())

    @classmethod
    async def start(
        cls, template: Template, log: Path, environment: str | None, visible_folders: Iterable[str], compiled: Path
    ) -> EngineHandle:
        """Start an engine process.

        Args:
            log: file to which the process writes its output.
            environment: path of a Python environment or of a container image; None for the node's own Python.
            visible_folders: folders of the node that are visible to the engine if the engine runs in a container.
            compiled: folder for code that programs compile for a model and a GPU.

        Raises:
            UnusableEnvironment: the engine cannot run in this environment.
        """
        around = surroundings(environment, visible_folders)
        program = around.python_command if runs_in_environment(template) else [sys.executable]
        mark = f"{_mark(log)}{secrets.token_hex(8)}"
        ours, theirs = socket.socketpair()
        with theirs:
            # The engine's standard input is its connection to the server, because container runtimes pass only the
            # three standard descriptors to the engine.
            process = await asyncio.create_subprocess_exec(
                *keeper.under_keeper([*program, "-m", "glide.server.engine_process"]),
                stdin=theirs.fileno(), env={**around.variables, ENGINE_VARIABLE: mark}, start_new_session=True,
                preexec_fn=ending_with_us(signal.SIGTERM),
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        engine = cls(process, reader, writer, log, mark)
        engine.writer.write(
            frames.encode(
                {
                    "template": template.to_json(),
                    "prefix": around.prefix,
                    "python": around.python,
                    "compiled": str(compiled),
                }
            )
        )
        return engine

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message to the engine. If the engine has died, do nothing, because `receive` reports the death."""
        self.writer.write(frames.encode(message))
        try:
            await self.writer.drain()
        except ConnectionError:
            return

    async def receive(self) -> Any:
        """Wait for the engine's next message and return it.

        Raises:
            DeadEngine: the engine has ended, so it sends no further message.
        """
        try:
            message = await frames.read(self.reader)
            self.last_message_at = time.monotonic()
            return message
        except ValueError as error:  # the message is invalid, because user code has written to the connection
            self.kill_reason = self.kill_reason or f"sent {error}"
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        raise await self._death()

    async def _death(self) -> DeadEngine:
        """Wait until the engine and all processes that it started have ended. Return a description of this end."""
        if not self.kill_reason:  # the engine has not been killed, so it gets some seconds to end by itself
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.process.wait(), GRACE_SECONDS)
        code = await self.stop()
        output = tail(self.log, OUTPUT_BYTES, self.log_start)  # output of this engine, not of earlier ones
        lines = [line for line in output.splitlines() if SERVER_PREFIX not in line]
        if self.kill_reason:
            how = f"{self.kill_reason}, so it was killed{_main_thread_frame(lines)}{_last_output(lines)}"
            return DeadEngine(how, self_inflicted=True)
        return DeadEngine(_describe_end(code, lines), self_inflicted=code >= 0)

    async def _end_channel(self) -> None:
        """Close the connection to the engine after the engine's process has ended.

        Another process may still have the engine's socket open. In this case, the connection does not close by itself.
        Without this method, `receive` would then wait forever.
        """
        await self.process.wait()
        await asyncio.sleep(DRAIN_SECONDS)
        self.writer.transport.abort()

    def call_began(self, keys: list[int]) -> None:
        """Remember the keys of the records in the call that the engine has just begun."""
        self.running = dict.fromkeys(keys, time.monotonic())
        self.is_calling = True

    def records_started(self, keys: list[int]) -> None:
        """Remember the keys of records that a concurrent engine has started to serve."""
        self.running |= dict.fromkeys(keys, time.monotonic())

    def records_paused(self, keys: Iterable[int]) -> None:
        """Forget the starts of records that a concurrent engine will start again."""
        for key in keys:
            self.running.pop(key, None)

    async def enforce_timeout(self, timeout: float) -> None:
        """Interrupt the running call if it has taken more than `timeout` seconds.

        Kill the engine if the call has exceeded this time by more than GRACE_SECONDS.
        """
        over = time.monotonic() - next(iter(self.running.values())) - timeout
        if over > GRACE_SECONDS:
            await self.kill(f"gave no result within {timeout:g} s and did not react to the interrupt")
        elif over > 0:
            self.interrupt()

    async def kill(self, reason: str) -> None:
        """Let the engine write the stacks of its threads to the log, and then kill the engine."""
        if not self.kill_reason:
            self.kill_reason = reason
            self._signal(DUMP)
            await asyncio.sleep(DUMP_SECONDS)
            self._signal(signal.SIGTERM)

    @property
    def silent_seconds(self) -> float:
        """Seconds since the engine's last message; 0 without a pending call, or while it serves a record."""
        serves = self.is_calling or (self.concurrent and self.running)
        return time.monotonic() - self.last_message_at if self.pending_calls and not serves else 0.0

    def interrupt(self) -> None:
        """Make the running call raise RecordTimeout. While the call runs native code, the exception is delayed."""
        self._signal(INTERRUPT)

    def sent(self, records: int) -> None:
        """Add pending calls for this number of records, which were sent to the engine."""
        if not self.pending_calls:
            self.last_message_at = time.monotonic()  # an idle engine sends no messages, so its silence begins now
        self.pending_calls.extend([1] * records if self.concurrent else [records])

    def finish_call(self) -> int:
        """Remove the call that has ended, which is the oldest one, and return its number of records."""
        self.is_calling = False
        self.call_ended.set()
        return self.pending_calls.popleft()

    def finish_records(self, keys: Iterable[int]) -> None:
        """Remove records that a concurrent engine has served."""
        for key in keys:
            self.running.pop(key, None)
            self.finish_call()

    async def wait_for_pending_below(self, limit: int) -> None:
        """Wait until fewer than `limit` calls are pending."""
        while len(self.pending_calls) >= limit:
            self.call_ended.clear()
            await self.call_ended.wait()

    def _signal(self, number: int) -> None:
        # Use os.kill, not `send_signal` of asyncio's process object. If the process has just ended, `send_signal` may
        # take the exit code from the kernel. Then asyncio can no longer get the exit code.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def stop(self) -> int:
        """End the engine and all processes that it has started, and return the engine's exit code."""
        self.writer.close()
        self._signal(signal.SIGTERM)
        code = await self.process.wait()
        self.ending.cancel()
        if code == -signal.SIGKILL:  # the keeper itself was killed, so the engine's processes may still run
            await asyncio.to_thread(keeper.kill_marked, ENGINE_VARIABLE, self.mark)
        return -signal.SIGKILL if code == keeper.KILLED else code


def end_strays(log: Path) -> None:
    """Kill the engine processes that an earlier model server with the same log has left behind."""
    keeper.kill_marked(ENGINE_VARIABLE, _mark(log))


def _mark(log: Path) -> str:
    """Return the first part of EngineHandle.mark. All engines that write to the same log have the same first part."""
    return f"{log}#"


def _describe_end(code: int, log: Sequence[str]) -> str:
    last_line = _last_output(log)
    if code >= 0:
        return f"exited with code {code}{last_line}"
    hint = " (which happens when memory runs out)" if -code == signal.SIGKILL else ""
    return f"was killed by signal {-code} ({signal.Signals(-code).name}){hint}{last_line}"


def _last_output(log: Sequence[str]) -> str:
    """Return a phrase for an error message: the last line that an engine printed. Stacks of threads are left out.

    If the engine has printed nothing, return an empty text.
    """
    printed = [line for line in log if line.strip() and not line.startswith("  ") and not line.endswith(STACK)]
    return f"; its last output: {' '.join(printed[-1].split())[:OUTPUT_CHARACTERS]}" if printed else ""


def _main_thread_frame(log: Sequence[str]) -> str:
    """Return a phrase for an error message: the line of code that an engine was executing when it was killed.

    Before the engine was killed, faulthandler wrote the stacks of all threads to the log. The stack of the main thread
    is the last one. If the log has no stacks, return an empty text.
    """
    heads = [number for number, line in enumerate(log) if line.endswith(STACK)]
    frame = log[heads[-1] + 1].strip() if heads and len(log) > heads[-1] + 1 else ""
    return f"; it was in {frame[:300]} (all stacks are in its log)" if frame else ""
