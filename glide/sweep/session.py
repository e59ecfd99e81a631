"""A session: Python calls as invocations, behind the interface of concurrent.futures.

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
from glide.errors import CondorError, InvocationError
from glide.invoke.carriers import Carriers, Run
from glide.sweep.calls import Call, Calls
from glide.sweep.driver import Driver, Progress
from glide.sweep.functions import Invocation
from glide.sweep.outage import Outage, passes
from glide.sweep.workplace import workplace
from glide.template import Template
from glide.vocabulary import Job

WAIT_SECONDS = 30.0  # calls may wait for so long before that is worth a word
_log = logging.getLogger("glide")


class Session(Executor):
    """Runs invocations where their state is warm; an Executor as those of concurrent.futures.

    Args:
        glideins: at most so many at once for each template.
        site: the site file of a factory to run meanwhile; by default, as for a sweep, the configured pool's own
            factory, and on an embedded pool that of site_configs/local.yaml.
        pool: the condor_config of an existing pool; by default the configured one, else an embedded one, which is
            started and stopped by the session.

    Raises:
        GlideError: there is no pool, and none can be started.
    """

    def __init__(self, glideins: int = 1, site: Path | str | None = None, pool: Path | str | None = None):
        self.glideins = glideins
        self.name = f"session-{secrets.token_hex(4)}"
        self.folder = home() / "sessions" / self.name
        self.calls: dict[str, Calls] = {}
        self.drivers: list[threading.Thread] = []
        self.lock = threading.RLock()  # a future's callback may submit more
        self.ended = threading.Event()
        self.closed = False
        self.tidy = True  # no job is left
        self.invocation = lru_cache(64)(Invocation)  # of plain functions, which need no state
        self.template = lru_cache(64)(lambda state: state.template(self.user))
        ready: Future[str] = Future()
        # The pool's and the factory's processes end with the thread that has started them, so it is one that lasts.
        arguments = (ready, Path(site) if site else None, Path(pool) if pool else None)
        self.keeper = threading.Thread(target=self._keep, args=arguments, name=self.name, daemon=True)
        self.keeper.start()
        self.user = ready.result()
        atexit.register(self.shutdown)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """Have a call made, of an invocation or of a plain function.

        Raises:
            TypeError: the function takes no such arguments.
            InputError: function, state or arguments cannot be sent to a node.
            RuntimeError: the session is shut down, or what it needs has failed; the cause says why.
        """
        if isinstance(fn, Invocation):
            invocation = fn
        else:  # what is no function, a bound method say, may have changed since the last time
            invocation = self.invocation(fn) if isinstance(fn, FunctionType) else Invocation(fn)
        request = {
            "prompt": invocation.prompt(args, kwargs), "generate": invocation.generate, "timeout": invocation.timeout,
        }  # fmt: skip
        with self.lock:
            if self.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            return self._calls(self.template(invocation.state)).add(request)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, finish those there are, and stop what the session has started."""
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
            self.keeper.join()
            atexit.unregister(self.shutdown)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """An exception, an interruption say, does not wait for what nobody will look at."""
        if error is not None:
            with self.lock:
                for calls in self.calls.values():
                    calls.fail(InvocationError("Stopped", "the session was left by an exception"))
        self.shutdown()

    # ---- threads ---------------------------------------------------------------------------------

    def _keep(self, ready: Future[str], site: Path | None, pool: Path | None) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(workplace(site, pool))
                access_point = AccessPoint()
                _clear_away(self.folder.parent, access_point)
                stack.callback(self._remove_folder)
                self.folder.mkdir(parents=True, mode=0o700)
                stack.enter_context(_locked(self.folder))
                user = access_point.user
            except BaseException as error:
                return ready.set_exception(error)
            ready.set_result(user)
            self.ended.wait()

    def _remove_folder(self) -> None:
        """Unless jobs are left, because HTCondor did not answer: by the folder, the next session knows of them."""
        if self.tidy:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _calls(self, template: Template) -> Calls:
        """Those of a template, with a driver that sees to them."""
        calls = self.calls.get(template.digest)
        if calls is None or calls.closed:  # or its driver has failed: a new one may fare better
            calls = self.calls[template.digest] = Calls(template, self.glideins)
            name = f"{self.name}-{len(self.drivers)}"
            driver = threading.Thread(target=self._drive, args=(calls, name), name=template.model, daemon=True)
            self.drivers.append(driver)
            driver.start()
        return calls

    def _drive(self, calls: Calls, name: str) -> None:
        began = time.monotonic()

        def watch(progress: Progress) -> None:
            nonlocal began
            if progress.lanes or not calls.open:
                began = time.monotonic()
            elif time.monotonic() - began > WAIT_SECONDS:
                _log.warning("%d calls wait, and no glidein is up; `glide status` says why", len(calls.open))
                began = math.inf  # said once

        try:
            folder = self.folder / calls.template.digest
            run = Run(
                name, calls.template, folder, self.glideins, answer_bytes=calls.answer_bytes, complaint=calls.complaint
            )
            driver = _driver(run, calls)
            if driver is None:
                return
            try:
                driver.run(watch)
            finally:
                self.tidy &= driver.stop("the session has ended")
        except BaseException as error:
            with self.lock:  # or a call would be added to what has failed
                calls.fail(error)


def _driver(run: Run, calls: Calls) -> Driver | None:
    """A driver, as soon as HTCondor, which has answered this session before, does so again; None if none is needed."""
    outage = Outage(run.name, lambda: isolated(lambda: AccessPoint().time()))
    while not calls.finished:
        try:
            driver = Driver(calls, Carriers(run, AccessPoint()), met=True)
            outage.over()
            return driver
        except (CondorError, OSError) as error:
            if not passes(error):
                raise
            outage.wait(error, lambda: calls.finished)
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Held for as long as the session lives, and no longer, however it ends."""
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _clear_away(folder: Path, access_point: AccessPoint) -> None:
    """Remove what killed sessions have left: nobody waits for their calls."""
    for left in folder.glob("session-*"):
        with suppress(OSError), _locked(left):
            access_point.remove(f"regexp({quoted(f'^{left.name}-')}, {Job.RUN})", "its session is gone")
            shutil.rmtree(left)
