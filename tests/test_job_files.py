"""Jobs that are not spooled: which folder they get, and what happens to the folders of jobs that no longer exist."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glide.condor import job_folders
from glide.condor.fake import FakePool
from glide.condor.pool import account
from glide.invoke.files import REMAINS_SECONDS
from glide.invoke.jobs import RunJobs, RunSpec
from glide.template import Template

HERE = "<127.0.0.1:1?sock=schedd>"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """HTCondor's configuration of a machine with an access point."""
    (tmp_path / "address").write_text(f"{HERE}\n$CondorVersion: 25.14.1 $\n")
    (tmp_path / "jobs").mkdir()
    found = {"GLIDE_JOBS": str(tmp_path / "jobs"), "SCHEDD_ADDRESS_FILE": str(tmp_path / "address")}
    monkeypatch.setattr(job_folders, "parameter", found.get)
    return found


def access_point(address: str = HERE, user: str = "") -> Any:
    return SimpleNamespace(location={"MyAddress": address}, user=f"{user or account().pw_name}@here")


def test_user_gets_private_folder_on_this_machine(settings: dict[str, str], tmp_path: Path):
    own = tmp_path / "jobs" / str(os.getuid())
    assert job_folders.job_folders(access_point()) == own == job_folders.job_folders(access_point())
    assert own.stat().st_mode & 0o777 == 0o700
    assert job_folders.job_folders(access_point("<10.0.0.1:1?sock=schedd>")) is None
    assert job_folders.job_folders(access_point(user="somebody-else")) is None
    settings["SCHEDD_ADDRESS_FILE"] = str(tmp_path / "none")
    assert job_folders.job_folders(access_point()) is None
    settings["SCHEDD_SUPER_ADDRESS_FILE"] = str(tmp_path / "address")
    assert job_folders.job_folders(access_point()) == own
    del settings["GLIDE_JOBS"]
    assert job_folders.job_folders(access_point()) is None


@pytest.mark.parametrize("wrong", ["link", "file", "open"])
def test_folder_that_others_can_use_is_not_used(settings: dict[str, str], tmp_path: Path, caplog, wrong: str):
    own = tmp_path / "jobs" / str(os.getuid())
    if wrong == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        own.symlink_to(tmp_path / "elsewhere")
    elif wrong == "file":
        own.write_text("")
    else:
        own.mkdir()
        own.chmod(0o777)
    assert job_folders.job_folders(access_point()) is None
    assert str(own) in caplog.text and "spooled instead" in caplog.text


def test_folders_of_jobs_that_left_the_queue_are_deleted(tmp_path: Path):
    (tmp_path / "jobs").mkdir()
    pool = FakePool(job_folders=tmp_path / "jobs")
    record = {"custom_id": "a", "prompt": "", "generate": {}, "timeout": 9.0}

    def submitted(run: str) -> tuple[RunJobs, str]:
        jobs = RunJobs(RunSpec(run, Template("m", "noop"), tmp_path / run, 1), pool.queue, pool.job_folders)
        part = jobs.write([record])
        jobs.submit([part])
        return jobs, part.name

    jobs, waiting = submitted("mine")
    _, other = submitted("another-driver")
    gone, young = "0" * 12, "1" * 12
    for name in (gone, young, "no-part"):
        (tmp_path / "jobs" / name).mkdir()
        (tmp_path / "jobs" / name / "file").touch()
    before = time.time() - REMAINS_SECONDS - 1
    for name in (waiting, other, gone, "no-part"):
        os.utime(tmp_path / "jobs" / name, (before, before))
    jobs.remove_remains(jobs.queue())
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == sorted([waiting, other, young, "no-part"])
    jobs.remove(jobs.queue(), "test")
    assert not (tmp_path / "jobs" / waiting).exists() and (tmp_path / "jobs" / other).exists()
