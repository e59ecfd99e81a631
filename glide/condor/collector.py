"""The pool's collector: who advertises what, and the removal of ads whose daemon is gone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from glide.condor import bindings
from glide.condor.access_point import plain
from glide.condor.signals import undisturbed
from glide.errors import CondorError


class Collector:
    """The configured pool's collector, or the one at an address; looked for again after a call that failed."""

    def __init__(self, address: str | None = None):
        self.at = address
        self.collector = self._find()

    @undisturbed()
    def _find(self) -> Any:
        return bindings.htcondor2.Collector(self.at) if self.at else bindings.htcondor2.Collector()

    @property
    def address(self) -> str:
        """Where daemons on other machines reach it."""
        found = self._call("locate", bindings.htcondor2.DaemonType.Collector)
        return str(found["MyAddress"])

    @undisturbed()
    def lanes(self, attributes: Iterable[str], constraint: str = "GlideId =!= undefined") -> list[dict[str, Any]]:
        """Machine ads of glideins' lanes."""
        return [plain(ad) for ad in self._call("query", bindings.htcondor2.AdType.Slot, constraint, list(attributes))]

    @undisturbed()
    def ads(
        self, attributes: Iterable[str], expressions: Collection[str] = (), constraint: str = "true"
    ) -> list[dict[str, Any]]:
        """Ads of all kinds of daemons; `expressions` are attributes that are wanted as they are written."""
        found = self._call("query", bindings.htcondor2.AdType.Any, constraint, [*attributes, *expressions])
        return [plain(ad) | {name: str(ad.lookup(name)) for name in expressions if name in ad} for ad in found]

    @undisturbed()
    def age(self) -> float:
        """Seconds since it was started, the last of them where there are several: it knows no ads from before."""
        ads = [plain(ad) for ad in self._call("query", bindings.htcondor2.AdType.Collector, "true", ["StatsLifetime"])]
        known = [float(ad["StatsLifetime"]) for ad in ads if isinstance(ad.get("StatsLifetime"), int)]
        return min(known, default=float("inf"))

    @undisturbed()
    def expunge(self, constraint: str) -> None:
        """Remove machine ads at once, for a daemon that died cannot do it and they would keep matching."""
        ad = bindings.classad2.ClassAd({"MyType": "Query", "TargetType": "Machine"})
        ad["Requirements"] = bindings.classad2.ExprTree(constraint)
        self._call("advertise", [ad], "INVALIDATE_STARTD_ADS")

    @undisturbed()
    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.collector, method)(*arguments)
        except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
            self.collector = self._find()
            raise CondorError(f"the collector does not {method}: {error}") from None


@undisturbed()
def located(daemon: str) -> Any:
    """Where the pool's daemon of a kind (Schedd, Negotiator, …) is, for the bindings.

    Raises:
        CondorError: there is none.
    """
    try:
        return bindings.htcondor2.Collector().locate(getattr(bindings.htcondor2.DaemonType, daemon))
    except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
        raise CondorError(f"the pool has no {daemon.lower()} that answers: {error}") from None


def endpoint(address: str) -> tuple[str, int]:
    """Host and port of an address in HTCondor's notation; CondorError where it is none."""
    found = re.match(r"<?(?:\[(.+?)\]|([^:>?]+)):(\d+)", address)
    if found is None:
        raise CondorError(f"no address of a daemon: {address}")
    return found[1] or found[2], int(found[3])
