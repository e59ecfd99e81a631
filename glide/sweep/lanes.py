"""Query the collector for the lanes on which a driver's jobs may run. Ignore malformed ads and attributes."""

from __future__ import annotations

import logging
import textwrap
import time
from collections import Counter

from glide.condor import Collector
from glide.errors import TemplateError
from glide.protocol.ads import LaneAd, attributes, from_ad
from glide.protocol.names import printable
from glide.sweep.verdict import Failure, reason_to_give_up
from glide.template import Template
from glide.vocabulary import IDENTITY, Machine, State

# Each lane sends an ad every 15 s. If a lane sends no ad for this number of seconds, the lane's host has vanished. The
# time of the newest ad of all lanes counts as the current time. TCP connections to a vanished host may still look open.
SILENT_SECONDS = 35.0
# A lane is gone if the collector has no ad of it for this number of seconds, even if no event log reports the loss.
VANISHED_SECONDS = 3.0
# A glidein that is avoided gets no jobs for this number of seconds. After this time, the collector has dropped the ads
# of a dead glidein, even if nobody has removed the ads explicitly.
AVOID_SECONDS = 120.0
UNKNOWN_HOST = "an unknown host"
_log = logging.getLogger("glide")


class Lanes:
    """The lanes that have loaded one template or are loading it, as their ads in the collector show them.

    Attributes:
        glideins: for each GlideId, the newest ad that a lane of the glidein sent.
        last_seen: for each lane Name, the GlideId and the time when the lane's ad was last present (monotonic seconds).
        avoided: for each GlideId that gets no jobs, time of the last call of `avoid` (monotonic seconds). A glidein is
            avoided if it is dead, or if one of its jobs left records without a valid result.
        failures: the first failure of each glidein that failed to load the template, by GlideId.
        is_warm: whether at least one lane is warm now.
        was_warm: whether a lane is warm now or was warm before.
        is_outdated: whether all warm lanes are of a version of glide that is too old for the run's requests.
    """

    def __init__(self, template: Template):
        self.template = template
        self.collector = Collector()
        self.glideins: dict[str, LaneAd] = {}
        self.last_seen: dict[str, tuple[str, float]] = {}
        self.avoided: dict[str, float] = {}
        self.failures: dict[str, Failure] = {}
        self.is_warm = self.was_warm = False
        self.is_outdated = False

    def observe(self, version: int = 1) -> list[LaneAd]:
        """Query the collector, and return the ads of the lanes. Leave out old ads, and all ads of avoided glideins.

        Args:
            version: version of the run's requests.

        Raises:
            TemplateError: too many glideins have failed to load the template, so the run gives up.
            CondorError: the collector does not answer.
        """
        # Only an ad that was sent with a glidein's token has an AuthenticatedIdentity that begins with IDENTITY. The
        # requirements of invocation jobs test this, too.
        is_glidein = f'substr(AuthenticatedIdentity, 0, {len(IDENTITY)}) =?= "{IDENTITY}"'
        constraint = f'{Machine.TEMPLATE} == "{self.template.digest}" && {is_glidein}'
        ads = self.collector.lanes(attributes(LaneAd), constraint)
        lanes = [lane for ad in ads if (lane := from_ad(LaneAd, ad))]
        now = time.monotonic()
        newest = max((lane.heard for lane in lanes), default=0)
        lanes = [lane for lane in lanes if newest - lane.heard < SILENT_SECONDS]
        for lane in lanes:
            self.glideins[lane.glide_id] = lane
            self.last_seen[lane.name] = (lane.glide_id, now)
        self.avoided = {each: since for each, since in self.avoided.items() if now - since < AVOID_SECONDS}
        self._check_failures(lanes, now)
        warm = [lane for lane in lanes if lane.is_warm]
        self.is_outdated = bool(warm) and all(lane.protocol < version for lane in warm)
        return [lane for lane in lanes if lane.glide_id not in self.avoided]

    def _check_failures(self, lanes: list[LaneAd], now: float) -> None:
        """Log new failures to load the template. Raise TemplateError if the run has to give up."""
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
            if why:
                raise TemplateError(f"glideins could not load {self.template.model}: {why}")

    def _pool_hosts(self) -> set[str]:
        """Return the hosts of the pool's own execution points, which are not glideins."""
        ads = self.collector.lanes(["Machine"], f"{Machine.ID} =?= undefined")
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

    def vanished(self) -> set[str]:
        """Return the Names of the lanes that have had no ad for VANISHED_SECONDS."""
        now = time.monotonic()
        return {name for name, (_, seen) in self.last_seen.items() if now - seen > VANISHED_SECONDS}

    def reset_timeouts(self) -> None:
        """Give each lane SILENT_SECONDS to advertise again. Until then, no lane counts as vanished.

        This is needed after a pause of this driver, and after a restart of the collector.
        """
        self.collector = Collector()  # locate the collector again, because its address may have changed
        until = time.monotonic() + SILENT_SECONDS
        self.last_seen = {name: (glide_id, until) for name, (glide_id, _) in self.last_seen.items()}

    def avoid(self, lane_name: str) -> None:
        """Send no job to the glidein of this lane for AVOID_SECONDS."""
        if lane_name in self.last_seen:
            self.avoided[self.last_seen[lane_name][0]] = time.monotonic()

    def is_only_warm_glidein(self, lane_name: str) -> bool:
        """Look at all glideins except the glidein of the lane `lane_name`. Return True if none of them is warm."""
        mine = self.last_seen.get(lane_name, ("", 0.0))[0]
        now = time.monotonic()
        others = {glide_id for glide_id, seen in self.last_seen.values() if now - seen < VANISHED_SECONDS} - {mine}
        return not any(self.glideins[each].is_warm for each in others)

    def describe(self, lane_name: str) -> str:
        """Return a lane's glidein and host as text for messages: "GlideId (host)"."""
        glide_id = self.last_seen.get(lane_name, ("", 0.0))[0]
        newest = self.glideins.get(glide_id)
        host = (newest and newest.host) or UNKNOWN_HOST
        return f"{glide_id} ({host})" if glide_id else printable(lane_name) or "an unknown lane"


def record_seconds(warm: list[LaneAd]) -> list[float]:
    """Return the seconds per record of each lane whose engine has been measured.

    The warm lanes of a glidein share one engine. If a glidein has n warm lanes, each lane gets 1/n of the engine's
    speed. So the result for each lane is n times the engine's seconds per record.
    """
    sharing = Counter(lane.glide_id for lane in warm)
    times = [lane.record_seconds * sharing[lane.glide_id] for lane in warm]
    return [seconds for seconds in times if seconds > 0]
