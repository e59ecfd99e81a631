"""Let the engine of a template sleep while another template needs the memory of the GPUs, and wake it up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from glide.server.batcher import Batcher
from glide.server.engine import EngineHandle
from glide.server.engines.server.share import share, tree_megabytes
from glide.server.log import log_line
from glide.server.template_state import TemplateState
from glide.template import Template
from glide.vocabulary import State

# While a template sleeps, its weights are in main memory. The rest of main memory must suffice for the next engine.
WEIGHTS_SHARE, SPARE_MEGABYTES = 1.2, 4000.0
SLEEP_SECONDS = 150.0  # time limit within which an engine must have fallen asleep or woken up, in seconds


class Sleeper:
    """Lets a template's engine sleep, and wakes it up.

    Args:
        on_size: function that is called with the memory that the template takes after a change, in MB.

    Attributes:
        engine: the engine that runs now; None if none runs.
        answer: future for the engine's answer to the last request; None before the first request.
    """

    def __init__(self, template: Template, state: TemplateState, batcher: Batcher, on_size: Callable[[float], None]):
        self.template = template
        self.state = state
        self.batcher = batcher
        self.on_size = on_size
        self.engine: EngineHandle | None = None
        self.answer: asyncio.Future[float | None] | None = None

    def begin(self) -> bool:
        """Enter the state Asleep if the engine can sleep now. Return whether it can. Then call `sleep`."""
        engine = self.engine
        if engine is None or not engine.can_sleep or self.state.status.state != State.WARM:
            return False
        if engine.pending_calls or self.batcher.jobs:
            return False
        needed = WEIGHTS_SHARE * self.template.megabytes + SPARE_MEGABYTES
        if self.state.status.gpu and share().memory - tree_megabytes(os.getpid()) < needed:
            log_line(f"{self.template.model} does not sleep: main memory has no room for its weights")
            return False
        self.state.enter(State.ASLEEP)
        return True

    async def sleep(self) -> bool:
        """Let the engine free its GPU memory. Return whether this succeeded. If not, the caller must stop it."""
        return self.engine is not None and await self._ask(self.engine, True)

    async def wake(self) -> None:
        """Wake the engine up. If this fails, the engine is killed, and the next engine loads the template again.

        The template is settled again when it is warm or has failed.
        """
        engine = self.engine
        self.state.settled.clear()
        self.state.enter(State.LOADING)
        if engine is None or await self._ask(engine, False):
            self.state.enter(State.WARM if engine else State.FAILED, "" if engine else "the engine has ended")
            self.batcher.work.set()  # jobs may have arrived while the state was Loading
        else:
            await engine.kill("did not wake up")

    async def _ask(self, engine: EngineHandle, sleep: bool) -> bool:
        self.answer = asyncio.get_running_loop().create_future()
        await engine.send({"sleep": sleep})
        try:
            megabytes = await asyncio.wait_for(self.answer, SLEEP_SECONDS)
        except asyncio.TimeoutError:
            return False
        if megabytes is None:
            return False
        self.on_size(megabytes)
        return True

    def answered(self, megabytes: float | None) -> None:
        """Accept the engine's answer. Raise ValueError if it is not valid."""
        if megabytes is not None and not 0 <= megabytes < float("inf"):
            raise ValueError(f"{megabytes} MB")
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(megabytes)

    def engine_ended(self) -> None:
        """Note that the engine has ended, so that nobody waits for its answer."""
        self.engine = None
        self.answered(None)
