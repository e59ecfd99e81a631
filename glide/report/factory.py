"""The status of a factory: whether the factory runs, which glideins each entry has, and what limits their number."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from glide.condor import tokens
from glide.config import Entry, SiteFile
from glide.factory import headroom, usage
from glide.factory.health import bad_nodes, mark_failing_glideins
from glide.factory.home import drained, entry_folder, is_running, site_folder
from glide.factory.journal import Journal
from glide.factory.snapshot import Glidein, Snapshot
from glide.protocol.names import printable
from glide.system import tail
from glide.vocabulary import JobStatus, State

LAST_LINES = 12  # maximum number of lines that are shown from a failed glidein's output
LONGEST_LINE = 1000  # maximum length of a shown line, in characters
TAIL_BYTES = 100_000  # number of bytes that are read from the end of an output file


def document(site: SiteFile, snapshot: Snapshot) -> dict[str, Any]:
    """Return the status of a site as a JSON document: the factory, its last cycle, and the site's entries."""
    journal = Journal(site_folder(site))
    age = journal.age()
    latest = journal.latest()
    snapshot = mark_failing_glideins(snapshot)
    return {
        "site": site.site,
        "running": is_running(site),
        "last_cycle_s": None if age is None else round(age, 1),
        "unseen": sorted({*snapshot.unavailable_sources, *latest.get("unseen", [])}),
        "refused": latest.get("refused", []),
        "entries": [_entry(entry, site, snapshot) for entry in site.entries],
        "usage": usage.document(site_folder(site), time.time()),
    }


def _entry(entry: Entry, site: SiteFile, snapshot: Snapshot) -> dict[str, Any]:
    mine, ended = snapshot.glideins_of(entry.name)
    room = headroom.of_entry(entry, snapshot, drained(site))
    failures = [each for each in (*mine, *ended) if each.state == State.FAILED or (each in ended and not each.state)]
    latest = min(failures, key=lambda each: each.age, default=None)
    waiting = {glidein.template for glidein in mine if glidein.status == JobStatus.IDLE}
    place = site_folder(site)
    files = [entry_folder(place, entry.name, template) / "token" for template in waiting]
    expiries = [tokens.seconds_left(file, time.time()) for file in files]
    return {
        "entry": entry.name,
        "glideins": dict(Counter(JobStatus.NAMES[glidein.status] for glidein in mine)),
        "ended": dict(Counter(glidein.state or "never warm" for glidein in ended)),
        "evictions": sum(max(0, glidein.starts - 1) for glidein in (*mine, *ended)),
        "usefulness": round(headroom.usefulness(entry, snapshot), 3),
        "room": None if snapshot.unavailable_sources else room.left,
        "limit": room.limit,
        "blind": snapshot.unavailable_entries.get(entry.name, ""),
        "held": sorted({glidein.hold_reason for glidein in mine if glidein.status == JobStatus.HELD}),
        "avoided": list(bad_nodes(mine, ended)),
        "token_hours": min((round(left / 3600, 1) for left in expiries if left is not None), default=None),
        "last_failure": latest and {
            "glidein": latest.glide_id, "host": latest.host, "reason": latest.failure or latest.hold_reason,
            "last_words": last_output(place, latest),
        },
    }  # fmt: skip


def last_output(site: Path, glidein: Glidein) -> list[str]:
    """Return the last lines of a glidein's output. The list is empty if the output is not on this machine.

    Args:
        site: path of the folder of the glidein's site.
    """
    return last_lines(entry_folder(site, glidein.entry, glidein.template) / f"{glidein.job}.out", LAST_LINES)


def last_lines(output: Path, last: int) -> list[str]:
    """Return the last lines of a glidein's output and error output. The lines of the error output come last.

    Control characters become `?`.

    Args:
        output: path of the output file. The file with the error output is in the same folder.
        last: maximum number of returned lines, from both files together.
    """
    lines: list[str] = []
    for path in (output, output.with_suffix(".err")):
        lines += [printable(line, LONGEST_LINE) for line in tail(path, TAIL_BYTES).splitlines()[-last:]]
    return lines[-last:]


def tables(sites: list[dict[str, Any]]) -> list[Table | str]:
    """Return a table and lines of text that show the status of sites on a terminal.

    Args:
        sites: the status documents of the sites.
    """
    table = Table("site", "entry", "glideins", "ended", "usefulness", "headroom", "limited by")
    notes: list[str] = []
    for site in sites:
        alive = "runs" if site["running"] else "does not run"
        when = "" if site["last_cycle_s"] is None else f"; its last cycle was {site['last_cycle_s']:.0f} s ago"
        notes.append(f"{site['site']}: its factory {alive}{when}")
        notes += [f"{site['site']}: no action, because a source cannot be read: {why}" for why in site["unseen"]]
        notes += [f"{site['site']}: not done: {what}" for what in site["refused"]]
        for entry in site["entries"]:
            states = (entry["glideins"], entry["ended"])
            counts = (", ".join(f"{count} {name}" for name, count in each.items()) or "-" for each in states)
            useful = f"{entry['usefulness']:.0%}"
            table.add_row(site["site"], entry["entry"], *counts, useful, str(entry["room"]), entry["limit"])
            notes += _notes(entry)
    return [table, *notes, *_usage_tables(sites)]


def _usage_tables(sites: list[dict[str, Any]]) -> Iterator[Table]:
    """Yield a table of each site's usage. It has columns for energy and costs only if these are known."""
    for site in sites:
        rows = site["usage"]["rows"]
        known = {name: title for name, title in (("kwh", "kWh"), ("cost", "cost")) if any(row[name] for row in rows)}
        title = f"{site['site']}: device-hours in {site['usage']['month']}"
        table = Table("user", "model", *usage.KINDS.values(), *known.values(), title=title, title_justify="left")
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault((row["user"], row["model"]), []).append(row)
        for (user, model), group in groups.items():
            hours = (sum(row["device_hours"][kind] for row in group) for kind in usage.KINDS.values())
            sums = [f"{each:,.2f}" for each in (*hours, *(sum(row[name] for row in group) for name in known))]
            table.add_row(user or "-", model or "-", *sums)
        if rows:
            yield table


def _notes(entry: dict[str, Any]) -> list[str]:
    name = entry["entry"]
    notes = [f"{name}: held: {reason}" for reason in entry["held"]]
    if entry["avoided"]:
        notes.append(f"{name}: not on {', '.join(entry['avoided'])}, where its glideins fail")
    if entry["token_hours"] is not None and entry["token_hours"] < 24:
        notes.append(
            f"{name}: its token expires in {entry['token_hours']} h and is not renewed; check that the factory's"
            " account can read the pool's signing key"
        )
    if failure := entry["last_failure"]:
        notes.append(f"{name}: last failure: {failure['glidein']} on {failure['host'] or '?'}: {failure['reason']}")
        notes += [f"    {line}" for line in failure["last_words"]]
    return notes
