"""A cached snapshot of the pool. All pages and metrics use the same snapshot."""

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
from glide.factory.totals import MetricKey, Totals
from glide.report.status import document
from glide.web.snapshot_worker import serve_snapshots, unexpected_error

REFRESH_SECONDS = 2.0  # minimum time between two snapshots, in seconds
QUERY_TIMEOUT = 120.0  # time limit of a snapshot, in seconds; a snapshot needs several queries of up to 20 s each
# A worker process is replaced after this number of snapshots, because HTCondor's bindings lose some memory with each
# query (see glide.condor.queries). Until then, it loses about 4 MB.
MOST_SNAPSHOTS = 1000
MAX_WAIT_SECONDS = 3.0  # seconds that a request waits for a new snapshot, before it gets the previous one

Run = tuple[str, str, str]  # a run's name, its user's name, its template's digest


@dataclass(frozen=True)
class PoolView:
    """The latest view of the pool. It contains the last complete snapshot.

    Attributes:
        status: the document of `glide status --json` for the snapshot. If the collector or a queue does not answer a
            later query, glide updates only the states of the factories.
        at: Unix time of the snapshot; 0 if the pool never answered.
        trouble: why the last query failed; empty if it succeeded.
        most_records: a dict from the run to the largest number of unfinished records that any snapshot showed.
        counts: numbers of events, such as evictions, from the start of this process to the snapshot.
        totals: the object that counts the events; `counts` is a copy of its numbers.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    status: Mapping[str, Any] = field(default_factory=lambda: document(Snapshot()))
    at: float = 0.0
    trouble: str = ""
    most_records: Mapping[Run, int] = field(default_factory=dict)
    counts: Mapping[MetricKey, int] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals, repr=False)

    @property
    def answered(self) -> bool:
        """Whether the pool answered the last query."""
        return bool(self.at) and not self.trouble

    def updated(self, seen: tuple[Snapshot, dict[str, Any]] | str) -> PoolView:
        """Return a new view that includes the result of a new query.

        Args:
            seen: a new snapshot with its status document, or the reason why the query failed.
        """
        if isinstance(seen, str):
            return replace(self, trouble=seen)
        snapshot, status = seen
        if snapshot.unavailable_sources:
            entries = {site["site"]: site["entries"] for site in self.status["sites"]}
            sites = [{**site, "entries": entries.get(site["site"], site["entries"])} for site in status["sites"]]
            return replace(self, trouble=snapshot.unavailable_sources[0], status={**self.status, "sites": sites})
        self.totals.add(snapshot)
        left: dict[Run, int] = {}
        for each in snapshot.demands:
            run = each.run, each.user, each.template
            left[run] = max(each.records, self.most_records.get(run, 0))
        counts = dict(self.totals.counts)  # a copy: other threads read this copy while this thread changes the original
        return replace(
            self, snapshot=snapshot, status=status, at=snapshot.now, trouble="", most_records=left, counts=counts
        )


def without_last_lines(view: PoolView) -> PoolView:
    """Return a copy of the view without the output of glideins.

    Without a token, every account of this machine can read the pages. But only the account of glide web can read the
    folder with the output, so these pages must not show the output.
    """

    def without_lines(entry: dict[str, Any]) -> dict[str, Any]:
        failure = entry["last_failure"]
        return {**entry, "last_failure": failure and {**failure, "last_words": None}}

    sites = [{**site, "entries": list(map(without_lines, site["entries"]))} for site in view.status["sites"]]
    return replace(view, status={**view.status, "sites": sites})


class SnapshotCache:
    """Return the latest view of the pool when called. If the view is older than REFRESH_SECONDS, take a new snapshot.

    Args:
        worker: the function that the worker process runs. It takes a snapshot for each message on a pipe.
        timeout: time limit of a snapshot, in seconds. A worker process that takes longer is killed, and the next call
            starts a new process.
    """

    def __init__(self, worker: Callable[[Connection], None] = serve_snapshots, timeout: float = QUERY_TIMEOUT) -> None:
        self._worker = worker
        self._timeout = timeout
        self._view = PoolView(trouble="the first query of the pool has not finished yet")
        self._changed = threading.Condition()
        self._begun = 0.0  # monotonic time when the current snapshot was requested; 0 if no snapshot is in progress
        self._ended = 0.0
        threading.Thread(target=self._refresh_on_request, daemon=True).start()

    def __call__(self) -> PoolView:
        with self._changed:
            now = time.monotonic()
            if not self._begun and now - self._ended >= REFRESH_SECONDS:
                self._begun = now
                self._changed.notify_all()
            if self._begun:
                self._changed.wait_for(lambda: not self._begun, max(0.0, self._begun + MAX_WAIT_SECONDS - now))
            return self._view

    def _refresh_on_request(self) -> None:
        """Take a snapshot whenever a call requests one. This method runs in a thread, and never returns.

        The thread also starts the worker processes, which take the snapshots. If the thread ended, the kernel would
        kill these processes. So the thread lives as long as the server.
        """
        spawn = multiprocessing.get_context("spawn")
        child = None
        left = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._begun)
            try:
                if child is not None and left <= 0:
                    child.kill()
                    child.join()
                    child = None
                if child is None:
                    left = MOST_SNAPSHOTS
                    pipe, worker_end = spawn.Pipe()
                    child = spawn.Process(target=self._worker, args=(worker_end,), daemon=True)
                    child.start()
                    worker_end.close()
                left -= 1
                pipe.send(None)
                if not pipe.poll(self._timeout):
                    child.kill()
                    child.join()
                    raise TimeoutError
                view = self._view.updated(pipe.recv())
            except TimeoutError:
                child = None
                view = self._view.updated(f"no answer from the pool within {self._timeout:.0f} s")
            except (EOFError, OSError):
                child = None
                view = self._view.updated("the process that queries the pool has died; the next query starts another")
            except Exception as error:
                # A bug must not end this thread. Without the thread, the view would never change again.
                traceback.print_exc()
                view = self._view.updated(unexpected_error(error))
            with self._changed:
                self._view = view
                self._begun, self._ended = 0.0, time.monotonic()
                self._changed.notify_all()
