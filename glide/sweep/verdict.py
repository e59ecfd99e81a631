"""Whether a template is beyond hope: one bad node is one bad node."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

HOSTS = 3  # different ones have to fail
GLIDEINS = 2  # as many, where the pool has no host that has not failed
ALONE_SECONDS = 30.0  # or one such glidein, after which no other came for so long


@dataclass(frozen=True)
class Failure:
    """A glidein that could not load the template: on which host, why, and when that was seen (monotonic seconds)."""

    host: str
    reason: str
    at: float


def hopeless(failures: Mapping[str, Failure], coming: bool, own_hosts: Collection[str], now: float) -> str:
    """Why no more glideins are worth waiting for; empty while some are.

    Only to be asked while no glidein has been warm with the template.

    Args:
        failures: by GlideId.
        coming: whether a glidein with the template is on its way to be warm.
        own_hosts: those of the pool's own execution points; glideins run on these, or nobody knows where.
    """
    failed = {failure.host for failure in failures.values()}
    if not failures or (len(failed) < HOSTS and (coming or not own_hosts or not failed >= set(own_hosts))):
        return ""
    waited = now - max(failure.at for failure in failures.values())
    if len(failed) < HOSTS and len(failures) < GLIDEINS and waited < ALONE_SECONDS:
        return ""
    return "; ".join(f"{glide_id} ({each.host}): {each.reason}" for glide_id, each in failures.items())
