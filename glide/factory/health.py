"""Use the outcomes of earlier glideins to decide whether an entry, a template or a node gets another glidein.

A glidein that was ever warm has succeeded, no matter for how long it was warm, because a preemption is not the
glidein's fault. A glidein that ended or gave up before it was warm has failed. A glidein that is still starting has
neither succeeded nor failed, no matter how slow it is. The factory reads the outcomes from the outer jobs in the queue.
The outer job of an ended glidein stays in the queue for at least an hour. If very many glideins end, only the latest of
them stay (see glide.factory.housekeeping).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from glide.config import Breaker
from glide.factory.snapshot import Glidein, Snapshot
from glide.vocabulary import UNSUITABLE, JobStatus, State

NODE_FAILURES = 2  # the factory avoids a node with at least this number of failures and no success
LONGEST_BACKOFF = 86400.0  # maximum time that a circuit breaker stays open, in seconds
# A text explains why a circuit breaker is open. The text lists at most this number of earlier failures.
MOST_EARLIER_FAILURES = 3
# A failing glidein has at least this number of failed records. It also has more failed records than successful records.
FAILED_RECORDS = 5


@dataclass(frozen=True)
class BreakerState:
    """The decision of a circuit breaker about more glideins.

    Attributes:
        allowed: number of further glideins that are allowed; None for no limit.
        reason: why the number of further glideins is limited; empty if there is no limit.
        open: whether the breaker is open or half open.
        failures: number of failures since a glidein was last warm.
    """

    allowed: int | None = None
    reason: str = ""
    open: bool = False
    failures: int = 0


def breaker_state(
    alive: Collection[Glidein], ended: Collection[Glidein], breaker: Breaker, trials: int | None = None
) -> BreakerState:
    """Return how many more glideins a circuit breaker allows.

    The circuit breaker belongs to an entry, or to one template on an entry.

    Until a glidein has been warm, at most `trials` glideins are tried at the same time. After the first failure, this
    number is `breaker.failures`. After `breaker.failures` failures in a row, the breaker is open for
    `breaker.backoff_seconds`: it allows no glidein. Then the breaker is half open: it allows one glidein. If this
    glidein fails, too, the breaker is open for twice as long.

    Glideins on unsuitable nodes do not count, because the factory avoids these nodes from then on.

    Args:
        alive: glideins that have not ended. They belong to the entry, or to the template on the entry.
        ended: glideins that have ended. They belong to the entry, or to the template on the entry.
        breaker: settings of the breaker, from the site file.
        trials: maximum number of glideins that are tried at the same time; None for `breaker.failures`.
    """
    alive, ended = ([each for each in group if not is_unsuitable(each)] for group in (alive, ended))
    failed_alive = [each for each in alive if each.state == State.FAILED or (_is_held(each) and not each.state)]
    untested = sum(not glidein.state and not _is_held(glidein) for glidein in alive)
    warm_ages = [glidein.age for glidein in ended if glidein.state == State.WARM]
    warm_ages += [0.0 for glidein in alive if glidein.state == State.WARM]
    last_warm = min(warm_ages, default=float("inf"))
    failures = [glidein for glidein in ended if glidein.state != State.WARM and glidein.age < last_warm]
    failures = sorted([*failures, *failed_alive], key=_seconds_since_failure, reverse=True)
    if len(failures) < breaker.failures:
        if warm_ages:
            return BreakerState(failures=len(failures))
        most = breaker.failures if failures or trials is None else trials
        reason = f"{untested} of at most {most} glideins are on trial: none has been warm yet"
        return BreakerState(max(0, most - len(failures) - untested), reason, failures=len(failures))
    latest = failures[-1]
    why = f"{len(failures)} glideins in a row were never warm; the last one, {_describe_failure(latest)}"
    earlier = (_describe_failure(each, False) for each in failures[-2::-1] if each.host != latest.host)
    if others := list(dict.fromkeys(earlier)):
        why += f"; before it, {'; '.join(others[:MOST_EARLIER_FAILURES])}"
    backoff = _backoff_seconds(failures, breaker)
    if _seconds_since_failure(latest) < backoff:
        why = f"circuit breaker open for {backoff:.0f} s after the last failure: {why}"
        return BreakerState(0, why, open=True, failures=len(failures))
    why = f"circuit breaker half open, {untested} on trial: {why}"
    return BreakerState(max(0, 1 - untested), why, open=True, failures=len(failures))


def _seconds_since_failure(failed: Glidein) -> float:
    """Return the seconds since a failed glidein ended or was held; 0 if it has neither ended nor been held."""
    return failed.age if failed.status == JobStatus.COMPLETED or _is_held(failed) else 0.0


def _backoff_seconds(failures: Sequence[Glidein], breaker: Breaker) -> float:
    """Return the seconds for which an open circuit breaker stays open after the last failure.

    The time doubles if the glidein that a half-open breaker allowed fails, too. Such a failure follows the previous one
    by at least the time for which the breaker was open. Failures that follow faster do not double the time, because
    these glideins were on trial together: otherwise, twelve of them would stop submissions for a day.

    Args:
        failures: at least `breaker.failures` failed glideins. The earliest failure is first.
    """
    backoff = min(breaker.backoff_seconds, LONGEST_BACKOFF)
    for before, after in pairwise(failures[breaker.failures - 1 :]):
        if _seconds_since_failure(before) - _seconds_since_failure(after) >= backoff:
            backoff = min(2 * backoff, LONGEST_BACKOFF)
    return backoff


def _describe_failure(failed: Glidein, named: bool = True) -> str:
    """Return a text with the glidein, the host and the reason of a failure.

    Args:
        named: whether the text begins with the GlideId. If not, the text begins with the word "one", such as
            "one on node7: exit code 1".
    """
    host = f" on {failed.host}" if failed.host else ""
    return f"{failed.glide_id if named else 'one'}{host}: {failed.failure or failed.hold_reason}"


def _is_held(glidein: Glidein) -> bool:
    return glidein.status == JobStatus.HELD


def mark_failing_glideins(snapshot: Snapshot) -> Snapshot:
    """Set the state of failing glideins to Failed. Return a new snapshot with these states.

    A glidein is failing if most of its records fail. A failing glidein gets the state Failed only if another glidein
    serves the same template well. Otherwise, the template or the records may be the cause of the failures.
    """
    glideins = (*snapshot.glideins, *snapshot.ended)
    served_well = {
        each.template for each in glideins if each.served - each.errors >= FAILED_RECORDS and not _is_failing(each)
    }

    def marked(glidein: Glidein) -> Glidein:
        if glidein.template not in served_well or not _is_failing(glidein):
            return glidein
        failed = f"{glidein.errors} of the {max(glidein.served, glidein.errors)} records it served failed"
        failure = f"{failed}, while other glideins serve this template well"
        return replace(glidein, state=State.FAILED, failure=failure)

    return replace(snapshot, glideins=tuple(map(marked, snapshot.glideins)), ended=tuple(map(marked, snapshot.ended)))


def _is_failing(glidein: Glidein) -> bool:
    return glidein.errors >= FAILED_RECORDS and glidein.errors > 0.5 * glidein.served


def bad_nodes(alive: Iterable[Glidein], ended: Iterable[Glidein]) -> tuple[str, ...]:
    """Return the nodes of an entry on which at least NODE_FAILURES glideins failed and no glidein succeeded.

    If no glidein of the entry succeeded on any node, return no nodes, because the nodes are probably not the cause.

    Args:
        alive: the entry's glideins that have not ended.
        ended: the entry's glideins that have ended.
    """
    glideins = [*alive, *ended]
    good = {glidein.host for glidein in glideins if glidein.state == State.WARM}
    if not good:
        return ()
    over = [each for each in glideins if each.status == JobStatus.COMPLETED or each.state == State.FAILED]
    bad = Counter(glidein.host for glidein in over if glidein.state != State.WARM and glidein.host)
    return tuple(sorted(host for host, count in bad.items() if count >= NODE_FAILURES and host not in good))


def is_unsuitable(glidein: Glidein) -> bool:
    """Return whether a glidein failed because its node lacks what the template's program needs."""
    return bool(glidein.host) and UNSUITABLE in glidein.failure


def unsuitable_nodes(template: str, alive: Iterable[Glidein], ended: Iterable[Glidein]) -> tuple[str, ...]:
    """Return the nodes of an entry that lack what a template's program needs."""
    mine = (each for each in (*alive, *ended) if each.template == template)
    return tuple(sorted({each.host for each in mine if is_unsuitable(each)}))


def nodes_with_files(template: str, alive: Iterable[Glidein], ended: Iterable[Glidein]) -> tuple[str, ...]:
    """Return the nodes of an entry where the template was warm in the last hour.

    The caches of these nodes contain the template's files.
    """
    warm = (each for each in (*alive, *ended) if each.template == template and each.state == State.WARM)
    return tuple(sorted({each.host for each in warm}))


def nodes_without_success(template: str, alive: Iterable[Glidein], ended: Iterable[Glidein]) -> tuple[str, ...]:
    """Return the nodes on which glideins with this template failed and no glidein with this template succeeded.

    An ended glidein counts as long as its outer job is in the queue. The outer job stays in the queue for at least an
    hour after the glidein's end.
    """
    mine = [each for each in (*alive, *ended) if each.template == template and each.host]
    good = {each.host for each in mine if each.state == State.WARM}
    failed = {each.host for each in mine if each.state == State.FAILED or each.status == JobStatus.COMPLETED}
    return tuple(sorted(failed - good))
