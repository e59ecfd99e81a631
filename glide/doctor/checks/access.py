"""Check tokens, the modes of secret files, and the permissions of this account and of glideins."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from glide.doctor.facts import US, Facts
from glide.doctor.finding import Finding, critical, warning
from glide.factory.home import subfolder_name
from glide.report.times import duration
from glide.vocabulary import JobStatus

SOON = 7 * 86400.0  # warn if this account's token expires within this number of seconds
RENEW = "run `glide factory run` as an account that can read the pool's signing key: the factory renews the token"


def secrets(facts: Facts) -> Iterator[Finding]:
    """Find secret folders and files that other accounts own or can read."""
    for folder in facts.folders:
        if not folder.mine:
            yield critical(f"{folder.path} belongs to another account", f"chown -R $(id -u) {shlex.quote(folder.path)}")
        elif folder.mode & 0o077:
            right = folder.mode & 0o700
            yield critical(
                f"{folder.path} has mode {folder.mode:03o}, so other accounts can read tokens and records in it",
                f"chmod {right:o} {shlex.quote(folder.path)}",
            )


def expiry(facts: Facts) -> Iterator[Finding]:
    """Find tokens of this account, and tokens of waiting glideins, that have expired or expire soon."""
    lifetimes = {entry.name: entry.lifetime for site in facts.files for entry in site.entries}
    idle = [glidein for glidein in facts.snapshot.glideins if glidein.status == JobStatus.IDLE]
    waiting = {("", ""), *((each.entry, subfolder_name(each.template)) for each in idle)}
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
    """Find rights that this account or a glidein needs but does not have."""
    for right in facts.rights:
        if right.granted:
            continue
        if right.daemon == "Collector":
            own = right.who == US
            cost = "ads of dead glideins match for a minute" if own else "its lanes run and never appear in the pool"
            who = "the factory's account" if own else f"{right.who}@$(TRUST_DOMAIN)"
            yield (warning if own else critical)(
                f"the collector does not let {right.who} advertise ({right.level}): {cost}",
                f"add {who} to the central manager's ALLOW_{right.level} (if that is unset, begin with the value of"
                " ALLOW_DAEMON); then condor_reconfig",
            )
        else:
            yield critical(
                f"the access point does not grant {right.who} {right.level}",
                "run condor_token_fetch as a user who has this right, or add the account to ALLOW_READ and ALLOW_WRITE"
                " in the access point's configuration",
            )
