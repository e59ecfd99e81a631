"""Provide the pool and the factory that a running sweep or session needs."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glide import resources
from glide.condor import EmbeddedPool, configured, connect, home
from glide.config import SiteFile, load
from glide.errors import InputError
from glide.factory.home import is_running, site_folder
from glide.factory.suitability import lack
from glide.factory.users import ends_when_unused, is_used, use_factory
from glide.protocol.names import printable
from glide.system import tail
from glide.template import Template
from glide.vocabulary import POOL_VARIABLE

STOP_SECONDS = 25.0  # an unused factory is killed if it has not ended by itself after this number of seconds
WATCH_SECONDS = 1.0  # seconds between two checks whether a factory runs
# If a factory ends within this number of seconds after its start, it has failed, and the next start is delayed.
SOON_SECONDS = 30.0
LONGEST_PAUSE = 60.0  # maximum delay before a factory is started again, in seconds
# When a factory has ended, a warning shows the end of the factory's log: at most this number of bytes, and at most this
# number of lines.
LAST_BYTES, LAST_LINES = 4096, 3
_log = logging.getLogger("glide")
_embedded: set[str] = set()  # condor_config paths of the embedded pools that this process has used


@contextmanager
def workplace(site_file: Path | None, pool: Path | None = None) -> Iterator[None]:
    """Provide a pool, and a factory if needed, for a `with` block. After the block, stop the processes started here.

    If no pool is configured, the block uses the embedded pool. This is the HTCondor pool that glide itself starts on
    this machine.

    Args:
        site_file: site file of the factory to run. If `site_file` is None, there are two cases:
            - On a configured pool, no factory is started. Such a pool should already have its own factory.
            - On the embedded pool, a factory for site_configs/local.yaml runs.
        pool: path of the condor_config of an existing pool. None: use the configured pool or the embedded pool.
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


def check_site(site_file: Path | None, templates: Iterable[Template]) -> None:
    """Check that a site file is valid, and that it has an entry with enough resources for each template.

    If `workplace` would start no factory, check nothing.

    Args:
        site_file: as in `workplace`.

    Raises:
        InputError: the file has a mistake, or all entries lack a resource that a template needs.
    """
    if site_file is None and configured() and os.environ.get("CONDOR_CONFIG") not in _embedded:
        return
    path = site_file or resources.find("site_configs", "local.yaml")
    site = load(path, SiteFile)
    problems = []
    for template in templates:
        lacks = [f"{entry.name}: {missing}" for entry in site.entries if (missing := lack(template, entry))]
        if len(lacks) == len(site.entries):
            cure = "change the model's needs or args, or use another site"
            problems.append(f"{path}: no entry can run {template.model}: {'; '.join(lacks)}; {cure}")
    if problems:
        raise InputError(*problems)


@contextmanager
def embedded_pool() -> Iterator[None]:
    """Provide the embedded pool of GLIDE_HOME in a `with` block. Start the pool if it is down.

    If the pool was started by a sweep or a session, the last process that uses the pool stops the pool.
    """
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
            for name in pool.environment():  # restore the environment, because later code may use another pool
                os.environ.pop(name, None)
                os.environ |= {name: before[name]} if name in before else {}
            with suppress(BlockingIOError):  # another process uses the pool
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if started_by_sweep.exists():
                    pool.down()
                    started_by_sweep.unlink()


@contextmanager
def factory(site_file: Path) -> Iterator[None]:
    """Provide a factory for the site in a `with` block. If no factory runs, start a new factory.

    The new factory ends when no process uses it any more.
    """
    site = load(site_file, SiteFile)
    with use_factory(site):
        supervisor = FactorySupervisor(site, site_file)
        supervisor.start()
        try:
            yield
        finally:
            supervisor.stop()
    deadline = time.monotonic() + STOP_SECONDS
    while ends_when_unused(site) and not is_used(site):  # return only when the unused factory has ended
        if time.monotonic() > deadline:
            return supervisor.kill()
        time.sleep(0.1)


class FactorySupervisor:
    """Keep a factory running for a site. If no factory runs, start one.

    Attributes:
        process: the process of the factory that this supervisor has started; None if no factory was started.
        failures: number of factories in a row that ended within SOON_SECONDS after their start.
        started: time of the last start of a factory (monotonic seconds).
        ended: an event that is set when the supervisor has to stop.
    """

    def __init__(self, site: SiteFile, site_file: Path):
        self.site = site
        self.log = site_folder(site) / "factory.log"
        self.command = [sys.executable, "-m", "glide", "factory", "run", "--drain", "--while-used"]
        self.command += ["-c", str(site_file.absolute())]
        self.process: subprocess.Popen[bytes] | None = None
        self.failures = 0
        self.started = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name=f"factory {site.site}", daemon=True)

    def start(self) -> None:
        """Start a factory if none runs, and begin to watch the factory."""
        if not is_running(self.site):
            self._start()
        self.thread.start()

    def stop(self) -> None:
        """Stop watching the factory. A running factory continues to run."""
        self.ended.set()
        self.thread.join()

    def kill(self) -> None:
        """Kill the factory that this process has started, if the factory still runs."""
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
                "the factory of site %s has ended; it is started again in %.0f s; the end of its log (%s):\n%s",
                self.site.site, pause, self.log, self._log_tail(),
            )  # fmt: skip
            if not self.ended.wait(pause):
                self._start()

    def _log_tail(self) -> str:
        return printable("\n".join(tail(self.log, LAST_BYTES).splitlines()[-LAST_LINES:]))
