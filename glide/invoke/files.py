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

import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from glide.condor.access_point import any_of, either, quoted
from glide.condor.ports import JobQueue
from glide.errors import CondorError
from glide.vocabulary import Job

PART = re.compile(r"[0-9a-f]{12}")  # valid names of parts; other names are rejected, because a name becomes a file name
# If a job's ad has one of these attributes, a retrieval may write outside the run's folder. Spooling adds the prefix
# SUBMIT_ to such an attribute, so the list has names with this prefix and names without it.
ELSEWHERE = (
    "SUBMIT_TransferOutput", "SUBMIT_TransferOutputRemaps", "SUBMIT_UserLog", "SUBMIT_OutputDestination",
    "TransferOutputRemaps", "UserLog", "OutputDestination",
)  # fmt: skip
_log = logging.getLogger("glide")
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

    def new_folder(self, part: str) -> Path | None:
        """Return the path of the folder that a new job gets; None if new jobs are spooled."""
        return self.jobs / part if self.jobs else None

    def outputs(self, part: str, folder: str, completed: bool = False) -> list[Path]:
        """Return the paths of a job's output on the access point. A file that comes first has the newer content.

        The result is empty if this process cannot read them. Then HTCondor must copy the output to this machine.

        Args:
            folder: the attribute Iwd of the job's ad.
            completed: whether the job has completed.

        Raises:
            CondorError: the job has its own folder, but not on this machine.
        """
        if own := own_folder(part, folder):
            if not own.parent.is_dir():
                raise CondorError(f"no folder {own.parent}; run glide on the machine of the access point, as before")
            # HTCondor has written the second file if an earlier start of the job has ended.
            streamed, final = own / f"{part}.out", own / f"{part}.final"
            return [final] if completed and final.exists() else [streamed, final]
        spool = Path(folder)
        # The spool directory also has the job's input file, whose name is unique.
        is_spool = folder and spool != self.folder.resolve() and os.access(spool / f"{part}.in", os.R_OK)
        return [spool / f"{part}.out"] if is_spool and not completed else []

    def retrievable(self, parts: Mapping[str, str]) -> str:
        """Return a constraint that selects spooled jobs, but only those whose outputs go to the run's folder.

        A retrieval writes to the paths in the job's ad, and code on a node can change the ad with chirp's set_job_attr.
        So the constraint does not match a job whose ad has different paths.

        Args:
            parts: the parts of the jobs, by job number.
        """
        own_outputs = either([
            f"({any_of([job])} && TransferOutput =?= {quoted(f'{part}.out')})" for job, part in parts.items()
        ])  # fmt: skip
        to_run = f"SUBMIT_Iwd =?= {quoted(str(self.folder.resolve()))}"
        return " && ".join([own_outputs, to_run, *(f"{name} =?= undefined" for name in ELSEWHERE)])

    def place(self, parts: Iterable[str]) -> None:
        """Copy the inputs of new jobs into the jobs' own folders. Do nothing if the jobs are spooled.

        Raises:
            OSError: a file cannot be copied.
        """
        for part in parts:
            if folder := self.new_folder(part):
                folder.mkdir(mode=0o700)
                shutil.copyfile(self.input(part), folder / f"{part}.in")

    def remove(self, part: str, folder: str = "") -> None:
        """Delete all files of a job.

        Args:
            folder: the attribute Iwd of the job's ad; empty for a new job.
        """
        for suffix in ("in", "out", "in.err"):
            (self.folder / f"{part}.{suffix}").unlink(missing_ok=True)
        if own := own_folder(part, folder) or self.new_folder(part):
            delete_folder(own)

    def remove_others(self, parts: Collection[str]) -> None:
        """Delete the files that remain from a killed driver. Keep the files of `parts`, whose jobs are in the queue."""
        for path in self.folder.iterdir():
            part = path.name.partition(".")[0]
            if part not in parts:
                path.unlink(missing_ok=True)
                if PART.fullmatch(part):
                    self.remove(part)


def own_folder(part: str, folder: str) -> Path | None:
    """Return the path of a job's own folder; None if the job is spooled.

    The job's ad tells which of both is true, because GLIDE_JOBS may have changed since the job was submitted.

    Args:
        folder: the attribute Iwd of the job's ad. The name of a spool directory is not the name of a part.
    """
    return Path(folder) if folder and Path(folder).name == part else None


def delete_folder(folder: Path) -> None:
    """Delete a job's folder, in which code on a node may have created any files and folders. Follow no links."""
    for path, names, _ in os.walk(folder):
        for name in names:  # without these rights, the folder could not be emptied
            with suppress(OSError):
                if not (inner := Path(path, name)).is_symlink():
                    inner.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.warning("%s cannot be deleted; delete it yourself", folder)


def remove_remains(jobs: Path, queue: JobQueue) -> None:
    """Delete the folders of jobs that have left the queue, such as the jobs of killed drivers.

    Args:
        jobs: the folder in which each job has its own folder. No other access point uses it.

    Raises:
        CondorError: the access point does not answer.
    """
    until = time.time() - REMAINS_SECONDS
    old = []
    for folder in jobs.iterdir():
        with suppress(OSError):
            if PART.fullmatch(folder.name) and folder.stat().st_mtime < until:
                old.append(folder)
    if old:
        queued = {ad.get(Job.PART) for ad in queue.jobs(f"{Job.PART} =!= undefined", [Job.PART])}
        for folder in old:
            if folder.name not in queued:
                delete_folder(folder)
