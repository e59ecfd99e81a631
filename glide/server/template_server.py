"""Serve the jobs of one template: queue their records, and run the engine process that serves these records.

If the engine's process dies, the jobs continue, and the server starts another engine. The suspects are the records of
the call that was running. The new engine first serves the suspects, in smaller and smaller calls, until a call
contains only the record that kills the engine. Then the engine serves the other records.
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
from glide.server.environment import UnusableEnvironment
from glide.server.job import QueuedRecord, ServedJob
from glide.server.log import log_line
from glide.server.outer_job import report_to_outer_job
from glide.server.status import Status
from glide.server.stream import ResultStream
from glide.server.supply import FetchFailed, FileSupply
from glide.server.ticket import JobRequest
from glide.template import Template
from glide.vocabulary import Exit, State

# These error numbers mean a fault of the node's disk and not of a record. The job can succeed on another node.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
T = TypeVar("T")
MOST_FRUITLESS_DEATHS = 20  # number of engine deaths in a row, without a result, after which the template fails


class TemplateServer:
    """Serves one template until it is stopped.

    Args:
        supply: object that fetches the template's files.
        changed: event that is set when the status has changed.
        is_initial: whether the glidein was started for this template. If so, the outer job's ad gets the status.

    Attributes:
        job_arrived: event that is set when a job has arrived.
        settled: event that is set as soon as the template is warm or has failed.
        waiting_sticky_jobs: number of sticky jobs that wait until the template is warm.
        last_used: time by the monotonic clock when the last job ended.
        megabytes: memory of the template in MB: the larger number of the size of its files and the engine's report.
        reported_errors: number of errors in the outer job's ad.
    """

    def __init__(self, template: Template, supply: FileSupply, log: Path, changed: asyncio.Event, is_initial: bool):
        self.template = template
        self.supply = supply
        self.log = log
        self.changed = changed
        self.is_initial = is_initial
        service = template.service["url"] if template.service else ""
        self.status = Status(template=template.digest, model=template.model, service=service)
        self.batcher = Batcher(self._handle_write_error)
        self.jobs = self.batcher.jobs
        self.job_arrived = asyncio.Event()
        self.settled = asyncio.Event()
        self.waiting_sticky_jobs = 0
        self.last_used = time.monotonic()
        self.megabytes = template.megabytes
        self.reported_errors = 0
        self.supervision: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.supervision = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End the engine and disconnect the jobs. If the template is being loaded, waiting sticky jobs fail."""
        if self.status.state in State.COMING_UP:
            self.status = self.status.entering(State.FAILED, "stopped while it was being loaded")
        self.settled.set()
        self._disconnect_jobs()
        if self.supervision is not None:
            self.supervision.cancel()
            with suppress(asyncio.CancelledError):
                await self.supervision
        self.supply.release(self.template)

    async def _supervise(self) -> None:
        """Start engines when they are needed, until the template has failed.

        If the template does not keep its state, it is Warm when its files are here, and each engine waits for a job.
        """
        fruitless_deaths = 0
        if not self.keeps_state:
            with suppress(FetchFailed):
                await self._within_fetch_budget(self.supply.ensure_environment(self.template))
                await self._within_fetch_budget(self.supply.ensure_files(self.template))
                self._enter(State.WARM)
        while self.status.state != State.FAILED:
            if not self.keeps_state:
                self.job_arrived.clear()
                if not self.jobs:
                    await self.job_arrived.wait()
            finished = self.batcher.finished
            try:
                await self._run_engine()
            except OSError as error:  # for example, this host cannot start another process
                self._enter(State.FAILED, f"engine process not started: {error!r}")
            fruitless_deaths = fruitless_deaths + 1 if self.batcher.finished == finished else 0
            if fruitless_deaths >= MOST_FRUITLESS_DEATHS:
                died = f"the engine died {fruitless_deaths} times in a row without a result"
                self._enter(State.FAILED, f"{died}; last: {self.status.failure}")
        self._disconnect_jobs()

    @property
    def keeps_state(self) -> bool:
        """Whether the template stays loaded when no job is left. Otherwise, the next job loads the template again."""
        return self.template.keep == "state"

    def _disconnect_jobs(self) -> None:
        """Close the connections of all jobs. HTCondor then runs these jobs again on other lanes."""
        for job in list(self.jobs):
            job.writer.close()

    # ---- the engine ------------------------------------------------------------------------------

    async def _run_engine(self) -> None:
        """Run one engine process from its start to its death."""
        # A separate task fetches the files. Meanwhile the environment is fetched, and the engine imports libraries.
        files = asyncio.create_task(self.supply.ensure_files(self.template))
        try:
            environment = await self._within_fetch_budget(self.supply.ensure_environment(self.template))
            engine = await EngineHandle.start(
                self.template, self.log, environment, self.supply.visible_folders(self.template)
            )
            await self._exchange_messages(engine, files)
        except FetchFailed:
            pass  # _within_fetch_budget has reported the failure
        except UnusableEnvironment as error:
            self._enter(State.FAILED, str(error))
        finally:
            files.cancel()

    async def _exchange_messages(self, engine: EngineHandle, files: asyncio.Task[str | None]) -> None:
        """Exchange messages with an engine until its death. Then report the death, and requeue the engine's records."""
        tasks = [
            asyncio.create_task(self._enforce_limits(engine)),
            asyncio.create_task(self._send_folder(engine, files)),
        ]
        try:
            while True:
                message = await engine.receive()
                try:
                    self._handle_message(engine, message, tasks)
                except Exception as error:  # user code in the engine's process can write to the channel
                    await engine.kill(f"sent an invalid message: {error!r}")
        except DeadEngine as death:
            if engine.unused:
                if self.template.keep == "nothing":
                    self.supply.delete_cached(self.template)
            elif self.status.state != State.FAILED and not engine.warm:
                at = self.status.state if self.keeps_state else State.LOADING
                at = State.IMPORTING if at == State.FETCHING else at  # while files are fetched, the engine imports
                during = "" if engine.kill_reason else f" while {at}"
                self._enter(State.FAILED, f"the engine {death}{during}")
            elif self.status.state != State.FAILED:
                if self.keeps_state:
                    self._enter(State.BLANK, f"the engine {death}")
                self._count_errors(self.batcher.requeue_after_death(engine.running_keys, death))
        finally:
            for task in tasks:
                task.cancel()
            await engine.stop()

    def _handle_message(self, engine: EngineHandle, message: dict[str, Any], tasks: list[asyncio.Task[None]]) -> None:
        """Act on a message of the engine. Add new tasks to `tasks`; such tasks run until the engine dies."""
        if "phase" in message:
            if self.keeps_state:  # otherwise the lane stays Warm, because jobs may arrive at any time
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
            if self.keeps_state:
                self._enter(State.WARM)
            else:
                took = self.status.load_seconds + time.monotonic() - engine.started
                self.status = replace(self.status, load_seconds=took)
                tasks.append(asyncio.create_task(self._end_when_unused(engine)))
            tasks.append(asyncio.create_task(self._feed(engine, warm)))
        elif "begin" in message:
            engine.call_began([int(key) for key in message["begin"]])
        else:
            self._count_errors(self.batcher.deliver(message["done"]))
            if "idle" in message:
                self.status = replace(self.status, prefix_hits=message["prefix_hits"])
                first = not self.status.served
                self.status = self.status.after_call(engine.call_ended(), message["idle"])
                if first:
                    self.changed.set()  # advertise the first speed immediately; before that, drivers send small jobs

    async def _end_when_unused(self, engine: EngineHandle) -> None:
        """Wait until no job is left, and then end the engine. Use this if the template does not keep its state."""
        while self.jobs:
            await asyncio.sleep(0.02)
        engine.unused = True
        await engine.stop()

    async def _within_fetch_budget(self, fetching: Awaitable[T]) -> T:
        """Wait for files. If fetching fails or exceeds its time limit, let the template fail, and raise FetchFailed."""
        if self.status.state not in (State.FETCHING, State.WARM):
            self._enter(State.FETCHING)
        budget = self.template.budget(State.FETCHING)
        try:
            return await asyncio.wait_for(fetching, budget)
        except (asyncio.TimeoutError, FetchFailed, OSError) as error:
            late = f"files not fetched in time: {State.FETCHING} for more than {budget:g} s"
            self._enter(State.FAILED, str(error) or late)
            raise FetchFailed from None

    async def _send_folder(self, engine: EngineHandle, files: Awaitable[str | None]) -> None:
        """Wait for the template's files while the engine imports libraries. Then send the folder to the engine."""
        try:
            folder = await self._within_fetch_budget(files)
        except FetchFailed:
            await engine.stop()
            return
        if self.status.state != State.WARM:
            self._enter(State.IMPORTING)
        await engine.send({"folder": folder})

    async def _enforce_limits(self, engine: EngineHandle) -> None:
        """Kill the engine if a phase exceeds its time limit, or if a call exceeds its records' largest timeout."""
        while True:
            await asyncio.sleep(1.0)
            state, since = self.status.state, self.status.entered
            if state == State.FAILED:
                await engine.stop()
            if not self.keeps_state and not engine.warm:
                state, since = State.LOADING, engine.started
            budget = self.template.budget(state) if state in State.COMING_UP else float("inf")
            if state != State.FETCHING and time.monotonic() - since > budget:
                await engine.kill(f"was {state} for more than its time limit of {budget:g} s")
            if engine.silent_seconds > self.template.budget(State.WARM):
                silent = f"has sent no message for {engine.silent_seconds:.0f} s"
                await engine.kill(f"{silent}, although it has records to serve")
            items = self.batcher.still_in_flight(engine.running_keys)
            if engine.running_since is None or not items:
                continue
            if all(item.job.gone for item in items):
                engine.interrupt()  # all jobs of this call have ended, and new jobs may be waiting
            await engine.enforce_timeout(max(item.request.timeout for item in items))

    async def _feed(self, engine: EngineHandle, warm: dict[str, Any]) -> None:
        """Send calls to the engine. While a call runs, send the next call, so that the engine is never idle."""
        while True:
            await engine.slots.acquire()
            # Send no call to an engine that is being ended. The next engine serves the records that have arrived.
            while engine.unused or not (items := self._next_records(warm)):
                self.batcher.work.clear()
                await self.batcher.work.wait()
            engine.call_sent(len(items))
            await engine.send(self.batcher.serve_message(items))
            if self.batcher.suspects:  # a call of suspects must be alone in the engine, so wait for the call's end
                await engine.wait_until_empty()

    def _next_records(self, warm: dict[str, Any]) -> list[QueuedRecord]:
        return self.batcher.next_records(warm["batch"], warm["window"], self.status.record_seconds)

    def _count_errors(self, errors: int) -> None:
        if errors:
            self.status = replace(self.status, errors=self.status.errors + errors)
            # Report only when the number has doubled, because each report is a transaction at the access point.
            if self.status.errors >= 2 * self.reported_errors:
                self._report_to_outer_job()

    def _handle_write_error(self, job: ServedJob, error: OSError) -> None:
        """End a job whose results cannot be written. If the disk is the cause, the template fails on this node."""
        job.send_elsewhere(f"its results cannot be written: {error}")
        if error.errno in DISK_ERRORS and self.status.state != State.FAILED:
            self._enter(State.FAILED, f"results cannot be written on this node: {error}")

    # ---- the jobs --------------------------------------------------------------------------------

    async def serve_job(self, request: JobRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve an invocation job until all its records have a result, or until the job or this server ends."""
        try:
            results = ResultStream(request.output, f"{request.input.name}.err", request.chirp)
        except OSError as error:
            writer.write(printable(f"its results cannot be written: {error}").encode() + b"\n")
            writer.write(b"exit %d\n" % Exit.SERVER_LOST)
            return
        job = ServedJob(request, writer, results)
        if self.status.state == State.FAILED:
            job.report(f"refused: {self.status.failure}")
            return job.finish(Exit.SERVER_LOST)
        self.jobs.append(job)
        self.job_arrived.set()
        serving = asyncio.create_task(job.serve(self.batcher.work))
        streaming = asyncio.create_task(job.results.run(job.report))
        gone = asyncio.create_task(_wait_for_end(reader))
        try:
            await asyncio.wait({serving, gone}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                if request.timed:
                    served = f"served from {request.arrived:.6f} to {time.monotonic():.6f} s"
                    job.report(f"{served} by this host's monotonic clock")
                job.finish(serving.result())
        except OSError as error:
            self._handle_write_error(job, error)
            job.report(job.problem)
            writer.write(b"exit %d\n" % Exit.SERVER_LOST)
        finally:
            job.gone = True
            self.jobs.remove(job)
            self.last_used = time.monotonic()
            job.waiting.clear()
            for task in (serving, streaming, gone):
                task.cancel()
            with suppress(OSError):
                job.results.close()

    # ---- status ----------------------------------------------------------------------------------

    def _enter(self, state: str, failure: str = "") -> None:
        self.status = self.status.entering(state, failure)
        log_line(f"{self.template.model} {state} {failure}")
        if state in (State.WARM, State.FAILED):
            self.settled.set()
            self._report_to_outer_job()
        self.changed.set()

    def _report_to_outer_job(self) -> None:
        self.reported_errors = self.status.errors
        if self.is_initial:
            self.reporting = asyncio.create_task(report_to_outer_job(self.status))


async def _wait_for_end(reader: asyncio.StreamReader) -> None:
    """Wait for a job's end, which ends its connection. A job sends nothing after its request, so ignore all data."""
    while await reader.read(1 << 12):
        pass
