"""Serve live calls: keep the standing jobs of each model, give its calls to their lanes, and return the results."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from glide.errors import CondorError, GlideError
from glide.files.share import address_towards
from glide.live.cycles import repeat
from glide.live.identity import LiveIdentity
from glide.live.jobs import PoolState, QueuedJob
from glide.live.links import LaneLink, LinkListener
from glide.live.model import LiveModel, ServedModel
from glide.live.plan import EndJob, StartJobs, WaitingJob, plan
from glide.live.router import LiveCall
from glide.live.worker import CondorWorker
from glide.protocol.live import Invitation

POLL_SECONDS = 1.0  # seconds between two queries of the queue and the collector while a job waits, or is missing
CALM_SECONDS = 5.0  # the same while all jobs are connected
# If no lane has the model, a call waits for at most this number of seconds. Then the client is asked to try again.
PATIENCE_SECONDS = 20.0
CHECK_SECONDS = 1.0  # seconds between two checks whether a call waits for too long
QUEUE_SECONDS = 3600.0  # a call that has waited for this number of seconds for a busy lane gets an error
_log = logging.getLogger("glide")


class ModelNotReady(GlideError):
    """No lane has the model, or no lane had time for the call. The message says what the model waits for."""


class LanesLost(GlideError):
    """A call has no result, because lanes were lost while they computed it."""


class LiveService:
    """Computes live calls on the lanes of standing jobs.

    Args:
        worker: process that submits and finds the standing jobs.
        patience: seconds that a call waits if no lane has its model.

    Attributes:
        host: address at which model servers reach this machine.
        fingerprint: sha256 of the certificate that they check.
        numbers: number of calls so far.
        observed: whether the queue has been read since the start.
        started: time of the start (monotonic seconds).
        wake: event that is set when the standing jobs must be planned soon.
    """

    def __init__(
        self, models: Iterable[LiveModel], identity: LiveIdentity, worker: CondorWorker,
        patience: float = PATIENCE_SECONDS,
    ):  # fmt: skip
        self.models = {model.name: ServedModel(model) for model in models}
        self.identity = identity
        self.worker = worker
        self.host = self.fingerprint = ""
        self.patience = patience
        self.listener = LinkListener(identity, self)
        self.numbers = 0
        self.observed = False
        self.started = time.monotonic()
        self.wake = asyncio.Event()

    async def start(self) -> None:
        """Listen for the connections of model servers, at the address at which they reach this machine.

        Raises:
            CondorError: HTCondor does not answer.
            OSError: no port can be opened at this address.
        """
        self.host = address_towards(await self.worker.ask("collector_address"))
        await self.listener.start(self.host)
        self.fingerprint = self.identity.fingerprint

    async def run(self) -> None:
        """Keep the standing jobs until this task is cancelled. Call `start` before."""
        await repeat("standing jobs", self._cycle, self.wake, self._pause)

    def _pause(self) -> float:
        calm = all((model.is_ready or model.is_idle) and not model.pending for model in self.models.values())
        return CALM_SECONDS if calm else POLL_SECONDS

    async def stop(self, for_good: bool = False) -> None:
        """End the standing jobs.

        Args:
            for_good: whether to end all. If not, jobs whose lane was connected wait a minute for a restart.
        """
        self.listener.stop()
        reason = "its server has ended"
        for link in [link for model in self.models.values() for link in model.router.lanes if for_good]:
            link.end(reason)
        idle = [
            model.ids[name] for model in self.models.values() for name, job in model.waiting.items()
            if name in model.ids and job.running_seconds is None
        ]  # fmt: skip
        with suppress(CondorError):
            await (self.worker.ask("remove_all", reason) if for_good else self.worker.ask("remove", idle, reason))

    # ---- calls -----------------------------------------------------------------------------------

    async def compute(
        self, model: ServedModel, user: str, fields: dict[str, Any],
        on_text: Callable[[str], None] | None = None, ends_on_loss: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Compute a call, and return its result, which has the fields of a line of results.jsonl.

        If the task of this coroutine is cancelled, the call is cancelled.

        Args:
            on_text: function that gets the pieces of the text, if the engine can stream; None: do not stream.
            ends_on_loss: whether the call ends with an error if its lane is lost after a piece of the text.

        Raises:
            ModelNotReady: no lane has the model, or no lane had time for the call.
            LanesLost: lanes were lost again and again while they computed the call, or the text of a stream broke.
        """
        self.numbers += 1
        result = asyncio.get_running_loop().create_future()
        fields |= {"stream": True} if on_text else {}
        call = LiveCall(self.numbers, user, fields, result, on_text=on_text, ends_on_loss=ends_on_loss)
        model.router.add(call)
        model.note_demand()
        self._assign(model)
        if call.lane is None:
            self.wake.set()
        began = time.monotonic()
        try:
            while not call.result.done():
                limit = QUEUE_SECONDS if model.is_ready or call.lane else self.patience
                # A call that has a lane does not wait. If the lane is lost, the wait begins again.
                began = time.monotonic() if call.lane else began
                if time.monotonic() - began > limit:
                    raise ModelNotReady(f"model {model.offered.name} is not ready: {model.state}")
                await asyncio.wait({call.result}, timeout=CHECK_SECONDS)
            return call.result.result()
        finally:
            self._finish(model, call)

    def _finish(self, model: ServedModel, call: LiveCall) -> None:
        lane = model.router.finish(call)
        if lane is not None and not call.is_answered:
            lane.send({"cancel": call.number})
        self._assign(model)
        if lane is not None:
            self._end_if_empty(lane)

    def _assign(self, model: ServedModel) -> None:
        for lane, call in model.router.assignments():
            lane.send_call(call)

    @staticmethod
    def _end_if_empty(lane: LaneLink) -> None:
        if lane.is_ending and not lane.calls:
            lane.end("no longer needed")

    # ---- lanes -----------------------------------------------------------------------------------

    def _model_of(self, link: LaneLink) -> ServedModel | None:
        return next(
            (each for each in self.models.values() if each.offered.template.digest == link.template), None
        )  # fmt: skip

    def accept(self, link: LaneLink) -> str:
        model = self._model_of(link)
        if model is None:
            return "its template is not served"
        names = {other.job for other in model.router.lanes} | model.pending.keys() | model.ids.keys()
        if self.observed and link.job not in names:
            return "its job is not in the queue"
        for other in model.router.lanes:
            if other.job == link.job:  # the same model server connects again, and this side has not noticed the end
                other.writer.transport.abort()
                self.lost(other)
            elif other.glidein == link.glidein and not other.is_ending:
                return "its glidein already serves calls"
        model.router.lanes.append(link)
        model.pending.pop(link.job, None)
        model.waiting.pop(link.job, None)
        model.lost_at.pop(link.job, None)
        _log.info("%s: lane of %s connected", model.offered.name, link.glidein)
        return ""

    def lane_changed(self, link: LaneLink) -> None:
        if model := self._model_of(link):
            model.capacity = link.capacity or model.capacity
            self._assign(model)
            self.wake.set()

    def answered(self, link: LaneLink, number: int, result: dict[str, Any]) -> None:
        call = link.calls.get(number)
        if call is not None and not call.result.done():
            call.is_answered = True
            call.result.set_result(result)

    def text_arrived(self, link: LaneLink, number: int, piece: str | None) -> None:
        call = link.calls.get(number)
        if call is not None and not call.result.done() and not call.add_text(piece):
            call.result.set_exception(LanesLost("after a lane was lost, another lane has computed another text"))

    def lost(self, link: LaneLink) -> None:
        model = self._model_of(link)
        if model is None or link not in model.router.lanes:
            return
        _log.info("%s: lane of %s ended, %d calls go elsewhere", model.offered.name, link.glidein, len(link.calls))
        model.lost_at[link.job] = time.monotonic()
        for call in model.router.lose(link):
            if not call.result.done():
                call.result.set_exception(LanesLost(f"{call.losses} lanes were lost while they computed this call"))
        self._assign(model)
        self.wake.set()

    # ---- standing jobs ---------------------------------------------------------------------------

    async def _cycle(self) -> None:
        """Observe the standing jobs, plan, and act."""
        digests = [model.offered.template.digest for model in self.models.values()]
        asked = time.monotonic()
        self._note(await self.worker.ask("observe", digests), asked)
        for model in self.models.values():
            if time.monotonic() < model.retry_at:
                continue
            try:
                for action in plan(model.demand()):
                    if isinstance(action, EndJob):
                        await self._end(model, action)
                    else:
                        await self._start(model, action)
                model.note_outcome("")
            except CondorError as error:  # the other models may still get their jobs
                if str(error) != model.problem:
                    _log.warning("%s: standing jobs: %s", model.offered.name, error)
                model.note_outcome(str(error))

    def _note(self, state: PoolState, asked: float) -> None:
        """Note what the queue and the collector report.

        Args:
            asked: time of the question (monotonic seconds). A job that was submitted later may be missing.
        """
        jobs = {job.name: job for job in state.jobs}
        connected = {link.job for model in self.models.values() for link in model.router.lanes}
        for model in self.models.values():
            model.lanes = state.lanes.get(model.offered.template.digest, ())
            own = [job for job in state.jobs if job.template == model.offered.template.digest]
            model.ids = {job.name: job.id for job in own}
            model.lost_at = {name: at for name, at in model.lost_at.items() if name in model.ids}
            model.waiting = {job.name: self._waiting(model, job) for job in own if job.name not in connected}
            model.pending = {
                name: since for name, since in model.pending.items() if name not in jobs and since >= asked
            }
        self.observed = True
        self.identity.forget_others(jobs.keys() | {name for each in self.models.values() for name in each.pending})

    def _waiting(self, model: ServedModel, job: QueuedJob) -> WaitingJob:
        """Return what the plan needs to know of a job without a connection."""
        running, reason = job.running_seconds, job.hold_reason
        if running is None and self.identity.uses.get(job.name) and not reason:
            reason = "its secret was used before HTCondor queued it again"
        if running is not None:  # the job may have been connected for long, and may connect again
            running = min(running, time.monotonic() - model.lost_at.get(job.name, self.started))
        return WaitingJob(job.name, running, reason, job.name in model.lost_at)

    async def _start(self, model: ServedModel, action: StartJobs) -> None:
        _log.info("%s: %d standing jobs: %s", model.offered.name, action.count, action.reason)
        names = [uuid.uuid4().hex[:12] for _ in range(action.count)]
        digest = model.offered.template.digest
        invitations = {
            name: Invitation(
                self.host, self.identity.port, self.fingerprint, name, self.identity.secret(name, digest)
            ).to_line()
            for name in names
        }  # fmt: skip
        model.pending |= dict.fromkeys(names, float("inf"))
        try:
            await self.worker.ask(
                "submit", model.offered.template, invitations, model.offered.glideins, action.avoid
            )  # fmt: skip
        finally:
            submitted = time.monotonic()
            model.pending |= {name: submitted for name in names if name in model.pending}

    async def _end(self, model: ServedModel, action: EndJob) -> None:
        _log.info("%s: standing job %s ends: %s", model.offered.name, action.name, action.reason)
        link = next((link for link in model.router.lanes if link.job == action.name), None)
        if link is not None:
            link.is_ending = True
            self._end_if_empty(link)
        elif action.name in model.ids:
            await self.worker.ask("remove", [model.ids[action.name]], action.reason)
            model.waiting.pop(action.name, None)
