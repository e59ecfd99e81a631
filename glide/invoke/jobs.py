"""The invocation jobs of one run. These HTCondor jobs bring records to lanes, and results back.

The records are divided into parts, one part for each job. A completed job stays in HTCondor's queue until the caller
has stored the job's results, so no result is lost. If a result arrives twice, the caller ignores the copy.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glide import resources
from glide.condor.access_point import SUBMIT_SECONDS, any_of, job_file_value, quoted
from glide.condor.ports import JobQueue
from glide.errors import CondorError, CondorRefused
from glide.invoke import answers
from glide.invoke.answers import OutputContent
from glide.invoke.files import PART, JobFiles, remove_remains
from glide.invoke.part import Part
from glide.invoke.requirements import REQUIREMENTS, WARM_FIRST
from glide.protocol.ads import RunAd, attributes, from_ad
from glide.protocol.json_lines import decoded, to_json
from glide.protocol.keep import FILE_REMAPS
from glide.protocol.request import input_lines
from glide.template import Template
from glide.vocabulary import KEPT_SECONDS, LEAVE_IN_QUEUE, Job, JobStatus, Machine

URGENT = 10  # priority of jobs that have waited for long, and of jobs that repeat the records of lost jobs
TIMES = ("queued", "started", "executing", "completed")  # events of a job; the job's ad has the time of each event
MEGABYTE = 1 << 20
SLOWEST = 100_000  # assumed minimum upload rate to an access point, in bytes per second
# ClassAd expression that is true if a job has been idle or held for more than 30 days (KEPT_SECONDS). If the job's
# driver runs, the job never waits for 30 days. So a true value means that the driver was killed.
ABANDONED = (
    f"(JobStatus == {JobStatus.IDLE} || JobStatus == {JobStatus.HELD})"
    f" && time() - EnteredCurrentStatus > {KEPT_SECONDS}"
)
# Maximum number of jobs that `reconsider` edits. One edit is enough to make the access point rebuild its list of all
# runnable jobs, and each edit costs the access point a transaction.
MOST_RECONSIDERED = 10


@dataclass(frozen=True)
class InvocationJob:
    """An invocation job in the queue.

    Attributes:
        id: the job's number, CLUSTER.PROC.
        part: name of the part whose records the job carries.
        status: HTCondor's JobStatus.
        records: number of the job's records.
        starts: number of times that the job has started.
        status_seconds: seconds since the status changed.
        lane: name of the lane on which the job runs; empty if the job does not run.
        hold_reason: HTCondor's reason for the hold; empty if the job is not held.
        last_lane: name of the lane on which the job last stopped; empty if the job has never stopped. A job stops when
            it completes or is evicted.
        times: Unix times of the job's events, with the keys of TIMES. Events that have not happened are missing.
        folder: the job's folder on the access point, which is its spool directory if it is spooled; empty if it is
            unknown.
        keep: number of records that the driver has asked the job to keep; None if it has not asked.
    """

    id: str
    part: str
    status: int
    records: int
    starts: int
    status_seconds: float
    lane: str = ""
    hold_reason: str = ""
    last_lane: str = ""
    times: Mapping[str, int] = field(default_factory=dict)
    folder: str = ""
    keep: int | None = None


# The type of a function that stores results, or raises an error.
Store = Callable[[Sequence[tuple[InvocationJob, OutputContent]]], None]


@dataclass(frozen=True)
class RunSpec:
    """The properties that all jobs of a run share.

    Attributes:
        name: the run's name. It is the value of the jobs' attribute GlideRun.
        template: the template that all records need.
        folder: folder for the driver's copies of the jobs' files. No other run uses this folder.
        max_glideins: maximum number of glideins that may run at the same time for this run.
        max_result_bytes: maximum length of one result's line, in bytes.
        check_result: a function with further checks of a result. The function returns what is wrong, or an empty text
            if the result is valid.
        accounting: the commands `accounting_group` and `accounting_group_user` of the job file, and their values.
    """

    name: str
    template: Template
    folder: Path
    max_glideins: int
    max_result_bytes: int = 64 << 20
    check_result: Callable[[dict[str, Any]], str] = lambda result: ""
    accounting: Mapping[str, str] = field(default_factory=dict)


class RunJobs:
    """The invocation jobs of one run at one access point.

    Args:
        job_folders: the folder in which each job gets its own folder (PoolHandle.job_folders); None: the jobs are
            spooled.

    Attributes:
        files: the files of the jobs on this machine.
        version: highest protocol version that the submitted requests need.
        parts: the name of each job's part, by job number. The name is stored when the job is submitted, or when its ad
            is first read. Later values in the ad are ignored, because code on a node can change the ad.
    """

    def __init__(self, run: RunSpec, access_point: JobQueue, job_folders: Path | None = None):
        self.run = run
        self.access_point = access_point
        self.files = JobFiles(run.folder, job_folders)
        self.parts: dict[str, str] = {}
        self.version = 1

    def write(self, records: Iterable[Mapping[str, Any]]) -> Part:
        """Write the input file of a new job.

        When the file has reached its maximum size, no further record is written. So the last ones of `records` may be
        missing in the file.

        Args:
            records: requests with `custom_id`, `prompt`, `generate` (the engine's options) and `timeout` (time limit of
                an engine call, in seconds).

        Raises:
            OSError: the file cannot be written, for example because the disk is full. Then there is no file.
        """
        part = Part(uuid.uuid4().hex[:12])
        try:
            with self.files.input(part.name).open("w", encoding="utf-8") as file:
                for line in input_lines(part.take(records)):
                    part.size += file.write(to_json(line) + "\n")
        except BaseException:
            self.files.remove(part.name)
            raise
        return part

    def submit(
        self, parts: Sequence[Part], avoid: Sequence[str] = (), pending: int = 0, last: bool = False,
        stream_seconds: float = 1.0,
    ) -> None:  # fmt: skip
        """Submit one job for each part. All jobs are submitted as one cluster.

        Args:
            parts: the parts, as `write` returns them.
            avoid: GlideIds of glideins that must not get these jobs, such as dead glideins that still have ads in the
                collector. If `avoid` is not empty, the jobs get a higher priority, because some of their records may be
                from lost jobs.
            pending: number of the run's records that are in no job yet. The factory computes the run's demand from this
                number.
            last: True if the run submits no more parts after these. Then each lane is released as soon as its job has
                ended, so that other runs can use the lane.
            stream_seconds: seconds between two transfers of a running job's new results to the access point.

        Raises:
            OSError: an input file cannot be read or copied. No job is submitted.
            CondorRefused: the access point refuses the jobs.
        """
        items = []
        for part in parts:
            most = answers.output_limit(len(part.ids), self.run.max_result_bytes)
            self.version = max(self.version, part.version)
            items.append({
                "part": part.name, "count": str(len(part.ids)), "most_mb": str(most // MEGABYTE + 1),
                "version": str(part.version),
            })  # fmt: skip
        try:
            self.files.place(part.name for part in parts)
            self._submit(items, avoid, pending, last, stream_seconds)
        except (OSError, CondorRefused):  # no job was submitted, so no file is needed
            self.discard(parts)
            raise

    def discard(self, parts: Iterable[Part]) -> None:
        """Delete the files of parts that are not submitted."""
        for part in parts:
            self.files.remove(part.name)

    def _submit(
        self, items: Sequence[Mapping[str, str]], avoid: Sequence[str], pending: int, last: bool, stream_seconds: float
    ) -> None:
        description = resources.find("submit_templates", "invocation.sub").read_text("utf-8").rsplit("\nqueue", 1)[0]
        macros = self._macros() | {f"My.{Job.LEFT}": str(pending), f"My.{Job.STREAM}": f"{stream_seconds:.3g}"}
        macros |= {"keep_claim_idle": "0"} if last else {}
        if avoid:
            avoided = ", ".join(map(quoted, avoid))
            macros["priority"] = str(URGENT)
            macros["requirements"] = f"{REQUIREMENTS} && !member(TARGET.{Machine.ID}, {{{avoided}}})"
        size = sum(self.files.input(item["part"]).stat().st_size for item in items)
        seconds = SUBMIT_SECONDS + size / SLOWEST
        spool = self.files.jobs is None
        cluster = self.access_point.submit(description, macros, items, spool=spool, seconds=seconds)
        self.parts |= {f"{cluster}.{number}": item["part"] for number, item in enumerate(items)}

    def _macros(self) -> dict[str, str]:
        spec = self.run.template.to_json().replace("$", "\\u0024")  # a "$" begins a macro in a job file
        return {
            "digest": self.run.template.digest, "model": self.run.template.model,
            **self._folder_macros(), "records": "$(part).in", "results": "$(part).out",
            # A completed job stays in the queue until `gather` has stored the results, but at most for KEPT_SECONDS.
            "leave_in_queue": LEAVE_IN_QUEUE, "periodic_remove": ABANDONED, "max_transfer_output_mb": "$(most_mb)",
            "batch_name": self.run.name, **self.run.accounting,
            f"My.{Job.RUN}": quoted(self.run.name), f"My.{Job.PART}": '"$(part)"', f"My.{Job.RECORDS}": "$(count)",
            f"My.{Job.PROTOCOL}": "$(version)", f"My.{Job.EARLY}": "true", "requirements": REQUIREMENTS,
            "rank": WARM_FIRST, "My.FileRemaps": FILE_REMAPS,
            f"My.{Job.WANTED}": str(self.run.max_glideins), f"My.{Job.SPEC}": job_file_value(spec),
        }  # fmt: skip

    def _folder_macros(self) -> dict[str, str]:
        """Return the macros for the folders of jobs: where a job's files are, and what its node can reach.

        For spooled jobs, the job file has the right LimitDirectoryAccess.
        """
        folder = self.files.new_folder("$(part)")
        if folder is None:
            return {"initialdir": str(self.run.folder.resolve())}
        # When a job ends, HTCondor overwrites the output file, and this takes a while. So the job's output gets another
        # name than the file with the streamed results. If the node is lost meanwhile, the streamed results are kept.
        return {
            "initialdir": str(folder), "My.LimitDirectoryAccess": quoted(str(folder)),
            "transfer_output_remaps": '"$(part).out = $(part).final"',
        }  # fmt: skip

    def queue(self) -> list[InvocationJob]:
        """Return this run's jobs in the queue."""
        ads = (from_ad(RunAd, ad) for ad in self.access_point.jobs(self._constraint(), attributes(RunAd)))
        found = [self._job(ad) for ad in ads if ad and ad.status != JobStatus.REMOVED]
        queue = [job for job in found if PART.fullmatch(job.part)]
        self.parts = {job.id: job.part for job in queue}
        return queue

    def _job(self, ad: RunAd) -> InvocationJob:
        number = f"{ad.cluster}.{ad.proc}"
        return InvocationJob(
            number, self.parts.get(number) or ad.part, ad.status, ad.records, ad.starts,
            status_seconds=max(0, ad.server_time - ad.status_since), lane=ad.slot, hold_reason=ad.hold_reason,
            last_lane=ad.last_slot, times={name: at for name in TIMES if (at := getattr(ad, name))},
            folder=ad.folder, keep=ad.keep,
        )  # fmt: skip

    def peek(self, job: InvocationJob, ids: Collection[str], start: int = 0) -> OutputContent:
        """Return the output that a job has streamed to the access point so far. The job must not have completed.

        If `start` is 0, the result also has the output that HTCondor has transferred when an earlier start ended.

        If this process can read the job's folder on the access point, it reads only the new part of the output there.
        Otherwise, the whole output is copied from the access point first.

        Args:
            ids: ids of the job's records.
            start: number of bytes of the output that are left out, because they were read before.

        Raises:
            CondorError: the job has its own folder, but not on this machine.
        """
        paths = self.files.outputs(job.part, job.folder)
        if not paths:
            # A running job has no standard error file yet. So the retrieval reports an error, but only after all other
            # files have been copied. This error is ignored.
            with suppress(CondorError):
                self.access_point.retrieve(self.files.retrievable({job.id: job.part}))
        found = self._read((paths or [self.files.retrieved(job.part)])[0], ids, start)
        for path in paths[1:] if start == 0 else ():
            found.add(self._read(path, ids))
        return found

    def gather(self, done: Sequence[InvocationJob], ids: Mapping[str, Collection[str]], store: Store) -> None:
        """Retrieve the results of completed jobs, store them, and then remove the jobs from the queue.

        After an interruption, the next call retrieves the same results again. So `store` must recognise results that it
        has stored before.

        Args:
            ids: a dict from a part's name to the ids of the part's records. A part contains the records of one job.
            store: a function that stores the results. It is called once, with all jobs and their results. If it raises
                an error, the jobs are not removed.
        """
        if not done:
            return
        paths = {job.id: self.files.outputs(job.part, job.folder, completed=True) for job in done}
        if spooled := {job.id: job.part for job in done if not paths[job.id]}:
            self.access_point.retrieve(self.files.retrievable(spooled))
        outputs = ((job, (paths[job.id] or [self.files.retrieved(job.part)])[0]) for job in done)
        # Store the results of all jobs in one call, because each call flushes files to disk.
        store([(job, self._read(path, ids[job.part])) for job, path in outputs])
        self.access_point.remove(any_of(job.id for job in done), "gathered")
        for job in done:
            self.files.remove(job.part, job.folder)

    def _read(self, path: Path, ids: Collection[str], start: int = 0) -> OutputContent:
        found = answers.read(path, ids, self.run.max_result_bytes, self.run.check_result, start)
        if found.too_long and path.parent == self.run.folder:
            path.unlink(missing_ok=True)  # free the disk space immediately
        return found

    def record_ids(self, part: str) -> list[str]:
        """Read the custom_ids of a part's records from the input file of its job, in the order of this file."""
        # Only "\n" ends a line here. Other characters that Python may accept as line ends can be part of a text.
        with suppress(FileNotFoundError), self.files.input(part).open(encoding="utf-8", newline="\n") as lines:
            return [record["custom_id"] for record in map(decoded, lines) if "custom_id" in record]
        return []

    def take_back(self, keep: Mapping[str, int]) -> None:
        """Ask running jobs to give back records that they have not begun.

        Args:
            keep: number of first records that each job is asked to keep, by job number.
        """
        if keep:
            expressions = {job: str(number) for job, number in keep.items()}
            self.access_point.edit(expressions, Job.KEEP, notify_shadow=True)

    def reconsider(self, jobs: Sequence[InvocationJob]) -> None:
        """Raise the priority of a few of `jobs`. After such a change, the access point matches all idle jobs again."""
        if jobs:
            self.access_point.reconsider(any_of(job.id for job in jobs[:MOST_RECONSIDERED]), URGENT)

    def remove(self, jobs: Sequence[InvocationJob], reason: str) -> None:
        """Remove jobs from the queue, and delete their files. The caller has to submit unfinished records again."""
        if jobs:
            self.access_point.remove(any_of(job.id for job in jobs), reason)
            for job in jobs:
                self.files.remove(job.part, job.folder)

    def remove_remains(self, queue: Iterable[InvocationJob]) -> None:
        """Delete the files that remain from killed drivers. Keep the files of the jobs in `queue`."""
        self.files.remove_others({job.part for job in queue})
        if self.files.jobs:
            remove_remains(self.files.jobs, self.access_point)

    def _constraint(self) -> str:
        owner = self.access_point.user.partition("@")[0]  # another user can submit jobs with the same GlideRun
        return f"{Job.RUN} == {quoted(self.run.name)} && Owner == {quoted(owner)}"
