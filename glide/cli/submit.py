"""glide submit and glide gather: submit hand-written job files with spooling, and fetch their results."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from glide.condor import AccessPoint, connect
from glide.condor.access_point import job_file_value, read_submit_file
from glide.errors import CondorError, InputError
from glide.invoke.gather import Gatherer
from glide.protocol.names import printable
from glide.vocabulary import LEAVE_IN_QUEUE, Exit, Job, JobStatus

UPLOAD_SECONDS = 6 * 3600.0  # time limit for uploading input files, in seconds; jobs may have many gigabytes of input


def submit(
    file: Annotated[Path, typer.Argument(help="A condor_submit-style file.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until all jobs have ended.")] = False,
) -> None:
    """Submit a job file with spooling, and print the cluster id. Example: glide submit invocation.sub --watch

    A completed job stays in the queue until `glide gather` fetches its outputs. After 30 days without `glide gather`,
    the job leaves the queue, and its outputs are lost.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    connect()
    try:
        text = read_submit_file(file)
    except CondorError as error:
        raise InputError(str(error)) from None
    file = file.absolute()
    os.chdir(file.parent)  # relative paths in a job file are relative to its folder
    access_point = AccessPoint()
    folder = job_file_value(str(file.parent)).replace("$", "$(DOLLAR)")
    macros = {"leave_in_queue": LEAVE_IN_QUEUE, f"My.{Job.FOLDER}": folder}
    cluster = access_point.submit(text, macros, spool=True, seconds=UPLOAD_SECONDS)
    print(cluster)
    if watch:
        _watch(access_point, cluster)


def _watch(access_point: AccessPoint, cluster: int) -> None:
    shown = ""
    while True:
        jobs = access_point.jobs(f"ClusterId == {cluster}", ["ProcId", "HoldReason"])
        counts = {name: sum(JobStatus.NAMES[job["JobStatus"]] == name for job in jobs) for name in JobStatus.NAMES}
        line = f"cluster {cluster}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if line != shown:
            print(line, file=sys.stderr, flush=True)
            shown = line
        held = [job for job in jobs if job["JobStatus"] == JobStatus.HELD]
        if held and counts["completed"] + len(held) == len(jobs):
            why = printable(str(held[0].get("HoldReason", "")))
            raise CondorError(f"job {cluster}.{held[0]['ProcId']} is held: {why}")
        if counts["completed"] == len(jobs):
            return
        time.sleep(0.5)


def gather(
    cluster: Annotated[int, typer.Argument(help="The number that glide submit printed.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the results.")],
) -> None:
    """Fetch the outputs of a cluster's completed jobs. Example: glide gather 17 --to results

    The command fetches the output, error and log files of each job. It also fetches the files that the job file lists
    in transfer_output_files. Without such a list, it fetches all files that the job has created.

    Each file keeps its name, and goes into the folder that --to names. A job may have an initialdir that is not the
    folder of the job file. The files of such a job go into a subfolder with the initialdir's name. Jobs that share a
    log get one common log.

    No file is overwritten. If a file with the same name exists already, the new file goes into a subfolder. The name of
    the subfolder is the id of the file's job (CLUSTER.PROC). If several jobs list a file with the same name, the file
    of each job goes into the subfolder of this job.

    A job leaves the queue when its outputs are on disk. Exit 3: some jobs have not completed; gather again later.
    Exit 1: the outputs of a job could not be fetched. That job stays in the queue, and all other jobs are gathered.
    """
    connect()
    access_point = AccessPoint()
    if not access_point.jobs(f"ClusterId == {cluster}", ["ProcId"], limit=1):
        raise InputError(f"no cluster {cluster} in the queue: the number is wrong, or this cluster is gathered already")
    failed: list[str] = []

    def report(job: str, cause: str) -> None:
        failed.append(job)
        print(f"job {job} is not gathered and stays in the queue: {cause}", file=sys.stderr, flush=True)

    try:
        gatherer = Gatherer(access_point, cluster, to, report)
    except OSError as error:
        raise InputError(f"{to} cannot be written: {error}") from None
    try:
        gathered, statuses = gatherer.run()
    finally:
        gatherer.close()
    print(f"{len(gathered)} of {len(statuses)} jobs gathered into {to}")
    if failed:
        raise typer.Exit(Exit.FAILED)
    if left := Counter(JobStatus.NAMES[status] for status in statuses if status != JobStatus.COMPLETED):
        print(f"unfinished: {', '.join(f'{count} {name}' for name, count in left.items())}", file=sys.stderr)
        raise typer.Exit(Exit.RECORD_ERRORS)
