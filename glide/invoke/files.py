"""The files of a run's invocation jobs on this machine.

The run's folder has the driver's copy of each job's input. No node can reach this folder. The other files are in one of
two places:

- If the access point is on this machine and its configuration names a folder GLIDE_JOBS, each job has its own folder
  there. The driver copies the job's input into this folder, and reads the output there.
- Otherwise, the jobs are spooled: HTCondor copies the input to the job's spool directory, and copies the output from
  there to the run's folder. A spooled job starts one second later, because the schedd sleeps for one second after it
  has received the files of a job.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from glide.condor.access_point import quoted
from glide.condor.ports import JobQueue
from glide.vocabulary import Job

PART = re.compile(r"[0-9a-f]{12}")  # valid names of parts; other names are rejected, because a name becomes a file name
REMAINS_SECONDS = 3600.0  # a job's folder is deleted if it is older than this number of seconds and has no job


class JobFiles:
    """The files of a run's jobs. A part is the group of records that one job carries.

    Args:
        folder: the run's folder. It is created if it does not exist.
        jobs: the folder in which each job has its own folder; None if the jobs are spooled.
    """

    def __init__(self, folder: Path, jobs: Path | None):
        self.folder = folder
        self.jobs = jobs
        folder.mkdir(parents=True, exist_ok=True)

    def input(self, part: str) -> Path:
        """Return the path of the driver's copy of a job's input."""
        return self.folder / f"{part}.in"

    def retrieved(self, part: str) -> Path:
        """Return the path to which HTCondor copies a spooled job's output."""
        return self.folder / f"{part}.out"

    def own_folder(self, part: str) -> Path | None:
        """Return the path of a job's own folder; None if new jobs are spooled."""
        return self.jobs / part if self.jobs else None

    def has_own_folder(self, part: str, folder: str) -> bool:
        """Return whether a job is not spooled.

        Args:
            folder: the attribute Iwd of the job's ad.
        """
        return self.jobs is not None and folder == str(self.jobs / part)

    def streamed(self, part: str, folder: str) -> Path | None:
        """Return the path of the output that a job has streamed; None if this process cannot read it.

        Args:
            folder: the attribute Iwd of the job's ad. For a spooled job, this is its spool directory.
        """
        if self.has_own_folder(part, folder):
            return Path(folder) / f"{part}.out"
        spool = Path(folder)
        # The spool directory also has the job's input file, whose name is unique.
        is_spool = folder and spool != self.folder.resolve() and os.access(spool / f"{part}.in", os.R_OK)
        return spool / f"{part}.out" if is_spool else None

    def final(self, part: str, folder: str) -> Path:
        """Return the path of a completed job's output. If the job is spooled, the output must have been retrieved.

        Args:
            folder: the attribute Iwd of the job's ad.
        """
        return Path(folder) / f"{part}.final" if self.has_own_folder(part, folder) else self.retrieved(part)

    def place(self, parts: Iterable[str]) -> None:
        """Copy the inputs of new jobs into the jobs' own folders. Do nothing if the jobs are spooled.

        Raises:
            OSError: a file cannot be copied.
        """
        for part in parts:
            if folder := self.own_folder(part):
                folder.mkdir(mode=0o700)
                shutil.copyfile(self.input(part), folder / f"{part}.in")

    def remove(self, part: str) -> None:
        """Delete all files of a job."""
        for suffix in ("in", "out", "in.err"):
            (self.folder / f"{part}.{suffix}").unlink(missing_ok=True)
        if folder := self.own_folder(part):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_others(self, parts: Collection[str]) -> None:
        """Delete the files that remain from a killed driver. Keep the files of `parts`, whose jobs are in the queue."""
        for path in self.folder.iterdir():
            part = path.name.partition(".")[0]
            if part not in parts:
                path.unlink(missing_ok=True)
                if PART.fullmatch(part):
                    self.remove(part)


def remove_remains(jobs: Path, queue: JobQueue) -> None:
    """Delete the folders of jobs that have left the queue, such as the jobs of killed drivers.

    Args:
        jobs: the folder in which each job has its own folder.

    Raises:
        CondorError: the access point does not answer.
    """
    until = time.time() - REMAINS_SECONDS
    old = []
    for folder in jobs.iterdir():
        with suppress(OSError):
            if PART.fullmatch(folder.name) and folder.stat().st_mtime < until:
                old.append(folder)
    if not old:
        return
    constraint = f"User == {quoted(queue.user)} && {Job.PART} =!= undefined"
    queued = {ad.get(Job.PART) for ad in queue.jobs(constraint, [Job.PART])}
    for folder in old:
        if folder.name not in queued:
            shutil.rmtree(folder, ignore_errors=True)
