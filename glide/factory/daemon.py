"""The factory's loop: look, plan, apply, say what was done and why; drain when told to stop."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glide.condor import AccessPoint, Collector, EventLog, home
from glide.condor.event_log import ENDED
from glide.config import SiteFile
from glide.errors import CondorError, InputError
from glide.factory import plan as policy
from glide.factory.apply import Hands
from glide.factory.plan import Action
from glide.factory.snapshot import take

EVENT_SECONDS = 0.2  # between looks into the access point's event log
DRAIN_SECONDS = 20.0  # how long a stopping factory waits for its glideins to leave the queue


class Factory:
    """Runs one site; all it remembers between cycles is what it said and which jobs' ends are news."""

    def __init__(self, site: SiteFile):
        self.site = site
        self.stop = threading.Event()
        self.said: set[Action] = set()
        self.events = EventLog()
        self.glideins: set[str] = set()

    def run(self, once: bool = False) -> None:
        """Cycle until SIGTERM or SIGINT, then take the glideins down.

        Raises:
            InputError: another factory runs this site.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())
        with only_factory(self.site):
            say(f"factory {self.site.site}: entries {', '.join(entry.name for entry in self.site.entries)}")
            while not self.stop.is_set():
                self._cycle()
                if once:
                    return
                self._wait()
            self._drain()

    def _wait(self) -> None:
        """Until the next cycle is due; at once when a job ends, for it may have been a glidein with live ads."""
        deadline = time.monotonic() + self.site.interval
        while time.monotonic() < deadline and not self.stop.wait(EVENT_SECONDS):
            if any(event.kind in ENDED and event.job in self.glideins for event in self.events.new()):
                return

    def _cycle(self) -> None:
        try:
            access_point, collector = AccessPoint(), Collector()
            snapshot = take(access_point, collector)
            self.glideins = {f"{glidein.cluster}.{glidein.proc}" for glidein in snapshot.glideins}
            actions = policy.plan(snapshot, self.site)
            self._report(actions)
            Hands(self.site, folder(self.site), access_point, collector).apply(actions, snapshot)
        except CondorError as error:
            say(f"no action this cycle: {error}")

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            try:
                access_point, collector = AccessPoint(), Collector()
                snapshot = take(access_point, collector)
                actions = policy.drain(snapshot, self.site, "the factory stops")
                if not actions and not snapshot.failed:
                    return
                self._report(actions)
                Hands(self.site, folder(self.site), access_point, collector).apply(actions, snapshot)
            except CondorError as error:
                say(f"cannot drain: {error}")
                return
            time.sleep(0.5)

    def _report(self, actions: list[Action]) -> None:
        """Say each action once: a wait that goes on is not news."""
        for action in actions:
            if action not in self.said:
                say(f"{action.action} {action.count or ''} {action.entry} {action.template[:12]}: {action.reason}")
        self.said = {action for action in actions if action.action in ("wait", "drain")}


def folder(site: SiteFile) -> Path:
    """Where a site's factory keeps what it sends to nodes and what comes back (0700)."""
    path = home() / "factory" / site.site
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def is_running(site: SiteFile) -> bool:
    """Whether a factory runs this site from this GLIDE_HOME."""
    try:
        with only_factory(site):
            return False
    except InputError:
        return True


@contextmanager
def only_factory(site: SiteFile) -> Iterator[None]:
    """Hold the site's lock; the kernel releases it whatever becomes of us."""
    with (folder(site) / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"a factory for site {site.site} is running (pid {_owner(file)}); stop it first") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _owner(file) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


def say(text: str) -> None:
    """One line of the factory's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {' '.join(text.split())}", file=sys.stderr, flush=True)
