"""glide submit and glide gather: hand-written job files, spooled, and their results."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from glide.condor import AccessPoint, connect
from glide.condor.access_point import read_submit_file, value
from glide.condor.names import printable
from glide.errors import CondorError, InputError
from glide.invoke.gather import Gatherer
from glide.vocabulary import LEAVE_IN_QUEUE, Exit, Job, JobStatus

UPLOAD_SECONDS = 6 * 3600.0  # a job may bring many gigabytes


def submit(
    file: Annotated[Path, typer.Argument(help="A condor_submit-style file.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until all jobs have ended.")] = False,
) -> None:
    """Submit a job file, spooled. Example: glide submit invocation.sub --watch

    Completed jobs stay in the queue until glide gather brings their outputs, and at most 30 days.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    connect()
    try:
        text = read_submit_file(file)
    except CondorError as error:
        raise InputError(str(error)) from None
    file = file.absolute()
    os.chdir(file.parent)  # a job file's relative paths are relative to it
    access_point = AccessPoint()
    folder = value(str(file.parent)).replace("$", "$(DOLLAR)")
    macros = {"leave_in_queue": LEAVE_IN_QUEUE, f"My.{Job.FOLDER}": folder}
    cluster = access_point.submit(text, macros, spool=True, seconds=UPLOAD_SECONDS)
    print(cluster)
    if watch:
        _watch(access_point, cluster)


def _watch(access_point: AccessPoint, cluster: int) -> None:
    told = ""
    while True:
        jobs = access_point.jobs(f"ClusterId == {cluster}", ["ProcId", "HoldReason"])
        counts = {name: sum(JobStatus.NAMES[job["JobStatus"]] == name for job in jobs) for name in JobStatus.NAMES}
        line = f"cluster {cluster}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if line != told:
            print(line, file=sys.stderr, flush=True)
            told = line
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
    """Bring a cluster's finished results home, each job's once. Example: glide gather 17 --to results

    All that HTCondor brings is brought: the files that the job file lists (or new files, if it lists none), output,
    error and log. A job's files keep their names and go into a folder named like its initialdir, if that is not the
    job file's own folder. Nothing is overwritten: a file whose name several jobs list, or that is there already, goes
    into a folder of its job, CLUSTER.PROC. The events of jobs that share a log are in one log.

    Jobs leave the queue when their results are on disk. Exit 3 while some are unfinished: gather again later. Exit 1
    if a job's outputs could not be brought: the job stays in the queue, and the others are gathered.
    """
    connect()
    access_point = AccessPoint()
    if not access_point.jobs(f"ClusterId == {cluster}", ["ProcId"], limit=1):
        raise InputError(f"no cluster {cluster} in the queue: wrong number, or gathered already")
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
