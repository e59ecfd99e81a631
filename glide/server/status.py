"""The status that a lane advertises, and its conversion into attributes of the lane's machine ad."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from glide.vocabulary import Machine, State

# If one of these attributes has changed, the status is reported immediately.
PROMPTLY_REPORTED = ("template", "owner", "state", "batch", "adapters", "asleep", "files")


@dataclass(frozen=True)
class Status:
    """The values that a lane advertises at one moment.

    Attributes:
        service: URL of the service that has the model; empty if the model is on the node.
        state: one of the states in vocabulary.State.
        since: Unix time when the state began.
        entered: the same moment by the monotonic clock. Durations are measured by this clock.
        failure: reason why the state is Failed, or why the last engine ended; empty if there is no such reason.
        batching: how prompts are batched: static, continuous, equal lengths or single; empty if the engine does not
            report it.
        batch: number of records that one engine call should have.
        prefix_hits: share of the prompt tokens that came from a cache and were not computed, from 0 to 1.
        adapters: names of the LoRA adapters in memory, with commas between them.
        served: number of records that have a result.
        errors: number of records whose result is an error.
        record_seconds: moving average of the engine time for a record, in seconds; 0 before the first call.
        busy_seconds: total time of all engine calls, in seconds.
        served_since: Unix time when the first call began; 0 before the first call.
        served_until: Unix time when the last call ended; 0 before the first call has ended.
        files: attributes that FileSupply adds to the ad.
        asleep: digests of the templates that are asleep, with commas between them.
        room: memory in MB that a new template can use if all idle templates are unloaded; None if the memory limit is
            unknown.
    """

    template: str = ""
    model: str = ""
    owner: str = ""
    service: str = ""
    state: str = State.BLANK
    since: float = field(default_factory=time.time)
    entered: float = field(default_factory=time.monotonic)
    failure: str = ""
    gpu: str = ""
    batching: str = ""
    batch: int = 1
    prefix_hits: float = 0.0
    adapters: str = ""
    served: int = 0
    errors: int = 0
    record_seconds: float = 0.0
    busy_seconds: float = 0.0
    served_since: float = 0.0
    served_until: float = 0.0
    fetch_seconds: float = 0.0
    import_seconds: float = 0.0
    load_seconds: float = 0.0
    warm_seconds: float = 0.0
    files: dict[str, Any] = field(default_factory=dict)
    asleep: str = ""
    room: float | None = None

    def entering(self, state: str, failure: str = "") -> Status:
        """Return a copy of this status in a new state.

        If the old state is Loading, the duration of the old state is added to `load_seconds`. In the same way, the
        durations of Fetching and Warming are added to `fetch_seconds` and `warm_seconds`.
        """
        now = time.monotonic()
        spent = now - self.entered
        times: dict[str, Any] = {
            State.FETCHING: {"fetch_seconds": self.fetch_seconds + spent},
            State.LOADING: {"load_seconds": self.load_seconds + spent},
            State.WARMING: {"warm_seconds": self.warm_seconds + spent},
        }.get(self.state, {})
        return replace(self, state=state, failure=failure, since=time.time(), entered=now, **times)

    def after_call(self, records: int, seconds: float) -> Status:
        """Return a copy of this status that includes one more engine call.

        Args:
            records: number of records in the call.
            seconds: duration of the call, as the engine's process reported it.

        Raises:
            ValueError: the duration is negative, infinite or not a number. The engine's process may report such values.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"{seconds} seconds")
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

    def worth_reporting_after(self, reported: Status | None) -> bool:
        """Return whether this status should be reported immediately.

        This is true if one of the attributes PROMPTLY_REPORTED has changed. It is also true if `record_seconds` has
        changed by more than a quarter. Smaller changes can wait.

        Args:
            reported: the last status that was reported; None if no status was reported.
        """
        if reported is None:
            return True
        if any(getattr(reported, name) != getattr(self, name) for name in PROMPTLY_REPORTED):
            return True
        return abs(self.record_seconds - reported.record_seconds) > 0.25 * reported.record_seconds

    def attributes(self) -> dict[str, Any]:
        """Return the status as ClassAd attributes. Empty values are left out, so that they are undefined in the ad."""
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
            Machine.ADAPTERS: self.adapters,
            Machine.ASLEEP: self.asleep,
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
        """Return the attributes for one lane's slot, in the format that the startd reads from its cron jobs.

        Args:
            lane: number of the lane; the first lane has the number 0.
        """
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in self.attributes().items())
        return f"{''.join(lines)}SlotId = {lane + 1}\n- lane{lane + 1} update:true\n"
