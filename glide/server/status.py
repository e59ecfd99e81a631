"""What a model server says of itself, and how it becomes attributes of the lane's machine ad."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from glide.vocabulary import Machine, State


@dataclass(frozen=True)
class Status:
    """A snapshot. Seconds; `since` and `served_…` are Unix times; `record_seconds` is a moving average.

    `entered` is when the state was entered, too, by the monotonic clock: durations are measured by that.
    """

    template: str = ""
    model: str = ""
    owner: str = ""
    service: str = ""  # the url of the service that has the model, where it is not here
    state: str = State.BLANK
    since: float = field(default_factory=time.time)
    entered: float = field(default_factory=time.monotonic)
    failure: str = ""
    gpu: str = ""
    batching: str = ""  # how prompts share the model: static, continuous, equal lengths or single
    batch: int = 1  # records of an engine call that is worth making
    prefix_hits: float = 0.0  # share of the prompts' tokens that came from a prefix computed before
    served: int = 0
    errors: int = 0  # of those served
    record_seconds: float = 0.0
    busy_seconds: float = 0.0
    served_since: float = 0.0
    served_until: float = 0.0
    fetch_seconds: float = 0.0
    import_seconds: float = 0.0
    load_seconds: float = 0.0
    warm_seconds: float = 0.0
    files: dict[str, Any] = field(default_factory=dict)  # what is told of them in the ad
    room: float | None = None  # MB that another template may take on this lane, if it is idle

    def entering(self, state: str, failure: str = "") -> Status:
        """This status in another state; the seconds spent in the one it leaves are added up."""
        now = time.monotonic()
        spent = now - self.entered
        times: dict[str, Any] = {
            State.FETCHING: {"fetch_seconds": self.fetch_seconds + spent},
            State.LOADING: {"load_seconds": self.load_seconds + spent},
            State.WARMING: {"warm_seconds": self.warm_seconds + spent},
        }.get(self.state, {})
        return replace(self, state=state, failure=failure, since=time.time(), entered=now, **times)

    def served_more(self, records: int, seconds: float) -> Status:
        """This status after an engine call."""
        each = seconds / records
        now = time.time()
        average = each if self.served == 0 else 0.8 * self.record_seconds + 0.2 * each
        return replace(
            self,
            served=self.served + records,
            record_seconds=average,
            busy_seconds=self.busy_seconds + seconds,
            served_since=self.served_since or now - seconds,
            served_until=now,
        )

    def is_news_after(self, told: Status | None) -> bool:
        """Whether somebody would act on it who knows that one: another state, or another pace."""
        if told is None or (told.template, told.state, told.batch) != (self.template, self.state, self.batch):
            return True
        if told.files != self.files:
            return True
        return abs(self.record_seconds - told.record_seconds) > 0.25 * told.record_seconds

    def attributes(self) -> dict[str, Any]:
        """ClassAd attributes; an empty one is left out and so becomes undefined."""
        values = {
            Machine.TEMPLATE: self.template,
            Machine.MODEL: self.model,
            Machine.OWNER: self.owner,
            Machine.SERVICE: self.service,
            Machine.STATE: self.state,
            Machine.STATE_SINCE: round(self.since, 3),
            Machine.FAILURE: self.failure,
            Machine.GPU_NAME: self.gpu,
            Machine.BATCHING: self.batching,
            Machine.BATCH: self.batch,
            Machine.PREFIX_HITS: round(self.prefix_hits, 3),
            Machine.SERVED: self.served,
            Machine.ERRORS: self.errors,
            Machine.RECORD_SECONDS: round(self.record_seconds, 6),
            Machine.SERVED_SINCE: round(self.served_since, 3),
            Machine.SERVED_UNTIL: round(self.served_until, 3),
            Machine.BUSY_SECONDS: round(self.busy_seconds, 3),
            Machine.FETCH_SECONDS: round(self.fetch_seconds, 3),
            Machine.IMPORT_SECONDS: round(self.import_seconds, 3),
            Machine.LOAD_SECONDS: round(self.load_seconds, 3),
            Machine.WARM_SECONDS: round(self.warm_seconds, 3),
        }
        values |= self.files
        values |= {} if self.room is None else {Machine.ROOM: int(self.room)}
        return {name: value for name, value in values.items() if value != ""}

    def advertisement(self, lane: int) -> str:
        """The attributes as the startd reads them from its cron jobs, for one of its slots."""
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in self.attributes().items())
        return f"{''.join(lines)}SlotId = {lane + 1}\n- lane{lane + 1} update:true\n"
