"""The model server of a glidein. It has one port, one or more lanes, and a TemplateServer for each loaded template.

Each lane offers one template. A *sticky job* brings another template to the lane on which the job runs. If the memory
is too small for all these templates, the model server first unloads the templates that were idle longest. The new
template stays loaded after the sticky job has ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from glide.server.engines import printable
from glide.server.gpus import gpus, measure_energy
from glide.server.loaded import LoadedTemplates, WrongRequest
from glide.server.log import log_line, trim
from glide.server.outer_job import report_to_outer_job
from glide.server.settings import ServerSettings
from glide.server.status import Status
from glide.server.stream import report_refusal
from glide.server.supply import FileSupply
from glide.server.template_server import TemplateServer
from glide.server.ticket import LINE_BYTES, ConnectionWatch, Endpoint, JobRequest
from glide.system import open_regular
from glide.template import Template
from glide.vocabulary import Exit, Machine, State

REPORT_SECONDS = 2.0  # seconds between two checks of the lanes' speeds; a new state is advertised immediately
MOST_UNAUTHENTICATED = 64  # limit of connections that have not sent the secret; above the limit, the oldest is closed
TEMPLATE_BYTES = 64_000_000  # maximum number of bytes that are read from a sticky job's input
FAILED_SECONDS = 3.0  # idle seconds until the glidein ends if all templates failed; meanwhile it advertises the failure
COUNT_SECONDS = 15.0  # minimum number of seconds between two ads with small changes; each ad is work for the collector


class ModelServer:
    """Serves jobs until the task that executes `run` is cancelled.

    Args:
        template: the initial template, which all lanes offer at first; None for a glidein that starts without one.
        settings: the settings of this server.
        endpoint: file to which the server writes its port and its secret.
        log: file to which the server and its engines write.

    Attributes:
        lanes: for each lane, the TemplateServer of the lane's template; None for a lane without a template.
        loaded: the loaded templates and their memory.
        servers: a dict from a template's digest to the template's TemplateServer.
        changed: event that is set when the status of a lane may have changed.
        unauthenticated: connections that have not sent the secret yet; the oldest connection is first.
    """

    def __init__(self, template: Template | None, settings: ServerSettings, endpoint: Path, log: Path):
        self.template = template
        self.settings = settings
        self.idle_seconds = settings.idle_seconds
        self.endpoint = Endpoint(endpoint)
        self.log = log
        self.blank = Status()
        self.gpu_attributes: dict[str, float] = {}
        self.lanes: list[TemplateServer | None] = [None] * settings.lanes
        self.loaded = LoadedTemplates(settings.memory)
        self.servers = self.loaded.servers
        self.retarget_lock = asyncio.Lock()
        self.changed = asyncio.Event()
        self.supply = FileSupply(settings.supply, self.changed)
        self.unauthenticated: list[asyncio.StreamWriter] = []

    async def run(self) -> None:
        """Load the initial template, open the endpoint, and serve jobs until this task is cancelled."""
        await self.supply.start()
        found = await asyncio.to_thread(gpus)
        if found:
            self.gpu_attributes = {Machine.GPU_CAPABILITY: min(gpu.capability for gpu in found)}
        listener = await asyncio.start_server(self._handle_connection, "127.0.0.1", 0, limit=LINE_BYTES)
        if self.template:
            self.lanes = [self._start_server(self.template)] * len(self.lanes)
        else:  # a glidein without a template is ready at once; for this, its outer job's ad also has the state Warm
            await report_to_outer_job(replace(self.blank, state=State.WARM))
        self.endpoint.open(listener.sockets[0].getsockname()[1])
        tasks = [asyncio.create_task(self._leave_when_idle()), asyncio.create_task(self._trim_log())]
        if found:
            tasks.append(asyncio.create_task(measure_energy(self._report_energy)))
        try:
            # Do not use serve_forever of asyncio. In Python 3.12 and later, its cancellation waits for all connections.
            await asyncio.get_running_loop().create_future()
        finally:
            for task in tasks:
                task.cancel()
            for server in self.servers.values():
                await server.stop()
            self.supply.stop()

    def _report_energy(self, joules: float) -> None:
        self.gpu_attributes = {**self.gpu_attributes, Machine.GPU_JOULES: round(joules)}
        self.changed.set()

    async def _trim_log(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            trim(self.log)

    async def _leave_when_idle(self) -> None:
        """End condor_master, the parent of this process, when the glidein has had no job for too long.

        The startd's knob STARTD_NOCLAIM_SHUTDOWN is not used, because it would also end a glidein during a long load.
        """
        latest = time.monotonic()
        while self.idle_seconds is None or time.monotonic() - latest < self._idle_limit:
            await asyncio.sleep(1.0)
            busy = len(self.loaded.idle()) < len(self.servers)
            # A short job can start and end between two checks. So also use `last_used`, the time when a job last ended.
            latest = time.monotonic() if busy else max([latest, *(each.last_used for each in self.servers.values())])
        log_line(f"no job for {self._idle_limit:g} s: ending the glidein")
        for server in self.servers.values():
            if server.is_initial:  # update the number of served records in the ad
                status = server.status
                await report_to_outer_job(replace(status, state=State.WARM) if server.is_asleep else status)
        os.kill(os.getppid(), signal.SIGTERM)

    @property
    def _idle_limit(self) -> float:
        """Number of idle seconds after which the glidein ends. If all templates have failed, the number is small."""
        idle_seconds = self.idle_seconds or 0.0
        states = {server.status.state for server in self.servers.values()}
        return min(FAILED_SECONDS, idle_seconds) if states == {State.FAILED} else idle_seconds

    async def _handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await self._is_authenticated(reader, writer):
                await self._dispatch(reader, writer)
        # When the server stops, each connection raises CancelledError, for which asyncio would print a traceback.
        except (OSError, EOFError, asyncio.TimeoutError, asyncio.CancelledError):
            pass
        except Exception as error:
            _end_job(writer, f"refused: {error!r}", Exit.SERVER_LOST)
        finally:
            writer.close()

    async def _is_authenticated(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Return whether a client sends the secret. If too many connections lack the secret, close the oldest."""
        self.unauthenticated.append(writer)
        if len(self.unauthenticated) > MOST_UNAUTHENTICATED:
            self.unauthenticated.pop(0).transport.abort()
        try:
            return await self.endpoint.authenticate(reader)
        except ValueError:  # the client has sent a line that is too long
            return False
        finally:
            if writer in self.unauthenticated:
                self.unauthenticated.remove(writer)

    async def _dispatch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await self.endpoint.read_request(reader)
        if isinstance(received, ConnectionWatch):
            await self._stream_status(writer)
        elif not 0 <= received.lane < len(self.lanes):
            _end_job(writer, f"refused: this server has no lane {received.lane + 1}", Exit.SERVER_LOST)
        elif received.sticky:
            await self._serve_sticky_job(received, writer)
        else:
            await self._serve_job(received, reader, writer)

    async def _serve_job(self, request: JobRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a job with the template that it names. If the job names no template, use the template of its lane."""
        server = self.servers.get(request.template) if request.template else self.lanes[request.lane]
        if server is None:
            loaded = ", ".join(self.servers) or "none"
            await report_refusal(request.chirp, request.output.name, request.errors)
            return _end_job(writer, f"refused: template not loaded; loaded here: {loaded}", Exit.SERVER_LOST)
        await (server.serve_standing_job if request.standing else server.serve_job)(request, reader, writer)

    # ---- sticky jobs -----------------------------------------------------------------------------

    async def _serve_sticky_job(self, request: JobRequest, writer: asyncio.StreamWriter) -> None:
        """Load the template that a sticky job brings, and end the job when the template is warm."""
        began = time.monotonic()
        try:
            server = await self._retarget(request.lane, self._read_template(request))
        except WrongRequest as wrong:
            return _end_job(writer, str(wrong), wrong.code)
        outcome = {"template": server.status.template, "seconds": round(time.monotonic() - began, 3)}
        with open_regular(request.output, "wb") as output:
            output.write(json.dumps(outcome).encode() + b"\n")
        _end_job(writer, f"{server.status.model} is warm", Exit.OK)

    def _read_template(self, request: JobRequest) -> Template:
        """Return the template in a sticky job's input. Raise WrongRequest if the template is invalid or forbidden."""
        try:
            with open_regular(request.input) as file:
                template = Template.from_json(file.read(TEMPLATE_BYTES).decode())
        except (OSError, ValueError) as error:
            raise WrongRequest(f"{request.input.name} is not a template: {error!r}", Exit.INPUT) from None
        if (code := template.code(self.settings.programs)) and not self.settings.users_code:
            what = f"a user's code ({code}), which this entry does not allow"
            raise WrongRequest(f"{template.model} brings {what}", Exit.INPUT)
        if request.user == self.settings.factory:
            return template
        if code and not template.owner:  # otherwise, the jobs of all users would use it
            raise WrongRequest(f"{template.model} brings {code}, but names no owner", Exit.INPUT)
        if not template.serves(request.user):
            what = f"{template.model} contains {'code' if template.has_code else 'private files'} of {template.owner}"
            raise WrongRequest(f"{what}; a job of {request.user} must not load this template", Exit.INPUT)
        return replace(template, service=None)

    async def _retarget(self, lane: int, template: Template) -> TemplateServer:
        """Load a template, let a lane offer it, and return the TemplateServer. Raise WrongRequest if loading fails."""
        async with self.retarget_lock:
            before = self.lanes[lane]
            server = self.servers.get(template.digest)
            if server is None or server.status.state in (State.FAILED, State.ASLEEP):
                server = await self._load(template)
            self.lanes[lane] = server
            self.changed.set()
            server.waiting_sticky_jobs += 1
        try:
            await server.settled.wait()
        finally:
            server.waiting_sticky_jobs -= 1
        async with self.retarget_lock:
            self.loaded.sizes[template.digest] = server.megabytes
            asleep = [each for each in self.servers.values() if each.is_asleep]
            if server.status.state == State.FAILED and not asleep:
                await self._restore_lanes(server, before)
                raise WrongRequest(f"{template.model} does not load: {server.status.failure}", Exit.FAILED)
            if server.status.state != State.FAILED:
                # The new template may use too much memory, so unload others.
                while self.loaded.are_too_large and (idle := self.loaded.idle(server)):
                    await self._make_room(idle[:1], server)
                return server
            await self._stop_servers(asleep, server)  # the memory that they keep may be the reason
        return await self._retarget(lane, template)

    async def _load(self, template: Template) -> TemplateServer:
        """Free memory for a template, and then load it or wake it up. Return its server, which may not be warm yet."""
        server = self.servers.get(template.digest)
        to_stop = self.loaded.to_stop_for(template)
        wakes = server is not None and server.is_asleep
        if server is None or not wakes:
            server = self._add_server(template)
        server.waiting_sticky_jobs += 1  # from now on, the glidein is not idle
        try:
            await self._make_room(to_stop, server)  # free the memory before the new engine starts
            if wakes:
                await server.wake()
            else:
                server.start()
        finally:
            server.waiting_sticky_jobs -= 1
        return server

    async def _make_room(self, servers: Sequence[TemplateServer], successor: TemplateServer) -> None:
        """Free the memory of servers. The server `successor` gets their lanes.

        Servers that can sleep are put to sleep. The others are stopped, and also those that are asleep already, and
        those whose owner differs from the successor's.
        """
        for each in servers:
            if not each.is_asleep:
                self.loaded.sizes[each.template.digest] = each.megabytes  # needed to wake it up
        same_owner = [each for each in servers if each.template.owner == successor.template.owner]
        sleeping = [each for each in same_owner if self.loaded.memory and each.begin_sleep()]  # now they refuse jobs
        self.lanes = [successor if each in sleeping else each for each in self.lanes]
        await self._stop_servers([each for each in servers if each not in sleeping], successor)
        await self._stop_servers([each for each in sleeping if not await each.sleep()], successor)
        # Sleeping servers keep some memory. If it is missing, stop them.
        for each in sleeping:
            if not self.loaded.has_room_for(successor.template):
                await self._stop_servers([each], successor)

    async def _stop_servers(self, to_stop: Sequence[TemplateServer], successor: TemplateServer | None = None) -> None:
        """Stop servers, and give their lanes to the server `successor`. If it is None, the lanes get no template."""
        for each in to_stop:
            if self.servers.get(each.template.digest) is each:
                del self.servers[each.template.digest]
        self.lanes = [successor if each in to_stop else each for each in self.lanes]
        self.changed.set()
        for each in to_stop:  # stopping takes long; new jobs do not wait, because no lane uses these servers now
            await each.stop()

    async def _restore_lanes(self, server: TemplateServer, before: TemplateServer | None) -> None:
        """Stop `server`, which failed to load a template. The lanes get the first available server of this list:

        - the server `before`, which the sticky job's lane used until the sticky job arrived
        - another server that runs
        - a server that is asleep
        - a new server for the initial template
        """
        await self._stop_servers([server])
        awake = [each for each in self.servers.values() if each.status.state not in (State.ASLEEP, State.FAILED)]
        if before not in awake:
            asleep = [each for each in self.servers.values() if each.is_asleep]
            before = next(iter([*awake, *asleep, *self.servers.values()]), None)
        if before is None and self.template is not None and not server.is_initial:
            before = self._start_server(self.template)
        if before is not None and before.is_asleep:
            await before.wake()
        self.lanes = [before if each is None else each for each in self.lanes]

    def _start_server(self, template: Template) -> TemplateServer:
        server = self._add_server(template)
        server.start()
        return server

    def _add_server(self, template: Template) -> TemplateServer:
        initial = self.template is not None and template.digest == self.template.digest
        server = self.servers[template.digest] = TemplateServer(template, self.supply, self.log, self.changed, initial)
        return server

    # ---- status ----------------------------------------------------------------------------------

    async def _stream_status(self, writer: asyncio.StreamWriter) -> None:
        """Send the status of each lane to a client: immediately, and again after each change of the status."""
        reported: dict[int, tuple[Status, float]] = {}
        while True:
            files = self.supply.ad_attributes() | self.gpu_attributes
            for lane, server in enumerate(self.lanes):
                # If a sticky job's template fails, the job reports this. So the lane does not advertise the failure.
                shown = server and (server.is_initial or server.status.state != State.FAILED)
                status = replace(
                    server.status if server and shown else self.blank,
                    room=self.loaded.room,
                    asleep=self.loaded.asleep,
                    owner=self.loaded.owner,
                    files=files,
                )
                previous, since = reported.get(lane, (None, 0.0))
                age = time.monotonic() - since
                if status.worth_reporting_after(previous) or (age > COUNT_SECONDS and previous != status):
                    reported[lane] = status, time.monotonic()
                    writer.write(status.advertisement(lane).encode())
            await writer.drain()
            self.changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), REPORT_SECONDS)


def _end_job(writer: asyncio.StreamWriter, message: str, code: int) -> None:
    """Log a message, write it to the job's error output, and end the job with an exit code."""
    log_line(message)
    writer.write(f"{printable(' '.join(message.split()))}\nexit {code}\n".encode())
