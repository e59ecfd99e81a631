"""What becomes of ended and held glideins in a real queue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glide.condor.access_point import either
from glide.config import SiteFile
from glide.factory import housekeeping as chores
from glide.factory.housekeeping import housekeeping
from glide.factory.site_client import SiteClient
from glide.vocabulary import Job, JobStatus
from tests.conftest import eventually
from tests.factory_rig import ROOT

pytestmark = pytest.mark.pool


def test_only_the_latest_of_many_ended_glideins_stay_in_the_queue(access_point, pool, tmp_path, monkeypatch):
    description = "executable = /bin/true\nnoop_job = true\nleave_in_queue = JobStatus == 4\nqueue 9\n"
    entries = ["theirs", "crowded", "crowded"]
    clusters = [access_point.submit(description, {f"My.{Job.ENTRY}": f'"{name}"'}) for name in entries]
    site = SiteFile.model_validate({"site": "s", "entries": [{"name": "crowded", "max_glideins": 3}]})
    client = SiteClient(site, tmp_path)
    monkeypatch.setattr(chores, "MOST_ENDED", 4)

    def ended() -> list[str]:
        return [glidein.job for glidein in client.observe().glideins_of("crowded")[1]]

    try:
        eventually(lambda: len(ended()) == 18, "all have ended")
        assert housekeeping(client, client.observe()) == []
        assert len(ended()) == 18  # they have ended just now, so they may not be counted yet
        monkeypatch.setattr(chores, "COUNTED_SECONDS", 0.0)
        snapshot = client.observe()
        mine = snapshot.glideins_of("crowded")[1]  # others have ended in this pool, too
        ages = {glidein.job: float(number) for number, glidein in enumerate(mine)}
        aged = tuple(replace(glidein, age=ages[glidein.job]) for glidein in mine)
        assert housekeeping(client, replace(snapshot, ended=aged)) == []
        eventually(lambda: len(ended()) == 6, "twice max_glideins are left")
        assert set(ended()) == {job for job, age in ages.items() if age < 6}
    finally:
        access_point.remove(either([f"ClusterId == {cluster}" for cluster in clusters]), "the test ends")


def test_glidein_whose_output_met_a_full_disk_starts_again(access_point, pool):
    """HTCondor holds such a job with code 9 (or 12 after its end) and error 28 (or 122 for a quota)."""
    template = (ROOT / "submit_templates" / "glidein.sub").read_text()
    (release,) = [line for line in template.splitlines() if line.startswith("periodic_release")]
    description = f"executable = /bin/true\nrequirements = false\nhold = true\n{release}\nqueue 4\n"
    cluster = access_point.submit(description, {f"My.{Job.ENTRY}": '"disk"'})
    codes = {0: (9, 28), 1: (12, 122), 2: (9, 2), 3: (34, 28)}  # 2: no such file; 3: too much memory

    def statuses() -> dict[int, int]:
        found = access_point.jobs(f"ClusterId == {cluster}", ["ProcId", "JobStatus"])
        return {job["ProcId"]: job["JobStatus"] for job in found}

    try:
        for proc, pair in codes.items():
            for name, value in zip(("HoldReasonCode", "HoldReasonSubCode"), pair, strict=True):
                access_point.edit({f"{cluster}.{proc}": str(value)}, name)
        eventually(lambda: {statuses()[0], statuses()[1]} == {JobStatus.IDLE}, "they are released")
        assert {statuses()[2], statuses()[3]} == {JobStatus.HELD}
    finally:
        access_point.remove(f"ClusterId == {cluster}", "the test ends")
