"""Query the ads in a pool's collector, and remove the ads of daemons that no longer run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from glide.condor import bindings
from glide.condor.queries import query_collector
from glide.condor.signals import defer_signals
from glide.errors import CondorError


class Collector:
    """The collector of a pool. After a failed call, the collector's address is looked up again.

    Args:
        address: the collector's address. None: the collector of the configured pool.
    """

    def __init__(self, address: str | None = None):
        self.given_address = address
        self.collector = self._find()

    @defer_signals()
    def _find(self) -> Any:
        given = self.given_address
        return bindings.htcondor2.Collector(given) if given else bindings.htcondor2.Collector()

    @property
    def address(self) -> str:
        """The address at which daemons on other machines reach the collector, in HTCondor's notation."""
        found = self._call("locate", bindings.htcondor2.DaemonType.Collector)
        return str(found["MyAddress"])

    def lanes(self, attributes: Iterable[str], constraint: str = "GlideId =!= undefined") -> list[dict[str, Any]]:
        """Return the requested attributes of each lane. Attributes that a lane does not define are left out."""
        return query_collector(self.given_address, "Slot", constraint, list(attributes))

    def ads(
        self, attributes: Iterable[str], expressions: Collection[str] = (), constraint: str = "true"
    ) -> list[dict[str, Any]]:
        """Return ads of all kinds of daemons.

        Args:
            attributes: names of the attributes to return as values.
            expressions: names of the attributes to return as texts, without evaluating their expressions.
            constraint: expression that selects the ads.
        """
        return query_collector(self.given_address, "Any", constraint, list(attributes), tuple(expressions))

    def age(self) -> float:
        """Return the seconds since the collector started. A collector that has just started has no ads.

        If the pool has several collectors, return the age of the youngest collector. If no collector reports its age,
        return infinity.
        """
        ads = query_collector(self.given_address, "Collector", "true", ["StatsLifetime"])
        known = [float(ad["StatsLifetime"]) for ad in ads if isinstance(ad.get("StatsLifetime"), int)]
        return min(known, default=float("inf"))

    @defer_signals()
    def expunge(self, constraint: str) -> None:
        """Remove from the collector the slot ads that match a constraint.

        Jobs match the slots of a dead node until the ads of these slots are removed or expire.
        """
        ad = bindings.classad2.ClassAd({"MyType": "Query", "TargetType": "Machine"})
        ad["Requirements"] = bindings.classad2.ExprTree(constraint)
        self._call("advertise", [ad], "INVALIDATE_STARTD_ADS")

    @defer_signals()
    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.collector, method)(*arguments)
        except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
            self.collector = self._find()
            raise CondorError(f"collector: {method} failed: {error}") from None


@defer_signals()
def locate(daemon: str) -> Any:
    """Return the location ad of a daemon of the pool. The bindings need this ad to contact the daemon.

    Args:
        daemon: type of the daemon: Schedd, Negotiator, …

    Raises:
        CondorError: the collector does not answer, or has no ad of a daemon of this type.
    """
    try:
        return bindings.htcondor2.Collector().locate(getattr(bindings.htcondor2.DaemonType, daemon))
    except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
        raise CondorError(f"cannot get the address of a {daemon.lower()} from the collector: {error}") from None


def parse_address(address: str) -> tuple[str, int]:
    """Return the host and the port of an address in HTCondor's notation, such as <10.0.0.1:9618?addrs=…>.

    Raises:
        CondorError: the text is not an address in this notation.
    """
    found = re.match(r"<?(?:\[(.+?)\]|([^:>?]+)):(\d+)", address)
    if found is None:
        raise CondorError(f"not the address of a daemon: {address}")
    return found[1] or found[2], int(found[3])
