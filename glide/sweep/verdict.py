"""Decide whether a run gives up because glideins failed to load the run's template. One bad node is not enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from glide.vocabulary import UNSUITABLE

# A run gives up if the template could not be loaded on this number of hosts. Hosts that cannot run its program do not
# count, because the factory tries other hosts.
HOSTS = 3
# A pool may have fewer than HOSTS hosts. On such a pool, a run gives up if all of these conditions hold:
#
# - On every host of the pool, a glidein has failed to load the template.
# - No other glidein is still loading the template.
# - Enough glideins have failed (GLIDEINS), or the last failure was long ago (ALONE_SECONDS).
GLIDEINS = 2  # number of failures that can end a run on a pool with fewer than HOSTS hosts
ALONE_SECONDS = 30.0  # seconds after which one failure can end a run on a pool with few hosts


@dataclass(frozen=True)
class Failure:
    """The failure of one glidein to load the template.

    Attributes:
        host: host of the glidein.
        reason: the reason that the glidein advertised.
        at: time at which the driver observed the failure (monotonic seconds).
    """

    host: str
    reason: str
    at: float


def reason_to_give_up(
    failures: Mapping[str, Failure], others_loading: bool, pool_hosts: Collection[str], now: float
) -> str:
    """Return the failures as text if the run has to give up, else an empty text.

    Call this function only as long as no glidein has been warm with the template.

    Args:
        failures: the failures, by GlideId.
        others_loading: whether a glidein that has not failed is still loading the template.
        pool_hosts: hosts of the pool's own execution points. If the set is empty, it is unknown on which hosts glideins
            may run.
        now: current time (monotonic seconds).
    """
    failed = {failure.host for failure in failures.values()}
    tried = {failure.host for failure in failures.values() if UNSUITABLE not in failure.reason}
    if not failures or (len(tried) < HOSTS and (others_loading or not pool_hosts or not failed >= set(pool_hosts))):
        return ""
    waited = now - max(failure.at for failure in failures.values())
    if len(tried) < HOSTS and len(failures) < GLIDEINS and waited < ALONE_SECONDS:
        return ""
    return "; ".join(f"{glide_id} ({each.host}): {each.reason}" for glide_id, each in failures.items())
