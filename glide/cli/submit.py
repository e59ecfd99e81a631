"""glide submit and glide gather: hand-written job files, spooled, and their results."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from glide.condor import AccessPoint, connect
from glide.condor.access_point import read_submit_file
from glide.errors import CondorError, InputError
from glide.vocabulary import LEAVE_IN_QUEUE, Exit, JobStatus

_ATTRIBUTES = ("ProcId", "JobStatus", "HoldReason", "SUBMIT_Iwd", "SUBMIT_TransferOutput", "TransferOutput")


def submit(
    file: Annotated[Path, typer.Argument(help="A condor_submit-style file.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until all jobs have ended.")] = False,
) -> None:
    """Submit a job file, spooled. Example: glide submit invocation.sub --watch"""
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
    cluster = access_point.submit(text, {"leave_in_queue": LEAVE_IN_QUEUE}, spool=True)
    print(cluster)
    if watch:
        _watch(access_point, cluster)


def _watch(access_point: AccessPoint, cluster: int) -> None:
    told = ""
    while True:
        jobs = access_point.jobs(f"ClusterId == {cluster}", _ATTRIBUTES)
        counts = {name: sum(JobStatus.NAMES[job["JobStatus"]] == name for job in jobs) for name in JobStatus.NAMES}
        line = f"cluster {cluster}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if line != told:
            print(line, file=sys.stderr, flush=True)
            told = line
        held = [job for job in jobs if job["JobStatus"] == JobStatus.HELD]
        if held and counts["completed"] + len(held) == len(jobs):
            raise CondorError(f"job {cluster}.{held[0]['ProcId']} is held: {held[0].get('HoldReason', '')}")
        if counts["completed"] == len(jobs):
            return
        time.sleep(0.5)


def gather(
    cluster: Annotated[int, typer.Argument(help="The number that glide submit printed.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the results.")],
) -> None:
    """Bring a cluster's finished results home, each job's once. Example: glide gather 17 --to results

    Jobs leave the queue when their results are in the folder. Exit 3 while some are unfinished: gather again later.
    """
    connect()
    access_point = AccessPoint()
    jobs = access_point.jobs(f"ClusterId == {cluster}", _ATTRIBUTES)
    if not jobs:
        raise InputError(f"no cluster {cluster} in the queue: wrong number, or gathered already")
    done = [job for job in jobs if job["JobStatus"] == JobStatus.COMPLETED]
    to.mkdir(parents=True, exist_ok=True)
    for job in done:
        constraint = f"ClusterId == {cluster} && ProcId == {job['ProcId']}"
        access_point.retrieve(constraint)
        for name in (job.get("SUBMIT_TransferOutput") or job.get("TransferOutput") or "").split(","):
            _bring(Path(job.get("SUBMIT_Iwd", ".")) / name.strip(), to)
        access_point.remove(constraint, "gathered")
    print(f"{len(done)} of {len(jobs)} jobs gathered into {to}")
    if len(done) < len(jobs):
        raise typer.Exit(Exit.RECORD_ERRORS)


def _bring(source: Path, folder: Path) -> None:
    target = folder / source.name
    if source.is_file() and source.resolve() != target.resolve():
        shutil.move(source, target)
