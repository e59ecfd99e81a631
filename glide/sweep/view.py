"""What the driver observes, what it remembers, and what it can do. The function `decide` uses only these values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

# A glidein that is avoided gets no jobs for this number of seconds. After this time, the collector has dropped the ads
# of a dead glidein, even if nobody has removed the ads explicitly.
AVOID_SECONDS = 120.0


@dataclass(eq=False, slots=True)
class JobView:
    """An invocation job in the queue, and what the driver has read of its output.

    All times are values of the driver's clock, in seconds. An output is read only from time to time, so the numbers of
    records may be older than the view.

    Attributes:
        id: the job's number, CLUSTER.PROC.
        part: name of the part, which is the list of the job's records.
        status: HTCondor's JobStatus.
        records: number of records that the job keeps. The driver may take records back from the end of the list.
        unanswered: number of these records without a result.
        begun: number of records that the model server has sent to its engine.
        glidein: GlideId of the glidein that runs the job; empty if the job does not run.
        lane: name of the lane that runs the job; empty if the job does not run.
        since: time when the status changed.
        read: time when the output was last read.
        asked: number of records that the driver has asked the job to keep; None if the driver has not asked. If the
            value is smaller than `records`, the job has not answered yet.
        asked_at: time when the driver asked.
        outdated: whether one of the job's requests has changed since the job was submitted.
        twin: part of the other job that has or had the same records; empty if there never was one.
        hold_reason: HTCondor's reason for the hold; empty if the job is not held.
        full: whether the job's input file has its maximum size.
    """

    id: str
    part: str
    status: int
    records: int
    unanswered: int
    begun: int = 0
    glidein: str = ""
    lane: str = ""
    since: float = 0.0
    read: float = 0.0
    asked: int | None = None
    asked_at: float = 0.0
    outdated: bool = False
    twin: str = ""
    hold_reason: str = ""
    full: bool = False


@dataclass(eq=False, slots=True)
class GlideinView:
    """A glidein that has loaded the run's template, or is fetching or loading it.

    Attributes:
        lanes: number of its lanes. All lanes of a glidein share one engine.
        free: number of lanes that no job has claimed, and that accept jobs.
        warm: whether the template is loaded. Jobs may start before this, and then wait on their lanes.
        record_seconds: seconds that the engine needs per record; 0 before the first measurement.
        batch: number of records in an engine call.
        since: time of the driver's clock since when the glidein has been warm, in seconds; 0 if it is not warm.
        retired: whether it accepts no more jobs, because its time is over. Its running jobs continue.
    """

    lanes: int
    free: int
    warm: bool
    record_seconds: float = 0.0
    batch: int = 1
    since: float = 0.0
    retired: bool = False


@dataclass
class View:
    """One observation of the queue and of the lanes.

    Attributes:
        jobs: the run's jobs, by part.
        glideins: the glideins that can get jobs, by GlideId.
        pending: number of records that have no result and are in no job.
        unfinished: number of records that have no result.
        done: number of records that have a result.
        all_known: whether no more records will be added.
        most_glideins: number of glideins that the run may have.
        fixed: number of records per job if the user has fixed this number, else None.
        batch: if the user has fixed it, the number of which the size of each job is a multiple; else None.
        lost: numbers of the jobs whose node is dead.
        give_up: why the run cannot succeed; empty if it can.
        cycle: seconds between two cycles of the driver.
        stream: seconds between two transfers of a running job's new results. A job reads requests of the driver as
            often.
    """

    jobs: dict[str, JobView] = field(default_factory=dict)
    glideins: Mapping[str, GlideinView] = field(default_factory=dict)
    pending: int = 0
    unfinished: int = 0
    done: int = 0
    all_known: bool = True
    most_glideins: int = 1
    fixed: int | None = None
    batch: int | None = None
    lost: Collection[str] = ()
    give_up: str = ""
    cycle: float = 1.0
    stream: float = 1.0

    @property
    def lanes(self) -> int:
        """The number of lanes on which jobs can start."""
        return sum(each.lanes for each in self.glideins.values() if not each.retired)


@dataclass
class Memory:
    """What the driver remembers from earlier cycles.

    Attributes:
        started: time when the driver started.
        first_warm: time when a warm glidein was first observed; None if there was none.
        gathered: time of the last gather.
        peeked: time of the last Peek action.
        reminded: time of the last Remind action.
        recut: time when waiting jobs were last removed in order to divide their records differently.
        evictions: number of jobs that were lost.
        holds: number of times in a row that the driver found held jobs. After a new result, this count starts again.
        done_at_last_hold: number of results at the time when the driver last found held jobs.
        avoided: for each GlideId that gets no jobs, the time since when. A glidein is avoided if it is dead, or if one
            of its jobs left records without a valid result.
    """

    started: float = 0.0
    first_warm: float | None = None
    gathered: float = float("-inf")
    peeked: float = float("-inf")
    reminded: float = float("-inf")
    recut: float = float("-inf")
    evictions: int = 0
    holds: int = 0
    done_at_last_hold: int = 0
    avoided: dict[str, float] = field(default_factory=dict)

    def observe(self, view: View, now: float) -> None:
        """Remember what later decisions need of this view."""
        if self.first_warm is None and any(each.warm for each in view.glideins.values()):
            self.first_warm = now
        if self.avoided:
            self.avoided = {each: since for each, since in self.avoided.items() if now - since < AVOID_SECONDS}

    def holds_with(self, view: View) -> int:
        """Return the value of `holds` if the driver finds held jobs in this view."""
        return 1 + (self.holds if view.done == self.done_at_last_hold else 0)

    def note(self, action: Action, view: View, now: float) -> None:
        """Remember that the driver carries out this action now."""
        if isinstance(action, Gather):
            self.gathered = now
        elif isinstance(action, Peek):
            self.peeked = now
        elif isinstance(action, Remind):
            self.reminded = now
        elif isinstance(action, RemoveJobs):
            self.recut = now if action.why == RECUT else self.recut
            self.evictions += len(action.jobs) if action.why == LOST else 0
            if action.why == HELD:
                self.holds = self.holds_with(view)
                self.done_at_last_hold = view.done


# Why a job is removed. The value is the reason in HTCondor's history of the job.
OUTDATED = "its requests have changed"
HELD = "held; its records are sent again"
LOST = "its node is gone; its unfinished records are sent again"
RECUT = "it waits for a lane; its records are divided differently"
ANSWERED = "another job has computed its records"


@dataclass(frozen=True)
class Gather:
    """Store the results of completed jobs, and remove these jobs from the queue."""

    jobs: tuple[JobView, ...]


@dataclass(frozen=True)
class Peek:
    """Store the results that running jobs have streamed. Jobs whose answer the driver waits for come first."""

    jobs: tuple[JobView, ...]


@dataclass(frozen=True)
class RemoveJobs:
    """Store what the jobs have streamed, and remove the jobs. Their unfinished records become pending.

    Attributes:
        why: one of the reasons above.
    """

    jobs: tuple[JobView, ...]
    why: str


@dataclass(frozen=True)
class SubmitJobs:
    """Submit jobs with pending records.

    Attributes:
        sizes: number of records of each job.
        reason: why the jobs have these sizes, as text for the user.
        last: whether no further jobs are planned. Then each lane is released as soon as its job has ended.
    """

    sizes: tuple[int, ...]
    reason: str
    last: bool


@dataclass(frozen=True)
class TakeBack:
    """Ask running jobs to give records back. A job gives back only records that it has not begun.

    Attributes:
        keep: each job with the number of first records that it is asked to keep.
    """

    keep: tuple[tuple[JobView, int], ...]


@dataclass(frozen=True)
class SubmitTwin:
    """Submit a second job with the unfinished records of a running job, because a faster glidein is free."""

    job: JobView


@dataclass(frozen=True)
class Remind:
    """Ask HTCondor to match waiting jobs again, because they stay idle although a lane is free."""

    jobs: tuple[JobView, ...]


@dataclass(frozen=True)
class GiveUp:
    """End the run.

    Attributes:
        held: whether the cause is that HTCondor holds jobs repeatedly. Otherwise, the template cannot be loaded.
    """

    reason: str
    held: bool = False


Action = Gather | Peek | RemoveJobs | SubmitJobs | TakeBack | SubmitTwin | Remind | GiveUp
Actions = Sequence[Action]
