"""In each cycle, do the work that does not depend on the plan.

Ask access points to negotiate again for waiting glideins, renew the glideins' tokens, fetch the logs of ended glideins,
and remove the earliest of many ended glideins from the queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from glide.condor import tokens
from glide.condor.access_point import any_of, quoted
from glide.config import Entry
from glide.errors import CondorError
from glide.factory.site_client import SiteClient, batches, collect_errors
from glide.factory.snapshot import Glidein, Snapshot
from glide.factory.submit import TOKEN_SECONDS, mint_token
from glide.glidein.settings import SPREAD
from glide.ssh import SshError, access_point_at
from glide.vocabulary import Job, JobStatus

# Seconds between two reminders. A reminder makes an access point negotiate again for glideins that wait in its queue.
REMIND_SECONDS = 10.0
# Each cycle reads all ended glideins of the queue. If glideins end often, only the latest ones stay there: this number,
# or twice the entry's max_glideins if that is more.
MOST_ENDED = 50
COUNTED_SECONDS = 60.0  # for this time after its end, a glidein stays, so that factory and web page count it


def housekeeping(client: SiteClient, snapshot: Snapshot) -> list[str]:
    """Do the housekeeping for all entries whose queues are available, and return the errors."""
    refused: list[str] = []
    for entry in client.site.entries:
        if entry.name in snapshot.unavailable_entries:
            continue
        mine, ended = snapshot.glideins_of(entry.name)
        waiting = [glidein for glidein in mine if glidein.status == JobStatus.IDLE]
        with collect_errors(f"{entry.name}: cannot remind the access point of waiting glideins", refused):
            _remind_access_point(client, entry, waiting)
        for template in {glidein.template for glidein in waiting}:
            with collect_errors(f"{entry.name}: cannot renew the token of waiting glideins", refused):
                _renew_token(client, entry, template, snapshot.now)
        with collect_errors(f"{entry.name}: cannot fetch the logs of glideins that have ended", refused):
            if entry.outer_pool:
                _fetch_logs(client, entry, ended, snapshot.now)
        with collect_errors(f"{entry.name}: cannot remove ended glideins from the queue", refused):
            _remove_surplus(client, entry, ended)
    return refused


def _remove_surplus(client: SiteClient, entry: Entry, ended: Iterable[Glidein]) -> None:
    """Remove ended glideins from the queue if there are many. The latest ones stay, because the plan needs them."""
    latest_first = sorted(ended, key=lambda glidein: glidein.age)
    surplus = latest_first[max(MOST_ENDED, 2 * entry.max_glideins) :]
    jobs = [glidein.job for glidein in surplus if glidein.age >= COUNTED_SECONDS]
    client.remove_jobs(entry.name, jobs, "many glideins have ended after this one")


def _remind_access_point(client: SiteClient, entry: Entry, waiting: Iterable[Glidein]) -> None:
    late = [glidein.age for glidein in waiting if glidein.age >= REMIND_SECONDS]
    if any(age % REMIND_SECONDS < client.site.interval + 1 for age in late):
        idle = f"{Job.ENTRY} == {quoted(entry.name)} && JobStatus == {JobStatus.IDLE}"
        client.queue_of(entry.name).reconsider(idle, 0)


def _renew_token(client: SiteClient, entry: Entry, template: str, now: float) -> None:
    left = tokens.seconds_left(client.entry_folder(entry, template) / "token", now)
    if left is not None and left < entry.lifetime * (1 + SPREAD) + TOKEN_SECONDS / 2:
        mint_token(client, entry, template)
        if entry.ssh:
            access_point_at(entry.ssh).send(client.entry_folder(entry, template))


def _fetch_logs(client: SiteClient, entry: Entry, ended: Iterable[Glidein], now: float) -> None:
    """Fetch the outputs of ended glideins from the queue of an outer pool."""
    missing: dict[str, Path] = {}
    for each in ended:
        path = client.entry_folder(entry, each.template) / f"{each.job}.out"
        # An output that was fetched before the glidein ended is not complete, so it is fetched again.
        is_old = not path.exists() or path.stat().st_mtime < now - each.age
        if path.parent.exists() and is_old:
            missing[each.job] = path
    for some in batches(list(missing)):
        try:
            client.queue_of(entry.name).retrieve(any_of(some))
        except SshError:
            return  # the login host does not answer; the next cycle tries again to fetch the logs
        except CondorError:
            pass  # the error means that a glidein has no logs; all other logs have arrived
        for job in some:
            # If a glidein has no output, create an empty output file. Then later cycles do not try to fetch the output.
            missing[job].touch()
