"""A session: Python calls as invocations, behind the interface of concurrent.futures.

with glide.Session() as session:
    for result in session.map(verdict, claims): ...
"""

from __future__ import annotations

import atexit
import base64
import pickle
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from glide.condor import AccessPoint, home
from glide.errors import GlideError, InvocationError
from glide.invoke.carriers import Carriers, Run
from glide.sweep.driver import Driver
from glide.sweep.functions import Invocation
from glide.sweep.work import Work
from glide.sweep.workplace import workplace
from glide.template import Template


class RemoteTraceback(Exception):
    """Where on the node an exception was raised; it stands as the cause of that."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Call(Future):
    """The future of an invocation.

    Attributes:
        stdout, stderr: what the call printed, once it has ended.
        glidein: where it ran. attempts: how often it was begun. seconds: how long it took.
    """

    stdout = stderr = glidein = ""
    attempts = 0
    seconds = 0.0

    def __init__(self, request: dict[str, Any]):
        super().__init__()
        self.request = request

    def end(self, result: dict[str, Any]) -> None:
        """Take a line of the results as the outcome."""
        for name in ("stdout", "stderr", "glidein", "attempts", "seconds"):
            if name in result:
                setattr(self, name, result[name])
        try:
            if result["error"] is None:
                self.set_result(_unpickled(result["value"]))
            else:
                self.set_exception(_raised(result))
        except Exception as error:  # a value that cannot be unpickled here
            self.set_exception(error)


class Calls(Work):
    """What a session has been given to do with one template."""

    def __init__(self, template: Template, glideins: int):
        super().__init__(template, glideins)
        self.open: dict[str, Call] = {}  # those without an outcome, oldest first
        self.added = 0
        self.closed = False

    @property
    def total(self) -> int:
        return self.added

    @property
    def finished(self) -> bool:
        return self.closed and not self.open

    def add(self, request: dict[str, Any]) -> Call:
        self.added += 1
        call = Call({"custom_id": str(self.added), **request})
        self.open[call.request["custom_id"]] = call
        self.fresh.set()
        return call

    def close(self) -> None:
        """No more are coming."""
        self.closed = True
        self.fresh.set()

    def fail(self, error: BaseException) -> None:
        """None of those that are open will have a result, for this reason."""
        self.closed = True
        for call in list(self.open.values()):
            if call.running() or call.set_running_or_notify_cancel():
                call.set_exception(error)
        self.open.clear()

    def rest(self) -> None:
        while not self.open and not self.closed:
            self.fresh.wait(1.0)
            self.fresh.clear()

    def unsent(self, on_their_way: Collection[str]) -> Iterator[dict[str, Any]]:
        for number, call in list(self.open.items()):
            if call.running() or call.set_running_or_notify_cancel():
                if number not in on_their_way:
                    yield call.request
            else:  # cancelled
                self.have[number] = 0
                del self.open[number]

    def keep(self, results: Iterable[dict[str, Any]]) -> None:
        for result in self.news(results):
            self.open.pop(result["custom_id"]).end(result)


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
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.closed = False
        self.invocation = lru_cache(64)(Invocation)  # of plain functions, which need no state
        self.template = lru_cache(64)(self._template)
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
        invocation = fn if isinstance(fn, Invocation) else self.invocation(fn)
        request = {
            "prompt": invocation.prompt(args, kwargs), "generate": invocation.generate, "timeout": invocation.timeout,
        }  # fmt: skip
        with self.lock:
            if self.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            return self._calls(self.template(invocation)).add(request)

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
            for calls in self.calls.values():
                calls.fail(InvocationError("Stopped", "the session was left by an exception"))
        self.shutdown()

    # ---- threads ---------------------------------------------------------------------------------

    def _keep(self, ready: Future[str], site: Path | None, pool: Path | None) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(workplace(site, pool))
                user = AccessPoint().user
                self.folder.mkdir(parents=True, mode=0o700)
                stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            except BaseException as error:
                return ready.set_exception(error)
            ready.set_result(user)
            self.ended.wait()

    def _template(self, invocation: Invocation) -> Template:
        return invocation.state.template(self.user)

    def _calls(self, template: Template) -> Calls:
        """Those of a template, with a driver that sees to them."""
        calls = self.calls.get(template.digest)
        if calls is None or calls.closed:  # or its driver has failed: a new one may fare better
            calls = self.calls[template.digest] = Calls(template, self.glideins)
            driver = threading.Thread(target=self._drive, args=(calls,), name=template.model, daemon=True)
            self.drivers.append(driver)
            driver.start()
        return calls

    def _drive(self, calls: Calls) -> None:
        folder = self.folder / calls.template.digest
        run = Run(f"{self.name}-{len(self.drivers)}", calls.template, folder, self.glideins)
        driver = Driver(calls, Carriers(run, AccessPoint()))
        try:
            driver.run()
        except BaseException as error:
            calls.fail(error)
        finally:
            with suppress(GlideError):
                driver.cancel("the session has ended")


def _raised(result: dict[str, Any]) -> BaseException:
    """The exception that a call raised, or one that describes it where it cannot be brought back."""
    described = InvocationError(result["error"]["type"], result["error"]["message"])
    error: BaseException = described
    with suppress(Exception):
        error = _unpickled(result["exception"])
    if not isinstance(error, Exception):  # SystemExit would end who asks for the result
        error = described
    error.__cause__ = RemoteTraceback(result["traceback"]) if "traceback" in result else None
    return error


def _unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))
