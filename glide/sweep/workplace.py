"""Where a sweep runs: the pool that is configured, or an embedded one with a factory, for as long as needed."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glide import resources
from glide.condor import EmbeddedPool, configured, connect, home
from glide.condor.names import printable
from glide.config import SiteFile, load
from glide.factory.daemon import folder, is_running
from glide.factory.users import ends_by_itself, is_used, use
from glide.system import tail
from glide.vocabulary import POOL_VARIABLE

STOP_SECONDS = 25.0
WATCH_SECONDS = 1.0  # between looks whether there is a factory
SOON_SECONDS = 30.0  # one that ends within that time fails for a reason, and the next one waits
LONGEST_PAUSE = 60.0
LAST_BYTES, LAST_LINES = 4096, 3  # of a factory's log
_log = logging.getLogger("glide")
_embedded: set[str] = set()  # the configurations that this process itself has put in force


@contextmanager
def workplace(site_file: Path | None, pool: Path | None = None) -> Iterator[None]:
    """Have a pool, and a factory where that is ours to start; stop afterwards what was started.

    Args:
        site_file: the site whose factory to run. Without one, a configured pool is expected to have its own
            factory, and an embedded one gets that of site_configs/local.yaml.
        pool: the condor_config of the pool; by default the one that is configured, else an embedded one.
    """
    if pool is not None:
        os.environ["CONDOR_CONFIG"] = str(pool.resolve())
    if configured() and os.environ.get("CONDOR_CONFIG") not in _embedded:
        connect()
        if site_file is None:
            yield
            return
        with factory(site_file):
            yield
        return
    with embedded_pool(), factory(site_file or resources.find("site_configs", "local.yaml")):
        yield


@contextmanager
def embedded_pool() -> Iterator[None]:
    """The pool of GLIDE_HOME, up; whoever leaves last stops it, if a sweep had started it."""
    pool = EmbeddedPool(home())
    pool.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    started_by_sweep = pool.home / "started-by-sweep"
    with (pool.home / "users.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not pool.is_up():
            pool.up()
            started_by_sweep.touch()
        before = dict(os.environ)
        try:
            _embedded.add(str(pool.config))
            connect()
            yield
        finally:
            for name in pool.environment():  # what comes next in this process may be on another pool
                os.environ.pop(name, None)
                os.environ |= {name: before[name]} if name in before else {}
            with suppress(BlockingIOError):  # another sweep uses it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if started_by_sweep.exists():
                    pool.down()
                    started_by_sweep.unlink()


@contextmanager
def factory(site_file: Path) -> Iterator[None]:
    """A factory for the site: the one that runs already, else one that stays for as long as a run uses it."""
    site = load(site_file, SiteFile)
    with use(site):
        keeper = Keeper(site, site_file)
        keeper.start()
        try:
            yield
        finally:
            keeper.stop()
    deadline = time.monotonic() + STOP_SECONDS
    while ends_by_itself(site) and not is_used(site):  # what we have started is gone when we are
        if time.monotonic() > deadline:
            return keeper.kill()
        time.sleep(0.1)


class Keeper:
    """Sees to it that a site has a factory, and starts one where it has none, also when it dies later."""

    def __init__(self, site: SiteFile, site_file: Path):
        self.site = site
        self.log = folder(site) / "factory.log"
        self.command = [sys.executable, "-m", "glide", "factory", "run", "--drain", "--while-used"]
        self.command += ["-c", str(site_file.absolute())]
        self.process: subprocess.Popen[bytes] | None = None
        self.failures = 0  # factories in a row that ended soon
        self.started = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name=f"factory {site.site}", daemon=True)

    def start(self) -> None:
        if not is_running(self.site):
            self._start()
        self.thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self.ended.set()
        self.thread.join()

    def kill(self) -> None:
        """End our own factory, which does not end by itself."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _start(self) -> None:
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, POOL_VARIABLE: str(home())},
            )  # fmt: skip

    def _watch(self) -> None:
        while not self.ended.wait(WATCH_SECONDS):
            alive = self.process is not None and self.process.poll() is None
            if alive or is_running(self.site):
                continue
            self.failures = self.failures + 1 if time.monotonic() - self.started < SOON_SECONDS else 0
            pause = min(LONGEST_PAUSE, 2.0**self.failures - 1)
            _log.warning(
                "the factory of site %s has ended, and is started again in %.0f s; the end of its log, %s:\n%s",
                self.site.site, pause, self.log, self._last_words(),
            )  # fmt: skip
            if not self.ended.wait(pause):
                self._start()

    def _last_words(self) -> str:
        return printable("\n".join(tail(self.log, LAST_BYTES).splitlines()[-LAST_LINES:]))
