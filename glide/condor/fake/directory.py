"""The collector of the fake pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from glide.condor import bindings
from glide.condor.fake.ad import expression, values
from glide.condor.fake.clock import FakeClock
from glide.condor.fake.glidein import UPDATE_SECONDS, FakeLane
from glide.errors import CondorError

AD_SECONDS = 60.0  # the collector drops an ad that is older than this (CLASSAD_LIFETIME of glideins)


class FakeDirectory:
    """The collector. It implements the port SlotDirectory.

    Args:
        hosts: names of execution points that are not glideins. Drivers count them when a template fails to load.
    """

    def __init__(self, clock: FakeClock, hosts: Iterable[str] = ()):
        self.clock = clock
        self.known: list[FakeLane] = []
        self.own = [bindings.classad2.ClassAd({"Name": f"slot1@{host}", "Machine": host}) for host in hosts]
        self.started = clock.monotonic()
        self.down_until = 0.0

    def listed(self) -> list[FakeLane]:
        """Return the lanes whose ads the collector has. The ads of a dead lane stay until they are too old.

        So jobs still match a dead lane, which is called a ghost. They never start there.
        """
        for lane in self.known:
            lane.catch_up()
            lane.listed = lane.listed and self.clock.time() - lane.heard < AD_SECONDS
        self.known = [lane for lane in self.known if lane.glidein.alive or lane.listed]
        return [lane for lane in self.known if lane.listed]

    def lanes(self, attributes: Iterable[str], constraint: str = "GlideId =!= undefined") -> list[dict[str, Any]]:
        self._check("query")
        condition, names = expression(constraint), list(attributes)
        ads = [*self.own, *(lane.ad for lane in self.listed())]
        return [values(ad, names) for ad in ads if condition.eval(ad) is True]

    def age(self) -> float:
        self._check("query")
        return float(int(self.clock.monotonic() - self.started))

    def expunge(self, constraint: str) -> None:
        """Remove ads. A lane that lives is listed again with its next ad."""
        self._check("advertise")
        condition = expression(constraint)
        for lane in self.listed():
            lane.listed = lane.listed and condition.eval(lane.ad) is not True

    def restart(self) -> None:
        """Forget all ads, as a restarted collector does. Lanes that live are listed again within UPDATE_SECONDS."""
        self.started = self.clock.monotonic()
        for lane in self.listed():
            lane.listed = False
            self.clock.call_later(lane.heard + UPDATE_SECONDS - self.clock.time(), lane.advertise)

    def _check(self, method: str) -> None:
        if self.clock.monotonic() < self.down_until:
            raise CondorError(f"collector: {method} failed: no answer")
