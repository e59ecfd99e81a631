"""Where a sweep runs: the pool that is configured, or an embedded one with a factory, for as long as needed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from glide import resources
from glide.condor import EmbeddedPool, configured, connect, home
from glide.config import SiteFile, load
from glide.factory.daemon import folder, is_running
from glide.system import end_with_parent
from glide.vocabulary import POOL_VARIABLE

STOP_SECONDS = 25.0
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
    """A factory for the site, unless one runs already; it ends with us, however we end."""
    site = load(site_file, SiteFile)
    if is_running(site):
        yield
        return
    with (folder(site) / "factory.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "glide", "factory", "run", "--drain", "-c", str(site_file.absolute())],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, POOL_VARIABLE: str(home())}, preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
            process.wait()
