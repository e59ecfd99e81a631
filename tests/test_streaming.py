"""What is streamed to the access point while a job runs, and what becomes of it when things go wrong there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glide.condor import AccessPoint, EmbeddedPool, install
from glide.condor.access_point import job_file_value
from glide.glidein.configuration import ANY_PROGRAM
from glide.invoke.requirements import REQUIREMENTS
from glide.protocol.json_lines import read_results
from glide.template import Template
from glide.vocabulary import Exit, Job, JobStatus
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, entry

pytestmark = pytest.mark.pool

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = (ROOT / "submit_templates" / "invocation.sub").read_text()
TEMPLATE = Template("streaming", "noop", options={"record_seconds": 0.005})


@pytest.fixture
def submit(factory: Path, access_point: AccessPoint, tmp_path: Path):
    """Submit a job with these records and other settings; how it fares is asked by its cluster's number."""
    clusters = []

    def submit(records: list[dict[str, Any]], **changes: str) -> int:
        (tmp_path / "records-0.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        macros = {
            "digest": TEMPLATE.digest, "model": TEMPLATE.model, "initialdir": str(tmp_path),
            "leave_in_queue": f"JobStatus == {JobStatus.COMPLETED}",
            f"My.{Job.SPEC}": job_file_value(TEMPLATE.to_json()), f"My.{Job.WANTED}": "1", **changes,
        }  # fmt: skip
        clusters.append(access_point.submit(DESCRIPTION, macros, spool=True))
        return clusters[-1]

    yield submit
    for cluster in clusters:
        access_point.remove(f"ClusterId == {cluster}", "the test is over")


@pytest.fixture
def becomes(access_point: AccessPoint) -> Callable[[int, int], dict[str, Any]]:
    """Wait until a job is held or completed, whichever it is to be."""

    def becomes(cluster: int, status: int) -> dict[str, Any]:
        def settled() -> dict[str, Any] | None:
            (job,) = access_point.jobs(f"ClusterId == {cluster}", ["HoldReason", "NumJobStarts"])
            return job if job["JobStatus"] in (JobStatus.HELD, JobStatus.COMPLETED) else None

        job = eventually(settled, f"job {cluster} is held or completed")
        assert job["JobStatus"] == status, job
        return job

    return becomes


def results_of(cluster: int, access_point: AccessPoint, folder: Path) -> list[dict[str, Any]]:
    access_point.retrieve(f"ClusterId == {cluster}")
    return list(read_results(folder / "result-0.jsonl"))


def records(count: int) -> list[dict[str, Any]]:
    return [{"custom_id": f"r{number}", "prompt": f"text {number}"} for number in range(count)]


@pytest.fixture
def open_lanes(factory: Path, tmp_path: Path) -> Iterator[str]:
    """The name of an entry whose lanes run any program; other lanes run tickets alone."""
    process = FactoryProcess(tmp_path, "opening", entry("open", knobs=ANY_PROGRAM))
    process.start("--drain")
    yield "open"
    process.stop()


def test_restarted_job_recomputes_incompletely_streamed_results(
    submit, becomes, open_lanes: str, access_point: AccessPoint, tmp_path: Path
):
    """The first start leaves what one that was killed in the middle of an append may leave, and finds no server."""
    earlier = {"text": "text 0", "tokens": 0, "error": None, "seconds": 0.0, "glidein": "lost", "attempts": 1}
    whole = json.dumps({"custom_id": "r0", **earlier})
    (tmp_path / "streamed").write_text(f'{whole}\n{{"begun": 3}}\n{whole}\n' + whole.replace("r0", "r1")[:50])
    installation = install.find()
    assert installation is not None
    client = tmp_path / "client.sh"
    client.write_text(
        f"""#!/bin/sh
        grep -q '^NumJobStarts = 0' "$_CONDOR_JOB_AD" || exec {ROOT}/glide/invoke/ticket.sh "$@"
        {installation.paths()["LIBEXEC"]}/condor_chirp put -mode cwa {tmp_path}/streamed "$2" || exit {Exit.INPUT}
        GLIDE_SOCKET=/nowhere/socket exec {ROOT}/glide/invoke/ticket.sh "$@"
        """
    )
    client.chmod(0o700)
    ids = [record["custom_id"] for record in records(5)]
    requirements = f'{REQUIREMENTS} && TARGET.GlideEntry == "{open_lanes}"'
    cluster = submit(records(5), executable=str(client), requirements=requirements)
    becomes(cluster, JobStatus.COMPLETED)
    results = {result["custom_id"]: result for result in results_of(cluster, access_point, tmp_path)}
    assert {name: result["attempts"] for name, result in results.items()} == {"r0": 1, **dict.fromkeys(ids[1:], 2)}
    assert results["r0"]["glidein"] == "lost"
    assert results["r1"]["glidein"] != "lost"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a job a disk of its own to fill")
def test_job_held_by_full_spool_loses_no_results(
    submit, becomes, access_point: AccessPoint, pool: EmbeddedPool, tmp_path: Path
):
    before = submit(records(1))
    becomes(before, JobStatus.COMPLETED)
    # The spool folder of the next job is a disk that takes its input, and not its results. So are some more, as the
    # factory may submit a glidein first. Daemons see the spool in a mount namespace of their own.
    disks = [pool.folder / "spool" / str(before + number) for number in range(1, 10)]
    inside = ["nsenter", "--mount", "--target", str(pool.daemons("condor_master")[0].pid)]
    for disk in disks:
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=96k,mode=700", "tmpfs", disk]
        subprocess.run([*inside, *mount], check=True)
    try:
        cluster = submit(records(1000))
        disk = pool.folder / "spool" / str(cluster)
        assert disk in disks
        reason = becomes(cluster, JobStatus.HELD)["HoldReason"]
        assert "No space left" in reason or "errno: 28" in reason or "write" in reason, reason
        subprocess.run([*inside, "mount", "-o", "remount,size=10m", disk], check=True)
        pool.tool("condor_release", str(cluster))
        assert becomes(cluster, JobStatus.COMPLETED)["NumJobStarts"] >= 2
        results = results_of(cluster, access_point, tmp_path)
        assert sorted(result["custom_id"] for result in results) == sorted(f"r{number}" for number in range(1000))
        access_point.remove(f"ClusterId == {cluster}", "the test is over")
        left = [*inside, "ls", disk]
        eventually(lambda: not subprocess.run(left, check=True, capture_output=True).stdout, "its folder is gone")
    finally:
        for disk in disks:
            subprocess.run([*inside, "umount", "-l", disk], check=True)
