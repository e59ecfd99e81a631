"""Decide how many glideins may be on trial at the same time with a template that was never warm on an entry.

Each glidein on trial may fail for the same reason. So the usual limit is small, and all further glideins start only
after one has become warm. This costs one whole start time for each new template. The limit is higher if failures are
unlikely.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glide.config import Entry
from glide.factory.health import breaker_state
from glide.factory.snapshot import Snapshot
from glide.files import Tree
from glide.files.peers import short_digest
from glide.template import FileSet, Template
from glide.vocabulary import JobStatus, State

# If failures are unlikely, the limit is this factor times the usual one. The limit is not a share of the number of
# glideins that jobs want, because users choose that number. So only the site file determines how many starts may fail.
# By default, the limit is 12, which is more than one cycle may submit (submits_per_cycle, 10).
TRIAL_FACTOR = 4


@dataclass(frozen=True)
class TrialLimit:
    """How many glideins with a template may be on trial on an entry at the same time.

    Attributes:
        most: maximum number of glideins on trial.
        reason: text that says why the limit is higher than usual, and how many starts may fail; empty for the usual
            limit.
    """

    most: int
    reason: str = ""


def trial_limit(entry: Entry, template: str, snapshot: Snapshot, site_limit: int | None = None) -> TrialLimit:
    """Return how many glideins with a template may be on trial on an entry at the same time.

    The usual limit is `breaker.failures`. The limit is TRIAL_FACTOR times as high if all these conditions are true:

    - The entry works: a glidein with another template is warm there, or was warm in the last hour. No glidein of the
      entry has failed since then, except glideins that could not load their template.
    - The content of the template's files is known to be right (see `_files_are_verified`).
    - The template contains no user's code.
    - The template has not failed on this entry in the last hour.

    Even so, all these glideins may fail together. Then a template that cannot be loaded costs
    TRIAL_FACTOR × `breaker.failures` failed starts on an entry, instead of `breaker.failures`. After the first failure,
    the usual limit applies again. Retargets start no glidein, so they do not count.

    The higher limit is at most the template's fair share: the number of glideins that the entry may have, divided by
    the number of templates that jobs want. So a template on trial leaves places for the others.

    Args:
        site_limit: maximum number of glideins of the site; None for no limit.
    """
    usual = TrialLimit(entry.breaker.failures)
    described = snapshot.description(template)
    if described is None or described.code(entry.programs) or _has_failed(entry, template, snapshot):
        return usual
    if not (_works_otherwise(entry, template, snapshot) and _files_are_verified(described, entry, snapshot)):
        return usual
    places = entry.max_glideins if site_limit is None else min(entry.max_glideins, site_limit)
    share = places // len(snapshot.wanted)
    most = min(TRIAL_FACTOR * usual.most, share)
    if most <= usual.most:
        return usual
    files = "its files are verified" if described.file_sets else "it needs no files"
    return TrialLimit(
        most,
        f"up to {most} starts may fail instead of {usual.most}: no glidein was warm with {described.model} on"
        f" {entry.name} yet, but glideins with other models were, and {files}",
    )


def _works_otherwise(entry: Entry, template: str, snapshot: Snapshot) -> bool:
    """Return whether a glidein with another template is or was warm on an entry, and none has failed since.

    A glidein whose state is Failed does not count, because its template is the cause, and not the entry. A glidein that
    waits in the queue does not count either. If it was evicted, it may have been warm long ago.
    """
    alive, ended = (
        [each for each in group if each.template != template and each.state != State.FAILED]
        for group in snapshot.glideins_of(entry.name)
    )
    alive = [each for each in alive if each.status != JobStatus.IDLE]
    breaker = breaker_state(alive, ended, entry.breaker)
    return breaker.allowed is None and not breaker.failures


def _has_failed(entry: Entry, template: str, snapshot: Snapshot) -> bool:
    """Return whether a glidein on this entry was not able to load a template, or a sticky job with it is held."""
    alive, ended = ([each for each in group if each.template == template] for group in snapshot.glideins_of(entry.name))
    return (
        any(each.state == State.FAILED or each.status == JobStatus.HELD for each in alive)
        or any(each.state != State.WARM for each in ended)
        or any(
            (lane.entry, lane.template, lane.state) == (entry.name, template, State.FAILED) for lane in snapshot.lanes
        )
        or any(job.template == template and job.hold_reason for job in snapshot.retargets)
    )


def _files_are_verified(described: Template, entry: Entry, snapshot: Snapshot) -> bool:
    """Return whether the content of a template's files is known to be right.

    A node verifies the sha256 of each file that it fetches or loads. So the content is known in two cases:

    - A lane of one of this factory's glideins has the files in its host's cache (GlideCached).
    - One of this factory's glideins was warm with these files in the last hour, on any entry.

    Some templates need no files: those without a path, and those of a service outside the pool. If a template has a
    path but lists no files, the content is unknown.
    """
    if entry.service or described.service:
        return True
    if not described.file_sets:
        return described.path is None
    unknown = _digests(described.file_sets)
    own = {glidein.glide_id for glidein in snapshot.glideins}
    warm = {each.template for each in (*snapshot.glideins, *snapshot.ended) if each.state == State.WARM}
    for lane in snapshot.lanes:
        if lane.glide_id in own:
            unknown.difference_update(lane.cached)
            warm |= {lane.template} if lane.state == State.WARM else set()
    unknown -= {digest for each in map(snapshot.description, warm) if each for digest in _digests(each.file_sets)}
    return not unknown


def _digests(file_sets: Iterable[FileSet]) -> set[str]:
    """Return the digests of file sets in the short form that lanes advertise."""
    return {short_digest(Tree.of(file_set).digest) for file_set in file_sets}
