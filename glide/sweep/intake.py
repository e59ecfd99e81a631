"""What comes back to a driver: results of jobs that run, have ended, are held or have lost their node."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from glide.condor.event_log import LOST, Event
from glide.condor.names import printable
from glide.errors import Refused
from glide.invoke.answers import Answers
from glide.invoke.carriers import Carrier, Carriers
from glide.sweep.audit import Audit
from glide.sweep.lanes import SILENT_SECONDS, Lanes
from glide.sweep.work import Work
from glide.vocabulary import JobStatus

PEEK_SECONDS = 2.0  # between looks at what a running carrier has streamed; each costs the access point 5 ms and more
PEEK_BUDGET = 0.25  # seconds of a cycle for such looks
GATHER_SECONDS = 1.0  # finished carriers wait for company: bringing many home costs the access point little more
# Held carriers are sent again so often; after that the reason is the user's to know.
MOST_HOLDS = 5
_log = logging.getLogger("glide")


class Intake:
    """Takes in what jobs have, and takes out of the queue those that are done for.

    Attributes:
        jobs: how often each has started.
        carried: the ids of the records of each part that is in the queue.
        finished: parts whose jobs have ended and are to be gathered soon.
        attempts: how often a record was on a job that was lost.
        evictions: jobs that were lost.
        lost_in_flight: records begun on their nodes, as far as these had told: of a node's last second nobody knows.
    """

    def __init__(self, work: Work, carriers: Carriers, lanes: Lanes):
        self.work = work
        self.carriers = carriers
        self.lanes = lanes
        self.audit = Audit()
        self.jobs: dict[str, int] = {}
        self.carried: dict[str, set[str]] = {}
        self.outdated: set[str] = set()  # parts that ask what nobody asks any more
        self.finished: set[str] = set()
        self.attempts: Counter[str] = Counter()
        self.evictions = self.lost_in_flight = 0
        self.disconnected: dict[str, float] = {}  # jobs that lost their node, and when (Unix time)
        self.peeked: dict[str, float] = {}  # when running parts were looked at
        self.gathered = 0.0
        self.holds = self.had = 0

    def heard(self, news: Iterable[Event]) -> None:
        """Keep what the event log says of lost nodes: it may come before the queue shows that the job had started."""
        self.disconnected |= {event.job: event.at for event in reversed(list(news)) if event.kind in LOST}

    @property
    def hopeless(self) -> bool:
        """Whether jobs are held again and again."""
        return self.holds > MOST_HOLDS

    def queue(self) -> list[Carrier]:
        """The jobs in the queue; of each it is known from now on which records it carries."""
        queue = self.carriers.queue()
        for carrier in queue:
            self.jobs[carrier.job] = carrier.starts
            if carrier.part not in self.carried:
                self.carried[carrier.part] = self.carriers.carried([carrier])
                if not self.work.wants(self.carried[carrier.part]):
                    self.outdated.add(carrier.part)
        return queue

    def forget(self, parts: Collection[str]) -> set[str]:
        """Forget the records of all parts but these and those that have finished; return the ids of what is left."""
        self.carried = {part: ids for part, ids in self.carried.items() if part in parts or part in self.finished}
        return set().union(*self.carried.values())

    def without_finished(self, queue: list[Carrier], at_once: bool = False) -> list[Carrier]:
        """Gather the carriers that have finished, and return the others."""
        finished = [carrier for carrier in queue if carrier.status == JobStatus.COMPLETED]
        others = [carrier for carrier in queue if carrier.status != JobStatus.COMPLETED]
        if at_once or not others or time.monotonic() - self.gathered > GATHER_SECONDS:
            came: list[tuple[Carrier, Answers]] = []

            def keep(brought: Sequence[tuple[Carrier, Answers]]) -> None:
                self._keep(*(answers for _, answers in brought))
                came.extend(brought)

            self.carriers.gather(finished, self.carried, keep)
            self.work.history.ended(finished, "gathered")
            self.gathered = time.monotonic()
            self._account(came)
            finished = []
        self.finished = {carrier.part for carrier in finished}
        return others

    def peek(self, queue: list[Carrier]) -> list[Carrier]:
        """Take what running carriers have streamed, from those first that were looked at longest ago.

        Returns the queue without those that stream more than their records justify.
        """
        now = time.monotonic()
        running = {carrier.part: carrier for carrier in queue if carrier.status == JobStatus.RUNNING}
        self.peeked = {part: self.peeked.get(part, now) for part in running}
        floods: list[tuple[Carrier, Answers]] = []
        for part in sorted(running, key=lambda part: self.peeked[part]):
            # However many there are and however busy their access point is, a cycle is to end.
            if now - self.peeked[part] < PEEK_SECONDS or time.monotonic() - now > PEEK_BUDGET:
                break
            answers = self.carriers.peek(running[part], self.carried[part])
            self._keep(answers)
            self.peeked[part] = now
            floods += [(running[part], answers)] if answers.flood else []
        queue = self._without(queue, floods, "its output is longer than its records justify")
        self._account(floods)
        return queue

    def _keep(self, *answers: Answers) -> None:
        self.work.keep(result for each in answers for result in each.results.values())

    def _without(self, queue: list[Carrier], bad: list[tuple[Carrier, Answers]], reason: str) -> list[Carrier]:
        """Remove carriers whose results are kept; what they have not answered is sent again."""
        self.carriers.remove([carrier for carrier, _ in bad], reason)
        self.work.history.ended([carrier for carrier, _ in bad], "removed")
        gone = {carrier.job for carrier, _ in bad}
        return [carrier for carrier in queue if carrier.job not in gone]

    def _note(self, carrier: Carrier, answers: Answers) -> set[str]:
        """Note whose lane gave invalid answers, and avoid it; return the records that it has left without one."""
        lane = carrier.lane or carrier.last_lane
        missing = self.carried[carrier.part] - self.work.have.keys()
        self.audit.note(self.lanes.name(lane), carrier.job, answers)
        if missing and not self.lanes.is_alone(lane):
            self.lanes.avoid(lane)
        return missing

    def _account(self, ended: Sequence[tuple[Carrier, Answers]]) -> None:
        """Note what was invalid; a record that is often left without an answer by jobs that end gets an error."""
        for carrier, answers in ended:
            missing = self._note(carrier, answers)
            lane = self.lanes.name(carrier.lane or carrier.last_lane)
            self.work.keep(self.audit.given_up(missing, lane, answers.reason))

    def without_outdated(self, queue: list[Carrier]) -> list[Carrier]:
        """Remove the jobs of an earlier driver that ask what nobody asks any more; what else they have is kept."""
        outdated = [carrier for carrier in queue if carrier.part in self.outdated]
        for carrier in outdated:
            self._keep(self.carriers.peek(carrier, self.carried[carrier.part]))
        self.carriers.remove(outdated, "what it asks has changed")
        self.work.history.ended(outdated, "removed")
        self.outdated.clear()
        return [carrier for carrier in queue if carrier not in outdated]

    def without_held(self, queue: list[Carrier]) -> list[Carrier]:
        held = [carrier for carrier in queue if carrier.status == JobStatus.HELD]
        if not held:
            return queue
        if len(self.work.have) > self.had:  # not again and again: something has come in between
            self.holds, self.had = 0, len(self.work.have)
        self.holds += 1
        if self.holds > MOST_HOLDS:
            raise Refused(f"job {held[0].job} is held, like others before it: {held[0].hold_reason}")
        came = [(carrier, self.carriers.peek(carrier, self.carried[carrier.part])) for carrier in held]
        self._keep(*(answers for _, answers in came))
        queue = self._without(queue, came, "held; its records are sent again")
        for carrier, answers in came:
            lane, why = self.lanes.name(carrier.lane or carrier.last_lane), printable(carrier.hold_reason)
            _log.warning("job %s on %s was held, and its records are sent again: %s", carrier.job, lane, why)
            self._note(carrier, answers)
        return queue

    def without_lost(self, queue: list[Carrier]) -> list[Carrier]:
        """Save what carriers on dead nodes have streamed, and remove them: their other records go out anew.

        HTCondor would do so by itself, but not before the shadow has asked the dead node three times, for 15 s.
        """
        gone = self.lanes.vanished() & {carrier.lane for carrier in queue}
        if gone and self.lanes.collector.age() < SILENT_SECONDS:  # it was restarted, and knows no lane from before
            self.lanes.excuse()
            gone = set()
        lost = [carrier for carrier in queue if carrier.job in self.disconnected or carrier.lane in gone]
        for carrier in lost:
            answers = self.carriers.peek(carrier, self.carried[carrier.part])
            self._keep(answers)
            saved = len(answers.results)
            self.evictions += 1
            self.lost_in_flight += max(0, answers.begun - saved)
            at = self.disconnected.get(carrier.job, time.time())
            self.work.history.ended([carrier], "lost", at=at, begun=answers.begun, saved=saved)
            self.attempts.update(self.carried[carrier.part] - self.work.have.keys())
            self.audit.note(self.lanes.name(carrier.lane), carrier.job, answers)
            self.lanes.avoid(carrier.lane)
        self.carriers.remove(lost, "its node is gone; what it had not done is sent again")
        without = {carrier.job for carrier in lost}
        return [carrier for carrier in queue if carrier.job not in without]
