"""Query the collector for the lanes on which a driver's jobs may run. Ignore malformed ads and attributes."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Collection

from glide.condor.ports import Clock, SlotDirectory
from glide.protocol.ads import LaneAd, attributes, from_ad
from glide.protocol.names import printable
from glide.sweep.verdict import Failure, reason_to_give_up
from glide.sweep.view import GlideinView
from glide.template import Template
from glide.vocabulary import IDENTITY, Machine, State

# Each lane sends an ad every 15 s. If a lane sends no ad for this number of seconds, the lane's host has vanished. The
# time of the newest ad of all lanes counts as the current time. TCP connections to a vanished host may still look open.
SILENT_SECONDS = 35.0
# A lane is gone if the collector has no ad of it for this number of seconds, even if no event log reports the loss.
VANISHED_SECONDS = 3.0
UNKNOWN_HOST = "an unknown host"
_log = logging.getLogger("glide")


class Lanes:
    """The lanes that have loaded one template or are loading it, as their ads in the collector show them.

    Attributes:
        glideins: for each GlideId, the newest ad that a lane of the glidein sent.
        last_seen: for each lane Name, the GlideId and the time when the lane's ad was last present (monotonic seconds).
        failures: the first failure of each glidein that failed to load the template, by GlideId.
        is_warm: whether at least one lane is warm now.
        was_warm: whether a lane is warm now or was warm before.
        is_outdated: whether all warm lanes are of a version of glide that is too old for the run's requests.
        give_up: why the template cannot be loaded, if the run has to give up; empty otherwise.
        avoided: GlideIds of the glideins that get no jobs, as of the last call of `observe`.
    """

    def __init__(self, template: Template, directory: SlotDirectory, clock: Clock):
        self.template = template
        self.directory = directory
        self.clock = clock
        self.glideins: dict[str, LaneAd] = {}
        self.last_seen: dict[str, tuple[str, float]] = {}
        self.failures: dict[str, Failure] = {}
        self.is_warm = self.was_warm = False
        self.is_outdated = False
        self.give_up = ""
        self.avoided: Collection[str] = ()

    def observe(self, version: int, avoided: Collection[str]) -> list[LaneAd]:
        """Query the collector, and return the ads of the lanes. Leave out old ads, and all ads of avoided glideins.

        Args:
            version: version of the run's requests.
            avoided: GlideIds of the glideins that get no jobs.

        Raises:
            CondorError: the collector does not answer.
        """
        self.avoided = avoided
        # Only an ad that was sent with a glidein's token has an AuthenticatedIdentity that begins with IDENTITY. The
        # requirements of invocation jobs test this, too.
        is_glidein = f'substr(AuthenticatedIdentity, 0, {len(IDENTITY)}) =?= "{IDENTITY}"'
        constraint = f'{Machine.TEMPLATE} == "{self.template.digest}" && {is_glidein}'
        ads = self.directory.lanes(attributes(LaneAd), constraint)
        lanes = [lane for ad in ads if (lane := from_ad(LaneAd, ad))]
        now = self.clock.monotonic()
        newest = max((lane.heard for lane in lanes), default=0)
        lanes = [lane for lane in lanes if newest - lane.heard < SILENT_SECONDS]
        for lane in lanes:
            self.glideins[lane.glide_id] = lane
            self.last_seen[lane.name] = (lane.glide_id, now)
        self._check_failures(lanes, now)
        warm = [lane for lane in lanes if lane.is_warm]
        self.is_outdated = bool(warm) and all(lane.protocol < version for lane in warm)
        return [lane for lane in lanes if lane.glide_id not in avoided]

    def _check_failures(self, lanes: list[LaneAd], now: float) -> None:
        """Log new failures to load the template, and set `give_up` if the run has to give up."""
        self.is_warm = any(lane.is_warm for lane in lanes)
        self.was_warm |= self.is_warm
        # Ignore failures of lanes that use a remote service, because the service may work again after a while.
        own = [lane for lane in lanes if lane.service is None]
        failed = [lane for lane in own if lane.state == State.FAILED]
        for lane in failed:
            if lane.glide_id not in self.failures:
                reason = lane.failure or "no reason given"
                self.failures[lane.glide_id] = Failure(lane.host or UNKNOWN_HOST, reason, now)
                _log.warning("%s cannot be loaded on %s: %s", self.template.model, self.describe(lane.name), reason)
        if self.failures and not self.was_warm:
            why = reason_to_give_up(self.failures, len(failed) < len(own), self._pool_hosts(), now)
            self.give_up = why and f"glideins could not load {self.template.model}: {why}"

    def _pool_hosts(self) -> set[str]:
        """Return the hosts of the pool's own execution points, which are not glideins."""
        ads = self.directory.lanes(["Machine"], f"{Machine.ID} =?= undefined")
        return {ad["Machine"] for ad in ads if isinstance(ad.get("Machine"), str)}

    @property
    def problem(self) -> str:
        """Why no lane can serve the run's requests, as text; empty if a lane can, or if no reason is known."""
        if self.is_outdated:
            return (
                "all warm glideins were started by an older glide, which cannot serve these requests; wait until they"
                " end, or let an admin run: glide factory drain ENTRY"
            )
        if self.is_warm or not self.failures:
            return ""
        glide_id, latest = list(self.failures.items())[-1]
        # The whole reason is already in the log. This text is part of each line of the progress.
        reason = textwrap.shorten(latest.reason, 200, placeholder=" …")
        return f"{glide_id} ({latest.host}) failed to load the template: {reason}; waiting for another glidein"

    def vanished(self, names: Collection[str]) -> set[str]:
        """Return those of the lanes `names` that have had no ad for VANISHED_SECONDS.

        A collector that has just restarted has lost all ads. In this case, return an empty set.
        """
        now = self.clock.monotonic()
        seen = {name: self.last_seen[name][1] for name in names if name in self.last_seen}
        gone = {name for name, at in seen.items() if now - at > VANISHED_SECONDS}
        if gone and self.directory.age() < SILENT_SECONDS:
            self.reset_timeouts()
            return set()
        return gone

    def reset_timeouts(self) -> None:
        """Give each lane SILENT_SECONDS to advertise again. Until then, no lane counts as vanished.

        This is needed after a pause of this driver, and after a restart of the collector.
        """
        until = self.clock.monotonic() + SILENT_SECONDS
        self.last_seen = {name: (glide_id, until) for name, (glide_id, _) in self.last_seen.items()}

    def glidein_of(self, lane_name: str) -> str:
        """Return the GlideId of a lane; empty if the lane is unknown."""
        return self.last_seen.get(lane_name, ("", 0.0))[0]

    def has_only_warm_glidein(self, lane_name: str) -> bool:
        """Return whether only the glidein of the lane `lane_name` may be warm and can get jobs."""
        mine = self.glidein_of(lane_name)
        now, time = self.clock.monotonic(), self.clock.time()
        others = {glide_id for glide_id, seen in self.last_seen.values() if now - seen < VANISHED_SECONDS}
        others -= {mine, *self.avoided}
        return not any(self.glideins[each].is_warm and self.glideins[each].retires > time for each in others)

    def describe(self, lane_name: str) -> str:
        """Return a lane's glidein and host as text for messages: "GlideId (host)"."""
        glide_id = self.glidein_of(lane_name)
        newest = self.glideins.get(glide_id)
        host = (newest and newest.host) or UNKNOWN_HOST
        return f"{glide_id} ({host})" if glide_id else printable(lane_name) or "an unknown lane"


def glidein_views(lanes: Collection[LaneAd], version: int, clock: Clock) -> dict[str, GlideinView]:
    """Return the glideins that have loaded the run's template or are loading it, by GlideId.

    Args:
        lanes: the lanes that have loaded the template or are loading it.
        version: version of the run's requests. Glideins of an older version are left out.
        clock: the driver's clock.
    """
    views: dict[str, GlideinView] = {}
    now, time = clock.monotonic(), clock.time()
    for lane in lanes:
        if lane.state in State.USABLE and lane.protocol >= version:
            if not (view := views.get(lane.glide_id)):
                since = now - max(0.0, time - (lane.state_since or time)) if lane.is_warm else 0.0
                retired = lane.retires <= time
                view = GlideinView(0, 0, lane.is_warm, lane.record_seconds, lane.batch, since, retired)
                views[lane.glide_id] = view
            view.lanes += 1
            view.free += lane.claim == "Unclaimed" and not view.retired
    return views
