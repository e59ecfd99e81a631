"""The driver: keeps lanes supplied with carriers, gathers what they finish, and stops when it is all there."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from glide.condor import AccessPoint, Collector, EventLog, home
from glide.condor.bounded import isolated
from glide.condor.event_log import ENDED, LOST
from glide.errors import CondorError, GlideError, Refused
from glide.factory.journal import refusals
from glide.invoke.carriers import Carrier, Carriers, Run
from glide.invoke.pack import Wave, eviction_rate, pack
from glide.sweep.intake import Intake
from glide.sweep.lanes import Lanes
from glide.sweep.outage import Outage, passes
from glide.sweep.prepare import Sweep
from glide.sweep.results import Results
from glide.sweep.work import Work
from glide.vocabulary import JobStatus, Machine, State

POLL_SECONDS = 0.25  # between looks at queue and collector, each of which costs them a fork
CALM_SECONDS = 1.0  # the same while the event log says that nothing happens
EVENT_SECONDS = 0.05  # between looks at the event log, which cost nothing
# How long HTCondor may not answer at the start, or refuse jobs, before the run gives up. That it does not answer later
# is no reason to give up, however long it takes: access points are rebooted.
PATIENCE_SECONDS = 30.0
STUCK_SECONDS = 5.0  # a carrier that waits for so long beside a free lane has been forgotten by its access point

_OF_ENGINES = {"batching": Machine.BATCHING, "prefix_hits": Machine.PREFIX_HITS}  # where an engine tells
_log = logging.getLogger("glide")


@dataclass
class Progress:
    """What a user who watches wants to know; `trouble` is why it does not go on, where it does not."""

    total: int
    done: int
    errors: int = 0
    lanes: dict[str, int] = field(default_factory=dict)
    running: int = 0
    idle: int = 0
    wave: str = ""
    trouble: str = ""


class Driver:
    """Gets work done by the pool in force. Remembers nothing that a second one could not find again."""

    def __init__(self, work: Work, carriers: Carriers, met: bool = False):
        """Args: met: whether HTCondor has answered this process, so that it is worth waiting for."""
        self.work = work
        self.carriers = carriers
        self.lanes = Lanes(work.template)
        self.events = EventLog()
        self.intake = Intake(work, carriers, self.lanes)
        self.outage = Outage(carriers.run.name, lambda: isolated(self._probe))
        self.started = time.monotonic()
        self.reminded = 0.0
        self.wave = Wave((), "")
        self.full = False  # the lanes have work, and more is there
        self.first_warm: float | None = None
        self.progress = Progress(work.total, len(work.have))
        self.met = met
        self.tidy = False  # what earlier drivers have left in the run's folder is gone

    def run(self, watch: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
        """Finish the work and return an account of it; wait for as long as HTCondor is away or a disk is full.

        Raises:
            TemplateError: no node can load the template.
            CondorError: HTCondor does not answer at the start.
            Refused: HTCondor refuses jobs, or holds them again and again.
        """
        well = time.monotonic()
        while True:
            if self.work.rest():
                well = time.monotonic()  # nobody was asked meanwhile
            try:
                self.progress = self._cycle()
                self.met, well = True, time.monotonic()
                self.outage.over()
                watch(self.progress)
            except (CondorError, OSError) as error:
                late = time.monotonic() - well > PATIENCE_SECONDS
                if isinstance(error, Refused) or not self.met:
                    if late or self.intake.hopeless or isinstance(error, OSError):
                        raise
                elif not passes(error):
                    raise
                else:
                    self._sit_out(error, watch)
            if self.work.finished:
                return self._end()
            self._wait()

    def _sit_out(self, error: Exception, watch: Callable[[Progress], None]) -> None:
        """Wait until what has failed may work again."""
        watch(replace(self.progress, trouble=f"waits: {error}"))
        self.outage.wait(error, lambda: self.work.finished)
        self.lanes.excuse()

    def _probe(self) -> None:
        """Raise as long as HTCondor does not answer; in a process of its own, so that an interrupt ends it at once."""
        at = self.carriers.access_point
        AccessPoint(at.name, at.collector).time()  # found again: after a restart the address is another
        Collector().age()

    def _end(self) -> dict[str, Any]:
        summary = self._summary()
        try:
            if self.outage.since is None:
                queue = self.carriers.queue()
                self.carriers.remove(queue, "all results are here")  # they only bring copies of them
                self.work.history.ended(queue, "removed")
                self.carriers.tidy(())
        except (CondorError, OSError) as error:
            _log.warning("jobs of %s may be left in the queue: %s", self.carriers.run.name, error)
        return summary

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
            self.intake.heard(news)
            if any(event.kind in LOST for event in news):
                return
            if any(event.kind in ENDED for event in news):
                budget = POLL_SECONDS

    def cancel(self, reason: str) -> None:
        """Take this work's jobs out of the queue, those that have completed after their results are here."""
        queue = self.intake.without_finished(self.intake.queue(), at_once=True)
        self.carriers.remove(queue, reason)
        self.work.history.ended(queue, "removed")
        self.carriers.tidy(())

    def stop(self, reason: str) -> bool:
        """Cancel where HTCondor answers; else the jobs stay, for who resumes the work. Return whether none is left."""
        try:
            if self.outage.since is not None:
                raise CondorError(self.outage.reason)
            self.cancel(reason)
            return True
        except (CondorError, OSError) as error:
            _log.warning("jobs of %s may be left in the queue, for who goes on: %s", self.carriers.run.name, error)
            return False

    def _cycle(self) -> Progress:
        queue = self.intake.queue()
        if not self.tidy:
            self.carriers.tidy({carrier.part for carrier in queue})
            self.tidy = True
        self.work.history.saw_queue(queue)
        queue = self.intake.without_outdated(queue)
        queue = self.intake.without_held(self.intake.without_finished(queue))
        lanes = self.lanes.look()
        self.work.history.saw_lanes(lanes)
        queue = self.intake.without_lost(queue)
        queue = self.intake.peek(queue)
        self._remind(queue, lanes)
        self.full = False
        if len(self.work.have) < self.work.total:
            self._supply(queue, lanes)
        self.work.history.saw_counts(
            done=len(self.work.have), errors=self.work.errors, tokens=self.work.tokens,
            recomputed=self.work.recomputed, lost_in_flight=self.intake.lost_in_flight,
        )  # fmt: skip
        states = Counter(lane.get(Machine.STATE, State.BLANK) for lane in lanes)
        return Progress(
            total=self.work.total, done=len(self.work.have), errors=self.work.errors,
            lanes=dict(sorted(states.items())),
            running=sum(carrier.status == JobStatus.RUNNING for carrier in queue),
            idle=sum(carrier.status == JobStatus.IDLE for carrier in queue), wave=self.wave.reason,
            trouble=self.lanes.trouble or ("" if self.lanes.is_warm else "; ".join(refusals(home()))),
        )  # fmt: skip

    def _remind(self, queue: list[Carrier], lanes: list[dict[str, Any]]) -> None:
        """Have carriers matched that wait although there is a lane."""
        free = any(lane.get(Machine.STATE) == State.WARM and lane["State"] == "Unclaimed" for lane in lanes)
        stuck = [each for each in queue if each.status == JobStatus.IDLE and each.seconds > STUCK_SECONDS]
        if free and time.monotonic() - self.reminded > STUCK_SECONDS:
            self.carriers.reconsider(stuck)
            self.reminded = time.monotonic()

    # ---- the next wave ---------------------------------------------------------------------------

    def _supply(self, queue: list[Carrier], lanes: list[dict[str, Any]]) -> None:
        on_their_way = self.intake.forget({carrier.part for carrier in queue})
        undone = self.work.total - len(self.work.have)
        # Counted, for a union with all that is there takes the longer the more that is.
        left = undone - sum(record not in self.work.have for record in on_their_way)
        warm = [lane for lane in lanes if lane.get(Machine.STATE) == State.WARM]
        if warm and self.first_warm is None:
            self.first_warm = time.monotonic()
        expected = len(warm) or 2 * self.work.glideins
        batch = max((lane.get(Machine.BATCH, 1) for lane in warm), default=1)
        losses = eviction_rate(self.intake.evictions, expected, time.monotonic() - (self.first_warm or self.started))
        wave = pack(left, expected, len(queue), _paces(warm), batch, self.work.pack, losses, undone=undone)
        self.full = left > 0 and not wave.sizes
        if wave.sizes:
            self.wave = wave
            self.work.note_wave(wave.sizes, wave.reason)
            records = self._with_attempts(self.work.unsent(on_their_way))
            loads = [load for size in wave.sizes if (load := list(islice(records, size)))]
            left -= sum(wave.sizes)
            if loads:  # what was to be sent may have been cancelled
                self.carriers.submit(loads, list(self.lanes.avoided), left, last=left == 0 and self.work.complete)

    def _with_attempts(self, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for record in records:
            lost = self.intake.attempts[record["custom_id"]]
            yield {**record, "attempts": lost} if lost else record

    def _summary(self) -> dict[str, Any]:
        now, finished = time.time(), time.monotonic()
        return {
            "makespan_s": round(finished - self.started, 3),
            "warm_makespan_s": round(finished - (self.first_warm or finished), 3),
            "jobs": len(self.intake.jobs),
            "evictions": self.intake.evictions + sum(max(0, starts - 1) for starts in self.intake.jobs.values()),
            "recomputed": self.work.recomputed,
            "lost_in_flight": self.intake.lost_in_flight,
            "resumed": self.work.found,
            "tokens": self.work.tokens,
            **self.intake.audit.account,
            "glideins": [
                {
                    "id": glide_id, "records": self.work.by_glidein.get(glide_id, 0),
                    "fetch_s": ad.get(Machine.FETCH_SECONDS, 0.0), "import_s": ad.get(Machine.IMPORT_SECONDS, 0.0),
                    "load_s": ad.get(Machine.LOAD_SECONDS, 0.0),
                    "busy_s": ad.get(Machine.BUSY_SECONDS, 0.0),
                    "warm_s": round(now - ad.get(Machine.STATE_SINCE, now), 3),
                    **{key: ad[name] for key, name in _OF_ENGINES.items() if name in ad},
                }
                for glide_id, ad in sorted(self.lanes.glideins.items())
            ],
        }  # fmt: skip


def drive(sweep: Sweep, results: Results, watch: Callable[[Progress], None]) -> dict[str, Any]:
    """Run a sweep on the pool in force and return its summary; interrupted or failing, it leaves no job behind.

    Raises:
        TemplateError, CondorError, Refused: as Driver.run.
    """
    file = sweep.file
    folder = sweep.out / ".glide" / "parts"
    access_point = AccessPoint()
    results.template = sweep.template.of(lambda: access_point.user)
    run = Run(
        results.run, results.template, folder, file.glideins, answer_bytes=results.answer_bytes,
        complaint=results.complaint,
    )  # fmt: skip
    if results.abandoned:
        with suppress(CondorError):
            abandoned = Carriers(replace(run, name=results.abandoned), access_point)
            abandoned.remove(abandoned.queue(), "its sweep was started over")
    driver = Driver(results, Carriers(run, access_point))
    history = results.history
    history.begin(run=run.name, total=sweep.total, done=results.found)
    try:
        account = driver.run(watch)
        summary = _finish(results, {"name": file.name, **account})
        history.close("finished")
        return summary
    except (KeyboardInterrupt, GlideError):
        driver.stop("the sweep was stopped")
        with suppress(OSError):  # a full disk
            history.close("stopped")
        raise


def _finish(results: Results, account: dict[str, Any]) -> dict[str, Any]:
    """Put the results in order and write the summary, as soon as the disk has room for that."""
    outage = Outage(results.run, lambda: None)
    while True:
        try:
            summary = results.finish(account)
            outage.over()
            return summary
        except OSError as error:
            if not passes(error):
                raise
            outage.wait(error, lambda: False)


def _paces(warm: list[dict[str, Any]]) -> list[float]:
    """Seconds per record as each lane sees it: the lanes of a glidein share its engine."""
    sharing = Counter(lane[Machine.ID] for lane in warm)
    times = [lane.get(Machine.RECORD_SECONDS, 0.0) * sharing[lane[Machine.ID]] for lane in warm]
    return [seconds for seconds in times if seconds > 0]
