"""Observe the pool for the driver, and carry out the driver's actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from glide.condor.ports import Clock
from glide.errors import CondorRefused, TemplateError
from glide.invoke.jobs import InvocationJob, RunJobs
from glide.invoke.part import Part
from glide.protocol.ads import LaneAd
from glide.sweep.intake import ResultIntake
from glide.sweep.lanes import Lanes, glidein_views
from glide.sweep.view import (
    Action,
    Gather,
    GiveUp,
    JobView,
    Memory,
    Peek,
    Remind,
    RemoveJobs,
    SubmitJobs,
    SubmitTwin,
    TakeBack,
    View,
)
from glide.sweep.work import Work
from glide.vocabulary import JobStatus

# As soon as the files of new jobs have this number of records in total, these jobs are submitted. A smaller number
# would cause more submissions.
GROUP_RECORDS = 16384


class Actor:
    """Observes the queue and the lanes of one run, and acts on them.

    Attributes:
        queue: the run's jobs in the queue, by part, as they were last observed.
        observed_lanes: ads of the lanes that have loaded the run's template or are loading it.
        wave: why the last submitted jobs have their sizes, as text for the user.
        folder_cleaned: whether the old files of earlier drivers have been removed from the run's folder.
    """

    def __init__(self, work: Work[Any], jobs: RunJobs, lanes: Lanes, intake: ResultIntake, clock: Clock):
        self.work = work
        self.jobs = jobs
        self.lanes = lanes
        self.intake = intake
        self.clock = clock
        self.queue: dict[str, InvocationJob] = {}
        self.observed_lanes: Sequence[LaneAd] = ()
        self.wave = ""
        self.folder_cleaned = False

    def observe(self, memory: Memory) -> View:
        """Query queue and collector."""
        queue = self.jobs.queue()
        if not self.folder_cleaned:
            self.jobs.remove_remains(queue)
            self.folder_cleaned = True
        self.queue = {job.part: job for job in queue}
        lanes = self.lanes.observe(self.jobs.version, memory.avoided)
        self.work.history.write_queue(queue)
        self.work.history.write_lanes(lanes)
        self.observed_lanes = lanes
        gone = self.lanes.vanished({job.lane for job in queue if job.lane})
        # A job may have started again since it lost its node.
        disconnected = self.intake.disconnected
        lost = {
            job.id for job in queue if disconnected.get(job.id, -1.0) >= job.times.get("started", 0) or job.lane in gone
        }
        view = View(
            self.intake.view(queue), glidein_views(lanes, self.jobs.version, self.clock),
            most_glideins=self.work.glideins, fixed=self.work.pack, batch=self.work.batch, lost=lost,
            give_up=self.lanes.give_up,
        )  # fmt: skip
        self._count(view)
        return view

    def _count(self, view: View) -> None:
        """Set the numbers of records in a view."""
        view.done = len(self.work.done)
        view.unfinished = self.work.total - view.done
        view.pending = self.intake.pending
        view.all_known = self.work.all_known

    def act(self, action: Action, view: View, memory: Memory) -> None:
        """Carry out an action, and update the view."""
        if isinstance(action, GiveUp):
            raise CondorRefused(action.reason) if action.held else TemplateError(action.reason)
        if isinstance(action, Gather):
            self._ended(action.jobs, view, memory, self.intake.gather(self._jobs(action.jobs)))
        elif isinstance(action, RemoveJobs):
            self._ended(action.jobs, view, memory, self.intake.remove(self._jobs(action.jobs), action.why))
        elif isinstance(action, Peek):
            removed, avoid = self.intake.peek(self._jobs(action.jobs))
            self._ended([view.jobs[job.part] for job in removed], view, memory, avoid)
            for job in action.jobs:
                if records := self.intake.parts.get(job.part):
                    job.records, job.unanswered, job.begun = records.kept, records.unanswered, records.begun
                    job.asked, job.read = records.asked, records.read
        elif isinstance(action, Remind):
            self.jobs.reconsider(self._jobs(action.jobs))
        elif isinstance(action, TakeBack):
            self._take_back(action)
        elif isinstance(action, SubmitTwin):
            self._submit_twin(action.job, memory)
        else:
            self._submit(action, view, memory)
        self._count(view)

    def _take_back(self, action: TakeBack) -> None:
        """Ask jobs to give records back. A job that was asked before is never asked to keep more."""
        wanted: dict[JobView, int] = {}
        for job, keep in action.keep:
            if job.part in self.queue:
                asked = self.intake.parts[job.part].asked
                wanted[job] = keep if asked is None else min(keep, asked)
                # If the call below fails, the request may have arrived all the same. So the job may answer. But the
                # next cycle may ask again.
                self.intake.note_asked(job.part, wanted[job], float("-inf"))
        self.jobs.take_back({job.id: keep for job, keep in wanted.items()})
        for job, keep in wanted.items():
            job.asked, job.asked_at = keep, self.clock.monotonic()
            self.intake.note_asked(job.part, keep, job.asked_at)

    def _jobs(self, views: Sequence[JobView]) -> list[InvocationJob]:
        return [self.queue[job.part] for job in views]

    def _ended(self, jobs: Sequence[JobView], view: View, memory: Memory, avoid: Sequence[str]) -> None:
        """Remove ended jobs from the view, and avoid the glideins of the lanes `avoid`."""
        for job in jobs:
            view.jobs.pop(job.part, None)
            self.queue.pop(job.part, None)
        now = self.clock.monotonic()
        avoided = {self.lanes.glidein_of(lane) for lane in avoid} - {""}
        memory.avoided |= dict.fromkeys(avoided, now)
        view.glideins = {name: each for name, each in view.glideins.items() if name not in avoided}

    # ---- new jobs --------------------------------------------------------------------------------------

    def _submit(self, action: SubmitJobs, view: View, memory: Memory) -> None:
        """Submit jobs with pending records."""
        self.wave = action.reason
        self.work.note_wave(action.sizes, action.reason)
        records = self._with_attempts(self.work.pending(self.intake.in_flight))
        for parts in self._written(action.sizes, records):
            left = self.intake.pending - sum(len(part.ids) for part in parts)
            self.jobs.submit(parts, list(memory.avoided), max(0, left), action.last, view.stream)
            for part in parts:
                self.intake.note_submitted(part)
                view.jobs[part.name] = self._new_job(part)

    def _new_job(self, part: Part) -> JobView:
        now = self.clock.monotonic()
        return JobView("", part.name, JobStatus.IDLE, len(part.ids), len(part.ids), since=now, read=now)

    def _submit_twin(self, job: JobView, memory: Memory) -> None:
        """Submit a second job with the unfinished records of a job. The job's own glidein does not get it."""
        wanted = self.intake.missing(job.part) if job.part in self.intake.parts else set()
        if not wanted:
            return
        requests = (each for each in self.work.pending(()) if each["custom_id"] in wanted)
        part = self.jobs.write(islice(requests, len(wanted)))
        self.jobs.submit([part], [*memory.avoided, job.glidein], self.intake.pending, last=True)
        self.intake.note_twin(part, job.part)
        job.twin = part.name

    def _written(self, sizes: Sequence[int], records: Iterator[dict[str, Any]]) -> Iterator[list[Part]]:
        """Write the input files of new jobs. Yield groups of parts. One part becomes one job.

        As soon as a group has enough records, it is yielded. So lanes can start while further files are written.

        Args:
            sizes: number of records for each job. There may be fewer records, for example because a session's caller
                has just cancelled calls.
        """
        parts: list[Part] = []
        try:
            for size in sizes:
                parts.append(self.jobs.write(islice(records, size)))
                if not parts[-1].ids:
                    self.jobs.discard([parts.pop()])
                if sum(len(part.ids) for part in parts) >= GROUP_RECORDS:
                    group, parts = parts, []
                    yield group
        except BaseException:
            self.jobs.discard(parts)
            raise
        if parts:
            yield parts

    def _with_attempts(self, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the requests. If a request was in jobs that were lost, its `attempts` is the number of these jobs."""
        for record in records:
            lost = self.intake.attempts.get(record["custom_id"])
            yield {**record, "attempts": lost} if lost else record
