"""Connect the factory of a site to the pool, to the queues of the site's entries, and to the site's folder."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from glide.condor import AccessPoint, Collector
from glide.condor.access_point import any_of
from glide.config import Entry, Login, Pool, SiteFile
from glide.errors import CondorError, describe_bug
from glide.factory.home import entry_folder, file_set_key
from glide.factory.observe import Queue, observe
from glide.factory.seed import Seed
from glide.factory.snapshot import Snapshot
from glide.ssh import access_point_at
from glide.system import publish
from glide.template import FileSet, Template

BATCH = 200  # maximum number of jobs that one command names


class SiteClient:
    """The connections of a site to the pool, to the queues of its entries, and to its files.

    Args:
        folder: the site's folder (mode 0700). It contains the files that the site's glideins start from.
        seed: file server for nodes; None if this process is not the site's factory.
    """

    def __init__(self, site: SiteFile, folder: Path, seed: Seed | None = None):
        self.site = site
        self.seed = seed
        self.folder = folder
        self.collector = Collector()
        self.access_points: dict[Pool | None, AccessPoint] = {}

    def access_point(self, pool: Pool | None = None) -> AccessPoint:
        """Return the access point of a pool.

        Args:
            pool: an outer pool; None for the pool that glideins join.

        Raises:
            CondorError: no access point answers.
        """
        if pool not in self.access_points:
            self.access_points[pool] = AccessPoint(pool.schedd, pool.collector) if pool else AccessPoint()
        return self.access_points[pool]

    def queue_of(self, name: str) -> Queue:
        """Return the queue that an entry's glideins are submitted to."""
        return self._queue_at(self.entry(name).outer_pool)

    @property
    def outer_queues(self) -> list[tuple[Callable[[], Queue], list[str]]]:
        """One pair for each outer pool.

        The first value of a pair is a function that returns the pool's queue. The second value has the names of the
        entries that use the pool.
        """
        entries: dict[Pool | Login, list[str]] = {}
        for entry in self.site.entries:
            if entry.outer_pool:
                entries.setdefault(entry.outer_pool, []).append(entry.name)
        return [(partial(self._queue_at, place), names) for place, names in entries.items()]

    def _queue_at(self, place: Pool | Login | None) -> Queue:
        if not isinstance(place, Login):
            return self.access_point(place)
        remote = access_point_at(place)
        # A restart of the factory may have interrupted a submission. The login host may complete this submission later.
        # Until then, its glideins are not in the queue, and the factory would submit the same glideins again. So cancel
        # the interrupted submission.
        if self.seed:
            remote.fence(self.site.site)
        return remote

    def observe(self) -> Snapshot:
        """Observe the pool and the queues of all entries.

        If this process is the factory, also write the names of the factory's account into a file in the site's folder.
        Each access point may have a different name for the account. If the account changes later, the file shows under
        which earlier names the factory submitted glideins.
        """
        owners = {owner for entry in self.site.entries for owner in entry.owners or ("",)}
        accounts = self.folder / "accounts"
        earlier = set(accounts.read_text("utf-8").split()) if accounts.exists() else set()
        snapshot = observe(self.access_point, self.collector, self.outer_queues, owners, earlier_accounts=earlier)
        if self.seed and not snapshot.unavailable_sources:  # only the factory's process has a seed
            available = [entry.name for entry in self.site.entries if entry.name not in snapshot.unavailable_entries]
            names = {self.queue_of(name).user.partition("@")[0] for name in available}
            if not names <= earlier:
                publish(accounts, "\n".join(sorted(names | earlier)))
        return snapshot

    def remove_jobs(self, entry: str, jobs: Sequence[str], reason: str) -> None:
        """Remove jobs, given as CLUSTER.PROC, from the queue that an entry's glideins are submitted to."""
        for some in batches(jobs):
            self.queue_of(entry).remove(any_of(some), f"glide factory: {reason}")

    def entry(self, name: str) -> Entry:
        return next(entry for entry in self.site.entries if entry.name == name)

    def entry_folder(self, entry: Entry, template: str) -> Path:
        """Return the folder for the glideins of an entry and a template. For blank glideins, `template` is empty."""
        return entry_folder(self.folder, entry.name, template)

    def with_key(self, file_set: FileSet) -> FileSet:
        """Copy the file set, add the key that nodes need to fetch the files, and return the copy.

        If this host has the files, and if this process is the factory, the seed offers the files. Then the copy also
        contains the seed's address.
        """
        file_set = replace(file_set, key=file_set_key(file_set, self.folder), seed="")
        is_here = file_set.files and file_set.path.startswith("/")
        return replace(file_set, seed=self.seed.offer(file_set)) if self.seed and is_here else file_set

    def template_for(self, entry: Entry, template: Template) -> Template:
        """Return the template for an entry's glideins.

        Some entries have a `service`, which runs the model outside the pool. For such an entry, the returned template
        contains the options for requests to the service. For all other entries, glideins fetch the template's files. So
        the returned template contains the key for these files, and the seed's address.
        """
        if entry.service:
            return replace(template, service=entry.service.options, key="", seed="")
        files, environment = self.with_key(template.file_set), template.environment
        environment = environment and self.with_key(environment)
        adapters = {name: replace(self.with_key(each), owner="") for name, each in template.adapter_sets.items()}
        return replace(template, key=files.key, seed=files.seed, environment=environment, adapters=adapters)


@contextmanager
def collect_errors(what: str, refused: list[str]) -> Iterator[None]:
    """If the block raises an exception, add its message to `refused`. The caller continues after the block.

    Args:
        what: first part of the message, such as "cannot fetch the logs".
    """
    try:
        yield
    except (CondorError, OSError) as error:  # OSError means that a disk is full, or that a process cannot start
        refused.append(f"{what}: {error}")
    except Exception as error:
        traceback.print_exc()
        refused.append(f"{what}: {describe_bug(error)}")


def batches(jobs: Sequence[str]) -> list[Sequence[str]]:
    """Split jobs into groups of at most BATCH jobs, so that the jobs of a group fit into one command line."""
    return [jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH)]
