"""Account for the time, the energy and the cost of devices: for each entry, user, model and kind of time.

A device is a GPU. If an entry's glideins request no GPU, a device is a CPU core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glide.config import SiteFile
from glide.factory.activity import Activity, activity
from glide.factory.headroom import owners
from glide.factory.snapshot import OTHER, Glidein, Snapshot
from glide.system import publish
from glide.vocabulary import JobStatus

KINDS = {  # the kind of time that each activity of a glidein counts as
    Activity.SERVING: "productive", Activity.COMING: "loading", Activity.LOST: "lost", Activity.IDLE: "idle",
}  # fmt: skip
WRITE_SECONDS = 10.0  # time between two writes of the file, in seconds
LONGEST_CYCLE = 60.0  # if the time between two cycles is longer, in seconds, only this time counts
MOST_WATTS = 2000.0  # largest accepted power of a device
MOST_ROWS = 2000  # users choose the names of models; after this number of rows, further models count as OTHER


class UsageKey(NamedTuple):
    """What an amount counts for.

    Attributes:
        user: empty if no user's job runs or waits.
        model: empty for a glidein without a model.
    """

    entry: str
    user: str
    model: str
    kind: str


@dataclass
class Amount:
    """What devices have used.

    Attributes:
        seconds: time in device-seconds.
        joules: energy of the GPUs in J, as far as the nodes report it.
        cost: time multiplied by the entry's price at that time.
    """

    seconds: float = 0.0
    joules: float = 0.0
    cost: float = 0.0


class Usage:
    """The usage of a site in the current month (UTC), which is kept in a file of the site's folder.

    Each month has a file, `usage/YYYY-MM.json`.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "usage"
        self.month = ""
        self.amounts: dict[UsageKey, Amount] = {}
        self._cycle_time = self._write_time = 0.0  # Unix times of the last cycle and of the last write
        # For each GlideId: the energy that was reported last, and when (Unix time).
        self._joules: dict[str, tuple[float | None, float]] = {}

    def add(self, snapshot: Snapshot, site: SiteFile) -> None:
        """Add the time since the last cycle. Write the file if the last write is WRITE_SECONDS ago.

        Raises:
            OSError: the file cannot be written. The amounts stay in memory, and the next call tries again.
        """
        if snapshot.unavailable_sources:
            return
        month = time.strftime("%Y-%m", time.gmtime(snapshot.now))
        if month != self.month:
            self.write()
            self.amounts = read(self.folder / f"{month}.json")
            self.month = month
        seconds = min(max(0.0, snapshot.now - self._cycle_time), LONGEST_CYCLE) if self._cycle_time else 0.0
        self._cycle_time = snapshot.now
        entries = {entry.name: entry for entry in site.entries}
        energy = self._energy(snapshot)
        for glidein, key, share in shares(snapshot, site):
            entry, amount = entries[key.entry], self._amount(key)
            spent = share * seconds * glidein.devices
            amount.seconds += spent
            amount.cost += spent / 3600 * (entry.price or 0.0)
            amount.joules += share * energy.get(glidein.glide_id, 0.0)
        if abs(snapshot.now - self._write_time) >= WRITE_SECONDS:
            self.write()
            self._write_time = snapshot.now

    def _amount(self, key: UsageKey) -> Amount:
        if key not in self.amounts and len(self.amounts) >= MOST_ROWS:
            key = key._replace(model=OTHER)
        return self.amounts.setdefault(key, Amount())

    def _energy(self, snapshot: Snapshot) -> dict[str, float]:
        """Return the energy that each glidein has used since its last report, in J.

        A node can report any number. So at most MOST_WATTS for each device count.
        """
        used: dict[str, float] = {}
        present = {}
        for glidein in snapshot.glideins:
            name = glidein.glide_id
            lanes = snapshot.lanes_of.get(name, ())
            joules = max((lane.joules for lane in lanes if lane.joules is not None), default=None)
            before, at = self._joules.get(name, (joules, snapshot.now))
            if joules is not None and before is not None:
                most = MOST_WATTS * glidein.devices * (max(0.0, snapshot.now - at) + LONGEST_CYCLE)
                used[name] = min(max(0.0, joules - before), most)
            present[name] = (before, at) if joules is None else (joules, snapshot.now)
        self._joules = present
        return used

    def write(self) -> None:
        if self.month:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            rows = [{**key._asdict(), **vars(amount)} for key, amount in self.amounts.items()]
            publish(self.folder / f"{self.month}.json", json.dumps(rows))


def shares(snapshot: Snapshot, site: SiteFile) -> Iterator[tuple[Glidein, UsageKey, float]]:
    """Yield the running glideins, and for which users and models they work at this moment.

    A glidein counts for the users whose jobs run on its lanes. If it has no job, it counts for the users whose jobs
    wait for its template. If there are none, it counts for nobody. If several users or models share a glidein, each of
    them gets the same share.

    Yields:
        A glidein, whom it works for, and the share of the glidein, from 0 to 1.
    """
    entries = {entry.name: entry for entry in site.entries}
    served = {name: set(owners(entry, snapshot)) for name, entry in entries.items()}
    waiting: dict[str, set[str]] = {}
    for demand in snapshot.demands:
        if demand.idle:
            waiting.setdefault(demand.template, set()).add(demand.user)
    for glidein in snapshot.glideins:
        if glidein.status != JobStatus.RUNNING or glidein.entry not in entries:
            continue
        lanes = snapshot.lanes_of.get(glidein.glide_id, [])
        # The user of a claimed lane is unknown for a moment, or if the user has changed the job's ad.
        works_for = {
            (lane.user if lane.user in served[glidein.entry] else "", lane.model) for lane in lanes if lane.claimed
        }
        if not works_for:
            templates = {lane.template: lane.model for lane in lanes} or {glidein.template: glidein.model}
            works_for = {
                (user, model)
                for template, model in templates.items()
                for user in (waiting.get(template, set()) & served[glidein.entry]) or {""}
            }
        kind = KINDS[activity(glidein, lanes)]
        for user, model in works_for:
            yield glidein, UsageKey(glidein.entry, user, model, kind), 1 / len(works_for)


def read(path: Path) -> dict[UsageKey, Amount]:
    """Return the amounts in a file; an empty dict if the file does not exist. Rename a file with other content.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return {
            UsageKey(*(str(row[name]) for name in UsageKey._fields)):
                Amount(*(float(row[name]) for name in ("seconds", "joules", "cost")))
            for row in json.loads(path.read_text("utf-8"))
        }  # fmt: skip
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError):
        path.replace(path.with_suffix(".damaged"))
        return {}


def document(folder: Path, now: float) -> dict[str, Any]:
    """Return the usage of the current month as a JSON document: one row for each entry, user and model.

    Args:
        folder: the site's folder.
        now: Unix time.
    """
    month = time.strftime("%Y-%m", time.gmtime(now))
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    amounts: dict[UsageKey, Amount] = {}
    with suppress(OSError):
        amounts = read(folder / "usage" / f"{month}.json")
    for key, amount in sorted(amounts.items()):
        empty = {"device_hours": dict.fromkeys(KINDS.values(), 0.0), "kwh": 0.0, "cost": 0.0}
        row = rows.setdefault(key[:3], {"entry": key.entry, "user": key.user, "model": key.model, **empty})
        row["device_hours"][key.kind] = round(amount.seconds / 3600, 4)
        row["kwh"] = round(row["kwh"] + amount.joules / 3.6e6, 4)
        row["cost"] = round(row["cost"] + amount.cost, 4)
    return {"month": month, "rows": list(rows.values())}
