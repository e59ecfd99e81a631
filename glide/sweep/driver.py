"""The driver: keeps lanes supplied with carriers, gathers what they finish, and stops when it is all there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from glide.condor import AccessPoint, Collector, EventLog
from glide.condor.event_log import ENDED, LOST
from glide.errors import CondorError, GlideError, TemplateError
from glide.invoke.carriers import Carrier, Carriers, Run
from glide.invoke.pack import Wave, eviction_rate, pack
from glide.sweep.history import LANE
from glide.sweep.prepare import Sweep
from glide.sweep.results import Results
from glide.sweep.work import Work
from glide.vocabulary import JobStatus, Machine, State

POLL_SECONDS = 0.25  # between looks at queue and collector, each of which costs them a fork
CALM_SECONDS = 1.0  # the same while the event log says that nothing happens
EVENT_SECONDS = 0.05  # between looks at the event log, which cost nothing
PEEK_SECONDS = 2.0  # between looks at what a running carrier has streamed; each costs the access point 5 ms and more
PEEK_BUDGET = 0.25  # seconds of a cycle for such looks
GATHER_SECONDS = 1.0  # finished carriers wait for company: bringing many home costs the access point little more
# Held carriers are sent again so often; after that the reason is the user's to know.
MOST_HOLDS = 5
PATIENCE_SECONDS = 30.0  # how long HTCondor may fail to answer before the sweep gives up
AVOID_SECONDS = 120.0  # a dead glidein's ads are gone after that, whoever expunges them or not
STUCK_SECONDS = 5.0  # a carrier that waits for so long beside a free lane has been forgotten by its access point
# Lanes speak every 15 s. One that does not while others do is on a host that has vanished; TCP may see it later.
SILENT_SECONDS = 35.0
VANISHED_SECONDS = 3.0  # a lane without an ad for so long is gone, where no event log says so

_LANE = (
    "Name", "State", "LastHeardFrom", Machine.ID, Machine.STATE, Machine.FAILURE, Machine.RECORD_SECONDS, Machine.BATCH,
    Machine.SERVICE, Machine.BATCHING, Machine.PREFIX_HITS, Machine.FETCH_SECONDS, Machine.IMPORT_SECONDS,
    Machine.LOAD_SECONDS, Machine.BUSY_SECONDS, Machine.STATE_SINCE, *LANE.values(),
)  # fmt: skip

_OF_ENGINES = {"batching": Machine.BATCHING, "prefix_hits": Machine.PREFIX_HITS}  # where an engine tells


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
    """Gets work done by the pool in force. Remembers nothing that a second one could not find again."""

    def __init__(self, work: Work, carriers: Carriers):
        self.work = work
        self.carriers = carriers
        self.collector = Collector()
        self.events = EventLog()
        self.started = time.monotonic()
        self.jobs: dict[str, int] = {}  # starts by job
        self.glideins: dict[str, dict[str, Any]] = {}  # last ad by GlideId
        self.lanes: dict[str, tuple[str, float]] = {}  # GlideId by lane's Name, and when its ad was last seen
        self.carried: dict[str, set[str]] = {}  # ids by part, for the parts in the queue
        self.outdated: set[str] = set()  # parts that ask what nobody asks any more
        self.finished: set[str] = set()  # parts whose carriers have ended and are to be gathered
        self.attempts: Counter[str] = Counter()  # how often a record was on a carrier that was lost
        self.disconnected: dict[str, float] = {}  # jobs that lost their node, and when (Unix time)
        self.avoid: dict[str, float] = {}  # dead glideins, and since when
        self.peeked: dict[str, float] = {}  # when running parts were looked at
        self.gathered = self.reminded = 0.0
        self.holds = self.evictions = self.had = 0
        self.lost_in_flight = 0  # as far as their lanes had told: what began in a node's last second, nobody knows
        self.wave = Wave((), "")
        self.full = False  # the lanes have work, and more is there
        self.first_warm: float | None = None

    def run(self, watch: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
        """Finish the work and return an account of it.

        Raises:
            TemplateError: no node can load the template; its jobs are removed.
            CondorError: carriers are held again and again, or HTCondor is gone.
        """
        answered = time.monotonic()
        while True:
            if self.work.rest():
                answered = time.monotonic()  # nobody was asked meanwhile
            try:
                progress = self._cycle()
                answered = time.monotonic()
            except CondorError:
                if self.holds > MOST_HOLDS or time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
                self._wait()
                continue
            watch(progress)
            if self.work.finished:
                summary = self._summary()
                self.cancel("all results are here")  # carriers that only bring copies of them
                return summary
            self._wait()

    def _wait(self) -> None:
        """Until it is time to look again: at once for a lost node or new records, soon when a job has ended."""
        started = time.monotonic()
        calm = self.events.readable and self.first_warm is not None
        budget = CALM_SECONDS if calm else POLL_SECONDS
        while time.monotonic() - started < budget:
            if self.full:  # what is new can wait; each look costs the access point two queries
                time.sleep(EVENT_SECONDS)
            elif self.work.fresh.wait(EVENT_SECONDS):
                self.work.fresh.clear()
                return
            news = self.events.new()
            # Kept, for the event may come before the queue shows that the job had started at all.
            self.disconnected |= {event.job: event.at for event in reversed(news) if event.kind in LOST}
            if any(event.kind in LOST for event in news):
                return
            if any(event.kind in ENDED for event in news):
                budget = POLL_SECONDS

    def cancel(self, reason: str) -> None:
        """Take this work's jobs out of the queue; what has been gathered stays."""
        queue = self.carriers.queue()
        self.carriers.remove(queue, reason)
        self.work.history.ended(queue, "removed")

    def _cycle(self) -> Progress:
        queue = self.carriers.queue()
        self.work.history.saw_queue(queue)
        for carrier in queue:
            self.jobs[carrier.job] = carrier.starts
            if carrier.part not in self.carried:
                self.carried[carrier.part] = self.carriers.carried([carrier])
                if not self.work.wants(self.carried[carrier.part]):
                    self.outdated.add(carrier.part)
        queue = self._without_held(self._without_finished(self._without_outdated(queue)))
        lanes = self._look_at_lanes()
        self.work.history.saw_lanes(lanes)
        queue = self._without_lost(queue)
        self._peek(queue)
        self._remind(queue, lanes)
        self.full = False
        if len(self.work.have) < self.work.total:
            self._supply(queue, lanes)
        self.work.history.saw_counts(
            done=len(self.work.have), errors=self.work.errors, tokens=self.work.tokens,
            recomputed=self.work.recomputed, lost_in_flight=self.lost_in_flight,
        )  # fmt: skip
        states = Counter(lane.get(Machine.STATE, State.BLANK) for lane in lanes)
        return Progress(
            total=self.work.total, done=len(self.work.have), errors=self.work.errors,
            lanes=dict(sorted(states.items())),
            running=sum(carrier.status == JobStatus.RUNNING for carrier in queue),
            idle=sum(carrier.status == JobStatus.IDLE for carrier in queue), wave=self.wave.reason,
        )  # fmt: skip

    def _without_finished(self, queue: list[Carrier]) -> list[Carrier]:
        """Gather the carriers that have finished, and return the others."""
        finished = [carrier for carrier in queue if carrier.status == JobStatus.COMPLETED]
        others = [carrier for carrier in queue if carrier.status != JobStatus.COMPLETED]
        if not others or time.monotonic() - self.gathered > GATHER_SECONDS:
            self.carriers.gather(finished, self.work.keep)
            self.work.history.ended(finished, "gathered")
            self.gathered = time.monotonic()
            finished = []
        self.finished = {carrier.part for carrier in finished}
        return others

    def _peek(self, queue: list[Carrier]) -> None:
        """Take what running carriers have streamed, from those first that were looked at longest ago."""
        now = time.monotonic()
        running = {carrier.part: carrier for carrier in queue if carrier.status == JobStatus.RUNNING}
        self.peeked = {part: self.peeked.get(part, now) for part in running}
        for part in sorted(running, key=lambda part: self.peeked[part]):
            # However many there are and however busy their access point is, a cycle is to end.
            if now - self.peeked[part] < PEEK_SECONDS or time.monotonic() - now > PEEK_BUDGET:
                return
            self.work.keep(self.carriers.peek(running[part])[0])
            self.peeked[part] = now

    # ---- what goes wrong -------------------------------------------------------------------------

    def _without_outdated(self, queue: list[Carrier]) -> list[Carrier]:
        """Remove the jobs of an earlier driver that ask what nobody asks any more; what else they have is kept."""
        outdated = [carrier for carrier in queue if carrier.part in self.outdated]
        for carrier in outdated:
            self.work.keep(self.carriers.peek(carrier)[0])
        self.carriers.remove(outdated, "what it asks has changed")
        self.work.history.ended(outdated, "removed")
        self.outdated.clear()
        return [carrier for carrier in queue if carrier not in outdated]

    def _without_held(self, queue: list[Carrier]) -> list[Carrier]:
        held = [carrier for carrier in queue if carrier.status == JobStatus.HELD]
        if held:
            if len(self.work.have) > self.had:  # not again and again: something has come in between
                self.holds, self.had = 0, len(self.work.have)
            self.holds += 1
            if self.holds > MOST_HOLDS:
                raise CondorError(f"job {held[0].job} is held, like others before it: {held[0].hold_reason}")
            self.carriers.remove(held, "held; its records are sent again")
            self.work.history.ended(held, "held")
        return [carrier for carrier in queue if carrier.status != JobStatus.HELD]

    def _without_lost(self, queue: list[Carrier]) -> list[Carrier]:
        """Save what carriers on dead nodes have streamed, and remove them: their other records go out anew.

        HTCondor would do so by itself, but not before the shadow has asked the dead node three times, for 15 s.
        """
        now = time.monotonic()
        gone = {name for name, (_, seen) in self.lanes.items() if now - seen > VANISHED_SECONDS}
        lost = [carrier for carrier in queue if carrier.job in self.disconnected or carrier.lane in gone]
        for carrier in lost:
            results, begun = self.carriers.peek(carrier)
            self.work.keep(results)
            self.evictions += 1
            self.lost_in_flight += max(0, begun - len(results))
            at = self.disconnected.get(carrier.job, time.time())
            self.work.history.ended([carrier], "lost", at=at, begun=begun, saved=len(results))
            self.attempts.update(self.carried[carrier.part] - self.work.have.keys())
            if carrier.lane in self.lanes:
                self.avoid[self.lanes[carrier.lane][0]] = now
        self.carriers.remove(lost, "its node is gone; what it had not done is sent again")
        without = {carrier.job for carrier in lost}
        return [carrier for carrier in queue if carrier.job not in without]

    def _remind(self, queue: list[Carrier], lanes: list[dict[str, Any]]) -> None:
        """Have carriers matched that wait although there is a lane."""
        free = any(lane.get(Machine.STATE) == State.WARM and lane["State"] == "Unclaimed" for lane in lanes)
        stuck = [each for each in queue if each.status == JobStatus.IDLE and each.seconds > STUCK_SECONDS]
        if free and time.monotonic() - self.reminded > STUCK_SECONDS:
            self.carriers.reconsider(stuck)
            self.reminded = time.monotonic()

    def _look_at_lanes(self) -> list[dict[str, Any]]:
        lanes = self.collector.lanes(_LANE, f'{Machine.TEMPLATE} == "{self.work.template.digest}"')
        now = time.monotonic()
        newest = max((lane["LastHeardFrom"] for lane in lanes), default=0)
        lanes = [lane for lane in lanes if newest - lane["LastHeardFrom"] < SILENT_SECONDS]
        for lane in lanes:
            self.glideins[lane[Machine.ID]] = lane
            self.lanes[lane["Name"]] = (lane[Machine.ID], now)
        self.avoid = {glide_id: since for glide_id, since in self.avoid.items() if now - since < AVOID_SECONDS}
        # A service that is not ready says nothing of the template.
        own = [lane for lane in lanes if Machine.SERVICE not in lane]
        failed = [lane for lane in own if lane.get(Machine.STATE) == State.FAILED]
        if failed and len(failed) == len(own):
            reason = f"{failed[0][Machine.ID]}: {failed[0].get(Machine.FAILURE, 'no reason given')}"
            raise TemplateError(f"{self.work.template.model} cannot be loaded on {reason}")
        return [lane for lane in lanes if lane[Machine.ID] not in self.avoid]

    # ---- the next wave ---------------------------------------------------------------------------

    def _supply(self, queue: list[Carrier], lanes: list[dict[str, Any]]) -> None:
        parts = {carrier.part for carrier in queue} | self.finished
        self.carried = {part: ids for part, ids in self.carried.items() if part in parts}
        on_their_way = set().union(*self.carried.values())
        undone = self.work.total - len(self.work.have)
        # Counted, for a union with all that is there takes the longer the more that is.
        left = undone - sum(record not in self.work.have for record in on_their_way)
        warm = [lane for lane in lanes if lane.get(Machine.STATE) == State.WARM]
        if warm and self.first_warm is None:
            self.first_warm = time.monotonic()
        expected = len(warm) or 2 * self.work.glideins
        batch = max((lane.get(Machine.BATCH, 1) for lane in warm), default=1)
        losses = eviction_rate(self.evictions, expected, time.monotonic() - (self.first_warm or self.started))
        wave = pack(left, expected, len(queue), _paces(warm), batch, self.work.pack, losses, undone=undone)
        self.full = left > 0 and not wave.sizes
        if wave.sizes:
            self.wave = wave
            self.work.note_wave(wave.sizes, wave.reason)
            records = self._with_attempts(self.work.unsent(on_their_way))
            loads = [load for size in wave.sizes if (load := list(islice(records, size)))]
            left -= sum(wave.sizes)
            if loads:  # what was to be sent may have been cancelled
                self.carriers.submit(loads, list(self.avoid), left, last=left == 0 and self.work.complete)

    def _with_attempts(self, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for record in records:
            lost = self.attempts[record["custom_id"]]
            yield {**record, "attempts": lost} if lost else record

    def _summary(self) -> dict[str, Any]:
        now, finished = time.time(), time.monotonic()
        return {
            "makespan_s": round(finished - self.started, 3),
            "warm_makespan_s": round(finished - (self.first_warm or finished), 3),
            "jobs": len(self.jobs),
            "evictions": self.evictions + sum(max(0, starts - 1) for starts in self.jobs.values()),
            "recomputed": self.work.recomputed,
            "lost_in_flight": self.lost_in_flight,
            "resumed": self.work.found,
            "tokens": self.work.tokens,
            "glideins": [
                {
                    "id": glide_id, "records": self.work.by_glidein.get(glide_id, 0),
                    "fetch_s": ad.get(Machine.FETCH_SECONDS, 0.0), "import_s": ad.get(Machine.IMPORT_SECONDS, 0.0),
                    "load_s": ad.get(Machine.LOAD_SECONDS, 0.0),
                    "busy_s": ad.get(Machine.BUSY_SECONDS, 0.0),
                    "warm_s": round(now - ad.get(Machine.STATE_SINCE, now), 3),
                    **{key: ad[name] for key, name in _OF_ENGINES.items() if name in ad},
                }
                for glide_id, ad in sorted(self.glideins.items())
            ],
        }  # fmt: skip


def drive(sweep: Sweep, results: Results, watch: Callable[[Progress], None]) -> dict[str, Any]:
    """Run a sweep on the pool in force and return its summary; interrupted or failing, it leaves no job behind.

    Raises:
        TemplateError, CondorError: as Driver.run.
    """
    file = sweep.file
    folder = sweep.out / ".glide" / "parts"
    access_point = AccessPoint()
    results.template = sweep.template.of(lambda: access_point.user)
    run = Run(results.run, results.template, folder, file.glideins)
    if results.abandoned:
        with suppress(CondorError):
            abandoned = Carriers(replace(run, name=results.abandoned), access_point)
            abandoned.remove(abandoned.queue(), "its sweep was started over")
    driver = Driver(results, Carriers(run, access_point))
    history = results.history
    history.begin(run=run.name, total=sweep.total, done=results.found)
    try:
        summary = results.finish({"name": file.name, **driver.run(watch)})
        history.close("finished")
        return summary
    except (KeyboardInterrupt, GlideError):
        driver.cancel("the sweep was stopped")
        history.close("stopped")
        raise


def _paces(warm: list[dict[str, Any]]) -> list[float]:
    """Seconds per record as each lane sees it: the lanes of a glidein share its engine."""
    sharing = Counter(lane[Machine.ID] for lane in warm)
    times = [lane.get(Machine.RECORD_SECONDS, 0.0) * sharing[lane[Machine.ID]] for lane in warm]
    return [seconds for seconds in times if seconds > 0]
