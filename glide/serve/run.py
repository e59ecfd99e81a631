"""Run `glide serve`: its HTTP server, the standing jobs of its models, and its batches, in one process."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import uvicorn

from glide.errors import InputError
from glide.live.identity import LiveIdentity
from glide.live.service import LiveService
from glide.live.status import remove_status, write_status
from glide.live.worker import CondorWorker
from glide.serve.app import application
from glide.serve.batch_api import BatchApi
from glide.serve.batch_store import BatchStore
from glide.serve.batches import BatchRunner
from glide.serve.connections import KEEP_ALIVE_SECONDS, LARGEST_HEAD, many_files, new_protocol
from glide.serve.file_store import FileStore
from glide.serve.jobs import ServeJobs
from glide.serve.limits import MOST_CALLS, UserLimits
from glide.serve.live_api import LiveApi
from glide.serve.metrics import ServeMetrics
from glide.serve.models import Catalogue
from glide.serve.users import TokenFile

STATUS_SECONDS = 2.0  # seconds between two updates of the status that other commands show
END_SECONDS = 30  # seconds that unfinished calls get when the server is stopped
_log = logging.getLogger("glide")


@dataclass(frozen=True)
class ServeSettings:
    """The settings of `glide serve`.

    Attributes:
        folder: folder of its state.
        listening: the socket on which clients connect.
        site: site file of the factory that runs meanwhile; None as in `glide sweep run`.
        certificate, key: files with a TLS certificate and its key; None for plain HTTP.
        most_calls: maximum number of unfinished calls of a user.
    """

    folder: Path
    listening: socket.socket
    site: Path | None
    certificate: Path | None = None
    key: Path | None = None
    most_calls: int = MOST_CALLS


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder in a `with` block, so that no second server uses the folder.

    Raises:
        InputError: another server uses the folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{folder} is in use by {holder}; stop it first, or set another GLIDE_HOME") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield


def run(settings: ServeSettings, catalogue: Catalogue, tokens: TokenFile) -> None:
    """Serve until this process gets SIGTERM or SIGINT. A pool must be configured."""
    identity = LiveIdentity.load(settings.folder)
    worker = CondorWorker(partial(ServeJobs, identity.run, settings.folder / "jobs"))
    try:
        with many_files(), suppress(KeyboardInterrupt):
            asyncio.run(serve(settings, catalogue, tokens, identity, worker))
    finally:
        worker.stop()


async def serve(
    settings: ServeSettings, catalogue: Catalogue, tokens: TokenFile, identity: LiveIdentity, worker: CondorWorker
) -> None:
    """Serve until this task is cancelled, or until the process gets SIGTERM or SIGINT.

    Args:
        worker: the process that submits and finds the jobs.
    """
    account = await worker.ask("user")
    catalogue = Catalogue(
        {
            name: replace(each, template=each.template.for_user(lambda: account))
            for name, each in catalogue.models.items()
        }
    )  # fmt: skip
    service = LiveService(catalogue.models.values(), identity, worker)
    await service.start()
    metrics = ServeMetrics(service)
    files, batches = FileStore(settings.folder / "files"), BatchStore(settings.folder / "batches")
    runner = BatchRunner(batches, files, catalogue, worker, settings.site, account)
    live = LiveApi(catalogue, service, UserLimits(settings.most_calls), metrics.observe)
    app = application(tokens, service, live, BatchApi(files, batches, runner), metrics, int(time.time()))
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=new_protocol(), log_level="warning", access_log=False, server_header=False, proxy_headers=False,
            lifespan="off", timeout_graceful_shutdown=END_SECONDS, timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=LARGEST_HEAD, ws="none", backlog=4096,
            ssl_certfile=settings.certificate, ssl_keyfile=settings.key,
        )
    )  # fmt: skip
    tasks = [
        asyncio.create_task(each) for each in (service.run(), runner.run(), _refresh(tokens), _show_status(service))
    ]
    try:
        await server.serve(sockets=[settings.listening])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await service.stop()
        remove_status()


async def _show_status(service: LiveService) -> None:
    """Write the status for other commands, again and again."""
    while True:
        with suppress(OSError):  # for example, the disk is full
            write_status(model.status for model in service.models.values())
        await asyncio.sleep(STATUS_SECONDS)


async def _refresh(tokens: TokenFile) -> None:
    """Read the token file again when it changes."""
    reported = ""
    while True:
        await asyncio.sleep(1.0)
        problem = tokens.refresh()
        if problem and problem != reported:
            _log.warning("the tokens of before stay valid: %s", problem)
        reported = problem
