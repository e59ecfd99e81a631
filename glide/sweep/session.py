"""A session runs calls of Python functions on glideins. It is an executor as in concurrent.futures. An example:

with glide.Session() as session:
    for result in session.map(verdict, claims): ...
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any

from glide.condor import AccessPoint, home
from glide.condor.access_point import quoted
from glide.condor.bounded import isolated
from glide.condor.job_folders import job_folders
from glide.condor.ports import configured_pool
from glide.errors import CondorError, InvocationError
from glide.invoke.files import JobFiles
from glide.invoke.jobs import RunSpec
from glide.sweep.calls import Call, Calls
from glide.sweep.driver import Driver, Progress
from glide.sweep.functions import Invocation
from glide.sweep.live_calls import LiveCalls
from glide.sweep.outage import Outage, is_temporary
from glide.sweep.workplace import workplace
from glide.template import Template
from glide.vocabulary import Job

WAIT_SECONDS = 30.0  # seconds that calls wait without a glidein before a warning is logged
_log = logging.getLogger("glide")


class Session(Executor):
    """An executor for calls of Python functions. A call runs on a glidein that has loaded the function's sticky state.

    If no pool is configured, the session uses the embedded pool. This is the HTCondor pool that glide itself starts on
    this machine. The last process that uses the pool stops the pool, but only if a session or sweep started the pool.

    Args:
        glideins: maximum number of glideins that may run at the same time for each template.
        site: site file of a factory that runs during the session. There are two defaults:
            - On a configured pool, the session starts no factory. Such a pool should already have its own factory.
            - On the embedded pool, the session runs a factory for site_configs/local.yaml.
        pool: path of the condor_config of an existing pool. By default, the session uses the configured pool or the
            embedded pool.

    Attributes:
        calls: the calls for each template, by the digest of the template.
        pool_thread: the thread that keeps the pool and the factory until the session ends.
        ended: an event that is set when `pool_thread` has to end.
        jobs_removed: False if a driver has ended, but could not remove its jobs. True otherwise.

    Raises:
        GlideError: no pool is configured, and no embedded pool can be started.
    """

    def __init__(self, glideins: int = 1, site: Path | str | None = None, pool: Path | str | None = None):
        self.glideins = glideins
        self.name = f"session-{secrets.token_hex(4)}"
        self.folder = home() / "sessions" / self.name
        self.calls: dict[str, Calls] = {}
        self.drivers: list[threading.Thread] = []
        self.lock = threading.RLock()  # reentrant: a thread that holds the lock may run a callback that calls `submit`
        self.ended = threading.Event()
        self.closed = False
        self.jobs_removed = True
        self.invocation = lru_cache(64)(Invocation)  # turns plain functions into invocations that need no state
        self.template = lru_cache(64)(lambda state: state.template(self.user))
        ready: Future[str] = Future()
        # The processes of the pool and the factory end together with the thread that started these processes. So
        # `pool_thread` lives until the end of the session.
        arguments = (ready, Path(site) if site else None, Path(pool) if pool else None)
        self.pool_thread = threading.Thread(target=self._hold_pool, args=arguments, name=self.name, daemon=True)
        self.pool_thread.start()
        self.user = ready.result()
        atexit.register(self.shutdown)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """Submit a call of an invocation or of a plain function, and return the call's future.

        Raises:
            TypeError: the function does not take these arguments.
            InputError: the function, its state or its arguments cannot be sent to a node.
            RuntimeError: the session has been shut down.
        """
        if isinstance(fn, Invocation):
            invocation = fn
        else:  # keep only plain functions in the cache, because other callables may contain objects that change
            invocation = self.invocation(fn) if isinstance(fn, FunctionType) else Invocation(fn)
        request = {
            "prompt": invocation.prompt(args, kwargs), "generate": invocation.generate, "timeout": invocation.timeout,
        }  # fmt: skip
        with self.lock:
            if self.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            return self._calls_for(self.template(invocation.state)).add(request)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, finish the submitted calls, and stop the pool and factory that the session started.

        Args:
            wait: whether to block until the calls are finished, and the pool and factory are stopped.
            cancel_futures: whether to cancel the calls that are in no job yet.
        """
        with self.lock:
            self.closed = True
        for calls in self.calls.values():
            if cancel_futures:
                for call in list(calls.open.values()):
                    call.cancel()
            calls.close()
        if wait:
            for driver in self.drivers:
                driver.join()
            self.ended.set()
            self.pool_thread.join()
            atexit.unregister(self.shutdown)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Shut down. If the `with` block ended with an exception (for example an interrupt), the open calls fail."""
        if error is not None:
            with self.lock:
                for calls in self.calls.values():
                    calls.fail(InvocationError("Stopped", "the session was left by an exception"))
        self.shutdown()

    # ---- threads ---------------------------------------------------------------------------------

    def _hold_pool(self, ready: Future[str], site: Path | None, pool: Path | None) -> None:
        """Provide the pool and the factory until the session ends.

        When the pool and the factory run, the future `ready` gets the user's name at the access point. If an error
        occurs before that, the future gets the error.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(workplace(site, pool))
                access_point = AccessPoint()
                _remove_killed_sessions(self.folder.parent, access_point)
                stack.callback(self._remove_folder)
                self.folder.mkdir(parents=True, mode=0o700)
                stack.enter_context(_locked(self.folder))
                user = access_point.user
            except BaseException as error:
                return ready.set_exception(error)
            ready.set_result(user)
            self.ended.wait()

    def _remove_folder(self) -> None:
        """Remove the session's folder if the session's jobs have been removed.

        If HTCondor did not answer, jobs may remain, and the folder is kept. The next session finds the folder, and
        removes these jobs.
        """
        if self.jobs_removed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _calls_for(self, template: Template) -> Calls:
        """Return the calls of a template. Start a driver for these calls if no driver runs."""
        calls = self.calls.get(template.digest)
        if calls is None or calls.closed:  # the template's earlier driver has failed; a new driver may succeed
            calls = self.calls[template.digest] = Calls(template, self.glideins)
            name = f"{self.name}-{len(self.drivers)}"
            driver = threading.Thread(target=self._drive, args=(calls, name), name=template.model, daemon=True)
            self.drivers.append(driver)
            driver.start()
        return calls

    def _drive(self, calls: Calls, name: str) -> None:
        began = time.monotonic()
        driver: Driver | None = None

        def start_live() -> LiveCalls:
            return LiveCalls(
                f"{name}-live", self.folder / f"live-{name}", calls.template, self.glideins, calls.finish_live,
                calls.return_live,
            )  # fmt: skip

        def watch(progress: Progress) -> None:
            nonlocal began
            if calls.start_live is None and driver is not None and driver.has_spare_lane:
                calls.start_live = start_live
            if progress.lanes or not calls.open:
                began = time.monotonic()
            elif time.monotonic() - began > WAIT_SECONDS:
                _log.warning("%d calls are waiting: no glidein is running; see `glide status`", len(calls.open))
                began = math.inf  # log the warning only once

        try:
            folder = self.folder / calls.template.digest
            run = RunSpec(
                name, calls.template, folder, self.glideins, max_result_bytes=calls.max_result_bytes,
                check_result=calls.check_result,
            )  # fmt: skip
            driver = _connected_driver(run, calls)
            if driver is None:
                return
            try:
                driver.run(watch)
            finally:
                if calls.live is not None:
                    calls.live.stop()
                self.jobs_removed &= driver.stop("the session has ended")
        except BaseException as error:
            with self.lock:  # without the lock, a call could be added after its driver has failed
                calls.fail(error)


def _connected_driver(run: RunSpec, calls: Calls) -> Driver | None:
    """Wait until HTCondor answers, and return a driver for the calls. If all calls finish before that, return None.

    The wait has no limit, because HTCondor has already answered this session.
    """
    outage = Outage(run.name, lambda: isolated(lambda: AccessPoint().time()))
    while not calls.finished:
        try:
            driver = Driver(calls, run, configured_pool(AccessPoint()), condor_answered=True)
            outage.end()
            return driver
        except (CondorError, OSError) as error:
            if not is_temporary(error):
                raise
            outage.wait(error, lambda: calls.finished)
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a session's folder in a `with` block. If the process is killed, the kernel releases the lock."""
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_killed_sessions(folder: Path, access_point: AccessPoint) -> None:
    """Remove the jobs and folders of killed sessions. Skip a folder if a running session has locked it."""
    own = job_folders(access_point)
    for left in folder.glob("session-*"):
        with suppress(OSError), _locked(left):
            access_point.remove(f"regexp({quoted(f'^{left.name}-')}, {Job.RUN})", "its session is gone")
            for inputs in {path.parent for path in left.rglob("*.in")}:
                JobFiles(inputs, own).remove_others(())
            shutil.rmtree(left)
