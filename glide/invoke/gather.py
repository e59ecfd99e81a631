"""Bring the outputs of spooled jobs into a folder of results; never over a file that is there.

HTCondor's client writes outputs where a job's ad says, over whatever lies there. So the ad is first made to name a
staging folder in the folder of results, and the job is retrieved into that. When it is complete and on disk, the
staging folder is renamed to `.glide-gather/JOB-TIME`. Then each file is linked to its place, the places are flushed to
disk, and the job leaves the queue. After an interruption at any moment the next run goes on from what it finds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from glide.condor import AccessPoint
from glide.condor.access_point import quoted
from glide.errors import CondorError, GlideError, InputError
from glide.invoke.outputs import ATTRIBUTES, Outputs, named_twice, outputs
from glide.system import open_regular, sync_folder
from glide.vocabulary import LEAVE_IN_QUEUE, Job, JobStatus

STAGING = ".glide-gather"
LARGEST_LOG = 64 << 20  # bytes of events of one job; HTCondor writes some thousands
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # what file systems without hard links answer


class Gatherer:
    """Gathers one cluster's jobs.

    Args:
        to: the folder of results; made if it does not exist.
        failed: is called with a job's number and the cause, for each job that could not be gathered.

    Raises:
        InputError: another process gathers into this folder.
        OSError: the folder cannot be written.
    """

    def __init__(self, access_point: AccessPoint, cluster: int, to: Path, failed: Callable[[str, str], None]):
        self.access_point = access_point
        self.cluster = cluster
        self.to = to.absolute()
        self.failed = failed
        self.staging = self.to / STAGING
        self.staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock = os.open(self.staging, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        if os.fstat(self.lock).st_uid != os.geteuid() or os.fstat(self.lock).st_mode & 0o077:
            raise InputError(f"{self.staging} must be a folder of this account alone (0700): move it away")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another glide gather is at work in {to}: wait for it, or use another folder") from None
        self.apart: set[str] = set()  # names that are in jobs' own folders

    def close(self) -> None:
        """Remove what is empty of the staging folder, and let others gather here."""
        for folder in (*self.staging.iterdir(), self.staging):
            with suppress(OSError):  # not empty
                folder.rmdir()
        os.close(self.lock)

    def run(self) -> tuple[list[str], list[int]]:
        """Gather all completed jobs; return those gathered, and the status of each that was in the queue.

        Raises:
            InputError: the jobs are a sweep's.
            CondorError: the access point does not answer.
            GlideError: the folder cannot be written.
        """
        ads = self.access_point.jobs(f"ClusterId == {self.cluster}", ATTRIBUTES)
        if any(ad.get(Job.RUN) for ad in ads):
            raise InputError(f"cluster {self.cluster} belongs to a sweep, which gathers it itself")
        jobs = [outputs(ad) for ad in sorted(ads, key=lambda ad: int(ad["ProcId"]))]
        done = {f"{ad['ClusterId']}.{ad['ProcId']}" for ad in ads if ad["JobStatus"] == JobStatus.COMPLETED}
        self.apart = named_twice(jobs) | set(self._names_apart())
        gathered = []
        for job in jobs:
            if job.job in done and self._gather(job):
                gathered.append(job.job)
        return gathered, [ad["JobStatus"] for ad in ads]

    def _gather(self, job: Outputs) -> bool:
        """Bring one job's outputs, and take it out of the queue; return whether that was possible."""
        ready = self.staging / f"{job.job}-{job.submitted}"
        resumed = ready.is_dir()
        if job.problem:
            self.failed(job.job, job.problem)
            return False
        try:
            if not resumed:
                try:
                    self._retrieve(job, ready)
                except CondorError as error:
                    self.failed(job.job, str(error))
                    return False
            for folder in self._place(job, ready, resumed):
                sync_folder(folder)
        except OSError as error:
            raise GlideError(f"job {job.job} stays in the queue, as its outputs cannot be written: {error}") from None
        self.access_point.remove(_constraint(job), "gathered")
        shutil.rmtree(ready, ignore_errors=True)
        return True

    # ---- from the access point to the staging folder ----

    def _retrieve(self, job: Outputs, ready: Path) -> None:
        """Retrieve a job's outputs into a folder of ours, and give it its name when it is complete and on disk."""
        partial = self.staging / f"{job.job}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        for target in job.remaps.values():
            (partial / target).parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._point(job, partial):
                self._retrieve_into(job, partial)
            else:
                self._retrieve_by_way_of(job, Path(job.initial_dir), partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for path in _inside(partial):
            _settle(path)
        sync_folder(partial)
        partial.rename(ready)
        sync_folder(self.staging)

    def _retrieve_into(self, job: Outputs, folder: Path) -> None:
        """Retrieve a job's outputs, of which the ad names this folder."""
        try:
            self.access_point.retrieve(_constraint(job))
            pointed = self.access_point.jobs(_constraint(job), ["SUBMIT_Iwd"])
            if [ad.get("SUBMIT_Iwd") for ad in pointed] != [str(folder)]:
                raise CondorError("another glide gather takes its outputs just now")
        except BaseException:
            with suppress(CondorError):  # for condor_transfer_data
                self.access_point.edit(job.job, "SUBMIT_Iwd", quoted(job.initial_dir))
            raise

    def _retrieve_by_way_of(self, job: Outputs, home: Path, folder: Path) -> None:
        """Retrieve a job's outputs into the folder that it was submitted from, where none of them may be yet."""
        places = [(home / name, folder / name) for name in dict.fromkeys(job.brought)]
        if not job.plain:
            raise CondorError("it has outputs that belong elsewhere: use condor_transfer_data")
        if taken := [str(place) for place, _ in places if os.path.lexists(place)]:
            raise CondorError(f"this access point can only bring it by way of {home}: move {', '.join(taken)} away")
        try:
            self.access_point.retrieve(_constraint(job))
        finally:
            for place, target in places:
                if os.path.lexists(place):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(place, target)

    def _point(self, job: Outputs, folder: Path) -> bool:
        """Have HTCondor's client write a job's outputs into a folder; return whether the access point allows it.

        No node changes the ad of a completed job. What its owner may not change (PROTECTED_JOB_ATTRS) no node has
        changed before, as nodes act in the owner's name.
        """
        attributes = {
            "LeaveJobInQueue": LEAVE_IN_QUEUE,  # condor_submit's own expression ends with the first retrieval
            "SUBMIT_TransferOutputRemaps": quoted(job.remap_text),
            "SUBMIT_UserLog": quoted(PurePosixPath(job.log).name),  # where it goes is a remap
            "SUBMIT_Iwd": quoted(str(folder)),
        }
        self.access_point.edit(job.job, Job.INITIAL_DIR, quoted(job.initial_dir))
        protected = set()
        for attribute, expression in attributes.items():
            try:
                self.access_point.edit(job.job, attribute, expression)
            except CondorError as error:
                if not re.search("(protected|immutable) attribute", str(error)):
                    raise
                protected.add(attribute)
        return not protected - {"LeaveJobInQueue"}

    # ---- from there to where they belong ----

    def _place(self, job: Outputs, ready: Path, resumed: bool) -> set[Path]:
        """Link a job's outputs to their places; return the folders that have changed."""
        changed: set[Path] = set()
        for source in _inside(ready):
            name = source.relative_to(ready)
            for target in self._targets(job, PurePosixPath(name)):
                if _is_folder(source):
                    placed = self._folder(target, changed)
                else:
                    placed = self._folder(target.parent, changed) and (
                        (str(name) == job.log and self._append(source, target, resumed)) or _link(source, target)
                    )
                if placed:
                    changed.add(target.parent)
                    break
        return changed

    def _targets(self, job: Outputs, name: PurePosixPath) -> Iterator[Path]:
        """Yield where a job's file may go, the best place first: its own name, then that in the job's own folder."""
        path = job.folder / name
        clashes = str(name) != job.log and any(str(each) in self.apart for each in (path, *path.parents))
        if not clashes and path.parts[0] != STAGING:
            yield self.to / path
        self.apart.add(str(path))
        yield self.to / job.job / path
        for number in range(2, 1 << 30):
            yield self.to / f"{job.job}-{number}" / path

    def _names_apart(self) -> Iterator[str]:
        for folder in self.to.iterdir():
            if re.fullmatch(rf"{self.cluster}\.\d+(-\d+)?", folder.name) and _is_folder(folder):
                yield from (str(path.relative_to(folder)) for path in _inside(folder) if not _is_folder(path))

    def _folder(self, folder: Path, changed: set[Path]) -> bool:
        """Make a folder and those above it; return whether they are folders: a link may lead anywhere."""
        here = self.to
        for name in folder.relative_to(self.to).parts:
            try:
                (here / name).mkdir()
                changed.update((here, here / name))
            except FileExistsError:
                if not stat.S_ISDIR((here / name).lstat().st_mode):
                    return False
            here /= name
        return True

    def _append(self, source: Path, target: Path, resumed: bool) -> bool:
        """Add a job's events to the log that the cluster's jobs share; return whether there is one."""
        if source.stat().st_size > LARGEST_LOG:
            return False
        try:
            descriptor = os.open(target, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        with open(descriptor, "rb+") as log:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not re.match(
                rb"\d+ \(0*%d\." % self.cluster, log.read(64)
            ):
                return False
            events = source.read_bytes()
            log.seek(0)
            if not resumed or events not in log.read():  # or the last run was interrupted right after it
                log.write(events)
                log.flush()
                os.fsync(descriptor)
        source.unlink()
        return True


def _constraint(job: Outputs) -> str:
    cluster, _, proc = job.job.partition(".")
    return f"ClusterId == {cluster} && ProcId == {proc}"


def _inside(folder: Path) -> Iterator[Path]:
    """All files and folders in a folder, each folder before what is in it; links are not followed."""
    for path in sorted(folder.iterdir()):
        descend = _is_folder(path)
        yield path  # which may be moved now
        if descend:
            yield from _inside(path)


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _settle(path: Path) -> None:
    """Give a file or folder that a node has made the permissions of an ordinary one, and flush it to disk."""
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode):
        path.chmod(stat.S_IMODE(mode) & 0o777 | (0o700 if stat.S_ISDIR(mode) else 0o600))
    if stat.S_ISDIR(mode):
        sync_folder(path)
    elif stat.S_ISREG(mode):
        with open_regular(path) as file:
            os.fsync(file.fileno())


def _link(source: Path, target: Path) -> bool:
    """Move a file to a name, unless something has that name."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        if not os.path.samestat(
            source.lstat(), target.lstat()
        ):  # which the last run had linked when it was interrupted
            return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            return False
        source.rename(target)
        return True
    source.unlink()
    return True
