"""The model server: one door, some lanes, and the states that are resident behind them.

Each lane offers one state. A *sticky job* brings another template to the lane it runs on: it is loaded beside the
others while there is memory, else in place of those that have been idle longest, and stays when the job has gone.
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
from glide.server.front import Front
from glide.server.log import say, trim
from glide.server.outer_job import tell_outer_job
from glide.server.settings import Settings
from glide.server.status import Status
from glide.server.supply import Supply
from glide.server.ticket import LINE_BYTES, Door, Ticket, Watch
from glide.system import open_regular
from glide.template import Template
from glide.vocabulary import Exit, State

REPORT_SECONDS = 2.0  # a change of pace is reported within this time; a change of state or the first pace at once
MOST_STRANGERS = 64  # connections that have not shown the secret yet; when more come, the oldest has to go
TEMPLATE_BYTES = 64_000_000  # of a sticky job's input
FAILED_SECONDS = 3.0  # a glidein that could load nothing stays until its pool has been told why
COUNT_SECONDS = 15.0  # and counters alone this often: each report costs startd, collector and negotiator their share


class Wrong(Exception):
    """A sticky job that cannot be done here, and with which exit code it is to end."""

    def __init__(self, reason: str, code: int):
        super().__init__(reason)
        self.code = code


class ModelServer:
    """Serves until its task is cancelled.

    Args:
        template: what all lanes offer at first; None for a blank server.
        settings: of this node.
        door, log: files.
    """

    def __init__(self, template: Template | None, settings: Settings, door: Path, log: Path):
        self.template = template
        self.memory = settings.memory
        self.idle_seconds = settings.idle_seconds
        self.factory = settings.factory
        self.users_code = settings.users_code
        self.door = Door(door)
        self.log = log
        self.blank = Status()
        self.lanes: list[Front | None] = [None] * settings.lanes
        self.fronts: dict[str, Front] = {}  # by digest
        self.sizes: dict[str, float] = {}  # MB that states have taken, by digest
        self.moving = asyncio.Lock()
        self.changed = asyncio.Event()
        self.supply = Supply(settings.supply, self.changed)
        self.strangers: list[asyncio.StreamWriter] = []  # the oldest first

    async def run(self) -> None:
        """Listen."""
        await self.supply.start()
        visited = await asyncio.start_server(self._visited, "127.0.0.1", 0, limit=LINE_BYTES)
        if self.template:
            self.lanes = [self._bring(self.template)] * len(self.lanes)
        else:  # a blank one is what it is meant to be as soon as it listens
            await tell_outer_job(replace(self.blank, state=State.WARM))
        self.door.open(visited.sockets[0].getsockname()[1])
        tasks = [asyncio.create_task(self._leave_when_idle()), asyncio.create_task(self._trim_log())]
        try:
            # Not serve_forever: from Python 3.12 on its cancellation waits until every visitor has gone.
            await asyncio.get_running_loop().create_future()
        finally:
            for task in tasks:
                task.cancel()
            for front in self.fronts.values():
                await front.stop()
            self.supply.stop()

    async def _trim_log(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            trim(self.log)

    async def _leave_when_idle(self) -> None:
        """End the glidein, whose condor_master is our parent, when it has been of no use for long.

        Not the startd's STARTD_NOCLAIM_SHUTDOWN: that would end those that load for long, too.
        """
        used = time.monotonic()
        while self.idle_seconds is None or time.monotonic() - used < self._patience:
            await asyncio.sleep(1.0)
            busy = len(self._idle()) < len(self.fronts)
            # A job may come and go between two looks.
            used = time.monotonic() if busy else max([used, *(each.used for each in self.fronts.values())])
        say(f"no job for {self._patience:g} s")
        for front in self.fronts.values():
            if front.native:
                await tell_outer_job(front.status)  # what it has served, of which ads tell now and then
        os.kill(os.getppid(), signal.SIGTERM)

    @property
    def _patience(self) -> float:
        """Seconds without a job after which to end: few where nothing can be served, so that another node may try."""
        idle_seconds = self.idle_seconds or 0.0
        states = {front.status.state for front in self.fronts.values()}
        return min(FAILED_SECONDS, idle_seconds) if states == {State.FAILED} else idle_seconds

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await self._is_known(reader, writer):
                await self._attend(reader, writer)
        # Cancelled: the server is stopping, and streams would print a traceback for each connection
        except (OSError, EOFError, asyncio.TimeoutError, asyncio.CancelledError):
            pass
        except Exception as error:
            _dismiss(writer, f"refused: {error!r}", Exit.SERVER_LOST)
        finally:
            writer.close()

    async def _is_known(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether a visitor shows the secret. Those who do not are bounded in number and time, and hear nothing."""
        self.strangers.append(writer)
        if len(self.strangers) > MOST_STRANGERS:
            self.strangers.pop(0).transport.abort()
        try:
            return await self.door.knows(reader)
        except ValueError:  # a line without end
            return False
        finally:
            if writer in self.strangers:
                self.strangers.remove(writer)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitor = await self.door.visit(reader)
        if isinstance(visitor, Watch):
            await self._tell(writer)
        elif not 0 <= visitor.lane < len(self.lanes):
            _dismiss(writer, f"refused: there is no lane {visitor.lane + 1}", Exit.SERVER_LOST)
        elif visitor.sticky:
            await self._stick(visitor, writer)
        else:
            await self._admit(visitor, reader, writer)

    async def _admit(self, ticket: Ticket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front = self.fronts.get(ticket.template) if ticket.template else self.lanes[ticket.lane]
        if front is None:
            held = ", ".join(self.fronts) or "nothing"
            return _dismiss(writer, f"refused: this server holds {held}", Exit.SERVER_LOST)
        await front.admit(ticket, reader, writer)

    # ---- sticky jobs -----------------------------------------------------------------------------

    async def _stick(self, ticket: Ticket, writer: asyncio.StreamWriter) -> None:
        """Have a template materialised, and end its job when it is warm."""
        began = time.monotonic()
        try:
            front = await self._move(ticket.lane, self._described(ticket))
        except Wrong as wrong:
            return _dismiss(writer, str(wrong), wrong.code)
        outcome = {"template": front.status.template, "seconds": round(time.monotonic() - began, 3)}
        with open_regular(ticket.output, "wb") as output:
            output.write(json.dumps(outcome).encode() + b"\n")
        _dismiss(writer, f"{front.status.model} is warm", Exit.OK)

    def _described(self, ticket: Ticket) -> Template:
        try:
            with open_regular(ticket.input) as file:
                template = Template.from_json(file.read(TEMPLATE_BYTES).decode())
        except (OSError, ValueError) as error:
            raise Wrong(f"{ticket.input.name} is no template: {error!r}", Exit.INPUT) from None
        if template.has_code and not self.users_code:
            raise Wrong(f"{template.model} brings a user's code, which this entry does not allow", Exit.INPUT)
        if ticket.user == self.factory:
            return template
        if template.has_code and template.owner != ticket.user:
            raise Wrong(f"{template.model} is {template.owner}'s, and this is {ticket.user}'s job", Exit.INPUT)
        return replace(template, service=None)

    async def _move(self, lane: int, template: Template) -> Front:
        """Give a lane to a template, loaded for that if need be; Wrong where that is impossible."""
        async with self.moving:
            before = self.lanes[lane]
            front = self.fronts.get(template.digest)
            if front is None or front.status.state == State.FAILED:
                gone = self._in_its_way(template)
                front = self._new(template)
                await self._take_down(gone, front)  # to the last process, before code of another owner starts
                front.start()
            self.lanes[lane] = front
            self.changed.set()
            front.awaited += 1
        await front.settled.wait()
        async with self.moving:
            front.awaited -= 1
            self.sizes[template.digest] = front.megabytes
            if front.status.state == State.FAILED:
                await self._give_back(front, before)
                raise Wrong(f"{template.model} does not load: {front.status.failure}", Exit.FAILED)
            for other in self._idle(front):  # it may have turned out larger than its files
                if self.memory is not None and self._taken() > self.memory:
                    await self._take_down([other], front)
        return front

    async def _take_down(self, gone: Sequence[Front], heir: Front | None = None) -> None:
        """End states; their lanes are the heir's."""
        for each in gone:
            if self.fronts.get(each.template.digest) is each:
                del self.fronts[each.template.digest]
        self.lanes = [heir if each in gone else each for each in self.lanes]
        self.changed.set()
        for each in gone:  # after all else is in order: jobs come while this takes its time
            await each.stop()

    async def _give_back(self, front: Front, before: Front | None) -> None:
        """A newcomer did not load: its lanes are what they were, or what this server was started for."""
        await self._take_down([front])
        if before not in self.fronts.values():
            before = next(iter(self.fronts.values()), None)
        if before is None and self.template is not None and not front.native:
            before = self._bring(self.template)
        self.lanes = [before if each is None else each for each in self.lanes]

    def _bring(self, template: Template) -> Front:
        front = self._new(template)
        front.start()
        return front

    def _new(self, template: Template) -> Front:
        native = self.template is not None and template.digest == self.template.digest
        front = self.fronts[template.digest] = Front(template, self.supply, self.log, self.changed, native)
        return front

    # ---- room ------------------------------------------------------------------------------------

    def _in_its_way(self, template: Template) -> list[Front]:
        """What has to go for a template to come, idle longest first; Wrong when something else is in the way."""
        if self.memory is not None and template.megabytes > self.memory:
            needed = f"{template.model} needs {template.megabytes:.0f} MB"
            raise Wrong(f"{needed}, and there are {self.memory:.0f}", Exit.SERVER_LOST)
        earlier = self.fronts.get(template.digest)  # one that has failed
        gone = [earlier] if earlier else []
        # Code of one owner has no neighbour of another's: they would share an account on the node.
        gone += [each for each in self.fronts.values() if each.template.owner != template.owner and each not in gone]
        idle = self._idle()
        if any(each not in idle for each in gone):
            raise Wrong("no room: other states are in use", Exit.SERVER_LOST)
        for each in idle:
            if self._fits(template, gone):
                break
            gone += [] if each in gone else [each]
        if not self._fits(template, gone):
            raise Wrong("no room: other states are in use", Exit.SERVER_LOST)
        return gone

    def _idle(self, but: Front | None = None) -> list[Front]:
        """States that neither serve nor are waited for, the one that was used longest ago first."""
        idle = [each for each in self.fronts.values() if not each.jobs and not each.awaited and each.settled.is_set()]
        return sorted((each for each in idle if each is not but), key=lambda each: each.used)

    def _fits(self, template: Template, gone: list[Front]) -> bool:
        if self.memory is None:
            return len(gone) == len(self.fronts)
        # How large a function's state is, nobody knows before it has been there once.
        unknown = self.memory if template.function and not template.files else template.megabytes
        return self.sizes.get(template.digest, unknown) + self._taken(gone) <= self.memory

    def _taken(self, gone: Sequence[Front] = ()) -> float:
        return sum(each.megabytes for each in self.fronts.values() if each not in gone)

    @property
    def room(self) -> float | None:
        """MB that a template may take that comes now."""
        if self.memory is None:
            return None
        return max(0.0, self.memory - self._taken(self._idle()))

    @property
    def owner(self) -> str:
        """Whose code is here, if it is anybody's: then no lane serves anybody else."""
        return next((each.template.owner for each in self.fronts.values()), "")

    # ---- who watches -----------------------------------------------------------------------------

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        """Send each lane's status now and whenever it changes."""
        told: dict[int, tuple[Status, float]] = {}
        while True:
            files = self.supply.facts()
            for lane, front in enumerate(self.lanes):
                # That a newcomer has failed is its sticky job's to say; the lane is about to be something else.
                shown = front and (front.native or front.status.state != State.FAILED)
                status = replace(
                    front.status if front and shown else self.blank, room=self.room, owner=self.owner, files=files
                )
                known, since = told.get(lane, (None, 0.0))
                age = time.monotonic() - since
                if status.is_news_after(known) or (age > COUNT_SECONDS and known != status):
                    told[lane] = status, time.monotonic()
                    writer.write(status.advertisement(lane).encode())
            await writer.drain()
            self.changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), REPORT_SECONDS)


def _dismiss(writer: asyncio.StreamWriter, words: str, code: int) -> None:
    say(words)
    writer.write(f"{printable(' '.join(words.split()))}\nexit {code}\n".encode())
