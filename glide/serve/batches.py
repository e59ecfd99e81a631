"""Run the batches: check each input, watch its sweep, and store its answers as files.

The sweep's driver is a job of the access point. So a batch continues while this server is down, and after a reboot.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from glide.config import SUMMARY
from glide.errors import CondorError, describe_bug
from glide.live.cycles import repeat
from glide.live.worker import CondorWorker
from glide.protocol.json_lines import read_lines
from glide.serve.batch_process import INPUT, SWEEP, CheckOutcome, CheckRequest
from glide.serve.batch_store import ACTIVE, Batch, BatchStore
from glide.serve.errors import ApiError
from glide.serve.file_store import FileStore, new_file_id
from glide.serve.models import Catalogue
from glide.sweep.out import ERRORS, OUTPUT, holder, internal_path, read_state
from glide.system import ending_with_us, publish, tail

POLL_SECONDS = 1.0  # seconds between two looks at the batches
QUEUE_SECONDS = 10.0  # seconds between two queries for the batches' drivers
MOST_BATCHES = 100  # maximum number of batches of a user that have not ended
RETRY_AFTER = 60  # seconds after which a user with too many batches may try again
MOST_CHECKS = 2  # maximum number of checks at the same time; each may read a gigabyte
MOST_TRIES = 3  # a batch ends if a step of it has failed this number of times
LOST_SECONDS = 60.0  # a batch fails if its driver is not in the queue for this number of seconds
TAIL_BYTES = 1 << 18  # number of bytes at the end of a sweep's history in which the newest counts are looked for
_log = logging.getLogger("glide")


@dataclass
class BatchRunner:
    """Advances all batches until its task is cancelled.

    Args:
        site: site file of the factory that the drivers run; None as in `glide sweep submit`.
        account: name of this account. Its own batches are accounted as all its jobs.

    Attributes:
        active: the batches that change by themselves, by id.
        checks: the running processes, by batch.
        failures: number of failed tries of a step, by batch.
        absent: since when the driver of a batch is missing in the queue (monotonic seconds), by batch.
        drivers: the drivers in the queue, by path of the sweep file: the job's number and why it is held.
        removing: tasks that remove drivers of failed batches.
        asked: time of the last query for the drivers (monotonic seconds).
    """

    store: BatchStore
    files: FileStore
    catalogue: Catalogue
    worker: CondorWorker
    site: Path | None
    account: str
    active: dict[str, Batch] = field(default_factory=dict)
    checks: dict[str, asyncio.Task[bool]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    absent: dict[str, float] = field(default_factory=dict)
    drivers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    asked: float = 0.0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    removing: set[asyncio.Task[bool]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.active = {batch.id: batch for batch in self.store.all() if batch.status in ACTIVE}

    async def run(self) -> None:
        """Advance the batches, again and again."""
        await repeat("batches", self._cycle, self.wake, lambda: POLL_SECONDS if self.active else None)

    async def _cycle(self) -> None:
        await self._find_drivers(list(self.active.values()))
        for name in list(self.active):
            batch = self.active[name]  # it may have been cancelled meanwhile
            try:
                self._advance(batch)
            except Exception as error:
                _log.error("batch %s: %s", batch.id, describe_bug(error))

    def create(self, user: str, endpoint: str, file: str, window: str, metadata: dict[str, str] | None) -> Batch:
        """Create a batch, and begin to run it.

        Raises:
            ApiError: the user has too many batches that have not ended.
        """
        if sum(batch.user == user for batch in self.active.values()) >= MOST_BATCHES:
            why = f"you have {MOST_BATCHES} batches that have not ended; wait, or cancel one"
            raise ApiError(429, why, "rate_limit_exceeded", retry_after=RETRY_AFTER)
        batch = self.store.create(user, endpoint, file, window, metadata)
        self.active[batch.id] = batch
        self.wake.set()
        return batch

    def cancel(self, batch: Batch) -> Batch:
        """Begin to cancel a batch.

        Raises:
            ApiError: the batch has already ended.
        """
        batch = self.refreshed(batch)
        if batch.status not in ("validating", "in_progress"):
            raise ApiError(409, f"batch {batch.id} is {batch.status}, so it cannot be cancelled", "conflict")
        self.asked = 0.0
        self.wake.set()
        return self._enter(batch, "cancelling")

    def refreshed(self, batch: Batch) -> Batch:
        """Return a batch with its present counts."""
        if batch.status not in ("in_progress", "cancelling"):
            return batch
        counts: dict[str, int] = {}
        for line in tail(internal_path(self._out(batch), "history.jsonl"), TAIL_BYTES).splitlines():
            with suppress(ValueError, TypeError):
                counts = json.loads(line).get("counts") or counts
        done, errors = counts.get("done", 0), counts.get("errors", 0)
        return replace(batch, counts={**batch.counts, "completed": done - errors, "failed": errors})

    # ---- steps -----------------------------------------------------------------------------------

    def _out(self, batch: Batch) -> Path:
        return self.store.place(batch) / "out"

    def _source(self, batch: Batch) -> str:
        return str(self.store.place(batch) / SWEEP)

    def _enter(self, batch: Batch, status: str, **changes: object) -> Batch:
        _log.info("batch %s of %s: %s", batch.id, batch.user, status)
        times = {**batch.times, f"{status}_at": int(time.time())}
        return self._save(replace(batch, status=status, times=times, **changes))  # type: ignore[arg-type]

    def _save(self, batch: Batch) -> Batch:
        self.active.pop(batch.id, None)
        if batch.status in ACTIVE:
            self.active[batch.id] = batch
        return self.store.save(batch)

    async def _find_drivers(self, active: list[Batch]) -> None:
        running = [self._source(batch) for batch in active if batch.status != "validating"]
        hurried = any(batch.status == "cancelling" for batch in active)
        if running and time.monotonic() - self.asked >= (POLL_SECONDS if hurried else QUEUE_SECONDS):
            self.drivers = await self.worker.ask("drivers", running)
            self.asked = time.monotonic()

    def _advance(self, batch: Batch) -> None:
        if batch.id in self.checks:
            if not self.checks[batch.id].done():
                return
            self.failures[batch.id] += not self.checks.pop(batch.id).result()
        if batch.status == "validating":
            self._validate(batch)
        elif batch.status == "cancelling":
            self._finish_cancel(batch)
        elif (state := read_state(self._out(batch))) and state.finished and (self._out(batch) / SUMMARY).exists():
            self._complete(batch, "completed")
        else:
            self._watch_driver(batch)

    def _validate(self, batch: Batch) -> None:
        folder = self.store.place(batch)
        found = next(read_lines(folder / "checked.json"), None)
        outcome = CheckOutcome(**found) if found else None
        if outcome is None or outcome.is_temporary:
            (folder / "checked.json").unlink(missing_ok=True)
            if self.failures[batch.id] >= MOST_TRIES:
                self._enter(batch, "failed", problems=[("the input cannot be checked; ask the server's admin", None)])
            elif len(self.checks) < MOST_CHECKS:
                self._start_check(batch)
            return
        counts = {**batch.counts, "total": outcome.total}
        if outcome.problems:
            problems = [(str(message), line) for message, line in outcome.problems]
            self._enter(batch, "failed", problems=problems, model=outcome.model, counts=counts)
            (folder / INPUT).unlink(missing_ok=True)  # it would need space after the user has deleted the file
        else:
            self._enter(batch, "in_progress", model=outcome.model, counts=counts)

    def _start_check(self, batch: Batch) -> None:
        folder = self.store.place(batch)
        try:
            if not (folder / INPUT).exists():
                content = self.files.content(self.files.find(batch.user, batch.input_file_id))
                (folder / INPUT).hardlink_to(content)
        except (ApiError, OSError):
            self._enter(batch, "failed", problems=[("the input file was deleted", None)])
            return
        models = {name: (str(each.source), each.key) for name, each in self.catalogue.models.items()}
        user = "" if batch.user.partition("@")[0] == self.account.partition("@")[0] else batch.user
        asked = CheckRequest(batch.id, batch.endpoint, models, str(self.site) if self.site else None, user)
        publish(folder / "request.json", json.dumps(asdict(asked)))
        self._run(batch, "check")

    def _run(self, batch: Batch, step: str) -> None:
        folder = self.store.place(batch)

        async def process() -> bool:
            with (folder / "process.log").open("ab") as log:
                child = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "glide.serve.batch_process", step, str(folder), stdout=log, stderr=log,
                    stdin=asyncio.subprocess.DEVNULL, preexec_fn=ending_with_us(),
                )  # fmt: skip
                if code := await child.wait():
                    _log.warning("batch %s: %s failed; the reason is in %s", batch.id, step, folder / "process.log")
                    await asyncio.sleep(QUEUE_SECONDS)  # before the next try
            self.wake.set()
            return code == 0

        self.checks[batch.id] = asyncio.create_task(process())

    def _watch_driver(self, batch: Batch) -> None:
        """Let a batch fail if its driver is held, or has left the queue."""
        driver = self.drivers.get(self._source(batch))
        if driver is not None:
            self.absent.pop(batch.id, None)
            if driver[1]:
                _log.warning("batch %s: its driver is held: %s", batch.id, driver[1])
                self._fail(batch, "its driver failed; ask the server's admin")
                task = asyncio.create_task(self._remove_driver(driver[0]))
                self.removing.add(task)  # the event loop alone would not keep it
                task.add_done_callback(self.removing.discard)
            return
        since = self.absent.setdefault(batch.id, time.monotonic())
        if self.asked > since and time.monotonic() - since > LOST_SECONDS:
            self._fail(batch, "its driver was removed from the queue")

    def _fail(self, batch: Batch, why: str) -> None:
        self._enter(self.refreshed(batch), "failed", problems=[(why, None)])

    def _finish_cancel(self, batch: Batch) -> None:
        """Remove the driver of a batch. When it has ended, store the answers that there are."""
        if (driver := self.drivers.get(self._source(batch))) is not None:
            self.asked = 0.0
            self.checks[batch.id] = asyncio.create_task(self._remove_driver(driver[0]))
        elif self.asked > self.absent.setdefault(batch.id, time.monotonic()) and holder(self._out(batch)) is None:
            if (self._out(batch) / OUTPUT).exists():
                self._complete(self.refreshed(batch), "cancelled")
            elif self.failures[batch.id] >= MOST_TRIES:
                self._enter(batch, "cancelled")
            elif internal_path(self._out(batch), "run.json").exists():
                self._run(batch, "collect")
            else:
                self._enter(batch, "cancelled")

    async def _remove_driver(self, job: str) -> bool:
        with suppress(CondorError):
            await self.worker.ask("remove", [job], "its batch has ended")
        await asyncio.sleep(POLL_SECONDS)  # the driver gathers its finished results before it ends
        return True

    def _complete(self, batch: Batch, status: str) -> None:
        """Store the answers of a batch as files of its user."""
        batch = self.refreshed(batch)
        # Save the names of the files before the files, so that a restart stores the same files again.
        if batch.output_file_id is None:
            batch = self._save(replace(batch, output_file_id=new_file_id(), error_file_id=new_file_id()))
        ids: dict[str, str | None] = {}
        for name, kind, file in (
            (OUTPUT, "output", batch.output_file_id),
            (ERRORS, "error", batch.error_file_id),
        ):  # fmt: skip
            path = self._out(batch) / name
            ids[f"{kind}_file_id"] = file if path.exists() and path.stat().st_size else None
            if ids[f"{kind}_file_id"]:
                self.files.adopt(batch.user, f"{batch.id}_{kind}.jsonl", path, str(file))
        counts = batch.counts
        if summary := next(read_lines(self._out(batch) / SUMMARY), None):
            records = sum(each["records"] for each in summary["prompts"].values())
            errors = sum(each["errors"] for each in summary["prompts"].values())
            counts = {"total": records, "completed": records - errors, "failed": errors}
        self._enter(batch, status, counts=counts, **ids)
