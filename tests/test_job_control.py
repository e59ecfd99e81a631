"""The port JobControl: the same tests for HTCondor's bindings, for a login host behind SSH, and for the fake pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glide.condor import AccessPoint
from glide.condor.access_point import any_of
from glide.condor.fake import FakePool
from glide.condor.ports import JobControl
from glide.config import Login
from glide.errors import CondorError
from glide.ssh.access_point import RemoteAccessPoint
from glide.vocabulary import JobStatus
from tests.login_host import LoginHost

# Jobs that never start. The attribute TestMark selects them.
JOBS = """
executable = /bin/true
requirements = false
My.TestMark = "{mark}"
My.Text = "a \\\\ b"
queue {count}
"""


class Control:
    """An access point: the port to test, and a function that submits the text of a job file in another way."""

    def __init__(self, port: JobControl, submit: Callable[[str], Any]):
        self.port = port
        self._submit = submit

    def submit(self, mark: str, count: int) -> str:
        """Submit `count` jobs, and return a constraint that selects them."""
        self._submit(JOBS.format(mark=mark, count=count))
        return f'TestMark == "{mark}"'


def tool(pool: Any, folder: Path) -> Callable[[str], Any]:
    """Return a function that submits a job file with condor_submit."""

    def submit(text: str) -> None:
        (folder / "jobs.sub").write_text(text)
        pool.tool("condor_submit", str(folder / "jobs.sub"))

    return submit


@pytest.fixture(params=["fake", *(pytest.param(kind, marks=pytest.mark.pool) for kind in ("htcondor", "ssh"))])
def control(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Control]:
    if request.param == "fake":
        queue = FakePool().queue
        yield Control(queue, queue.submit)
    elif request.param == "htcondor":
        pool = request.getfixturevalue("pool")
        yield Control(AccessPoint(), tool(pool, tmp_path))
    else:
        outer = request.getfixturevalue("both")[1]
        host = LoginHost(tmp_path / "host", outer)
        host.start()
        yield Control(RemoteAccessPoint(Login(**host.login())), tool(outer, tmp_path))
        host.stop()


def test_jobs_are_listed_and_removed(control: Control):
    port, mine = control.port, control.submit("first", 3)
    other = control.submit("second", 1)
    ads = port.jobs(mine, ["ProcId", "Text", "NoSuchAttribute"])
    assert sorted(ad["ProcId"] for ad in ads) == [0, 1, 2]
    assert {(ad["JobStatus"], ad["Text"]) for ad in ads} == {(JobStatus.IDLE, "a \\\\ b")}
    assert all("NoSuchAttribute" not in ad for ad in ads)
    assert len(port.jobs(mine, ["ProcId"], limit=2)) == 2 and port.jobs("false", ["ProcId"]) == []
    (ad,) = port.jobs(other, ["User"])
    assert ad["User"] == port.user
    assert port.remove(f"({mine}) && ProcId > 0", "because of a test!") == 2
    assert [ad["ProcId"] for ad in port.jobs(f"({mine}) && JobStatus != {JobStatus.REMOVED}", ["ProcId"])] == [0]
    assert port.remove(f"({mine}) && ProcId > 0 && JobStatus != {JobStatus.REMOVED}", "again") == 0
    assert port.remove(f"{mine} || {other}", "the test is over") >= 2


def test_any_number_of_jobs_is_removed_at_once(control: Control):
    mine = control.submit("many", 2500)
    (first, *_) = control.port.jobs(mine, ["ClusterId"], limit=1)
    odd = any_of(f"{first['ClusterId']}.{number}" for number in range(1, 2500, 2))
    assert control.port.remove(odd, "because of a test") == 1250
    left = control.port.jobs(f"({mine}) && JobStatus != {JobStatus.REMOVED}", ["ProcId"])
    assert sorted(ad["ProcId"] for ad in left) == list(range(0, 2500, 2))
    assert control.port.remove(f"({mine}) && JobStatus != {JobStatus.REMOVED}", "the test is over") == 1250


def test_constraint_selects_exactly_the_given_jobs():
    jobs = ["7.3", "7.4", "7.5", "7.9", "12.0", "7.4"]
    assert any_of(jobs) == (
        "((ClusterId == 7 && ProcId >= 3 && ProcId <= 5)"
        " || ((ClusterId == 7 && ProcId >= 9 && ProcId <= 9) || (ClusterId == 12 && ProcId >= 0 && ProcId <= 0)))"
    )
    assert any_of([]) == "false"


def test_priority_of_waiting_jobs_is_set(control: Control):
    mine = control.submit("urgent", 2)
    control.port.reconsider(f"({mine}) && ProcId == 1", 7)
    assert {ad["ProcId"]: ad["JobPrio"] for ad in control.port.jobs(mine, ["ProcId", "JobPrio"])} == {0: 0, 1: 7}
    control.port.reconsider("false", 7)  # without a job, there is nothing to do
    control.port.remove(mine, "the test is over")


def test_wrong_constraint_is_reported(control: Control):
    with pytest.raises(CondorError):
        control.port.jobs("((", ["ProcId"])
    control.port.retrieve("false")  # without a job, there is nothing to copy
