"""What all pages and metrics are about: one look at the pool, shared by all who ask."""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from glide.factory.snapshot import Snapshot
from glide.factory.totals import Count, Totals
from glide.report.status import document
from glide.web.eyes import look_on, mistaken

LOOK_SECONDS = 2.0  # at most one look so often, however many ask
LONGEST_LOOK = 120.0  # seconds; each source gives up after 20, and there may be several
PATIENCE_SECONDS = 3.0  # whoever asks waits no longer for a look, and gets the one before

Run = tuple[str, str, str]  # name, user, template


@dataclass(frozen=True)
class View:
    """The last look at which the pool answered.

    Attributes:
        told: the document of `glide status --json`; what it says of factories is of the last look of all.
        at: when that was, Unix time; 0 if it never answered.
        trouble: why a later look saw nothing.
        most: the most records that each run was seen to have left.
        counts: since this process began, by `totals`.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    told: Mapping[str, Any] = field(default_factory=lambda: document(Snapshot()))
    at: float = 0.0
    trouble: str = ""
    most: Mapping[Run, int] = field(default_factory=dict)
    counts: Mapping[Count, int] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals, repr=False)

    @property
    def answered(self) -> bool:
        """Whether it is of the last look of all."""
        return bool(self.at) and not self.trouble

    def after(self, seen: tuple[Snapshot, dict[str, Any]] | str) -> View:
        """The view after another look, or after one that saw nothing, for this reason."""
        if isinstance(seen, str):
            return replace(self, trouble=seen)
        snapshot, told = seen
        if snapshot.failed:
            entries = {site["site"]: site["entries"] for site in self.told["sites"]}
            sites = [{**site, "entries": entries.get(site["site"], site["entries"])} for site in told["sites"]]
            return replace(self, trouble=snapshot.failed[0], told={**self.told, "sites": sites})
        self.totals.add(snapshot)
        left: dict[Run, int] = {}
        for each in snapshot.demands:
            run = each.run, each.user, each.template
            left[run] = max(each.records, self.most.get(run, 0))
        counts = dict(self.totals.counts)  # which others read while the next look adds to the totals
        return replace(self, snapshot=snapshot, told=told, at=snapshot.now, trouble="", most=left, counts=counts)


def without_words(view: View) -> View:
    """The view less what glideins said last: the queue is everybody's, those are in a folder of one account."""

    def silent(entry: dict[str, Any]) -> dict[str, Any]:
        failure = entry["last_failure"]
        return {**entry, "last_failure": failure and {**failure, "last_words": None}}

    sites = [{**site, "entries": list(map(silent, site["entries"]))} for site in view.told["sites"]]
    return replace(view, told={**view.told, "sites": sites})


class Sight:
    """Looks when somebody asks; calling it gives the latest view.

    Args:
        looks: what the process that looks does, at the other end of a pipe.
        longest: seconds that a look may take; after that its process is killed, and the next look starts another.
    """

    def __init__(self, looks: Callable[[Connection], None] = look_on, longest: float = LONGEST_LOOK) -> None:
        self._looks = looks
        self._longest = longest
        self._view = View(trouble="the first look has not come back yet")
        self._changed = threading.Condition()
        self._begun = 0.0  # when the look that is under way began, monotonic; 0 while there is none
        self._ended = 0.0
        threading.Thread(target=self._look_on, daemon=True).start()

    def __call__(self) -> View:
        with self._changed:
            now = time.monotonic()
            if not self._begun and now - self._ended >= LOOK_SECONDS:
                self._begun = now
                self._changed.notify_all()
            if self._begun:
                self._changed.wait_for(lambda: not self._begun, max(0.0, self._begun + PATIENCE_SECONDS - now))
            return self._view

    def _look_on(self) -> None:
        """In a thread that lasts: the process that it starts ends with it."""
        spawn = multiprocessing.get_context("spawn")
        child = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._begun)
            try:
                if child is None:
                    ours, theirs = spawn.Pipe()
                    child = spawn.Process(target=self._looks, args=(theirs,), daemon=True)
                    child.start()
                    theirs.close()
                ours.send(None)
                if not ours.poll(self._longest):
                    child.kill()
                    child.join()
                    raise TimeoutError
                view = self._view.after(ours.recv())
            except TimeoutError:
                child = None
                view = self._view.after(f"no answer from the pool within {self._longest:.0f} s")
            except (EOFError, OSError):
                child = None
                view = self._view.after("the process that looks at the pool has died; the next look starts another")
            except Exception as error:  # a mistake of ours: without this thread the view would stay as it is for ever
                traceback.print_exc()
                view = self._view.after(mistaken(error))
            with self._changed:
                self._view = view
                self._begun, self._ended = 0.0, time.monotonic()
                self._changed.notify_all()
