"""The model server's front: clients on a Unix socket, one queue, one engine process behind it.

A client's connection outlives the engine: when the engine's process dies, the front starts another, gives the
suspects (the records of the call that was running) to it in halves until the culprit is alone, and goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glide.server.engine import FRONT, DeadEngine, EngineHandle
from glide.server.status import Status
from glide.template import Template
from glide.vocabulary import State

LINE_LIMIT = 64 << 20  # bytes of one client line
RECORD_TIMEOUT = 600.0  # seconds, for records that bring none of their own
QUEUE_LIMIT = 4096  # records a client may have waiting; its socket fills up beyond that
CALL_SECONDS = 0.5  # a window is about this much work, so that no client waits long behind another's
REPORT_SECONDS = 2.0  # counters alone are reported this often; a change of state at once
BARREN_DEATHS = 20  # engine deaths in a row without a finished record, after which the glidein has failed


@dataclass(eq=False)
class Item:
    """A record in the queue: whose it is, what the client calls it, what the engine needs."""

    client: Client
    custom_id: str
    fields: list[Any]
    timeout: float
    attempts: int
    deaths: int = 0  # engines that died while this record was alone in them


@dataclass(eq=False)
class Client:
    """One connection; `waiting` is bounded by QUEUE_LIMIT through `room`."""

    writer: asyncio.StreamWriter
    stamp: dict[str, Any]
    waiting: deque[Item] = field(default_factory=deque)
    defaults: dict[str, Any] = field(default_factory=dict)
    unanswered: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False  # it has sent all its records
    gone: bool = False

    def send(self, line: str) -> None:
        if not self.gone:
            self.writer.write(line.encode() + b"\n")

    def close_if_complete(self) -> None:
        if self.ended and self.unanswered == 0:
            self.send("#complete")
            self.writer.close()


class Front:
    """Serves one template until its task is cancelled."""

    def __init__(self, template: Template, socket: Path, log: Path):
        self.template = template
        self.socket = socket
        self.log = log
        self.status = Status(template=template.digest, model=template.model)
        self.clients: deque[Client] = deque()  # in the order of whose turn it is
        self.suspects: deque[list[Item]] = deque()  # calls to make alone, before anything else
        self.flying: dict[int, Item] = {}
        self.work = asyncio.Event()
        self.changed = asyncio.Event()
        self.next_key = 0
        self.finished = 0

    async def run(self) -> None:
        """Listen, and keep an engine alive for as long as that makes sense."""
        self.socket.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._connected, path=_short(self.socket), limit=LINE_LIMIT)
        barren = 0
        while self.status.state != State.FAILED:
            finished = self.finished
            await self._engine_life()
            barren = barren + 1 if self.finished == finished else 0
            if barren >= BARREN_DEATHS:
                self._enter(State.FAILED, f"the engine died {barren} times in a row; last: {self.status.failure}")
        for client in list(self.clients):  # they cannot be served here: HTCondor finds them another lane
            client.writer.close()
        await server.serve_forever()  # Failed, and here to say so

    # ---- the engine ------------------------------------------------------------------------------

    async def _engine_life(self) -> None:
        """One engine process from its start to its death."""
        engine = await EngineHandle.start(self.template, self.log)
        tasks: list[asyncio.Task[None]] = []
        try:
            while True:
                message = await engine.receive()
                if "phase" in message:
                    self._enter(message["phase"])
                elif "failed" in message:
                    self._enter(State.FAILED, message["failed"])
                elif "warm" in message:
                    self.status = Status(**{**self.status.to_dict(), "gpu": message["warm"].get("gpu", "")})
                    self._enter(State.WARM)
                    tasks.append(asyncio.create_task(self._feed(engine, message["warm"])))
                    tasks.append(asyncio.create_task(self._watch_calls(engine)))
                elif "begin" in message:
                    engine.begin(message["begin"])
                else:
                    self._finished(message["done"])
                    if "idle" in message:
                        engine.idle(message["idle"], self)
        except DeadEngine as death:
            if self.status.state in State.COMING_UP:
                self._enter(State.FAILED, f"the engine {death} while {self.status.state}")
            elif self.status.state == State.WARM:
                self._enter(State.BLANK, f"the engine {death}")
                self._suspect(engine.begun, str(death))
        finally:
            for task in tasks:
                task.cancel()
            await engine.stop()

    async def _watch_calls(self, engine: EngineHandle) -> None:
        """No call may take longer than the longest timeout of its records."""
        while True:
            await asyncio.sleep(1.0)
            timeouts = [self.flying[key].timeout for key in engine.begun if key in self.flying]
            if engine.begun_at is not None and timeouts:
                engine.hurry(max(timeouts))

    async def _feed(self, engine: EngineHandle, warm: dict[str, Any]) -> None:
        """Keep one call running and one more waiting in the engine, so that it never waits for us."""
        while True:
            await engine.slots.acquire()
            while not (items := self._take(warm["batch"], warm["window"])):
                self.work.clear()
                await self.work.wait()
            for item in items:
                self.flying[self.next_key] = item
                item.fields[0] = self.next_key
                self.next_key += 1
            for client in {item.client for item in items}:
                client.send(f"#begun {sum(item.client is client for item in items)}")
            engine.sent(len(items))
            await engine.send({"serve": [item.fields for item in items]})
            if self.suspects:  # alone means alone: the next call goes out when this one has come back
                await engine.drained()

    def _take(self, batch: int, window: int) -> list[Item]:
        """The next records: suspects alone, else the clients' in turn, about CALL_SECONDS of work."""
        if self.suspects:
            return self.suspects.popleft()
        pace = self.status.record_seconds
        wanted = min(window, max(batch, int(CALL_SECONDS / pace))) if pace else batch
        items = list(self._in_turn(wanted))
        for client in {item.client for item in items}:
            client.room.set()
        return items

    def _in_turn(self, wanted: int) -> Iterator[Item]:
        share = max(1, wanted // max(1, sum(bool(client.waiting) for client in self.clients)))
        for _ in range(len(self.clients)):
            client = self.clients[0]
            self.clients.rotate(-1)
            for _ in range(min(share, len(client.waiting))):
                yield client.waiting.popleft()

    def _finished(self, done: list[tuple[int, dict[str, Any]]]) -> None:
        for key, result in done:
            item = self.flying.pop(key)
            line = {"custom_id": item.custom_id, **result, **item.client.stamp, "attempts": item.attempts}
            item.client.send(json.dumps(line, ensure_ascii=False))
            item.client.unanswered -= 1
            item.client.close_if_complete()
        self.finished += len(done)

    def _suspect(self, begun: list[int], death: str) -> None:
        """Sort what was in the dead engine: the running call's records are suspects, the others only wait."""
        suspects = [self.flying.pop(key) for key in begun if key in self.flying]
        suspects = [item for item in suspects if not item.client.gone]
        for item in reversed(self.flying.values()):
            item.client.waiting.appendleft(item)
        self.flying.clear()
        if len(suspects) == 1:
            suspects[0].deaths += 1
        if len(suspects) == 1 and suspects[0].deaths == 1:  # it may have been somebody else's fault
            self.suspects.appendleft(suspects)
        elif len(suspects) == 1:
            error = {"type": "EngineDied", "message": f"the engine {death} on this record"}
            self.flying[-1] = suspects[0]
            self._finished([(-1, {"text": None, "tokens": 0, "error": error, "seconds": 0.0})])
        elif suspects:
            middle = len(suspects) // 2
            self.suspects.extendleft([suspects[middle:], suspects[:middle]])
        self.work.set()

    # ---- the clients -----------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled: the server is stopping, and streams would print a traceback for each connection
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            hello = json.loads(await reader.readline() or "{}")
            if hello.get("op") == "watch":
                await self._watch(writer)
            elif hello.get("op") == "serve":
                await self._serve(reader, writer, hello)
        writer.close()

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        """Send the status now and whenever it changes."""
        told: Status | None = None
        while True:
            if told is None or told != self.status:
                urgent = told is None or told.state != self.status.state
                told = self.status
                writer.write(json.dumps(told.attributes()).encode() + b"\n")
                await writer.drain()
                if urgent:
                    continue
            self.changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), REPORT_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: dict) -> None:
        client = Client(writer, {"glidein": hello.get("glidein", "")})
        if hello.get("template") not in (None, "", self.template.digest):
            client.send(f"#refused this server holds {self.template.digest}")
            return
        if self.status.state == State.FAILED:
            client.send(f"#refused {self.status.failure}")
            return
        self.clients.append(client)
        try:
            # After its last record the client only listens, so an end of file is its death.
            while line := await reader.readline():
                if line.strip():
                    await self._take_line(client, json.loads(line), hello.get("starts", 0))
        except (ValueError, KeyError, TypeError) as error:
            client.send(f"#wrong {error!r} in {line[:200].decode(errors='replace').strip()}")
        finally:
            client.gone = True
            self.clients.remove(client)
            client.waiting.clear()

    async def _take_line(self, client: Client, message: dict[str, Any], starts: int) -> None:
        """One line of a client: a record, defaults for the records after it, or the end."""
        if message.get("op") == "end":
            client.ended = True
            client.close_if_complete()
        elif "custom_id" not in message:
            client.defaults = message
        else:
            record = {**client.defaults, **message}
            if not isinstance(record["prompt"], str):
                raise TypeError("prompt is not a string")
            fields = [None, record["prompt"], record.get("generate", {})]
            timeout, attempts = record.get("timeout", RECORD_TIMEOUT), record.get("attempts", 0) + starts + 1
            client.waiting.append(Item(client, record["custom_id"], fields, timeout, attempts))
            client.unanswered += 1
            self.work.set()
            while len(client.waiting) >= QUEUE_LIMIT:
                client.room.clear()
                await client.room.wait()

    def _enter(self, state: str, failure: str = "") -> None:
        self.status = self.status.entering(state, failure)
        print(f"{FRONT} {state} {failure}".rstrip(), flush=True)
        self.changed.set()


def _short(path: Path) -> str:
    """A name for a socket that fits sun_path's 108 bytes: relative, for our folder is the socket's."""
    return path.name
