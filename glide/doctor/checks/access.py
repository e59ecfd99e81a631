"""Tokens, permissions, and what HTCondor lets us and our glideins do."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from glide.doctor.facts import US, Facts
from glide.doctor.finding import Finding, critical, warning
from glide.factory.folders import entry_folder
from glide.report.times import duration
from glide.vocabulary import JobStatus

SOON = 7 * 86400.0
RENEW = "glide factory run, by an account that can read the pool's signing key: it renews it"


def secrets(facts: Facts) -> Iterator[Finding]:
    """Nobody else can read what must stay secret."""
    for folder in facts.folders:
        if not folder.mine:
            yield critical(f"{folder.path} belongs to another account", f"chown -R $(id -u) {shlex.quote(folder.path)}")
        elif folder.mode & 0o077:
            right = folder.mode & 0o700
            yield critical(
                f"{folder.path} has mode {folder.mode:03o}, so that others of this machine get at tokens and records",
                f"chmod {right:o} {shlex.quote(folder.path)}",
            )


def expiry(facts: Facts) -> Iterator[Finding]:
    """Tokens are good for long enough."""
    lifetimes = {entry.name: entry.lifetime for site in facts.files for entry in site.entries}
    idle = [glidein for glidein in facts.snapshot.glideins if glidein.status == JobStatus.IDLE]
    waiting = {("", ""), *((each.entry, entry_folder(Path(), each.entry, each.template).name) for each in idle)}
    for token in facts.tokens:
        if token.seconds_left is None or (token.entry, token.template) not in waiting:
            continue
        enough = lifetimes.get(token.entry, 0) if token.entry else SOON
        if token.seconds_left >= enough:
            continue
        whose = f"the token of {token.entry}'s waiting glideins" if token.entry else "this account's token"
        fix = RENEW if token.entry else f"condor_token_fetch -token {shlex.quote(Path(token.path).name)}"
        if token.seconds_left <= 0:
            yield critical(f"{whose}, {token.path}, has expired", fix)
        else:
            yield warning(f"{whose}, {token.path}, expires in {duration(token.seconds_left)}", fix)


def rights(facts: Facts) -> Iterator[Finding]:
    """Who must be let in is."""
    for right in facts.rights:
        if right.granted:
            continue
        if right.daemon == "Collector":
            ours = right.who == US
            cost = "dead glideins' ads match for a minute" if ours else "its lanes run and are never seen"
            who = "the factory's account" if ours else f"{right.who}@$(TRUST_DOMAIN)"
            yield (warning if ours else critical)(
                f"the collector does not let {right.who} advertise ({right.level}): {cost}",
                f"add {who} to the central manager's ALLOW_{right.level} (unset, it is ALLOW_DAEMON: begin with that);"
                " then condor_reconfig",
            )
        else:
            yield critical(
                f"the access point does not grant {right.who} {right.level}",
                "condor_token_fetch as a user who may, or ALLOW_WRITE and ALLOW_READ in its configuration",
            )
