"""Run the calls of a session on standing jobs, if there are few of them at a time.

A job for each link of a chain of calls would take a second each. Over the connection of a standing job, a call takes
milliseconds. Many calls at once still go to the driver, which packs them into jobs for all lanes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from glide.errors import GlideError, describe_bug
from glide.live.identity import LiveIdentity
from glide.live.jobs import StandingJobs
from glide.live.model import LiveModel, ServedModel
from glide.live.service import LanesLost, LiveService, ModelNotReady
from glide.live.worker import CondorWorker
from glide.template import Template

MOST_CALLS = 64  # maximum number of calls that wait for one connected lane, or are computed there
# If no lane is connected for this number of seconds, a call goes to the driver.
PATIENCE_SECONDS = 1.0
_log = logging.getLogger("glide")


class LiveCalls:
    """Computes calls of one template in a thread of its own.

    Args:
        run: value of GlideRun of the standing jobs.
        folder: folder for the state of the connections.
        glideins: maximum number of glideins.
        on_result: function that is called as `on_result(number, result)` with the result of a call.
        on_failure: function that is called with the number of a call that must be computed in another way.
    """

    def __init__(
        self,
        run: str,
        folder: Path,
        template: Template,
        glideins: int,
        on_result: Callable[[str, dict[str, Any]], None],
        on_failure: Callable[[str], None],
    ):
        self.run_name = run
        self.folder = folder
        self.model = LiveModel(template.model, template, glideins, None)
        self.on_result = on_result
        self.on_failure = on_failure
        self.served: ServedModel | None = None
        self.loop = asyncio.new_event_loop()
        self.ended: asyncio.Event = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.thread = threading.Thread(target=self._run, name=run, daemon=True)
        self.thread.start()

    @property
    def is_free(self) -> bool:
        """Whether a lane is connected and has few calls."""
        served = self.served
        return served is not None and served.is_ready and len(self.tasks) < MOST_CALLS * served.ready_lanes

    def begin(self, number: str, request: Mapping[str, Any]) -> None:
        """Compute a call. Call this only if `is_free` is true."""
        try:
            self.loop.call_soon_threadsafe(self._begin, number, request)
        except RuntimeError:  # the thread has ended meanwhile
            self.on_failure(number)

    def stop(self) -> None:
        """End the standing jobs and the thread. Calls without a result fail."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.ended.set)
            self.thread.join()

    def _begin(self, number: str, request: Mapping[str, Any]) -> None:
        task = self.loop.create_task(self._compute(number, request))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _compute(self, number: str, request: Mapping[str, Any]) -> None:
        assert self.served is not None
        fields = {name: request[name] for name in ("prompt", "generate", "timeout")}
        try:
            result = await self.service.compute(self.served, "session", fields)
        except (ModelNotReady, LanesLost):
            self.on_failure(number)
        except asyncio.CancelledError:
            self.on_failure(number)
            raise
        else:
            self.on_result(number, result)

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self._serve())
        except (GlideError, OSError) as error:  # the driver computes the calls
            _log.warning("calls of %s take a second each: %s", self.run_name, error)
        except Exception as error:
            _log.error("calls of %s take a second each: %s", self.run_name, describe_bug(error))
        finally:
            self.served = None
            self.loop.close()

    async def _serve(self) -> None:
        identity = LiveIdentity.load(self.folder, self.run_name)
        worker = CondorWorker(partial(StandingJobs, identity.run, self.folder / "jobs"))
        try:
            self.service = LiveService([self.model], identity, worker, PATIENCE_SECONDS)
            await self.service.start()
            keeping = asyncio.create_task(self.service.run())
            self.served = self.service.models[self.model.name]
            await self.ended.wait()
            self.served = None
            keeping.cancel()
            for task in list(self.tasks):
                task.cancel()
            await asyncio.gather(keeping, *self.tasks, return_exceptions=True)
            await self.service.stop(for_good=True)
        finally:
            worker.stop()
