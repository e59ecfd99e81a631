"""One resident state: its jobs, one queue, one engine process behind it.

A job outlives the engine: when the engine's process dies, the front starts another, gives the suspects (the records
of the call that was running) to it in halves until the culprit is alone, and goes on.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from glide.server.batcher import Batcher
from glide.server.engine import DeadEngine, EngineHandle
from glide.server.engines import printable
from glide.server.environment import Unusable
from glide.server.job import Item, Job
from glide.server.log import say
from glide.server.outer_job import tell_outer_job
from glide.server.status import Status
from glide.server.stream import ResultStream
from glide.server.supply import Supply, Unfetched
from glide.server.ticket import Ticket
from glide.template import Template
from glide.vocabulary import Exit, State

# What a node's disk is to blame for, and no record: other nodes have other disks.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
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
        self.batcher = Batcher(self._unwritten)
        self.jobs = self.batcher.jobs
        self.came = asyncio.Event()  # a job
        self.settled = asyncio.Event()  # it has been warm, or has failed
        self.awaited = 0  # sticky jobs that wait for it
        self.used = time.monotonic()  # when it last had a job
        self.megabytes = template.megabytes
        self.told_errors = 0
        self.living: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.living = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """End the engine, and send away who waits for it."""
        if self.status.state in State.COMING_UP:
            self.status = self.status.entering(State.FAILED, "it was taken down while it loaded")
        self.settled.set()
        self._send_away()
        if self.living is not None:
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
            finished = self.batcher.finished
            try:
                await self._engine_life()
            except OSError as error:  # that this host can start no process, say
                self._enter(State.FAILED, f"no engine: {error!r}")
            barren = barren + 1 if self.batcher.finished == finished else 0
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
                try:
                    self._heed(engine, message, tasks)
                except Exception as error:  # a user's code runs in the engine's process, and can write into its channel
                    await engine.give_up(f"sent what makes no sense: {error!r}")
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
                self._count_errors(self.batcher.bury(engine.begun, death))
        finally:
            for task in tasks:
                task.cancel()
            await engine.stop()

    def _heed(self, engine: EngineHandle, message: dict[str, Any], tasks: list[asyncio.Task[None]]) -> None:
        """Act on a message of the engine; some start a task for as long as it lives."""
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
                took = self.status.load_seconds + time.monotonic() - engine.started
                self.status = replace(self.status, load_seconds=took)
                tasks.append(asyncio.create_task(self._end_when_unused(engine)))
            tasks.append(asyncio.create_task(self._feed(engine, warm)))
        elif "begin" in message:
            engine.begin([int(key) for key in message["begin"]])
        else:
            self._count_errors(self.batcher.settle(message["done"]))
            if "idle" in message:
                self.status = replace(self.status, prefix_hits=message["prefix_hits"])
                first = not self.status.served
                engine.idle(message["idle"], self)
                if first:
                    self.changed.set()  # jobs are small until their time is known

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
            await engine.stop()
            return
        if self.status.state != State.WARM:
            self._enter(State.IMPORTING)
        await engine.send({"folder": folder})

    async def _watch(self, engine: EngineHandle) -> None:
        """No phase may take longer than its budget, and no call than the longest timeout of its records."""
        while True:
            await asyncio.sleep(1.0)
            state, since = self.status.state, self.status.entered
            if state == State.FAILED:
                await engine.stop()
            if not self.lasting and not engine.warm:
                state, since = State.LOADING, engine.started
            budget = self.template.budget(state) if state in State.COMING_UP else float("inf")
            if state != State.FETCHING and time.monotonic() - since > budget:
                await engine.give_up(f"was {state} for more than its {budget:g} s")
            if engine.silent > self.template.budget(State.WARM):
                await engine.give_up(f"has said nothing for {engine.silent:.0f} s, and has records to serve")
            items = self.batcher.running(engine.begun)
            if engine.begun_at is None or not items:
                continue
            if all(item.job.gone for item in items):
                engine.interrupt()  # nobody waits for it, and others may
            await engine.hurry(max(item.request.timeout for item in items))

    async def _feed(self, engine: EngineHandle, warm: dict[str, Any]) -> None:
        """Keep one call running and one more waiting in the engine, so that it never waits for us."""
        while True:
            await engine.slots.acquire()
            # One that is ending gets no more: what came meanwhile is the next one's.
            while engine.unused or not (items := self._next(warm)):
                self.batcher.work.clear()
                await self.batcher.work.wait()
            engine.sent(len(items))
            await engine.send(self.batcher.request(items))
            if self.batcher.suspects:  # alone means alone: the next call goes out when this one has come back
                await engine.drained()

    def _next(self, warm: dict[str, Any]) -> list[Item]:
        return self.batcher.take(warm["batch"], warm["window"], self.status.record_seconds)

    def _count_errors(self, errors: int) -> None:
        if errors:
            self.status = replace(self.status, errors=self.status.errors + errors)
            if self.status.errors >= 2 * self.told_errors:  # each time is a transaction of the access point
                self._tell_outer_job()

    def _unwritten(self, job: Job, error: OSError) -> None:
        """A job's results cannot be written: it has to go elsewhere, and all jobs when it is the disk's fault."""
        job.lose(f"its results cannot be written: {error}")
        if error.errno in DISK_ERRORS and self.status.state != State.FAILED:
            self._enter(State.FAILED, f"results cannot be written on this node: {error}")

    # ---- the jobs --------------------------------------------------------------------------------

    async def admit(self, ticket: Ticket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a ticket until all its records have a result, or the job or this server is gone."""
        try:
            results = ResultStream(ticket.output, f"{ticket.input.name}.err", ticket.chirp)
        except OSError as error:
            writer.write(printable(f"its results cannot be written: {error}").encode() + b"\n")
            writer.write(b"exit %d\n" % Exit.SERVER_LOST)
            return
        job = Job(ticket, writer, results)
        if self.status.state == State.FAILED:
            job.say(f"refused: {self.status.failure}")
            return job.dismiss(Exit.SERVER_LOST)
        self.jobs.append(job)
        self.came.set()
        serving = asyncio.create_task(job.serve(self.batcher.work))
        streaming = asyncio.create_task(job.results.run(job.say))
        gone = asyncio.create_task(_end_of(reader))
        try:
            await asyncio.wait({serving, gone}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                if ticket.timed:
                    job.say(f"served from {ticket.came:.6f} to {time.monotonic():.6f} s by this host's monotonic clock")
                job.dismiss(serving.result())
        except OSError as error:
            self._unwritten(job, error)
            job.say(job.problem)
            writer.write(b"exit %d\n" % Exit.SERVER_LOST)
        finally:
            job.gone = True
            self.jobs.remove(job)
            self.used = time.monotonic()
            job.waiting.clear()
            for task in (serving, streaming, gone):
                task.cancel()
            with suppress(OSError):
                job.results.close()

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


async def _end_of(reader: asyncio.StreamReader) -> None:
    """Wait for a job's end of file, which is its death: it has nothing more to say."""
    while await reader.read(1 << 12):
        pass
