"""Run the factory's loop: observe, plan, apply, and log each action with its reason."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from glide.condor import Collector, EventLog
from glide.condor.event_log import ENDED
from glide.config import SiteFile, load
from glide.errors import CondorError, GlideError, InputError
from glide.factory import plan as policy
from glide.factory.act import apply
from glide.factory.actions import Action, Drain, Wait
from glide.factory.home import drained, factory_lock, site_folder
from glide.factory.housekeeping import housekeeping
from glide.factory.journal import Journal
from glide.factory.plausibility import baseline, reject_implausible
from glide.factory.seed import Seed
from glide.factory.site_client import SiteClient
from glide.factory.snapshot import Snapshot
from glide.factory.usage import Usage
from glide.factory.watchdog import notify, time_limit
from glide.files.share import address_towards
from glide.protocol.names import printable
from glide.system import GarbageCollection

EVENT_SECONDS = 0.2  # seconds between two reads of the access point's event log
DRAIN_SECONDS = 20.0  # maximum time that a stopping factory waits until its glideins have left the queue, in seconds


class Factory:
    """The factory of one or more sites.

    Between two cycles, the factory remembers only three things:

    - the actions and errors that it has logged
    - for each site, the last snapshot that was plausible (see glide.factory.plausibility)
    - the outer jobs of its glideins

    Args:
        files: the site files. At SIGHUP, the factory reads them again. If a changed file has an error, the factory
            continues with the earlier version.
        drain: True to remove all glideins when the factory stops; False to let the glideins continue their work.
    """

    def __init__(self, files: list[Path], drain: bool = False):
        self.sites = {path: load(path, SiteFile) for path in files}
        names = Counter(entry.name for site in self.sites.values() for entry in site.entries)
        for name, count in names.items():
            if count > 1:
                raise InputError(f"{count} of these site files have an entry {name}; rename one")
        self.drain = drain
        # Signal handlers set the flags `stop` and `reload`. The flags are bools, because a threading.Event has a lock.
        # If a signal arrived while this program held the lock, the signal handler would wait forever.
        self.stop = False
        self.reload = False
        # The Wait and Drain actions that are in the log. If such an action repeats in the next cycle, it is not logged
        # again.
        self.logged: set[Action] = set()
        self.earlier_errors: set[str] = set()  # errors of the previous cycle
        self.errors: set[str] = set()  # errors of this cycle
        self.baselines: dict[str, Snapshot] = {}  # for each site: the snapshot that the next snapshot is compared with
        self.journals = {site.site: Journal(site_folder(site)) for site in self.sites.values()}
        self.usages = {site.site: Usage(site_folder(site)) for site in self.sites.values()}
        self.events = EventLog()
        self.glideins: set[str] = set()  # outer jobs of the glideins
        self.seeds: dict[str, Seed] = {}  # the seed of each site

    def run(self, once: bool = False) -> None:
        """Run cycles until SIGTERM or SIGINT arrives. If `once` is true, run only one cycle.

        Raises:
            InputError: another factory runs one of the sites.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stop", True))
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "reload", True))
        with ExitStack() as locks:
            for path, site in self.sites.items():
                locks.enter_context(factory_lock(site))
                (site_folder(site) / "file").write_text(str(path.absolute()), "utf-8")
                log(f"factory {site.site}: entries {', '.join(entry.name for entry in site.entries)}")
            notify("READY=1")
            garbage = GarbageCollection()
            while not self.stop:
                with time_limit():
                    self._cycle()
                garbage.run_if_due()
                if once:
                    return
                self._wait()
            notify("STOPPING=1")
            if self.drain:
                with time_limit():
                    self._drain()
            for seed in self.seeds.values():
                seed.stop()
            for usage in self.usages.values():
                with suppress(OSError):  # the last seconds are lost
                    usage.write()

    def _wait(self) -> None:
        """Wait until the next cycle is due.

        Return earlier if the outer job of a glidein ends, because this glidein's ads must be expunged soon.
        """
        deadline = time.monotonic() + min(site.interval for site in self.sites.values())
        while time.monotonic() < deadline and not self.stop and not self.reload:
            notify("WATCHDOG=1")
            time.sleep(EVENT_SECONDS)
            if any(event.kind in ENDED and event.job in self.glideins for event in self.events.new_events()):
                return

    def _cycle(self) -> None:
        if self.reload:
            self.reload = False
            self._reload_files()
        done: list[Action] = []
        glideins: set[str] = set()
        for site in self.sites.values():
            try:
                glideins |= self._run_site(site, done)
            except (GlideError, OSError) as error:
                log(f"{site.site}: {error}")
            except Exception:  # a bug must not end the factory, because glideins depend on the factory
                log(f"{site.site}: no action, because of an error in glide:")
                with suppress(OSError):
                    traceback.print_exc()
        self.logged = {action for action in done if isinstance(action, Wait | Drain)}
        self.earlier_errors = self.errors
        self.errors = set()
        self.glideins = glideins

    def _run_site(self, site: SiteFile, done: list[Action]) -> set[str]:
        """Run a cycle of a site. Add the actions to `done`, and return the outer jobs of the site's glideins."""
        client = SiteClient(site, site_folder(site), self._seed(site))
        closed = drained(site)
        observed = client.observe()
        before = self.baselines.get(site.site)
        snapshot = reject_implausible(observed, before, site, closed)
        actions = policy.plan(snapshot, site, closed)
        self._log_actions(actions)
        done += actions
        refused = [] if snapshot.unavailable_sources else apply(client, actions, snapshot)
        self._log_errors(site, refused)
        is_plausible = snapshot.unavailable_entries == observed.unavailable_entries
        if not snapshot.unavailable_sources and is_plausible:
            self.baselines[site.site] = baseline(snapshot, actions, before)
        try:
            self.journals[site.site].write(snapshot, actions, refused)
        except OSError as error:  # the cycle continues, because no decision depends on the journal
            self._log_errors(site, [f"cannot write the journal: {error}"])
        try:
            self.usages[site.site].add(snapshot, site)
        except OSError as error:
            self._log_errors(site, [f"cannot write the usage of devices: {error}"])
        if not snapshot.unavailable_sources:
            self._log_errors(site, housekeeping(client, snapshot))
        return {glidein.job for glidein in snapshot.glideins}

    def _log_errors(self, site: SiteFile, errors: list[str]) -> None:
        """Log errors. If an error repeats in each cycle, log this error only once."""
        for error in errors:
            if error not in self.earlier_errors | self.errors:
                log(f"{site.site}: {error}")
        self.errors |= set(errors)

    def _seed(self, site: SiteFile) -> Seed:
        if site.site not in self.seeds:
            self.seeds[site.site] = Seed(site_folder(site) / "seed", address_towards(Collector().address))
        return self.seeds[site.site]

    def _reload_files(self) -> None:
        for path, site in self.sites.items():
            try:
                fresh = load(path, SiteFile)
                if fresh.site != site.site:
                    raise InputError(
                        f"{path}: the file now names the site {fresh.site}; start another factory for {fresh.site}"
                    )
                self.sites[path] = fresh
                log(f"{path}: {'read again' if fresh != site else 'unchanged'}")
            except InputError as error:
                log(f"{path}: not reloaded, the earlier version stays active: {error}")

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        left: list[str] = []
        while time.monotonic() < deadline:
            try:
                left = []
                for site in self.sites.values():
                    client = SiteClient(site, site_folder(site))
                    snapshot = client.observe()
                    actions = policy.drain(snapshot, site, "the factory stops")
                    self._log_actions(actions)
                    for refusal in apply(client, actions, snapshot):
                        log(refusal)
                    left += snapshot.unavailable_sources
                    left += [f"{name}: {why}" for name, why in snapshot.unavailable_entries.items()]
                    left += [f"{action.count} glideins of {action.entry} are still being removed" for action in actions]
                if not left:
                    return
            except CondorError as error:
                log(f"cannot drain: {error}")
                return
            time.sleep(0.5)
        log(
            f"some glideins may still be in the queue, {DRAIN_SECONDS:.0f} s after their removal began:"
            f" {'; '.join(left)}"
        )

    def _log_actions(self, actions: list[Action]) -> None:
        """Log actions. If a wait or drain continues in the next cycles, log this action only once."""
        for action in actions:
            if action not in self.logged:
                log(f"{action.action} {action.count or ''} {action.entry} {action.template[:12]}: {action.reason}")
        self.logged |= {action for action in actions if isinstance(action, Wait | Drain)}


def log(text: str) -> None:
    """Write one line of the factory's log."""
    line = printable(" ".join(text.split()), 10_000)
    with suppress(OSError):  # if the disk with the log is full, the line is lost
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", file=sys.stderr, flush=True)
