"""glide submit and glide gather on a real pool: nothing is lost, overwritten or put where it does not belong."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import pytest

from glide.condor import AccessPoint, EmbeddedPool
from glide.condor.access_point import quoted
from glide.invoke.gather import STAGING
from glide.invoke.outputs import outputs, safe_remaps, shared_names, within
from glide.vocabulary import Exit, Job, JobStatus
from tests.conftest import _in_force as in_force
from tests.conftest import eventually

JOB = """
executable = /bin/sh
should_transfer_files = yes
log = jobs.log
request_memory = 16
request_disk = 16
"""


def glide(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glide", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def submitted(folder: Path, lines: str) -> int:
    """A cluster, with all its jobs completed."""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.sub").write_text(JOB + lines)
    done = glide("submit", folder / "jobs.sub", "--watch")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def contents(folder: Path) -> dict[str, str]:
    """All files of a folder but the logs."""
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return {name: text for name, text in files.items() if not name.endswith(".log")}


def left(access_point: AccessPoint, cluster: int) -> set[int]:
    """The jobs of a cluster that the queue has."""
    return {job["ProcId"] for job in access_point.jobs(f"ClusterId == {cluster}", ["ProcId"])}


# ---- what counts of a job's ad -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a", "a"), ("a/b", "a/b"), ("./a//b/", "a/b"), ("/here/a/b", "a/b"), ("/elsewhere/a", "a"), ("../a", "a"),
        ("a/../../b", "b"), ("..", ""), (".", ""), ("/", ""), ("", ""), ("/here", ""), ("/heretoo/a", "a"),
        ("../here/a", "a"),
    ],
)  # fmt: skip
def test_gathered_output_path_stays_within_target_folder(path, name):
    assert within(path, "/here") == name


def test_transfer_output_remaps_cannot_leave_target_folder():
    text = r"a=../../b; c = d/e ;f=/root/.bashrc;;g;h=i=j;k\=l=m;n=o\;p;q=..;r=/here/s;t=u" + "\n" + "/../../v"
    assert safe_remaps(text, "/here") == {"a": "b", "c": "d/e", "f": ".bashrc", "r": "s"}


def test_forged_job_ad_cannot_redirect_outputs():
    ad = {
        "ClusterId": 7, "ProcId": 1, "QDate": "x", "StageInFinish": 5, "SUBMIT_Iwd": "/root/.ssh", "TransferOutput": 3,
        "SUBMIT_TransferOutputRemaps": "keys=/root/.ssh/authorized_keys", "UserLog": "keys",
        "SUBMIT_UserLog": "/etc/passwd", Job.FOLDER: "/home/me/work", "Out": "keys", "Err": "/dev/null",
    }  # fmt: skip
    safe = outputs(ad)
    assert (safe.folder, safe.remaps, safe.log) == (
        PurePosixPath(".ssh"),
        {"keys": "authorized_keys"},
        "authorized_keys",
    )
    assert not safe.problem and safe.submitted == 0
    for change in ({"TransferOutput": "/etc/passwd"}, {"TransferOutput": "a, ../b"}, {"Out": "/etc/passwd"},
                   {"TransferOutput": "a", "SpooledOutputFiles": "../../b"}, {"UserLog": "../x.log"}):  # fmt: skip
        assert "not in its spool" in outputs(ad | change).problem, change
    assert not outputs(ad | {"TransferOutput": "/tmp/a", "SpooledOutputFiles": "a"}).problem
    assert "not spooled" in outputs({**ad, "StageInFinish": None}).problem


def test_output_name_used_by_several_jobs_is_detected():
    ad = {
        "ClusterId": 7,
        "StageInFinish": 5,
        "SUBMIT_Iwd": "/w",
        "TransferOutput": "out/r.txt,d/",
        "Out": "_condor_stdout",
    }
    ads = [ad | {"ProcId": n, "SUBMIT_TransferOutputRemaps": f"_condor_stdout=o/{n}.out"} for n in range(2)]
    assert shared_names(map(outputs, ads)) == {"r.txt", "d"}
    apart = [ad | {"ProcId": n, "SUBMIT_Iwd": f"/w/run{n}", Job.FOLDER: "/w"} for n in range(2)]
    assert shared_names(map(outputs, apart)) == set()


# ---- on a pool -----------------------------------------------------------------------------------


@pytest.mark.pool
def test_gathered_outputs_keep_names_and_overwrite_nothing(tmp_path, access_point):
    """Remaps, folders, what several jobs name, what was there before; the spool's log of each job."""
    folder, got = tmp_path / 'a "$(wor)k"', tmp_path / "got"
    cluster = submitted(folder, """
        arguments = "-c 'mkdir -p d/e; echo $(Process) >r.txt; echo $(Process) >d/e/f.txt; echo out $(Process)'"
        transfer_output_files = r.txt, d
        transfer_output_remaps = "r.txt=final/r-$(Process).txt"
        output = same.txt
        queue 2
    """)  # fmt: skip
    (got / "final").mkdir(parents=True)
    (got / "final" / "r-1.txt").write_text("mine")
    before = contents(folder)
    done = glide("gather", cluster, "--to", got)
    assert (done.returncode, done.stdout) == (0, f"2 of 2 jobs gathered into {got}\n"), done.stderr
    mine, job = {"final/r-1.txt": "mine", "final/r-0.txt": "0\n"}, f"{cluster}."
    theirs = {
        f"{job}{n}/{name}": f"{text}{n}\n" for n in (0, 1) for name, text in (("d/e/f.txt", ""), ("same.txt", "out "))
    }
    assert contents(got) == {**mine, **theirs, f"{job}1/final/r-1.txt": "1\n"}
    assert (got / "jobs.log").read_text().count("Job terminated") == 2
    assert contents(folder) == before and not (got / STAGING).exists() and not left(access_point, cluster)


@pytest.mark.pool
def test_outputs_are_gathered_into_subfolders_named_like_initialdir(tmp_path, access_point):
    folder, got = tmp_path / "work", tmp_path / "got"
    for number in range(3):
        (folder / f"run{number}").mkdir(parents=True)
        (folder / f"run{number}" / "input.txt").write_text(f"input {number}")
    cluster = submitted(folder, """
        initialdir = run$(Process)
        arguments = "-c 'cat input.txt >made.txt; chmod 4500 made.txt; echo said'"
        transfer_input_files = input.txt
        output = logs/said.out
        queue 3
    """)  # fmt: skip
    (got / "run1").mkdir(parents=True)
    (got / "run1" / "logs").symlink_to(tmp_path)  # what follows it would be outside
    done = glide("gather", cluster, "--to", got)
    assert done.returncode == 0, done.stderr
    made = {f"run{number}/made.txt": f"input {number}" for number in range(3)}
    said = {f"run{number}/logs/said.out": "said\n" for number in (0, 2)}
    assert contents(got) == {**made, **said, f"{cluster}.1/run1/logs/said.out": "said\n"}
    assert not (tmp_path / "said.out").exists()
    assert (got / "run0" / "made.txt").stat().st_mode & 0o7777 == 0o700
    again = glide("gather", cluster, "--to", got)
    assert again.returncode == Exit.INPUT and "gathered already" in again.stderr


@pytest.mark.pool
def test_gather_of_tampered_jobs_writes_nothing_outside_folder(tmp_path, pool: EmbeddedPool, access_point: AccessPoint):
    """condor_submit's own jobs: two as a hostile node may leave them, one that lost an output, one as it should be."""
    folder, got, precious = tmp_path / "work", tmp_path / "got", tmp_path / "precious"
    folder.mkdir(), precious.mkdir()
    (precious / "key").write_text("secret")
    (folder / "jobs.sub").write_text(JOB + """
        arguments = "-c 'echo $(Process) >r.txt'"
        transfer_output_files = r.txt
        queue 4
    """)  # fmt: skip
    command = ["condor_submit", "-spool", "-terse", "jobs.sub"]
    cluster = int(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split(".")[0])
    constraint = f"ClusterId == {cluster}"
    eventually(
        lambda: len(access_point.jobs(f"{constraint} && JobStatus == {JobStatus.COMPLETED}", [])) == 4, "all jobs' end"
    )
    hostile = {
        0: {
            "SUBMIT_Iwd": str(precious), "SUBMIT_TransferOutputRemaps": f"r.txt={precious}/key", "UserLog": "r.txt",
            "SUBMIT_UserLog": f"{precious}/log",
        },
        1: {"TransferOutput": f"r.txt,{precious}/key", "SpooledOutputFiles": f"{precious}/key"},
    }  # fmt: skip
    for proc, attributes in hostile.items():
        for name, text in attributes.items():
            access_point.edit({f"{cluster}.{proc}": quoted(text)}, name)
    (spool,) = (pool.home / "pool" / "spool").glob(f"{cluster}/2/*.subproc0")
    (spool / "r.txt").unlink()
    done = glide("gather", cluster, "--to", got)
    assert done.returncode == Exit.FAILED and done.stdout == f"2 of 4 jobs gathered into {got}\n"
    problems = done.stderr.splitlines()
    assert f"job {cluster}.1 " in problems[0] and "not in its spool" in problems[0]
    assert f"job {cluster}.2 " in problems[1] and "No such file" in problems[1]
    assert contents(precious) == {"key": "secret"}
    assert sorted(contents(got).values()) == ["0\n", "3\n"]
    assert left(access_point, cluster) == {1, 2}
    (spool / "r.txt").write_text("2, at last\n")
    assert glide("gather", cluster, "--to", got).returncode == Exit.FAILED
    assert "2, at last\n" in contents(got).values() and left(access_point, cluster) == {1}
    access_point.remove(constraint, "the test ends")


@pytest.mark.pool
def test_killed_gather_neither_loses_nor_duplicates_outputs(tmp_path, access_point):
    """Killed at any moment until it comes through; two in the same folder do not work at the same time."""
    folder, got = tmp_path / "work", tmp_path / "got"
    cluster = submitted(folder, """
        arguments = "-c 'mkdir d; for f in d/r.txt n-$(Process).txt m-$(Process).txt; do echo $(Process) >$f; done'"
        transfer_output_files = d, n-$(Process).txt, m-$(Process).txt
        queue 5
    """)  # fmt: skip
    staging, chance, kills, count = got / STAGING, random.Random(5), 0, 5
    staging.mkdir(mode=0o700, parents=True)
    other = os.open(staging, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    refused = glide("gather", cluster, "--to", got)
    assert refused.returncode == Exit.INPUT and "another `glide gather` uses" in refused.stderr
    os.close(other)
    while left(access_point, cluster):
        before = set(staging.iterdir()) if staging.exists() else set()
        process = subprocess.Popen([sys.executable, "-m", "glide", "gather", str(cluster), "--to", str(got)])
        while process.poll() is None and not (staging.exists() and set(staging.iterdir()) - before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills > 0
    names = [f"{kind}-{number}.txt" for kind in "nm" for number in range(count)]
    expected = {name: f"{name[2]}\n" for name in names}
    expected |= {f"{cluster}.{number}/d/r.txt": f"{number}\n" for number in range(count)}
    assert {name: text for name, text in contents(got).items() if STAGING not in name} == expected
    assert (got / "jobs.log").read_text().count("Job terminated") == count


@pytest.mark.pool
def test_gathering_overwrites_no_file_despite_immutable_job_attributes(tmp_path, monkeypatch):
    """As on an access point that protects where outputs go: there, HTCondor's client writes over what is there."""
    monkeypatch.setenv("_CONDOR_IMMUTABLE_JOB_ATTRS", "SUBMIT_Iwd, SUBMIT_TransferOutputRemaps, SUBMIT_UserLog")
    with in_force(tmp_path / "home", cores=2):
        folder, got = tmp_path / "work", tmp_path / "got"
        cluster = submitted(folder, """
            arguments = "-c 'mkdir d; echo $(Process) >d/r.txt; echo $(Process) >n.txt'"
            transfer_output_files = d, n.txt
            transfer_output_remaps = "n.txt=n-$(Process).txt"
            queue 2
        """)  # fmt: skip
        (folder / "n-1.txt").write_text("mine")
        before = contents(folder)
        done = glide("gather", cluster, "--to", got)
        assert done.returncode == Exit.FAILED and f"move {folder}/n-1.txt away" in done.stderr
        assert contents(folder) == before and contents(got) == {f"{cluster}.0/d/r.txt": "0\n", "n-0.txt": "0\n"}
        (folder / "n-1.txt").unlink()
        assert glide("gather", cluster, "--to", got).returncode == 0
        apart = {f"{cluster}.{number}/d/r.txt" for number in range(2)}
        assert contents(got).keys() == {*apart, "n-0.txt", "n-1.txt"}
        assert contents(folder).keys() == {"jobs.sub"}


@pytest.mark.pool
def test_gather_into_unwritable_folder_keeps_jobs(tmp_path, access_point):
    cluster = submitted(tmp_path / "work", """
        arguments = "-c 'echo x >r.txt'"
        transfer_output_files = r.txt
        queue
    """)  # fmt: skip
    (tmp_path / "file").write_text("")
    done = glide("gather", cluster, "--to", tmp_path / "file")
    assert done.returncode == Exit.INPUT and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    if os.geteuid() == 0 and shutil.which("mount"):
        disk = tmp_path / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=True)
        try:
            (disk / "ballast").write_bytes(b"x" * 12288)
            done = glide("gather", cluster, "--to", disk)
            assert done.returncode == Exit.FAILED and f"{cluster}.0" in done.stderr and "Traceback" not in done.stderr
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
    assert left(access_point, cluster) == {0}
    (job,) = access_point.jobs(f"ClusterId == {cluster} && LeaveJobInQueue", ["SUBMIT_Iwd"])
    assert job["SUBMIT_Iwd"] == str(tmp_path / "work")
    assert glide("gather", cluster, "--to", tmp_path / "got").returncode == 0
