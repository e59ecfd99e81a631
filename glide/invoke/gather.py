"""Retrieve the outputs of spooled jobs into a folder of results, without overwriting a file there.

HTCondor's client writes outputs to the paths in a job's ad, and overwrites existing files there. So the outputs of a
job are gathered in these steps:

1. Change the job's ad so that its paths name a staging folder inside the folder of results.
2. Retrieve the outputs into the staging folder.
3. When the outputs are complete and on disk, rename the staging folder to `.glide-gather/JOB-TIME`. TIME is the time of
   the job's submission.
4. Link each file to its final place, and flush the changed folders to disk.
5. Remove the job from the queue.

After an interruption, the next run continues with step 4 if `.glide-gather/JOB-TIME` exists. If this folder does not
exist, the next run begins again with step 1.
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
from glide.invoke.outputs import ATTRIBUTES, Outputs, outputs, shared_names
from glide.system import open_regular, sync_folder
from glide.vocabulary import LEAVE_IN_QUEUE, Job, JobStatus

STAGING = ".glide-gather"
LARGEST_LOG = 64 << 20  # maximum size of one job's event log, in bytes; an ordinary log has a few thousand bytes
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # errors that mean: no hard link is possible


class Gatherer:
    """Gather the outputs of one cluster's jobs.

    Args:
        to: the folder of results. It is created if it does not exist.
        failed: a function that is called for each job that cannot be gathered. Its arguments are the job's number and
            the cause.

    Attributes:
        names_in_job_folders: names of files that go into folders named after jobs. A name is in this set in two cases:
            - Several jobs have a file with this name.
            - An earlier run has put a file with this name into a folder named after a job.

    Raises:
        InputError: another process gathers into this folder, or another account has access to the staging folder.
        OSError: the folder of results cannot be written.
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
            raise InputError(f"{self.staging} must belong to this account alone, with mode 0700; move it away")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another `glide gather` uses {to}; wait until it ends, or use another folder") from None
        self.names_in_job_folders: set[str] = set()

    def close(self) -> None:
        """Remove the empty staging folders, and release the lock."""
        for folder in (*self.staging.iterdir(), self.staging):
            with suppress(OSError):  # the folder is not empty
                folder.rmdir()
        os.close(self.lock)

    def run(self) -> tuple[list[str], list[int]]:
        """Gather all completed jobs of the cluster.

        Returns:
            The numbers of the gathered jobs, and the JobStatus that each job of the cluster had before the gathering.

        Raises:
            InputError: the jobs belong to a sweep or session.
            CondorError: the access point does not answer.
            GlideError: the folder cannot be written.
        """
        ads = self.access_point.jobs(f"ClusterId == {self.cluster}", ATTRIBUTES)
        if any(ad.get(Job.RUN) for ad in ads):
            raise InputError(f"cluster {self.cluster} belongs to a sweep or session, which gathers its jobs itself")
        jobs = [outputs(ad) for ad in sorted(ads, key=lambda ad: int(ad["ProcId"]))]
        done = {f"{ad['ClusterId']}.{ad['ProcId']}" for ad in ads if ad["JobStatus"] == JobStatus.COMPLETED}
        self.names_in_job_folders = shared_names(jobs) | set(self._names_in_job_folders())
        gathered = []
        for job in jobs:
            if job.id in done and self._gather(job):
                gathered.append(job.id)
        return gathered, [ad["JobStatus"] for ad in ads]

    def _gather(self, job: Outputs) -> bool:
        """Gather one job's outputs, and remove the job from the queue. Return False if the retrieval fails."""
        staged = self.staging / f"{job.id}-{job.submitted}"
        resumed = staged.is_dir()
        if job.problem:
            self.failed(job.id, job.problem)
            return False
        try:
            if not resumed:
                try:
                    self._retrieve(job, staged)
                except CondorError as error:
                    self.failed(job.id, str(error))
                    return False
            for folder in self._place(job, staged, resumed):
                sync_folder(folder)
        except OSError as error:
            raise GlideError(
                f"outputs of job {job.id} cannot be written: {error}; the job stays in the queue"
            ) from None
        self.access_point.remove(_constraint(job), "gathered")
        shutil.rmtree(staged, ignore_errors=True)
        return True

    # ---- from the access point to the staging folder ----

    def _retrieve(self, job: Outputs, staged: Path) -> None:
        """Retrieve a job's outputs into a temporary folder. When they are on disk, rename this folder to `staged`."""
        partial = self.staging / f"{job.id}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        for target in job.remaps.values():
            (partial / target).parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._redirect(job, partial):
                self._retrieve_into(job, partial)
            else:
                self._retrieve_via_submit_folder(job, Path(job.initial_dir), partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for path in _inside(partial):
            _sync_with_permissions(path)
        sync_folder(partial)
        partial.rename(staged)
        sync_folder(self.staging)

    def _retrieve_into(self, job: Outputs, folder: Path) -> None:
        """Retrieve a job's outputs into `folder`. The job's ad must already name this folder."""
        try:
            self.access_point.retrieve(_constraint(job))
            pointed = self.access_point.jobs(_constraint(job), ["SUBMIT_Iwd"])
            if [ad.get("SUBMIT_Iwd") for ad in pointed] != [str(folder)]:
                raise CondorError("another `glide gather` is retrieving the outputs of this job; try again later")
        except BaseException:
            with suppress(CondorError):  # restore the job's own path, so that condor_transfer_data works
                self.access_point.edit({job.id: quoted(job.initial_dir)}, "SUBMIT_Iwd")
            raise

    def _retrieve_via_submit_folder(self, job: Outputs, home: Path, folder: Path) -> None:
        """Retrieve a job's outputs into `home`, where the job was submitted, and move the outputs to `folder`.

        Raises:
            CondorError: `home` already has a file with the name of an output, and HTCondor would overwrite this file.
        """
        places = [(home / name, folder / name) for name in dict.fromkeys(job.retrieved)]
        if not job.remaps_unchanged:
            raise CondorError("a remap leads out of the job's folder; retrieve the outputs with condor_transfer_data")
        if existing := [str(place) for place, _ in places if os.path.lexists(place)]:
            raise CondorError(
                f"outputs can be retrieved only into {home} and would overwrite files; move {', '.join(existing)} away"
            )
        try:
            self.access_point.retrieve(_constraint(job))
        finally:
            for place, target in places:
                if os.path.lexists(place):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(place, target)

    def _redirect(self, job: Outputs, folder: Path) -> bool:
        """Change a completed job's ad so that HTCondor's client writes the outputs into `folder`.

        If the access point protects a path in the ad from changes (PROTECTED_JOB_ATTRS), return False. No node can
        change a protected path. So a protected path is still the path that the user has chosen.

        A completed job runs on no node. So no node can change the ad after this function.
        """
        attributes = {
            "LeaveJobInQueue": LEAVE_IN_QUEUE,  # the job stays in the queue after a retrieval
            "SUBMIT_TransferOutputRemaps": quoted(job.remap_text),
            "SUBMIT_UserLog": quoted(PurePosixPath(job.log).name),  # the log's name; its folder is in `job.remap_text`
            "SUBMIT_Iwd": quoted(str(folder)),
        }
        self.access_point.edit({job.id: quoted(job.initial_dir)}, Job.INITIAL_DIR)
        protected = set()
        for attribute, expression in attributes.items():
            try:
                self.access_point.edit({job.id: expression}, attribute)
            except CondorError as error:
                if not re.search("(protected|immutable) attribute", str(error)):
                    raise
                protected.add(attribute)
        return not protected - {"LeaveJobInQueue"}

    # ---- from the staging folder to the final places ----

    def _place(self, job: Outputs, staged: Path, resumed: bool) -> set[Path]:
        """Link a job's outputs to their final places. Return the folders that have changed.

        Args:
            resumed: whether an interrupted run retrieved these outputs. That run may also have placed some of them.
        """
        changed: set[Path] = set()
        for source in _inside(staged):
            name = source.relative_to(staged)
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
        """Yield the possible places for a file, the best place first.

        The best place is the path that the job's ad names. It is skipped if it is ambiguous or inside the staging
        folder. All other places are inside folders that are named after the job.
        """
        path = job.folder / name
        clashes = str(name) != job.log and any(str(each) in self.names_in_job_folders for each in (path, *path.parents))
        if not clashes and path.parts[0] != STAGING:
            yield self.to / path
        self.names_in_job_folders.add(str(path))
        yield self.to / job.id / path
        for number in range(2, 1 << 30):
            yield self.to / f"{job.id}-{number}" / path

    def _names_in_job_folders(self) -> Iterator[str]:
        """Yield the names of the files that earlier runs have put into folders named after jobs."""
        for folder in self.to.iterdir():
            if re.fullmatch(rf"{self.cluster}\.\d+(-\d+)?", folder.name) and _is_folder(folder):
                yield from (str(path.relative_to(folder)) for path in _inside(folder) if not _is_folder(path))

    def _folder(self, folder: Path, changed: set[Path]) -> bool:
        """Create a folder and its parents inside `to`. Return False if a file or a link is in the way.

        Args:
            changed: a set of folders. Each created folder and its parent are added to this set.
        """
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
        """Append a job's events to the event log that the cluster's jobs share.

        Return False if `target` is not an event log of this cluster, or if the job's log is too large.

        Args:
            source: the job's log in the staging folder. It is deleted after its events have been appended.
            resumed: whether an interrupted run may already have appended the events.
        """
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
            if not resumed or events not in log.read():  # an interrupted run may already have appended the events
                log.write(events)
                log.flush()
                os.fsync(descriptor)
        source.unlink()
        return True


def _constraint(job: Outputs) -> str:
    cluster, _, proc = job.id.partition(".")
    return f"ClusterId == {cluster} && ProcId == {proc}"


def _inside(folder: Path) -> Iterator[Path]:
    """Yield all files and folders below a folder, each folder before its content. Do not follow links."""
    for path in sorted(folder.iterdir()):
        descend = _is_folder(path)
        yield path  # the caller may move `path`, so call `_is_folder` before `yield`
        if descend:
            yield from _inside(path)


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _sync_with_permissions(path: Path) -> None:
    """Give a retrieved file or folder ordinary permissions, and flush it to disk.

    The owner gets read and write access. Special bits such as setuid are removed, because a node may have set them.
    """
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode):
        path.chmod(stat.S_IMODE(mode) & 0o777 | (0o700 if stat.S_ISDIR(mode) else 0o600))
    if stat.S_ISDIR(mode):
        sync_folder(path)
    elif stat.S_ISREG(mode):
        with open_regular(path) as file:
            os.fsync(file.fileno())


def _link(source: Path, target: Path) -> bool:
    """Move a file to `target`. If another file already has this name, move nothing and return False."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        # An interrupted run may already have linked this file to `target`.
        if not os.path.samestat(source.lstat(), target.lstat()):
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
