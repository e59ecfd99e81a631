"""The model server's front: jobs at its door, one queue, one engine process behind it.

A job outlives the engine: when the engine's process dies, the front starts another, gives the suspects (the records
of the call that was running) to it in halves until the culprit is alone, and goes on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from glide.server.engine import FRONT, DeadEngine, EngineHandle
from glide.server.job import Item, Job, oldest_first
from glide.server.outer_job import tell_outer_job
from glide.server.status import Status
from glide.server.stream import ResultStream
from glide.server.ticket import Door, Ticket, Watch
from glide.template import Template
from glide.vocabulary import Exit, State

RECORD_TIMEOUT = 600.0  # seconds, for records that bring none of their own
QUEUE_LIMIT = 4096  # records a job may have waiting; more are read from its input as these get done
CALL_SECONDS = 0.5  # a window is about this much work, so that no job waits long behind another's
REPORT_SECONDS = 2.0  # a change of pace is reported within this time; a change of state at once
COUNT_SECONDS = 15.0  # and counters alone this often: each report costs startd, collector and negotiator their share
BARREN_DEATHS = 20  # engine deaths in a row without a finished record, after which the glidein has failed


class Front:
    """Serves one template until its task is cancelled."""

    def __init__(self, template: Template, door: Path, log: Path):
        self.template = template
        self.door = Door(door)
        self.log = log
        self.status = Status(template=template.digest, model=template.model)
        self.jobs: list[Job] = []  # the oldest first
        self.suspects: deque[list[Item]] = deque()  # calls to make alone, before anything else
        self.flying: dict[int, Item] = {}
        self.work = asyncio.Event()
        self.changed = asyncio.Event()
        self.next_key = 0
        self.finished = 0
        self.told_errors = 0

    async def run(self) -> None:
        """Listen, and keep an engine alive for as long as that makes sense."""
        visited = await asyncio.start_server(self._visited, "127.0.0.1", 0)
        self.door.open(visited.sockets[0].getsockname()[1])
        barren = 0
        while self.status.state != State.FAILED:
            finished = self.finished
            await self._engine_life()
            barren = barren + 1 if self.finished == finished else 0
            if barren >= BARREN_DEATHS:
                self._enter(State.FAILED, f"the engine died {barren} times in a row; last: {self.status.failure}")
        for job in list(self.jobs):  # they cannot be served here: HTCondor finds them another lane
            job.writer.close()
        await visited.serve_forever()  # Failed, and here to say so

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
                    warm = message["warm"]
                    gpu, batching = warm.get("gpu", ""), warm.get("batching", "")
                    self.status = replace(self.status, gpu=gpu, batching=batching, batch=warm["batch"])
                    self._enter(State.WARM)
                    tasks.append(asyncio.create_task(self._feed(engine, warm)))
                    tasks.append(asyncio.create_task(self._watch_calls(engine)))
                elif "begin" in message:
                    engine.begin(message["begin"])
                else:
                    self._finished(message["done"])
                    if "idle" in message:
                        self.status = replace(self.status, prefix_hits=message["prefix_hits"])
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
            for item in items:
                item.job.results.begun += 1
            engine.sent(len(items))
            await engine.send({"serve": [item.fields for item in items]})
            if self.suspects:  # alone means alone: the next call goes out when this one has come back
                await engine.drained()

    def _take(self, batch: int, window: int) -> list[Item]:
        """The next records: suspects alone, else about CALL_SECONDS of the jobs' work."""
        if self.suspects:
            return self.suspects.popleft()
        pace = self.status.record_seconds
        wanted = min(window, max(batch, int(CALL_SECONDS / pace))) if pace else batch
        items = oldest_first(self.jobs, wanted)
        for job in {item.job for item in items}:
            job.room.set()
        return items

    def _finished(self, done: list[tuple[int, dict[str, Any]]]) -> None:
        for key, result in done:
            item = self.flying.pop(key)
            job = item.job
            job.unanswered -= 1
            if job.gone:
                continue
            stamp = {"glidein": job.ticket.glidein, "attempts": item.attempts}
            job.results.add({"custom_id": item.custom_id, **result, **stamp})
            if job.unanswered == 0:
                job.answered.set()
        self.finished += len(done)
        if errors := sum(result["error"] is not None for _, result in done):
            self.status = replace(self.status, errors=self.status.errors + errors)
            if self.status.errors >= 2 * self.told_errors:  # each time is a transaction of the access point
                self._tell_outer_job()

    def _suspect(self, begun: list[int], death: str) -> None:
        """Sort what was in the dead engine: the running call's records are suspects, the others only wait."""
        suspects = [self.flying.pop(key) for key in begun if key in self.flying]
        suspects = [item for item in suspects if not item.job.gone]
        for item in reversed(self.flying.values()):
            item.job.waiting.appendleft(item)
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

    # ---- the jobs --------------------------------------------------------------------------------

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled: the server is stopping, and streams would print a traceback for each connection
        with suppress(OSError, ValueError, asyncio.TimeoutError, asyncio.CancelledError):
            visitor = await self.door.visit(reader)
            if isinstance(visitor, Ticket):
                await self._admit(visitor, reader, writer)
            elif isinstance(visitor, Watch):
                await self._tell(writer)
        writer.close()

    async def _admit(self, ticket: Ticket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a ticket until all its records have a result, or the job or this server is gone."""
        job = Job(ticket, writer, ResultStream(ticket.output, f"{ticket.input.name}.err", ticket.chirp))
        if ticket.template not in ("", self.template.digest):
            job.say(f"refused: this server holds {self.template.digest}")
            return job.dismiss(Exit.SERVER_LOST)
        if self.status.state == State.FAILED:
            job.say(f"refused: {self.status.failure}")
            return job.dismiss(Exit.SERVER_LOST)
        self.jobs.append(job)
        serving = asyncio.create_task(self._serve(job))
        streaming = asyncio.create_task(job.results.run(job.say))
        gone = asyncio.create_task(reader.read())  # a job has no more to say: an end of file is its death
        try:
            await asyncio.wait({serving, gone}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                job.dismiss(serving.result())
        finally:
            job.gone = True
            self.jobs.remove(job)
            job.waiting.clear()
            for task in (serving, streaming, gone):
                task.cancel()
            job.results.close()

    async def _serve(self, job: Job) -> int:
        """Read a job's records, and return its exit code when they are answered."""
        done = await job.results.earlier() if job.ticket.starts else set()
        defaults: dict[str, Any] = {}
        line = b""
        try:
            with job.ticket.input.open("rb") as lines:
                for line in lines:
                    if not line.strip():
                        continue
                    message = json.loads(line)
                    if "custom_id" not in message:
                        defaults = message
                    elif message["custom_id"] not in done:
                        self._queue(job, {**defaults, **message})
                    while len(job.waiting) >= QUEUE_LIMIT:
                        job.room.clear()
                        await job.room.wait()
        except (ValueError, KeyError, TypeError) as error:
            job.say(f"wrong: {error!r} in {line[:200].decode(errors='replace').strip()}")
            return Exit.INPUT
        except OSError as error:
            job.say(f"its records cannot be read: {error}")
            return Exit.SERVER_LOST
        while job.unanswered:
            job.answered.clear()
            await job.answered.wait()
        return Exit.OK

    def _queue(self, job: Job, record: dict[str, Any]) -> None:
        if not isinstance(record["prompt"], str):
            raise TypeError("prompt is not a string")
        fields = [None, record["prompt"], record.get("generate", {})]
        attempts = record.get("attempts", 0) + job.ticket.starts + 1
        timeout = record.get("timeout", RECORD_TIMEOUT)
        if not (isinstance(timeout, (int, float)) and timeout > 0):
            raise TypeError("timeout is not a number of seconds")
        job.waiting.append(Item(job, record["custom_id"], fields, timeout, attempts))
        job.unanswered += 1
        self.work.set()

    # ---- who watches -----------------------------------------------------------------------------

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        """Send the status now and whenever it changes."""
        told, since = None, 0.0
        while True:
            age = time.monotonic() - since
            if self.status.is_news_after(told) or (age > COUNT_SECONDS and told != self.status):
                told, since = self.status, time.monotonic()
                writer.write(told.advertisement().encode())
                await writer.drain()
                continue
            self.changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), REPORT_SECONDS)

    def _enter(self, state: str, failure: str = "") -> None:
        self.status = self.status.entering(state, failure)
        print(f"{FRONT} {state} {failure}".rstrip(), flush=True)
        if state in (State.WARM, State.FAILED):
            self._tell_outer_job()
        self.changed.set()

    def _tell_outer_job(self) -> None:
        self.told_errors = self.status.errors
        self.telling = asyncio.create_task(tell_outer_job(self.status))
