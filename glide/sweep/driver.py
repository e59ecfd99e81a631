"""The driver: keeps lanes supplied with carriers, gathers what they finish, and stops when it is all there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from glide.condor import Collector
from glide.errors import CondorError, TemplateError
from glide.invoke.carriers import Carrier, Carriers
from glide.invoke.pack import Wave, pack
from glide.sweep.prepare import Sweep
from glide.sweep.results import Results
from glide.vocabulary import JobStatus, Machine, State

POLL_SECONDS = 0.5
# Held carriers are sent again so often; after that the reason is the user's to know.
MOST_HOLDS = 5
PATIENCE_SECONDS = 30.0  # how long HTCondor may fail to answer before the sweep gives up

_LANE = (
    "Name", Machine.ID, Machine.STATE, Machine.FAILURE, Machine.RECORD_SECONDS, Machine.FETCH_SECONDS,
    Machine.LOAD_SECONDS, Machine.BUSY_SECONDS, Machine.STATE_SINCE,
)  # fmt: skip


@dataclass
class Progress:
    """What a user who watches wants to know."""

    total: int
    done: int
    errors: int = 0
    lanes: dict[str, int] = field(default_factory=dict)
    running: int = 0
    idle: int = 0
    wave: str = ""


class Driver:
    """Runs one sweep against the pool in force. Remembers nothing that a second one could not find again."""

    def __init__(self, sweep: Sweep, results: Results, carriers: Carriers):
        self.sweep = sweep
        self.results = results
        self.carriers = carriers
        self.collector = Collector()
        self.started = time.monotonic()
        self.jobs: dict[str, int] = {}  # starts by job
        self.glideins: dict[str, dict[str, Any]] = {}  # last ad by GlideId
        self.holds = 0
        self.wave = Wave((), "")
        self.carried: dict[str, set[str]] = {}  # ids by part, for the parts in the queue

    def run(self, watch: Callable[[Progress], None]) -> dict[str, Any]:
        """Finish the sweep and return its summary.

        Raises:
            TemplateError: no node can load the template; its jobs are removed.
            CondorError: carriers are held again and again, or HTCondor is gone.
        """
        answered = time.monotonic()
        while True:
            try:
                progress = self._cycle()
                answered = time.monotonic()
            except CondorError:
                if self.holds > MOST_HOLDS or time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
                time.sleep(POLL_SECONDS)
                continue
            watch(progress)
            if progress.done == progress.total:
                return self.results.finish(self._summary())
            time.sleep(POLL_SECONDS)

    def cancel(self, reason: str) -> None:
        """Take this sweep's jobs out of the queue; what has been gathered stays."""
        self.carriers.remove(self.carriers.queue(), reason)

    def _cycle(self) -> Progress:
        queue = self.carriers.queue()
        for carrier in queue:
            self.jobs[carrier.job] = carrier.starts
        gathered = self.carriers.gather(queue, self.results.keep)
        queue = self._without_held([carrier for carrier in queue if carrier not in gathered])
        lanes = self._lanes()
        if len(self.results.have) < self.sweep.total:
            self._supply(queue, lanes)
        states = [lane.get(Machine.STATE, State.BLANK) for lane in lanes]
        return Progress(
            total=self.sweep.total, done=len(self.results.have), errors=self.results.errors,
            lanes={state: states.count(state) for state in sorted(set(states))},
            running=sum(carrier.status == JobStatus.RUNNING for carrier in queue),
            idle=sum(carrier.status == JobStatus.IDLE for carrier in queue), wave=self.wave.reason,
        )  # fmt: skip

    def _without_held(self, queue: list[Carrier]) -> list[Carrier]:
        held = [carrier for carrier in queue if carrier.status == JobStatus.HELD]
        if held:
            self.holds += 1
            if self.holds > MOST_HOLDS:
                raise CondorError(f"job {held[0].job} is held, like others before it: {held[0].hold_reason}")
            self.carriers.remove(held, "held; its records are sent again")
        return [carrier for carrier in queue if carrier not in held]

    def _lanes(self) -> list[dict[str, Any]]:
        lanes = self.collector.lanes(_LANE, f'{Machine.TEMPLATE} == "{self.sweep.template.digest}"')
        for lane in lanes:
            self.glideins[lane[Machine.ID]] = lane
        failed = [lane for lane in lanes if lane.get(Machine.STATE) == State.FAILED]
        if failed and len(failed) == len(lanes):
            reason = f"{failed[0][Machine.ID]}: {failed[0].get(Machine.FAILURE, 'no reason given')}"
            raise TemplateError(f"{self.sweep.template.model} cannot be loaded on {reason}")
        return lanes

    def _supply(self, queue: list[Carrier], lanes: list[dict[str, Any]]) -> None:
        parts = {carrier.part: carrier for carrier in queue}
        for part, carrier in parts.items():
            if part not in self.carried:
                self.carried[part] = self.carriers.carried([carrier])
        self.carried = {part: ids for part, ids in self.carried.items() if part in parts}
        on_their_way = set().union(*self.carried.values())
        left = self.sweep.total - len(self.results.have | on_their_way)
        warm = [lane for lane in lanes if lane.get(Machine.STATE) == State.WARM]
        expected = len(warm) or 2 * self.sweep.file.glideins
        wave = pack(left, expected, len(queue), _lane_seconds(warm), self._fixed())
        if wave.sizes:
            self.wave = wave
            records = self._unsent(on_their_way)
            self.carriers.submit([list(islice(records, size)) for size in wave.sizes])

    def _fixed(self) -> int | None:
        batch, packed = self.sweep.file.batch, self.sweep.file.pack
        if packed == "auto":
            return None
        return packed * (1 if batch == "auto" else batch)

    def _unsent(self, on_their_way: set[str]) -> Iterator[dict[str, Any]]:
        for prompt in self.sweep.file.prompts:
            for record in self.sweep.records:
                wire_id = f"{prompt}/{record.custom_id}"
                if wire_id not in self.results.have and wire_id not in on_their_way:
                    yield self.sweep.request(prompt, record)

    def _summary(self) -> dict[str, Any]:
        now = time.time()
        return {
            "name": self.sweep.file.name,
            "makespan_s": round(time.monotonic() - self.started, 3),
            "jobs": len(self.jobs),
            "evictions": sum(max(0, starts - 1) for starts in self.jobs.values()),
            "recomputed": self.results.recomputed,
            "lost_in_flight": self.results.lost,
            "resumed": self.results.found,
            "tokens": self.results.tokens,
            "glideins": [
                {
                    "id": glide_id, "records": self.results.by_glidein.get(glide_id, 0),
                    "fetch_s": ad.get(Machine.FETCH_SECONDS, 0.0), "load_s": ad.get(Machine.LOAD_SECONDS, 0.0),
                    "busy_s": ad.get(Machine.BUSY_SECONDS, 0.0),
                    "warm_s": round(now - ad.get(Machine.STATE_SINCE, now), 3),
                }
                for glide_id, ad in sorted(self.glideins.items())
            ],
        }  # fmt: skip


def _lane_seconds(warm: list[dict[str, Any]]) -> float | None:
    """Seconds per record as one lane sees it: the lanes of a glidein share its engine."""
    sharing: dict[str, int] = {}
    for lane in warm:
        sharing[lane[Machine.ID]] = sharing.get(lane[Machine.ID], 0) + 1
    times = [lane.get(Machine.RECORD_SECONDS, 0.0) * sharing[lane[Machine.ID]] for lane in warm]
    known = [seconds for seconds in times if seconds > 0]
    return sum(known) / len(known) if known else None
