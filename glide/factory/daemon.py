"""The factory's loop: look, plan, apply, say what was done and why."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from glide.condor import Collector, EventLog, home
from glide.condor.event_log import ENDED
from glide.condor.names import printable
from glide.config import SiteFile, load
from glide.errors import CondorError, GlideError, InputError
from glide.factory import plan as policy
from glide.factory.apply import Hands
from glide.factory.doubt import doubted, expected
from glide.factory.journal import Journal
from glide.factory.plan import Action
from glide.factory.seed import Seed
from glide.factory.snapshot import Snapshot
from glide.factory.watchdog import limited, notify
from glide.files.share import address_towards

EVENT_SECONDS = 0.2  # between looks into the access point's event log
LOCK_ATTEMPTS = 10  # a twentieth of a second apart
DRAIN_SECONDS = 20.0  # how long a stopping factory waits for its glideins to leave the queue


class Factory:
    """Runs some sites; all it remembers between cycles is what it said and which jobs' ends are news.

    Args:
        files: the site files, read again at SIGHUP; one with a mistake never replaces a good one.
        drain: take the glideins down when told to stop, instead of leaving them to their work.
    """

    def __init__(self, files: list[Path], drain: bool = False):
        self.sites = {path: load(path, SiteFile) for path in files}
        names = Counter(entry.name for site in self.sites.values() for entry in site.entries)
        for name, count in names.items():
            if count > 1:
                raise InputError(f"{count} of these site files have an entry {name}; rename one")
        self.drain = drain
        # Set by signals' handlers, which must not take locks: an Event's may be held by what they interrupt.
        self.stop = False
        self.reload = False
        self.said: set[Action] = set()
        self.refused: set[str] = set()  # in the cycle before
        self.refusing: set[str] = set()  # in this one
        self.believed: dict[str, Snapshot] = {}  # by site: what the next look is compared with
        self.journals = {site.site: Journal(folder(site)) for site in self.sites.values()}
        self.events = EventLog()
        self.glideins: set[str] = set()
        self.seeds: dict[str, Seed] = {}  # by site

    def run(self, once: bool = False) -> None:
        """Cycle until SIGTERM or SIGINT.

        Raises:
            InputError: another factory runs one of the sites.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stop", True))
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "reload", True))
        with ExitStack() as locks:
            for path, site in self.sites.items():
                locks.enter_context(only_factory(site))
                (folder(site) / "file").write_text(str(path.absolute()), "utf-8")
                say(f"factory {site.site}: entries {', '.join(entry.name for entry in site.entries)}")
            notify("READY=1")
            while not self.stop:
                with limited():
                    self._cycle()
                if once:
                    return
                self._wait()
            notify("STOPPING=1")
            if self.drain:
                with limited():
                    self._drain()
            for seed in self.seeds.values():
                seed.stop()

    def _wait(self) -> None:
        """Until the next cycle is due; at once when a job ends, for it may have been a glidein with live ads."""
        deadline = time.monotonic() + min(site.interval for site in self.sites.values())
        while time.monotonic() < deadline and not self.stop and not self.reload:
            notify("WATCHDOG=1")
            time.sleep(EVENT_SECONDS)
            if any(event.kind in ENDED and event.job in self.glideins for event in self.events.new()):
                return

    def _cycle(self) -> None:
        if self.reload:
            self.reload = False
            self._read_again()
        done: list[Action] = []
        glideins: set[str] = set()
        for site in self.sites.values():
            try:
                glideins |= self._attend(site, done)
            except (GlideError, OSError) as error:
                say(f"{site.site}: {error}")
            except Exception:  # a mistake of ours must not take a daemon down that glideins hang on
                say(f"{site.site}: no action, because of an error in glide:")
                with suppress(OSError):
                    traceback.print_exc()
        self.said = {_stable(action) for action in done if action.action in ("wait", "drain")}
        self.refused = self.refusing
        self.refusing = set()
        self.glideins = glideins

    def _attend(self, site: SiteFile, done: list[Action]) -> set[str]:
        """Look, plan and act for one site; return its glideins' jobs, and add what was decided to `done`."""
        hands = Hands(site, folder(site), self._seed(site))
        closed = drained(site)
        looked = hands.look()
        snapshot = doubted(looked, self.believed.get(site.site), site, closed)
        actions = policy.plan(snapshot, site, closed)
        self._report(actions)
        done += actions
        refused = [] if snapshot.failed else hands.apply(actions, snapshot)
        self._complain(site, refused)
        if not snapshot.failed and snapshot.blind == looked.blind:  # nothing is doubted
            self.believed[site.site] = expected(snapshot, actions, self.believed.get(site.site))
        try:
            self.journals[site.site].write(snapshot, actions, refused)
        except OSError as error:  # it decides nothing
            self._complain(site, [f"cannot write the journal: {error}"])
        if not snapshot.failed:
            self._complain(site, hands.care(snapshot))
        return {glidein.job for glidein in snapshot.glideins}

    def _complain(self, site: SiteFile, refused: list[str]) -> None:
        """Say what could not be done, once for as long as it goes on."""
        for refusal in refused:
            if _timeless(refusal) not in self.refused | self.refusing:
                say(f"{site.site}: {refusal}")
        self.refusing |= set(map(_timeless, refused))

    def _seed(self, site: SiteFile) -> Seed:
        if site.site not in self.seeds:
            self.seeds[site.site] = Seed(folder(site) / "seed", address_towards(Collector().address))
        return self.seeds[site.site]

    def _read_again(self) -> None:
        for path, site in self.sites.items():
            try:
                fresh = load(path, SiteFile)
                if fresh.site != site.site:
                    raise InputError(f"{path}: it is about another site, {fresh.site}; start a factory for that")
                self.sites[path] = fresh
                say(f"{path}: {'read again' if fresh != site else 'unchanged'}")
            except InputError as error:
                say(f"{path} is not taken over, what was read before stays in force: {error}")

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        left: list[str] = []
        while time.monotonic() < deadline:
            try:
                left = []
                for site in self.sites.values():
                    hands = Hands(site, folder(site))
                    snapshot = hands.look()
                    actions = policy.drain(snapshot, site, "the factory stops")
                    self._report(actions)
                    for refusal in hands.apply(actions, snapshot):
                        say(refusal)
                    left += [*snapshot.failed, *(f"{name}: {why}" for name, why in snapshot.blind.items())]
                    left += [f"{action.count} of {action.entry} are going down" for action in actions]
                if not left:
                    return
            except CondorError as error:
                say(f"cannot drain: {error}")
                return
            time.sleep(0.5)
        say(f"left as they are: {'; '.join(left)}")

    def _report(self, actions: list[Action]) -> None:
        """Say each action once: a wait that goes on is not news."""
        for action in actions:
            if _stable(action) not in self.said:
                say(f"{action.action} {action.count or ''} {action.entry} {action.template[:12]}: {action.reason}")
        self.said |= {_stable(action) for action in actions if action.action in ("wait", "drain")}


def _stable(action: Action) -> Action:
    """The action without the seconds in its reason, which pass."""
    return replace(action, reason=_timeless(action.reason))


def _timeless(text: str) -> str:
    """A reason without the seconds in it."""
    return re.sub(r"\d+ s\b", "", text)


def drained(site: SiteFile) -> set[str]:
    """The entries that an admin has closed with `glide factory drain`; a file each, so that it outlives the factory."""
    return {path.name for path in (folder(site) / "drained").glob("*")}


def close(site: SiteFile, entry: str) -> None:
    """Submit nothing more to an entry until `reopen`."""
    (folder(site) / "drained").mkdir(exist_ok=True, mode=0o700)
    (folder(site) / "drained" / entry).touch()


def reopen(site: SiteFile, entry: str) -> None:
    (folder(site) / "drained" / entry).unlink(missing_ok=True)


def folder(site: SiteFile) -> Path:
    """Where a site's factory keeps what it sends to nodes and what comes back (0700).

    Raises:
        InputError: it cannot be made.
    """
    path = home() / "factory" / site.site
    try:
        for each in (home(), path.parent, path):  # a mode is for the last one alone
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(
            f"{error.filename}: {error.strerror}; set GLIDE_HOME to a folder that can be written"
        ) from None
    return path


def known_sites() -> list[Path]:
    """The files of the sites that a factory has run from this GLIDE_HOME."""
    files = [Path(file.read_text("utf-8")) for file in sorted((home() / "factory").glob("*/file")) if file.is_file()]
    return [file for file in files if file.exists()]


def is_running(site: SiteFile) -> bool:
    """Whether a factory runs this site from this GLIDE_HOME."""
    with (folder(site) / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # many may ask at once, and leave the file as it is
        except BlockingIOError:
            return True
        return False


@contextmanager
def only_factory(site: SiteFile) -> Iterator[None]:
    """Hold the site's lock; the kernel releases it whatever becomes of us."""
    with (folder(site) / "lock").open("a+", encoding="utf-8") as file:
        if not _locked(file):
            raise InputError(f"a factory for site {site.site} is running (pid {_owner(file)}); stop it first")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _locked(file) -> bool:
    """Whether the lock could be had within a moment, for which who only asks (`is_running`) may hold it."""
    for _ in range(LOCK_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _owner(file) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


def say(text: str) -> None:
    """One line of the factory's log."""
    line = printable(" ".join(text.split()), 10_000)
    with suppress(OSError):  # its disk may be full
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", file=sys.stderr, flush=True)
