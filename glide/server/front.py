"""One resident state: its jobs, one queue, one engine process behind it.

A job outlives the engine: when the engine's process dies, the front starts another, gives the suspects (the records
of the call that was running) to it in halves until the culprit is alone, and goes on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from glide.server.engine import DeadEngine, EngineHandle
from glide.server.environment import Unusable
from glide.server.job import Item, Job, oldest_first
from glide.server.log import say
from glide.server.outer_job import tell_outer_job
from glide.server.status import Status
from glide.server.stream import ResultStream
from glide.server.supply import Supply, Unfetched
from glide.server.ticket import Ticket
from glide.template import Template
from glide.vocabulary import Exit, State

RECORD_TIMEOUT = 600.0  # seconds, for records that bring none of their own
QUEUE_LIMIT = 4096  # records a job may have waiting; more are read from its input as these get done
CALL_SECONDS = 0.5  # a window is about this much work, so that no job waits long behind another's
T = TypeVar("T")
BARREN_DEATHS = 20  # engine deaths in a row without a finished record, after which the glidein has failed


class Front:
    """Serves one template until it is stopped.

    Args:
        supply: brings its files.
        changed: to be set when its status has changed.
        native: whether it is what its glidein was started for, whose own job is told how it fares.
    """

    def __init__(self, template: Template, supply: Supply, log: Path, changed: asyncio.Event, native: bool):
        self.template = template
        self.supply = supply
        self.log = log
        self.changed = changed
        self.native = native
        service = template.service["url"] if template.service else ""
        self.status = Status(template=template.digest, model=template.model, service=service)
        self.jobs: list[Job] = []  # the oldest first
        self.suspects: deque[list[Item]] = deque()  # calls to make alone, before anything else
        self.flying: dict[int, Item] = {}
        self.work = asyncio.Event()
        self.came = asyncio.Event()  # a job
        self.settled = asyncio.Event()  # it has been warm, or has failed
        self.awaited = 0  # sticky jobs that wait for it
        self.used = time.monotonic()  # when it last had a job
        self.megabytes = template.megabytes
        self.next_key = 0
        self.finished = 0
        self.told_errors = 0

    def start(self) -> None:
        self.living = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """End the engine, and send away who waits for it."""
        if self.status.state in State.COMING_UP:
            self.status = self.status.entering(State.FAILED, "it was taken down while it loaded")
        self.settled.set()
        self._send_away()
        self.living.cancel()
        with suppress(asyncio.CancelledError):
            await self.living
        self.supply.release(self.template)

    async def _live(self) -> None:
        """Keep an engine alive for as long as that makes sense."""
        barren = 0
        if not self.lasting:
            with suppress(Unfetched):
                await self._brought(self.supply.bring_environment(self.template))
                await self._brought(self.supply.bring(self.template))
                self._enter(State.WARM)
        while self.status.state != State.FAILED:
            if not self.lasting:
                self.came.clear()
                if not self.jobs:
                    await self.came.wait()
            finished = self.finished
            try:
                await self._engine_life()
            except Exception as error:  # that this host can start no process, say
                self._enter(State.FAILED, f"no engine: {error!r}")
            barren = barren + 1 if self.finished == finished else 0
            if barren >= BARREN_DEATHS:
                self._enter(State.FAILED, f"the engine died {barren} times in a row; last: {self.status.failure}")
        self._send_away()

    @property
    def lasting(self) -> bool:
        """Whether the state stays when nobody uses it, which is what all this is for; else each job loads it anew."""
        return self.template.keep == "state"

    def _send_away(self) -> None:
        """Jobs cannot be served here any more: HTCondor finds them another lane."""
        for job in list(self.jobs):
            job.writer.close()

    # ---- the engine ------------------------------------------------------------------------------

    async def _engine_life(self) -> None:
        """One engine process from its start to its death."""
        files = asyncio.create_task(self.supply.bring(self.template))  # while its environment comes, and it imports
        try:
            environment = await self._brought(self.supply.bring_environment(self.template))
            engine = await EngineHandle.start(self.template, self.log, environment, self.supply.folders(self.template))
            await self._converse(engine, files)
        except Unfetched:
            pass  # which has been said
        except Unusable as error:
            self._enter(State.FAILED, str(error))
        finally:
            files.cancel()

    async def _converse(self, engine: EngineHandle, files: asyncio.Task[str | None]) -> None:
        """Give an engine work for as long as it lives, and see to what it leaves."""
        tasks = [asyncio.create_task(self._watch(engine)), asyncio.create_task(self._give(engine, files))]
        try:
            while True:
                message = await engine.receive()
                if "phase" in message:
                    if self.lasting:  # else it is as good as warm to those who look for a lane
                        self._enter(message["phase"])
                elif "failed" in message:
                    self._enter(State.FAILED, message["failed"])
                elif "imported" in message:
                    self.status = replace(self.status, import_seconds=message["imported"])
                elif "warm" in message:
                    warm = message["warm"]
                    gpu, batching = warm.get("gpu", ""), warm.get("batching", "")
                    self.status = replace(self.status, gpu=gpu, batching=batching, batch=warm["batch"])
                    self.megabytes = max(self.megabytes, warm["megabytes"])
                    engine.warm = True
                    if self.lasting:
                        self._enter(State.WARM)
                    else:
                        took = self.status.load_seconds + time.time() - engine.started
                        self.status = replace(self.status, load_seconds=took)
                        tasks.append(asyncio.create_task(self._end_when_unused(engine)))
                    tasks.append(asyncio.create_task(self._feed(engine, warm)))
                elif "begin" in message:
                    engine.begin(message["begin"])
                else:
                    self._finished(message["done"])
                    if "idle" in message:
                        self.status = replace(self.status, prefix_hits=message["prefix_hits"])
                        first = not self.status.served
                        engine.idle(message["idle"], self)
                        if first:
                            self.changed.set()  # jobs are small until their time is known
        except DeadEngine as death:
            if engine.unused:
                if self.template.keep == "nothing":
                    self.supply.forget(self.template)
            elif self.status.state != State.FAILED and not engine.warm:
                at = self.status.state if self.lasting else State.LOADING
                at = State.IMPORTING if at == State.FETCHING else at  # what it does then
                during = "" if engine.overdue else f" while {at}"
                self._enter(State.FAILED, f"the engine {death}{during}")
            elif self.status.state != State.FAILED:
                if self.lasting:
                    self._enter(State.BLANK, f"the engine {death}")
                self._suspect(engine.begun, death)
        finally:
            for task in tasks:
                task.cancel()
            await engine.stop()

    async def _end_when_unused(self, engine: EngineHandle) -> None:
        while self.jobs:
            await asyncio.sleep(0.02)
        engine.unused = True
        await engine.stop()

    async def _brought(self, coming: Awaitable[T]) -> T:
        """What comes within the budget of fetching; Unfetched when it does not, and then this has failed."""
        if self.status.state not in (State.FETCHING, State.WARM):
            self._enter(State.FETCHING)
        budget = self.template.budget(State.FETCHING)
        try:
            return await asyncio.wait_for(coming, budget)
        except (asyncio.TimeoutError, Unfetched, OSError) as error:
            late = f"its files were {State.FETCHING} for more than {budget:g} s"
            self._enter(State.FAILED, str(error) or late)
            raise Unfetched from None

    async def _give(self, engine: EngineHandle, files: Awaitable[str | None]) -> None:
        """Give the engine, which imports what it needs meanwhile, the folder with its files."""
        try:
            folder = await self._brought(files)
        except Unfetched:
            return await engine.stop()
        if self.status.state != State.WARM:
            self._enter(State.IMPORTING)
        await engine.send({"folder": folder})

    async def _watch(self, engine: EngineHandle) -> None:
        """No phase may take longer than its budget, and no call than the longest timeout of its records."""
        while True:
            await asyncio.sleep(1.0)
            state = self.status.state
            since = self.status.since
            if not self.lasting and not engine.warm:
                state, since = State.LOADING, engine.started
            budget = self.template.budget(state) if state in State.COMING_UP else float("inf")
            if state != State.FETCHING and time.time() - since > budget:
                await engine.give_up(f"was {state} for more than its {budget:g} s")
            if engine.silent > self.template.budget(State.WARM):
                await engine.give_up(f"has said nothing for {engine.silent:.0f} s, and has records to serve")
            items = [self.flying[key] for key in engine.begun if key in self.flying]
            if engine.begun_at is None or not items:
                continue
            if all(item.job.gone for item in items):
                engine.interrupt()  # nobody waits for it, and others may
            await engine.hurry(max(item.timeout for item in items))

    async def _feed(self, engine: EngineHandle, warm: dict[str, Any]) -> None:
        """Keep one call running and one more waiting in the engine, so that it never waits for us."""
        while True:
            await engine.slots.acquire()
            # One that is ending gets no more: what came meanwhile is the next one's.
            while engine.unused or not (items := self._take(warm["batch"], warm["window"])):
                self.work.clear()
                await self.work.wait()
            options = {id(item.generate): item.generate for item in items}  # a job's are one object, and may be long
            kinds = {each: number for number, each in enumerate(options)}
            serve = []
            for item in items:
                self.flying[self.next_key] = item
                serve.append((self.next_key, item.prompt, kinds[id(item.generate)]))
                self.next_key += 1
                item.job.results.begun += 1
            engine.sent(len(items))
            await engine.send({"serve": serve, "generate": list(options.values())})
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

    def _suspect(self, begun: list[int], death: DeadEngine) -> None:
        """Sort what was in the dead engine: the running call's records are suspects, the others only wait."""
        suspects = [self.flying.pop(key) for key in begun if key in self.flying]
        suspects = [item for item in suspects if not item.job.gone]
        for item in reversed(self.flying.values()):
            item.job.waiting.appendleft(item)
        self.flying.clear()
        if len(suspects) == 1:
            suspects[0].deaths += 1
        if len(suspects) == 1 and suspects[0].deaths == 1 and not death.own_doing:
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

    async def admit(self, ticket: Ticket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a ticket until all its records have a result, or the job or this server is gone."""
        job = Job(ticket, writer, ResultStream(ticket.output, f"{ticket.input.name}.err", ticket.chirp))
        if self.status.state == State.FAILED:
            job.say(f"refused: {self.status.failure}")
            return job.dismiss(Exit.SERVER_LOST)
        self.jobs.append(job)
        self.came.set()
        serving = asyncio.create_task(self._serve(job))
        streaming = asyncio.create_task(job.results.run(job.say))
        gone = asyncio.create_task(reader.read())  # a job has no more to say: an end of file is its death
        try:
            await asyncio.wait({serving, gone}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                if ticket.timed:
                    job.say(f"served from {ticket.came:.6f} to {time.monotonic():.6f} s by this host's monotonic clock")
                job.dismiss(serving.result())
        finally:
            job.gone = True
            self.jobs.remove(job)
            self.used = time.monotonic()
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
        attempts = record.get("attempts", 0) + job.ticket.starts + 1
        timeout = record.get("timeout", RECORD_TIMEOUT)
        if not (isinstance(timeout, (int, float)) and timeout > 0):
            raise TypeError("timeout is not a number of seconds")
        job.waiting.append(
            Item(job, record["custom_id"], record["prompt"], record.get("generate", {}), timeout, attempts)
        )
        job.unanswered += 1
        self.work.set()

    # ---- who wants to know -----------------------------------------------------------------------

    def _enter(self, state: str, failure: str = "") -> None:
        self.status = self.status.entering(state, failure)
        say(f"{self.template.model} {state} {failure}")
        if state in (State.WARM, State.FAILED):
            self.settled.set()
            self._tell_outer_job()
        self.changed.set()

    def _tell_outer_job(self) -> None:
        self.told_errors = self.status.errors
        if self.native:
            self.telling = asyncio.create_task(tell_outer_job(self.status))
