"""The lanes on which a driver's jobs may run, as the collector has them; what is not as it should be is left out."""

from __future__ import annotations

import logging
import time
from typing import Any

from glide.condor import Collector
from glide.condor.names import GLIDE_ID, SLOT, printable
from glide.errors import TemplateError
from glide.sweep.history import LANE
from glide.sweep.verdict import Failure, hopeless
from glide.template import Template
from glide.vocabulary import IDENTITY, Machine, State

# Lanes speak every 15 s. One that does not while others do is on a host that has vanished; TCP may see it later.
SILENT_SECONDS = 35.0
VANISHED_SECONDS = 3.0  # a lane without an ad for so long is gone, where no event log says so
AVOID_SECONDS = 120.0  # a dead glidein's ads are gone after that, whoever expunges them or not
LARGEST_NUMBER = 1e15
SHORTEST = 1e-6  # seconds of a record; the pace of one that takes next to nothing would be infinite
LARGEST_BATCH = 1 << 20

_TEXTS = (
    "State", "Machine", Machine.STATE, Machine.FAILURE, Machine.SERVICE, Machine.BATCHING, Machine.GPU_NAME,
)  # fmt: skip
_NUMBERS = (
    "LastHeardFrom", "SlotID", "DaemonStartTime", Machine.BATCH, Machine.PREFIX_HITS, Machine.FETCH_SECONDS,
    Machine.IMPORT_SECONDS, Machine.LOAD_SECONDS, Machine.WARM_SECONDS, Machine.BUSY_SECONDS, Machine.STATE_SINCE,
    Machine.RECORD_SECONDS,
)  # fmt: skip
_ATTRIBUTES = tuple(dict.fromkeys(("Name", Machine.ID, *_TEXTS, *_NUMBERS, *LANE.values())))
_log = logging.getLogger("glide")


class Lanes:
    """What has been seen of the lanes that have, or are about to have, a template.

    Attributes:
        glideins: the last ad of each, by GlideId.
        is_warm, was_warm: whether one is warm now, or was.
    """

    def __init__(self, template: Template):
        self.template = template
        self.collector = Collector()
        self.glideins: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, tuple[str, float]] = {}  # GlideId by lane's Name, and when its ad was last seen
        self.avoided: dict[str, float] = {}  # glideins that are dead or not to be trusted, and since when
        self.failures: dict[str, Failure] = {}
        self.is_warm = self.was_warm = False

    def look(self) -> list[dict[str, Any]]:
        """The ads of the lanes that are there and not to be avoided.

        Raises:
            TemplateError: so many have failed to load the template that it is beyond hope.
        """
        ours = f'substr(AuthenticatedIdentity, 0, {len(IDENTITY)}) =?= "{IDENTITY}"'  # as the jobs' requirements
        constraint = f'{Machine.TEMPLATE} == "{self.template.digest}" && {ours}'
        lanes = [lane for ad in self.collector.lanes(_ATTRIBUTES, constraint) if (lane := checked(ad))]
        now = time.monotonic()
        newest = max((lane["LastHeardFrom"] for lane in lanes), default=0)
        lanes = [lane for lane in lanes if newest - lane["LastHeardFrom"] < SILENT_SECONDS]
        for lane in lanes:
            self.glideins[lane[Machine.ID]] = lane
            self.seen[lane["Name"]] = (lane[Machine.ID], now)
        self.avoided = {each: since for each, since in self.avoided.items() if now - since < AVOID_SECONDS}
        self._judge(lanes, now)
        return [lane for lane in lanes if lane[Machine.ID] not in self.avoided]

    def _judge(self, lanes: list[dict[str, Any]], now: float) -> None:
        self.is_warm = any(lane.get(Machine.STATE) == State.WARM for lane in lanes)
        self.was_warm |= self.is_warm
        own = [lane for lane in lanes if Machine.SERVICE not in lane]  # a service that is not ready says nothing of it
        failed = [lane for lane in own if lane.get(Machine.STATE) == State.FAILED]
        for lane in failed:
            if lane[Machine.ID] not in self.failures:
                reason = printable(lane.get(Machine.FAILURE, "no reason given"))
                self.failures[lane[Machine.ID]] = Failure(lane.get("Machine", "an unknown host"), reason, now)
                _log.warning("%s cannot be loaded on %s: %s", self.template.model, self.name(lane["Name"]), reason)
        if self.failures and not self.was_warm:
            why = hopeless(self.failures, len(failed) < len(own), self._own_hosts(), now)
            if why:
                raise TemplateError(f"{self.template.model} cannot be loaded on {why}")

    def _own_hosts(self) -> set[str]:
        """Those of the pool's own execution points."""
        ads = self.collector.lanes(["Machine"], f"{Machine.ID} =?= undefined")
        return {ad["Machine"] for ad in ads if isinstance(ad.get("Machine"), str)}

    @property
    def trouble(self) -> str:
        """Why no lane is warm, where the template could not be loaded; else empty."""
        if self.is_warm or not self.failures:
            return ""
        glide_id, latest = list(self.failures.items())[-1]
        return f"{glide_id} ({latest.host}) could not load it: {latest.reason}; waits for another"

    def vanished(self) -> set[str]:
        """Names of lanes without an ad for so long that they are gone."""
        now = time.monotonic()
        return {name for name, (_, seen) in self.seen.items() if now - seen > VANISHED_SECONDS}

    def excuse(self) -> None:
        """Take no lane for gone until it had the time to advertise again: nobody has looked, or a collector is new."""
        self.collector = Collector()  # found again: it may have another address
        until = time.monotonic() + SILENT_SECONDS
        self.seen = {name: (glide_id, until) for name, (glide_id, _) in self.seen.items()}

    def avoid(self, lane_name: str) -> None:
        """Send nothing to a lane's glidein for a while."""
        if lane_name in self.seen:
            self.avoided[self.seen[lane_name][0]] = time.monotonic()

    def is_alone(self, lane_name: str) -> bool:
        """Whether no other glidein than this lane's is warm."""
        mine = self.seen.get(lane_name, ("", 0.0))[0]
        now = time.monotonic()
        there = {glide_id for glide_id, seen in self.seen.values() if now - seen < VANISHED_SECONDS} - {mine}
        return not any(self.glideins[each].get(Machine.STATE) == State.WARM for each in there)

    def name(self, lane_name: str) -> str:
        """A lane's glidein and host, for people."""
        glide_id = self.seen.get(lane_name, ("", 0.0))[0]
        host = self.glideins.get(glide_id, {}).get("Machine", "an unknown host")
        return f"{glide_id} ({printable(host)})" if glide_id else printable(lane_name) or "an unknown lane"


def checked(ad: dict[str, Any]) -> dict[str, Any] | None:
    """A lane's ad without what is not of its type; None where it does not say which lane it is."""
    texts = {name: ad[name] for name in _TEXTS if isinstance(ad.get(name), str)}
    numbers = {name: ad[name] for name in _NUMBERS if _is_number(ad.get(name))}
    if not isinstance(numbers.get(Machine.BATCH), int) or not 1 <= numbers[Machine.BATCH] <= LARGEST_BATCH:
        numbers.pop(Machine.BATCH, None)
    if numbers.get(Machine.RECORD_SECONDS, 0) < SHORTEST:
        numbers.pop(Machine.RECORD_SECONDS, None)
    name, glide_id = ad.get("Name"), ad.get(Machine.ID)
    if not (
        isinstance(name, str) and SLOT.fullmatch(name) and isinstance(glide_id, str) and GLIDE_ID.fullmatch(glide_id)
    ):
        return None
    return {"LastHeardFrom": 0, "State": "", **texts, **numbers, "Name": name, Machine.ID: glide_id}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < LARGEST_NUMBER
