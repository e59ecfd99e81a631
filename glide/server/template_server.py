"""Serve the jobs of one template. The supervisor runs the engines that serve the records of these jobs."""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.protocol.live import read_invitation
from glide.server.batcher import Batcher
from glide.server.engines import printable
from glide.server.job import RecordQueue, ServedJob
from glide.server.live import LiveJob
from glide.server.status import Status
from glide.server.stream import LAST_SECONDS, ResultStream, report_refusal
from glide.server.supervisor import Supervisor
from glide.server.supply import FileSupply
from glide.server.template_state import TemplateState
from glide.server.ticket import JobRequest
from glide.system import open_regular
from glide.template import Template
from glide.vocabulary import Exit, State

# These error numbers mean a fault of the node's disk and not of a record. The job can succeed on another node.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class TemplateServer:
    """Serves one template until it is stopped.

    Args:
        supply: object that fetches the template's files.
        log: file for the engines' output.
        changed: event that is set when the lanes must advertise the status soon.
        is_initial: whether the glidein was started for this template. If so, the outer job's ad gets the status.

    Attributes:
        jobs: the jobs that are served now; the oldest job is first.
        connections: the tasks that serve these jobs. A task ends a little later than its job.
        waiting_sticky_jobs: number of sticky jobs that wait until the template is warm.
        last_used: time by the monotonic clock when the last job ended.
    """

    def __init__(self, template: Template, supply: FileSupply, log: Path, changed: asyncio.Event, is_initial: bool):
        self.template = template
        self.supply = supply
        self.is_initial = is_initial
        self.state = TemplateState(template, changed, is_initial)
        batcher = Batcher(self._handle_write_error)
        self.jobs = batcher.jobs
        self.connections: set[asyncio.Task[Any]] = set()
        self.work = batcher.work
        self.supervisor = Supervisor(template, supply, log, self.state, batcher)
        self.waiting_sticky_jobs = 0
        self.last_used = time.monotonic()
        self.supervision: asyncio.Task[None] | None = None

    @property
    def status(self) -> Status:
        """The template's present status."""
        return self.state.status

    @property
    def settled(self) -> asyncio.Event:
        """The event that is set as soon as the template is warm or has failed."""
        return self.state.settled

    @property
    def megabytes(self) -> float:
        """The memory that the template needs, in MB."""
        return self.supervisor.megabytes

    @property
    def is_asleep(self) -> bool:
        return self.status.state == State.ASLEEP

    def begin_sleep(self) -> bool:
        """Enter the state Asleep if the template can sleep now. Return whether it can. Then call `sleep`."""
        return not self.is_asleep and self.supervisor.sleeper.begin()

    async def sleep(self) -> bool:
        """Free the GPU memory, but keep the template loaded. Return whether this succeeded."""
        return await self.supervisor.sleeper.sleep()

    async def wake(self) -> None:
        """Make a sleeping template ready again. If this fails, load it again."""
        await self.supervisor.sleeper.wake()

    def start(self) -> None:
        self.supervision = asyncio.create_task(self.supervisor.run())

    async def stop(self) -> None:
        """End the engine and the jobs. If the template is being loaded, waiting sticky jobs fail."""
        if self.status.state in State.COMING_UP:
            self.state.status = self.status.entering(State.FAILED, "stopped while it was being loaded")
        self.settled.set()
        self.state.ended.set()
        if self.connections:
            await asyncio.wait(self.connections, timeout=LAST_SECONDS)
        if self.supervision is not None:
            self.supervision.cancel()
            with suppress(asyncio.CancelledError):
                await self.supervision
        self.supervisor.compiled.close()
        self.supply.release(self.template)

    async def serve_job(self, request: JobRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve an invocation job until all its records have a result, or until the job or this server ends.

        A job may arrive before the template is warm. It then waits until the template is warm or has failed.
        """
        try:
            results = ResultStream(request.output, request.errors, request.chirp, request.stream_seconds)
        except OSError as error:
            writer.write(printable(f"its results cannot be written: {error}").encode() + b"\n")
            writer.write(b"exit %d\n" % Exit.SERVER_LOST)
            return
        job = ServedJob(request, writer, self.template.adapters, results=results)
        if refusal := self._refusal(request):
            job.report(f"refused: {refusal}")
            await report_refusal(request.chirp, request.output.name, request.errors)
            return job.finish(Exit.SERVER_LOST)
        self._add(job)
        serving = asyncio.create_task(job.serve(self.work))
        streaming = asyncio.create_task(
            job.results.run(job.report, job.keep_first if request.keep_can_change else None)
        )
        gone = asyncio.create_task(_wait_for_end(reader))
        ended = asyncio.create_task(self.state.ended.wait())
        is_lost = False
        try:
            await asyncio.wait({serving, gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                if request.timed:
                    served = f"served from {request.arrived:.6f} to {time.monotonic():.6f} s"
                    job.report(f"{served} (both times are from this host's monotonic clock)")
                code = serving.result()
                if code == Exit.SERVER_LOST:
                    await _append_rest(job, streaming)
                job.finish(code)
            elif is_lost := not gone.done():
                job.gone = True  # no further result is written
                await _append_rest(job, streaming)
        except OSError as error:
            self._handle_write_error(job, error)
            job.report(job.problem)
            writer.write(b"exit %d\n" % Exit.SERVER_LOST)
        finally:
            job.gone = True
            self.jobs.remove(job)
            self.last_used = time.monotonic()
            job.waiting.clear()
            for task in (serving, streaming, gone, ended):
                task.cancel()
            with suppress(OSError):
                job.results.close()
        if is_lost:
            await self._send_elsewhere(job)

    def _refusal(self, request: JobRequest) -> str:
        """Return why a job cannot be served here; an empty text if it can."""
        # START has checked the user, but the lane may have loaded another template since then.
        if not self.template.serves(request.user):
            return f"only jobs of {self.template.owner} are served"
        if self.is_asleep:
            return "the template is asleep; a sticky job wakes it up"
        return (self.status.failure or State.FAILED) if self.state.failed else ""

    def _add(self, job: RecordQueue) -> None:
        self.jobs.append(job)
        if connection := asyncio.current_task():
            self.connections.add(connection)
            connection.add_done_callback(self.connections.discard)
        self.supervisor.job_arrived.set()

    async def serve_standing_job(
        self, request: JobRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve the live calls of a standing job until `glide serve` ends it, or until the job or this server ends."""
        try:
            invitation = read_invitation(request.input)
            open_regular(request.output, "wb").close()  # HTCondor expects the file, although it stays empty
        except (OSError, ValueError, RecursionError) as error:
            writer.write(printable(f"wrong input: no valid invitation: {error}").encode() + b"\n")
            writer.write(b"exit %d\n" % Exit.INPUT)
            return
        job = LiveJob(
            request, writer, self.template.adapters, invitation=invitation, state=self.state,
            batcher=self.supervisor.batcher, retires=request.retires,
        )  # fmt: skip
        if refusal := self._refusal(request):
            job.report(f"refused: {refusal}")
            return job.finish(Exit.SERVER_LOST)
        self._add(job)
        serving = asyncio.create_task(job.serve())
        gone = asyncio.create_task(_wait_for_end(reader))
        ended = asyncio.create_task(self.state.ended.wait())
        try:
            await asyncio.wait({serving, gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                job.finish(serving.result())
            elif not gone.done():
                job.report(self.status.failure or "the model server is ending")
                # After a connection, `glide serve` has already submitted another job, and HTCondor need not repeat it.
                job.finish(Exit.OK if job.was_connected else Exit.SERVER_LOST)
        finally:
            job.gone = True
            self.jobs.remove(job)
            self.last_used = time.monotonic()
            for task in (serving, gone, ended):
                task.cancel()
            job.close()

    async def _send_elsewhere(self, job: ServedJob) -> None:
        """End a job because the template has failed, or because it is stopped. HTCondor then runs the job again."""
        job.report(self.status.failure or "the model server is ending")
        if not job.results.begun:
            request = job.job_request
            await report_refusal(request.chirp, request.output.name, request.errors)
        job.finish(Exit.SERVER_LOST)

    def _handle_write_error(self, job: RecordQueue, error: OSError) -> None:
        """End a job whose results cannot be written. If the disk is the cause, the template fails on this node."""
        job.send_elsewhere(f"its results cannot be written: {error}")
        if error.errno in DISK_ERRORS and not self.state.failed:
            self.state.enter(State.FAILED, f"results cannot be written on this node: {error}")


async def _append_rest(job: ServedJob, streaming: asyncio.Task[None]) -> None:
    """End the task that streams a job's results, and append all unsent results. HTCondor will run the job again."""
    while not streaming.done():  # Python 3.11's asyncio.wait_for may ignore a cancellation
        streaming.cancel()
        await asyncio.wait({streaming}, timeout=1.0)
    await job.results.append_rest()


async def _wait_for_end(reader: asyncio.StreamReader) -> None:
    """Wait until a job ends and closes its connection.

    The server has already read the job's request. Ignore all data that comes after the request.
    """
    while await reader.read(1 << 12):
        pass
