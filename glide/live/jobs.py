"""Submit, find and remove standing jobs, through HTCondor's bindings.

The bindings block the whole process until a daemon answers. So this module runs in a process of its own (worker).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from glide import resources
from glide.condor import AccessPoint, Collector
from glide.condor.access_point import any_of, job_file_value, quoted
from glide.condor.job_folders import job_folders
from glide.errors import CondorError
from glide.invoke.files import PART, delete_folder
from glide.invoke.requirements import REQUIREMENTS, WARM_FIRST
from glide.live.plan import RETIRES_SECONDS
from glide.protocol.ads import LaneAd, RunAd, attributes, from_ad
from glide.system import publish
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

# A claimed lane that is not warm may have a job that changes its model. A standing job must not evict this job. A lane
# that retires soon would be given back at once.
SERVING = (
    f'{REQUIREMENTS} && (TARGET.{Machine.STATE} =?= "{State.WARM}" || TARGET.State =!= "Claimed")'
    f" && (time() + {2 * RETIRES_SECONDS:g} < TARGET.{Machine.RETIRES}) =!= false"
)


@dataclass(frozen=True)
class QueuedJob:
    """A standing job in the queue.

    Attributes:
        name: the job's name, which its invitation contains.
        id: the job's number, CLUSTER.PROC.
        template: digest of its template.
        running_seconds: seconds since it runs; None if it does not run.
        hold_reason: why it is held; empty if it is not held.
    """

    name: str
    id: str
    template: str
    running_seconds: float | None
    hold_reason: str


@dataclass(frozen=True)
class PoolState:
    """The report of the queue and the collector.

    Attributes:
        jobs: the standing jobs of this server.
        lanes: for each template, the states of its lanes, and the reasons of failures.
    """

    jobs: tuple[QueuedJob, ...]
    lanes: Mapping[str, tuple[tuple[str, str], ...]]


class StandingJobs:
    """The standing jobs of one server of live calls.

    They wait until a lane is free, like other jobs. Those of a subclass with `precede` can get a lane from another job.

    Args:
        run: value of the jobs' attribute GlideRun.
        folder: folder for the folders of jobs, if the access point offers none (glide.condor.job_folders).

    Attributes:
        known: names of the jobs whose files were not deleted yet.

    Raises:
        CondorError: HTCondor does not answer.
    """

    precede = False

    def __init__(self, run: str, folder: Path):
        self.run = run
        self.access_point = AccessPoint()
        self.collector = Collector()
        shared = job_folders(self.access_point)
        self.spool = shared is None
        self.folder = (shared or folder).resolve()
        self.known: set[str] = set()

    def collector_address(self) -> str:
        """Return the address at which other machines reach the collector."""
        return self.collector.address

    def user(self) -> str:
        """Return this account's name at the access point."""
        return self.access_point.user

    def submit(self, template: Template, invitations: Mapping[str, str], most: int, avoid: Collection[str]) -> None:
        """Submit a standing job for each invitation.

        Args:
            invitations: the line of each job's input, by the job's name.
            most: maximum number of glideins that may run for these jobs.
            avoid: GlideIds of glideins that must not get the jobs.
        """
        for name, line in invitations.items():
            (self.folder / name).mkdir(mode=0o700, parents=True)
            publish(self.folder / name / f"{name}.in", line, durable=False)
        self.known |= invitations.keys()
        avoided = ", ".join(map(quoted, avoid))
        macros = {
            "digest": template.digest, "model": template.model, "initialdir": f"{self.folder}/$(job)",
            "folder": "/dev/null" if self.spool else f"{self.folder}/$(job)",
            "requirements": SERVING + (f" && !member(TARGET.{Machine.ID}, {{{avoided}}})" if avoid else ""),
            "rank": WARM_FIRST, "batch_name": self.run,
            f"My.{Job.RUN}": quoted(self.run), f"My.{Job.PART}": '"$(job)"', f"My.{Job.WANTED}": str(most),
            f"My.{Job.RECORDS}": "0", f"My.{Job.SPEC}": job_file_value(template.to_json().replace("$", "\\u0024")),
            f"My.{Job.PRECEDES}": str(self.precede),
        }  # fmt: skip
        description = resources.find("submit_templates", "standing.sub").read_text("utf-8").rsplit("\nqueue", 1)[0]
        items = [{"job": name} for name in invitations]
        try:
            self.access_point.submit(description, macros, items, spool=self.spool)
        except CondorError:
            self._remove_files(invitations.keys())
            raise

    def observe(self, templates: Collection[str]) -> PoolState:
        """Return the standing jobs in the queue, and the lanes of some templates.

        Args:
            templates: digests of the templates.
        """
        ads = (from_ad(RunAd, ad) for ad in self.access_point.jobs(self._constraint(), attributes(RunAd)))
        jobs = tuple(_queued(ad) for ad in ads if ad and ad.status not in (JobStatus.REMOVED, JobStatus.COMPLETED))
        lanes: dict[str, tuple[tuple[str, str], ...]] = {}
        wanted = f"stringListMember({Machine.TEMPLATE}, {quoted(','.join(templates))})"
        for ad in self.collector.lanes(attributes(LaneAd), wanted):
            if lane := from_ad(LaneAd, ad):
                lanes[lane.template] = (*lanes.get(lane.template, ()), (lane.state, lane.failure))
        present = {job.name for job in jobs}
        self._remove_files(self.known - present)
        self.known |= present
        return PoolState(jobs, lanes)

    def remove(self, ids: Collection[str], reason: str) -> None:
        """Remove jobs from the queue."""
        if ids:
            self.access_point.remove(any_of(ids), reason)

    def remove_all(self, reason: str) -> None:
        """Remove all standing jobs from the queue, and delete their files."""
        self.access_point.remove(self._constraint(), reason)
        self._remove_files(self.known)

    def _remove_files(self, jobs: Collection[str]) -> None:
        """Delete the files of jobs that are no longer in the queue."""
        for name in list(jobs):
            if PART.fullmatch(name):
                delete_folder(self.folder / name)
            self.known.discard(name)

    def _constraint(self) -> str:
        owner = self.access_point.user.partition("@")[0]  # another user can submit jobs with the same GlideRun
        return f"{Job.RUN} == {quoted(self.run)} && {Job.STANDING} =?= true && Owner == {quoted(owner)}"


def _queued(ad: RunAd) -> QueuedJob:
    running = ad.server_time - ad.status_since if ad.status == JobStatus.RUNNING else None
    reason = (ad.hold_reason or "held") if ad.status == JobStatus.HELD else ""
    return QueuedJob(ad.part, f"{ad.cluster}.{ad.proc}", ad.template, running, reason)
