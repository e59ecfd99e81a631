"""Whether an entry, a template on it, or a node deserves another glidein: judged by outcome, never by speed.

A glidein has done well once it was warm, however short it lived: preemption is nobody's fault. It has failed when it
ended, or gave up, before. Everything is read from jobs in the queue, where ended glideins stay for an hour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from glide.config import Breaker
from glide.factory.snapshot import Glidein, Snapshot
from glide.vocabulary import JobStatus, State

NODE_FAILURES = 2  # after so many, and no success, a node is left out where others of the entry do well
LONGEST_BACKOFF = 86400.0
MOST_TOLD = 3  # earlier failures, on other hosts, that a reason names
FAILED_RECORDS = 5  # so many, and most of them, before a glidein's records are taken for its own fault


@dataclass(frozen=True)
class Verdict:
    """At most `room` more glideins (None: no limit of this kind), and why; `open` says that a breaker is."""

    room: int | None = None
    reason: str = ""
    open: bool = False


def judge(alive: Collection[Glidein], ended: Collection[Glidein], breaker: Breaker) -> Verdict:
    """How many more glideins may be tried of a kind, of which these are alive and those have ended.

    Until one has been warm, at most `breaker.failures` are tried at once. After as many failures in a row the breaker
    opens, for `backoff_seconds`, and twice as long after each further failure; then one glidein is tried.
    """
    failed_alive = [each for each in alive if each.state == State.FAILED or (_held(each) and not each.state)]
    coming = sum(not glidein.state and not _held(glidein) for glidein in alive)
    warm_ages = [glidein.age for glidein in ended if glidein.state == State.WARM]
    warm_ages += [0.0 for glidein in alive if glidein.state == State.WARM]
    last_warm = min(warm_ages, default=float("inf"))
    failures = [glidein for glidein in ended if glidein.state != State.WARM and glidein.age < last_warm]
    failures = sorted(failures, key=lambda glidein: glidein.age, reverse=True) + failed_alive
    if len(failures) < breaker.failures:
        if warm_ages:
            return Verdict()
        room = max(0, breaker.failures - len(failures) - coming)
        return Verdict(room, f"{coming} glideins are on trial: none has been warm yet")
    latest = failures[-1]
    why = f"{len(failures)} glideins in a row were never warm; the last one, {_told(latest)}"
    if others := dict.fromkeys(_told(each, False) for each in failures[-2::-1] if each.host != latest.host):
        why += f"; before it, {'; '.join(list(others)[:MOST_TOLD])}"
    backoff = min(breaker.backoff_seconds * 2.0 ** (len(failures) - breaker.failures), LONGEST_BACKOFF)
    since = latest.age if latest not in failed_alive or _held(latest) else 0.0
    if since < backoff:
        return Verdict(0, f"breaker open for {backoff - since:.0f} s more: {why}", open=True)
    return Verdict(max(0, 1 - coming), f"breaker half open, {coming} on trial: {why}", open=True)


def _told(failed: Glidein, named: bool = True) -> str:
    """A failure: which glidein's it was, on which host, and why."""
    host = f" on {failed.host}" if failed.host else ""
    return f"{failed.glide_id if named else 'one'}{host}: {failed.failure or failed.hold_reason}"


def _held(glidein: Glidein) -> bool:
    return glidein.status == JobStatus.HELD


def diagnosed(snapshot: Snapshot) -> Snapshot:
    """Call those glideins Failed whose records fail, where other glideins serve the same template well."""
    glideins = (*snapshot.glideins, *snapshot.ended)
    well = {each.template for each in glideins if each.served - each.errors >= FAILED_RECORDS and not _ails(each)}

    def judged(glidein: Glidein) -> Glidein:
        if glidein.template not in well or not _ails(glidein):
            return glidein
        told = f"{glidein.errors} of the {max(glidein.served, glidein.errors)} records it served failed"
        return replace(glidein, state=State.FAILED, failure=f"{told}, while others serve them well")

    return replace(snapshot, glideins=tuple(map(judged, snapshot.glideins)), ended=tuple(map(judged, snapshot.ended)))


def _ails(glidein: Glidein) -> bool:
    return glidein.errors >= FAILED_RECORDS and glidein.errors > 0.5 * glidein.served


def bad_nodes(alive: Iterable[Glidein], ended: Iterable[Glidein]) -> tuple[str, ...]:
    """Nodes of an entry on which glideins fail, while on others they do well."""
    glideins = [*alive, *ended]
    good = {glidein.host for glidein in glideins if glidein.state == State.WARM}
    if not good:  # it is not the nodes
        return ()
    gone = [each for each in glideins if each.status == JobStatus.COMPLETED or each.state == State.FAILED]
    bad = Counter(glidein.host for glidein in gone if glidein.state != State.WARM and glidein.host)
    return tuple(sorted(host for host, count in bad.items() if count >= NODE_FAILURES and host not in good))


def nodes_with_files(template: str, alive: Iterable[Glidein], ended: Iterable[Glidein]) -> tuple[str, ...]:
    """Nodes of an entry where the template has been warm in the last hour: its files are in their caches."""
    warm = (each for each in (*alive, *ended) if each.template == template and each.state == State.WARM)
    return tuple(sorted({each.host for each in warm}))


def nodes_without_success(template: str, alive: Iterable[Glidein], ended: Iterable[Glidein]) -> tuple[str, ...]:
    """Nodes of an entry where glideins of the template failed in the last hour, and none was warm."""
    mine = [each for each in (*alive, *ended) if each.template == template and each.host]
    good = {each.host for each in mine if each.state == State.WARM}
    failed = {each.host for each in mine if each.state == State.FAILED or each.status == JobStatus.COMPLETED}
    return tuple(sorted(failed - good))
