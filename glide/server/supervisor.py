"""Run the engines of a template, one after the other, and exchange messages with them.

If an engine's process dies, the jobs continue, and the supervisor starts another engine. The suspects are the records
of the call that was running. The new engine first serves the suspects, in smaller and smaller calls, until a call
contains only the record that kills the engine. Then the engine serves the other records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from glide.server.batcher import Batcher
from glide.server.compiled import CompiledSupply
from glide.server.engine import DeadEngine, EngineHandle
from glide.server.environment import UnusableEnvironment
from glide.server.feeder import Feeder
from glide.server.sleeper import Sleeper
from glide.server.supply import FetchFailed, FileSupply
from glide.server.template_state import TemplateState
from glide.template import Template
from glide.vocabulary import State

T = TypeVar("T")
# If a concurrent engine still serves a record this number of seconds after the record's timeout, the model server kills
# the engine.
CANCEL_SECONDS = 10.0
# If this number of engines die one after the other, and none of them gives a result, the template fails.
MOST_FRUITLESS_DEATHS = 20


class Supervisor:
    """Starts engines for a template while they are needed.

    Args:
        supply: object that fetches the template's files.
        log: file for the engines' output.
        state: object with the template's status. The supervisor changes this status.
        batcher: queue from which the engines get their records.

    Attributes:
        compiled: object that provides the code that programs compile.
        sleeper: object that lets the engine sleep.
        job_arrived: event that is set when a job has arrived.
        megabytes: memory that the template needs, in MB. At first, this is the size of the template's files. If an
            engine reports a larger number, this larger number is used. After a template has fallen asleep or woken up,
            this is the number that the engine then reports.
    """

    def __init__(self, template: Template, supply: FileSupply, log: Path, state: TemplateState, batcher: Batcher):
        self.template = template
        self.supply = supply
        self.log = log
        self.state = state
        self.batcher = batcher
        self.job_arrived = asyncio.Event()
        self.megabytes = template.megabytes
        self.compiled = CompiledSupply(supply, template)
        self.sleeper = Sleeper(template, state, batcher, self._resize)

    async def run(self) -> None:
        """Start engines when they are needed, until the template has failed.

        A template that does not keep its state is Warm as soon as its files are on this node. Engines of such a
        template start only while the template has jobs.
        """
        fruitless_deaths = 0
        if not self.keeps_state:
            with suppress(FetchFailed):
                await self._within_fetch_budget(self.supply.ensure_environment(self.template))
                await self._within_fetch_budget(self._ensure_files())
                self.state.enter(State.WARM)
        while not self.state.failed:
            if not self.keeps_state:
                self.job_arrived.clear()
                if not self.batcher.jobs:
                    await self.job_arrived.wait()
            finished = self.batcher.finished
            try:
                await self._run_engine()
            except OSError as error:  # for example, this host cannot start another process
                self.state.enter(State.FAILED, f"engine process not started: {error!r}")
            fruitless_deaths = fruitless_deaths + 1 if self.batcher.finished == finished else 0
            if fruitless_deaths >= MOST_FRUITLESS_DEATHS:
                died = f"the engine died {fruitless_deaths} times in a row without a result"
                self.state.enter(State.FAILED, f"{died}; last: {self.state.status.failure}")

    @property
    def keeps_state(self) -> bool:
        """Whether the template stays loaded when no job is left. Otherwise, the next job loads the template again."""
        return self.template.keep == "state"

    def _resize(self, megabytes: float) -> None:
        self.megabytes = megabytes

    # ---- an engine -------------------------------------------------------------------------------

    async def _run_engine(self) -> None:
        """Run one engine process from its start to its death."""
        # A separate task fetches the files. Meanwhile the environment is fetched, and the engine imports libraries.
        files = asyncio.create_task(self._ensure_files())
        try:
            environment = await self._within_fetch_budget(self.supply.ensure_environment(self.template))
            engine = await EngineHandle.start(
                self.template,
                self.log,
                environment,
                self.supply.visible_folders(self.template),
                await self.compiled.ensure(),
            )
            await self._exchange_messages(engine, files)
        except FetchFailed:
            pass  # _within_fetch_budget has reported the failure
        except UnusableEnvironment as error:
            self.state.enter(State.FAILED, str(error))
        finally:
            files.cancel()
            await asyncio.wait([files])  # a fetch that still runs could bring back files that are deleted now

    async def _ensure_files(self) -> dict[str, Any]:
        """Fetch the files of the model and of its adapters. Return the message that tells the engine their folders."""
        folder = await self.supply.ensure_files(self.template)
        return {"folder": folder, "adapters": await self.supply.ensure_adapters(self.template)}

    async def _exchange_messages(self, engine: EngineHandle, files: asyncio.Task[dict[str, Any]]) -> None:
        """Exchange messages with an engine until it dies. Then report its death, and requeue its unfinished records."""
        self.sleeper.engine = engine
        tasks = [
            asyncio.create_task(self._enforce_limits(engine)),
            asyncio.create_task(self._send_folders(engine, files)),
        ]
        try:
            while True:
                message = await engine.receive()
                try:
                    self._handle_message(engine, message, tasks)
                except Exception as error:  # user code in the engine's process can write to the channel
                    await engine.kill(f"sent an invalid message: {error!r}")
        except DeadEngine as death:
            if not engine.warm and self.state.status.state not in (State.BLANK, State.FETCHING, State.IMPORTING):
                await self.compiled.distrust()
            if engine.unused:
                self.batcher.in_flight.clear()  # the jobs of these records have ended
                if self.template.keep == "nothing":
                    self.supply.delete_cached(self.template)
            elif not self.state.failed and not engine.warm:
                at = self.state.status.state if self.keeps_state else State.LOADING
                # In the state Fetching, the node fetches files. At the same time, the engine imports packages. If the
                # engine dies in this state, the fetch is not the cause. So the message below names the state Importing.
                at = State.IMPORTING if at == State.FETCHING else at
                during = "" if engine.kill_reason else f" while {at}"
                self.state.enter(State.FAILED, f"the engine {death}{during}")
            elif self.state.status.state == State.ASLEEP:
                self.state.enter(State.FAILED, f"the engine {death} while it was asleep")
            elif not self.state.failed:
                if self.keeps_state:
                    self.state.enter(State.BLANK, f"the engine {death}")
                self.state.count_errors(self.batcher.requeue_after_death(list(engine.running), death))
        finally:
            self.sleeper.engine_ended()
            for task in tasks:
                task.cancel()
            await engine.stop()

    def _handle_message(self, engine: EngineHandle, message: dict[str, Any], tasks: list[asyncio.Task[None]]) -> None:
        """Act on a message of the engine. Add new tasks to `tasks`; such tasks run until the engine dies."""
        if "phase" in message:
            # Invocation jobs start only on lanes in the state Warm. Some templates do not stay loaded between jobs. The
            # engine of such a template starts only after a job has started. So the lanes must stay Warm, even while
            # this engine loads the model.
            if self.keeps_state:
                self.state.enter(message["phase"])
        elif "failed" in message:
            self.state.enter(State.FAILED, message["failed"])
        elif "imported" in message:
            self.state.update(import_seconds=message["imported"])
        elif "warm" in message:
            warm = message["warm"]
            gpu, batching = warm.get("gpu", ""), warm.get("batching", "")
            self.state.update(gpu=gpu, batching=batching, batch=warm["batch"])
            self.megabytes = max(self.megabytes, warm["megabytes"])
            engine.warm = True
            engine.concurrent = bool(warm.get("concurrent"))
            self.state.set_capacity(warm["batch"] if engine.concurrent else 2 * warm["batch"])
            engine.can_sleep = self.keeps_state and self.template.engine == "server" and bool(warm.get("can_sleep"))
            if self.keeps_state:
                self.state.enter(State.WARM)
                tasks.append(asyncio.create_task(self.compiled.share()))
            else:
                took = self.state.status.load_seconds + time.monotonic() - engine.started
                self.state.update(load_seconds=took)
                tasks.append(asyncio.create_task(self._end_when_unused(engine)))
            feeder = Feeder(engine, self.batcher, self.state, warm)
            tasks.append(asyncio.create_task(feeder.run()))
            if engine.concurrent:
                tasks.append(asyncio.create_task(feeder.send_calls()))
        elif "slept" in message:
            self.sleeper.answered(message["slept"])
        elif "begin" in message:
            engine.call_began([int(key) for key in message["begin"]])
        elif "started" in message:
            engine.records_started([int(key) for key in message["started"]])
        elif "text" in message:
            key, piece = message["text"]
            if (item := self.batcher.in_flight.get(key)) and not item.is_unwanted:
                item.job.add_text(item, piece)
        elif "paused" in message:
            engine.records_paused(message["paused"])
        else:
            done = message["done"]
            self.state.count_errors(self.batcher.deliver(done))
            if "idle" in message or "busy" in message:
                self.state.describe_engine(message["prefix_hits"], message["adapters"])
            if "idle" in message:
                self.state.count_call(engine.finish_call(), message["idle"])
            elif "busy" in message:
                engine.finish_records(key for key, *_ in done)
                self.state.count_call(len(done), message["busy"])

    async def _end_when_unused(self, engine: EngineHandle) -> None:
        """Wait until no job is left, and then end the engine. Use this if the template does not keep its state."""
        while self.batcher.jobs:
            await asyncio.sleep(0.02)
        engine.unused = True
        await engine.stop()

    async def _within_fetch_budget(self, fetching: Awaitable[T]) -> T:
        """Wait for files. If fetching fails or exceeds its time limit, let the template fail, and raise FetchFailed."""
        if self.state.status.state not in (State.FETCHING, State.WARM):
            self.state.enter(State.FETCHING)
        budget = self.template.budget(State.FETCHING)
        try:
            return await asyncio.wait_for(fetching, budget)
        except (asyncio.TimeoutError, FetchFailed, OSError) as error:
            late = f"files not fetched in time: {State.FETCHING} for more than {budget:g} s"
            self.state.enter(State.FAILED, str(error) or late)
            raise FetchFailed from None

    async def _send_folders(self, engine: EngineHandle, files: Awaitable[dict[str, Any]]) -> None:
        """Wait for the template's files. Then send the paths of their folders to the engine.

        During the wait, the engine imports libraries.
        """
        try:
            folders = await self._within_fetch_budget(files)
        except FetchFailed:
            await engine.stop()
            return
        if self.state.status.state != State.WARM:
            self.state.enter(State.IMPORTING)
        await engine.send(folders)

    async def _enforce_limits(self, engine: EngineHandle) -> None:
        """Kill the engine if a phase exceeds its time limit, or a call exceeds the largest timeout of its records."""
        while True:
            await asyncio.sleep(1.0)
            state, since = self.state.status.state, self.state.status.entered
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
            if engine.concurrent:
                await self._cancel_records(engine)
                continue
            items = self.batcher.still_in_flight(engine.running)
            if not engine.is_calling or not items:
                continue
            if all(item.is_unwanted for item in items):
                engine.interrupt()  # end the call: no job needs its results, and the call may delay new jobs
            await engine.enforce_timeout(max(item.request.timeout for item in items))

    async def _cancel_records(self, engine: EngineHandle) -> None:
        """Ask a concurrent engine to stop serving records whose job has ended, or that have exceeded their timeout.

        Kill the engine if it still serves a record CANCEL_SECONDS after the record's timeout.
        """
        now = time.monotonic()
        items = self.batcher.in_flight
        late = {
            key: now - since - items[key].request.timeout
            for key, since in engine.running.items()
            if key in items and now - since > items[key].request.timeout
        }
        unwanted = [key for key, item in items.items() if item.is_unwanted]
        if late or unwanted:
            await engine.send({"late": list(late), "unwanted": unwanted})
        if max(late.values(), default=0.0) > CANCEL_SECONDS:
            await engine.kill("did not stop serving a record whose timeout was over")
