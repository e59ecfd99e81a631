"""The factory at a glance: what it sees of each entry, what holds it back, and whether it lives."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from glide.condor import tokens
from glide.condor.names import printable
from glide.config import Entry, SiteFile
from glide.factory import room as rooms
from glide.factory.daemon import drained, folder, is_running
from glide.factory.folders import entry_folder
from glide.factory.health import bad_nodes, diagnosed
from glide.factory.journal import Journal
from glide.factory.snapshot import Glidein, Snapshot
from glide.system import tail
from glide.vocabulary import JobStatus, State

LAST_WORDS = 12  # lines
LONGEST_LINE = 1000  # characters
TAIL_BYTES = 100_000  # of an output that are read


def document(site: SiteFile, snapshot: Snapshot) -> dict[str, Any]:
    """A site: its factory's last cycle, and its entries."""
    journal = Journal(folder(site))
    age = journal.age()
    told = journal.latest()
    snapshot = diagnosed(snapshot)
    return {
        "site": site.site,
        "running": is_running(site),
        "last_cycle_s": None if age is None else round(age, 1),
        "unseen": sorted({*snapshot.failed, *told.get("unseen", [])}),
        "refused": told.get("refused", []),
        "entries": [_entry(entry, site, snapshot) for entry in site.entries],
    }


def _entry(entry: Entry, site: SiteFile, snapshot: Snapshot) -> dict[str, Any]:
    mine, ended = snapshot.of(entry.name)
    room = rooms.of_entry(entry, snapshot, drained(site))
    failures = [each for each in (*mine, *ended) if each.state == State.FAILED or (each in ended and not each.state)]
    latest = min(failures, key=lambda each: each.age, default=None)
    waiting = {glidein.template for glidein in mine if glidein.status == JobStatus.IDLE}
    place = folder(site)
    files = [entry_folder(place, entry.name, template) / "token" for template in waiting]
    expiries = [tokens.seconds_left(file, time.time()) for file in files]
    return {
        "entry": entry.name,
        "glideins": dict(Counter(JobStatus.NAMES[glidein.status] for glidein in mine)),
        "ended": dict(Counter(glidein.state or "never warm" for glidein in ended)),
        "evictions": sum(max(0, glidein.started - 1) for glidein in (*mine, *ended)),
        "usefulness": round(rooms.usefulness(entry, snapshot), 3),
        "room": None if snapshot.failed else room.left,
        "limit": room.limit,
        "blind": snapshot.blind.get(entry.name, ""),
        "held": sorted({glidein.hold_reason for glidein in mine if glidein.status == JobStatus.HELD}),
        "avoided": list(bad_nodes(mine, ended)),
        "token_hours": min((round(left / 3600, 1) for left in expiries if left is not None), default=None),
        "last_failure": latest and {
            "glidein": latest.glide_id, "host": latest.host, "reason": latest.failure or latest.hold_reason,
            "last_words": last_words(place, latest),
        },
    }  # fmt: skip


def last_words(site: Path, glidein: Glidein) -> list[str]:
    """The end of a glidein's output, a traceback for instance, as far as it is on this machine.

    Args:
        site: the folder of its site.
    """
    return words(entry_folder(site, glidein.entry, glidein.template) / f"{glidein.job}.out", LAST_WORDS)


def words(output: Path, last: int) -> list[str]:
    """The last lines of a glidein's output, with its error output after it; safe to show on a terminal."""
    lines: list[str] = []
    for path in (output, output.with_suffix(".err")):
        lines += [printable(line, LONGEST_LINE) for line in tail(path, TAIL_BYTES).splitlines()[-last:]]
    return lines[-last:]


def tables(sites: list[dict[str, Any]]) -> list[Table | str]:
    """The documents of some sites for a terminal."""
    table = Table("site", "entry", "glideins", "ended", "useful", "room", "limited by")
    notes: list[str] = []
    for site in sites:
        alive = "runs" if site["running"] else "does not run"
        when = "" if site["last_cycle_s"] is None else f"; its last cycle was {site['last_cycle_s']:.0f} s ago"
        notes.append(f"{site['site']}: its factory {alive}{when}")
        notes += [f"{site['site']}: no action: {why}" for why in site["unseen"]]
        notes += [f"{site['site']}: not done: {what}" for what in site["refused"]]
        for entry in site["entries"]:
            told = ({name: str(count) for name, count in entry[kind].items()} for kind in ("glideins", "ended"))
            counts = (", ".join(f"{count} {name}" for name, count in each.items()) or "-" for each in told)
            useful = f"{entry['usefulness']:.0%}"
            table.add_row(site["site"], entry["entry"], *counts, useful, str(entry["room"]), entry["limit"])
            notes += _notes(entry)
    return [table, *notes]


def _notes(entry: dict[str, Any]) -> list[str]:
    name = entry["entry"]
    notes = [f"{name}: held: {reason}" for reason in entry["held"]]
    if entry["avoided"]:
        notes.append(f"{name}: not on {', '.join(entry['avoided'])}, where its glideins fail")
    if entry["token_hours"] is not None and entry["token_hours"] < 24:
        notes.append(f"{name}: its token expires in {entry['token_hours']} h and is not renewed; can its key be read?")
    if failure := entry["last_failure"]:
        notes.append(f"{name}: last failure: {failure['glidein']} on {failure['host'] or '?'}: {failure['reason']}")
        notes += [f"    {line}" for line in failure["last_words"]]
    return notes
