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
from glide.errors import CondorError
from glide.invoke.answers import OutputContent
from glide.invoke.files import REMAINS_SECONDS, delete_folder
from glide.invoke.jobs import RunJobs, RunSpec
from glide.invoke.part import Part
from glide.template import Template
from glide.vocabulary import JobStatus

TEMPLATE = Template("m", "noop")
IDS = [f"r{number}" for number in range(60)]  # the fake lane needs 3 s for them
RECORDS = [{"custom_id": name, "prompt": "", "generate": {}, "timeout": 9.0} for name in IDS]
HERE = "<127.0.0.1:1?sock=schedd>"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """HTCondor's configuration of a machine with an access point."""
    (tmp_path / "address").write_text(f"{HERE}\n$CondorVersion: 25.14.1 $\n")
    (tmp_path / "jobs").mkdir()
    found = {
        "GLIDE_JOBS": str(tmp_path / "jobs"), "SCHEDD_ADDRESS_FILE": str(tmp_path / "address"), "SCHEDD_INTERVAL": "1",
    }  # fmt: skip
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


@pytest.mark.parametrize(
    ("name", "value", "used"),
    [
        ("SCHEDD_INTERVAL", "5", True), ("SCHEDD_INTERVAL", "6", False), ("LIMIT_DIRECTORY_ACCESS", "/srv", False),
        ("LIMIT_DIRECTORY_ACCESS", "", True), ("LIMIT_DIRECTORY_ACCESS", "/srv, {jobs}", True),
    ],
)  # fmt: skip
def test_folder_is_used_only_with_suitable_settings(
    settings, tmp_path: Path, caplog, name: str, value: str, used: bool
):
    settings[name] = value.format(jobs=tmp_path / "jobs")
    assert (job_folders.job_folders(access_point()) is not None) == used
    assert (name in caplog.text) != used


def completed(tmp_path: Path) -> tuple[FakePool, RunJobs, Part]:
    """A completed job with its own folder, and the driver that has submitted it."""
    (tmp_path / "jobs").mkdir()
    pool = FakePool(job_folders=tmp_path / "jobs")
    pool.add_lane("g-1.0", TEMPLATE.digest)
    jobs = RunJobs(RunSpec("run", TEMPLATE, tmp_path / "parts", 1), pool.queue, pool.job_folders)
    part = jobs.write(RECORDS)
    jobs.submit([part])
    pool.clock.sleep(10.0)
    assert [job.status for job in jobs.queue()] == [JobStatus.COMPLETED]
    return pool, jobs, part


def results(jobs: RunJobs, part: Part) -> set[str]:
    """Gather the run's job, and return the ids of the records that have results."""
    found: list[OutputContent] = []
    jobs.gather(jobs.queue(), {part.name: part.ids}, lambda pairs: found.extend(content for _, content in pairs))
    return set(found[0].results)


@pytest.mark.parametrize("folders", [None, "elsewhere"])
def test_results_are_found_after_the_setting_has_changed(tmp_path: Path, folders: str | None):
    pool, jobs, part = completed(tmp_path)
    later = RunJobs(jobs.run, pool.queue, tmp_path / folders if folders else None)
    assert results(later, part) == set(IDS)
    assert jobs.queue() == [] and not list((tmp_path / "jobs").iterdir())


def test_job_stays_if_its_folder_is_on_another_machine(tmp_path: Path):
    _, jobs, part = completed(tmp_path)
    (tmp_path / "jobs").rename(tmp_path / "far")
    with pytest.raises(CondorError, match="run glide on the machine of the access point"):
        results(jobs, part)
    (tmp_path / "far").rename(tmp_path / "jobs")
    assert results(jobs, part) == set(IDS)


def test_streamed_results_count_if_the_final_output_is_missing(tmp_path: Path):
    _, jobs, part = completed(tmp_path)
    (tmp_path / "jobs" / part.name / f"{part.name}.final").unlink()
    assert 10 < len(results(jobs, part)) < 60


def test_job_of_another_user_is_ignored(tmp_path: Path):
    pool, jobs, _ = completed(tmp_path)
    (job,) = pool.schedd.queue.values()
    job.ad["Owner"] = "somebody"
    assert jobs.queue() == []


def test_deletion_follows_no_link(tmp_path: Path):
    outside, folder = tmp_path / "outside", tmp_path / ("0" * 12)
    outside.mkdir(mode=0o500)
    (folder / "inner").mkdir(parents=True)
    (folder / "inner").chmod(0)
    (folder / "link").symlink_to(outside)
    delete_folder(folder)
    assert not folder.exists() and outside.stat().st_mode & 0o777 == 0o500


def test_folders_of_jobs_that_left_the_queue_are_deleted(tmp_path: Path):
    (tmp_path / "jobs").mkdir()
    pool = FakePool(job_folders=tmp_path / "jobs")

    def submitted(run: str) -> tuple[RunJobs, str]:
        jobs = RunJobs(RunSpec(run, TEMPLATE, tmp_path / run, 1), pool.queue, pool.job_folders)
        part = jobs.write(RECORDS)
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
