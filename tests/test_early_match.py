"""A job may start on a lane before the template is warm. It is served when the template is warm, or queued again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glide.condor import AccessPoint, Collector, bindings
from glide.condor.access_point import job_file_value
from glide.condor.fake.ad import load_functions
from glide.glidein.configuration import GlideinNode, _lanes
from glide.glidein.settings import GlideinSettings
from glide.protocol.json_lines import read_lines, read_results
from glide.template import Template
from glide.vocabulary import Exit, Job, JobStatus, Machine, State
from tests.chirp_rig import Starter, records
from tests.conftest import eventually
from tests.factory_rig import DESCRIPTION
from tests.server_rig import Call, failure

REFUSED = {"begun": 0, "refused": True}
OWNER = "ada@here"


# ---- START ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accepts() -> Callable[..., bool]:
    """Whether START of a lane in a state accepts a job with some attributes."""
    load_functions()  # START uses stringListMember
    settings = GlideinSettings("here", "site", "127.0.0.1:9618", "domain", (OWNER,), None, factory="factory@here")
    node = GlideinNode(Path("/n"), "here-1.0", "d", "python", Path("/r"), Path("/l"), Path("/l"), 1 << 40, "/cache")
    start = _lanes(settings, node)["START"].replace("$(GLIDE_RUNS)", "true")

    def accepts(state: str, owner: str | None = None, **job: Any) -> bool:
        attributes = {Machine.TEMPLATE: "t", Machine.STATE: state, Machine.RETIRES: 1 << 40}
        lane = bindings.classad2.ClassAd(attributes | ({Machine.OWNER: owner} if owner else {}))
        lane["Requirements"] = bindings.classad2.ExprTree(start)
        ad = bindings.classad2.ClassAd({"User": OWNER, Job.TEMPLATE: "t", "Requirements": True} | job)
        return bool(lane.symmetricMatch(ad))

    return accepts


STATES = (*State.COMING_UP, State.WARM, State.ASLEEP, State.DRAINING, State.FAILED)


def test_only_early_jobs_start_on_loading_lanes(accepts):
    assert [state for state in STATES if accepts(state)] == [State.WARM]
    early = [*State.EARLY, State.WARM]
    assert [state for state in STATES if accepts(state, **{Job.EARLY: True})] == early
    for value in (False, 1, "true"):
        assert not accepts(State.LOADING, **{Job.EARLY: value})


@pytest.mark.parametrize("state", [State.LOADING, State.WARMING, State.WARM])
def test_early_job_must_meet_all_other_conditions(accepts, state):
    early = {Job.EARLY: True}
    assert accepts(state, owner=OWNER, **early)
    assert not accepts(state, owner="other@here", **early)
    for changed in ({"User": "other@here"}, {Job.TEMPLATE: "other"}, {Job.ENTRY: "here"}):
        assert not accepts(state, **early | changed)


def test_sticky_job_does_not_start_early(accepts):
    for state in (State.LOADING, State.WARMING):
        assert accepts(state, **{Job.EARLY: True}) and not accepts(state, **{Job.EARLY: True, Job.STICKY: True})


# ---- the model server ----------------------------------------------------------------------------


def test_waiting_job_does_not_disturb_measurements(start):
    server = start(load_seconds=5.0, record_seconds=0.01)
    server.reached(State.LOADING)
    calls = [server.call(records(20)) for _ in range(2)]
    states = server.states()
    before = next(states)
    assert before[Machine.STATE] == State.LOADING
    assert not before[Machine.SERVED] and not before[Machine.SERVED_SINCE] and not before[Machine.BUSY_SECONDS]
    warm = next(ad for ad in states if ad[Machine.STATE] == State.WARM)
    for call in calls:
        assert {result["attempts"] for result in call.results()} == {1}
    after = eventually(lambda: (ad := server.now())[Machine.SERVED] == 40 and ad, "all are counted")
    assert warm[Machine.STATE_SINCE] - 0.01 <= after[Machine.SERVED_SINCE]  # a clock's rounding
    assert after[Machine.BUSY_SECONDS] < after[Machine.LOAD_SECONDS]
    assert after[Machine.RECORD_SECONDS] < 1.0


@pytest.mark.parametrize("phase", [State.LOADING, State.WARMING])
def test_failing_load_ends_waiting_jobs_with_reason(start, starter, phase):
    server = start(Template("ill", "noop", options={"load_seconds": 1.0, "hang_in": phase}, budgets={phase: 3.0}))
    server.reached(State.LOADING)
    calls = [server.call(records(9000), chirp=starter.config), server.call([], template="0" * 64)]
    reason = failure(server)
    code, errors = calls[0].end()  # its input is longer than its queue
    assert code == Exit.SERVER_LOST and f"was {phase} for more than its time limit" in errors and reason in errors
    assert starter.lines(calls[0].out.name) == [REFUSED]
    assert calls[0].written() == []
    assert calls[1].end()[0] == Exit.SERVER_LOST  # this job's template is not here
    assert server.now()[Machine.SERVED] == 0


def finished(call: Call, starter: Starter) -> None:
    """Let a job's output take the place of the streamed copy, as HTCondor does when a job ends."""
    shutil.copyfile(call.out, starter.folder / call.out.name)


def test_refused_starts_are_no_attempts(start, starter):
    ill = Template("ill", "noop", options={"load_seconds": 1.0, "crash_in": State.WARMING})
    good = start(record_seconds=0.01)
    for starts in range(2):
        server = start(ill)
        server.reached(State.LOADING)
        call = server.call(records(5), attributes={"NumJobStarts": str(starts)}, chirp=starter.config)
        assert call.end()[0] == Exit.SERVER_LOST
        finished(call, starter)
    lines = starter.lines(call.out.name)
    assert lines == [REFUSED] * 2
    good.reached(State.WARM)
    call = good.call(records(5), attributes={"NumJobStarts": "2"}, chirp=starter.config)
    assert {result["attempts"] for result in call.results()} == {1}


@pytest.mark.parametrize(
    ("streamed", "starts", "attempts"),
    [
        ([], 2, 3),  # nobody has reported that nothing began: a record may have ended the nodes
        ([{"begun": 0}], 1, 2),
        ([{"begun": 0, "kept": 5, "asked": 5}], 1, 2),
        ([REFUSED, {"begun": 3}], 2, 2),
        ([REFUSED] * 9, 2, 1),
        ([{"refused": 1}, {"refused": "true"}], 2, 3),
    ],
)
def test_starts_without_reported_refusal_are_attempts(start, starter, streamed, starts, attempts):
    server = start()
    server.reached(State.WARM)
    (starter.folder / "call-0.out").write_text("".join(json.dumps(line) + "\n" for line in streamed))
    call = server.call(records(5), attributes={"NumJobStarts": str(starts)}, chirp=starter.config)
    assert {result["attempts"] for result in call.results()} == {attempts}


def test_job_without_its_template_reports_a_refused_start(start, starter):
    server = start()
    server.reached(State.WARM)
    call = server.call(records(5), template="0" * 64, chirp=starter.config)
    code, errors = call.end()
    assert code == Exit.SERVER_LOST and "template not loaded" in errors
    assert list(read_lines(call.out)) == starter.lines(call.out.name) == [REFUSED]


def test_waiting_job_that_keeps_nothing_ends_before_load(start, starter):
    server = start(load_seconds=8.0)
    server.reached(State.LOADING)
    call = server.call(records(5), attributes={Job.KEEP: "0"}, chirp=starter.config)
    assert call.results() == []
    assert server.now()[Machine.STATE] == State.LOADING


def test_killed_waiting_job_is_not_served(start):
    server = start(load_seconds=2.0)
    server.reached(State.LOADING)
    call = server.call(records(50))
    later = server.call(records(3))
    call.process.kill()
    call.process.wait()
    assert len(later.results()) == 3
    eventually(lambda: server.now()[Machine.SERVED] == 3, "only the other job's records are counted")


# ---- on a real pool ------------------------------------------------------------------------------

EARLY = (
    f'TARGET.{Machine.TEMPLATE} =?= MY.{Job.TEMPLATE}'
    f' && stringListMember(TARGET.{Machine.STATE}, "{State.LOADING},{State.WARMING},{State.WARM}")'
)  # fmt: skip


@pytest.fixture
def submit(factory: Path, access_point: AccessPoint, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submit a job with 20 records, and return the constraint that selects it."""
    jobs: list[str] = []

    def submit(template: Template, name: str, **changes: str) -> str:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(20)))
        macros = {
            "digest": template.digest, "model": template.model, "initialdir": str(tmp_path),
            "records": f"{name}.jsonl", "results": f"{name}.out", "leave_in_queue": "JobStatus == 4",
            f"My.{Job.SPEC}": job_file_value(template.to_json()), f"My.{Job.WANTED}": "1", **changes,
        }  # fmt: skip
        jobs.append(f"ClusterId == {access_point.submit(DESCRIPTION, macros, spool=True)}")
        return jobs[-1]

    yield submit
    for job in jobs:
        access_point.remove(job, "the test is over")


@pytest.mark.pool
def test_early_job_starts_before_lane_is_warm(submit, access_point: AccessPoint, collector: Collector, tmp_path: Path):
    template = Template("slow", "noop", options={"load_seconds": 12.0, "record_seconds": 0.01})
    early = submit(template, "early", requirements=EARLY, **{f"My.{Job.EARLY}": "true"})
    plain = submit(template, "plain", requirements=EARLY)  # START refuses it until the lane is warm
    times = ["JobCurrentStartExecutingDate", "StartdName", "NumJobStarts"]

    def done(job: str) -> dict[str, Any]:
        completed = f"{job} && JobStatus == {JobStatus.COMPLETED}"
        (ad,) = eventually(lambda: access_point.jobs(completed, times), "the job ends")
        assert ad["NumJobStarts"] == 1
        access_point.retrieve(job)
        return ad

    started = {name: done(job)["JobCurrentStartExecutingDate"] for name, job in (("early", early), ("plain", plain))}
    wanted = [Machine.STATE, Machine.STATE_SINCE, Machine.SERVED_SINCE]
    served_lane = f'{Machine.TEMPLATE} == "{template.digest}" && {Machine.SERVED_SINCE} > 0'
    lanes = eventually(lambda: collector.lanes(wanted, served_lane), "an ad shows that records were served")
    warm, served = lanes[0][Machine.STATE_SINCE], lanes[0][Machine.SERVED_SINCE]
    assert lanes[0][Machine.STATE] == State.WARM
    assert started["early"] < warm <= started["plain"] + 1  # HTCondor counts whole seconds
    assert served - warm < 5.0
    for name in started:
        assert {result["attempts"] for result in read_results(tmp_path / f"{name}.out")} == {1}


@pytest.mark.pool
def test_failing_load_queues_early_job_again(submit, access_point: AccessPoint, collector: Collector):
    template = Template("broken", "noop", options={"load_seconds": 8.0, "crash_in": State.WARMING})
    job = submit(template, "early", requirements=EARLY, **{f"My.{Job.EARLY}": "true"})
    again = f"{job} && JobStatus == {JobStatus.IDLE} && NumJobStarts > 0"
    (ad,) = eventually(lambda: access_point.jobs(again, ["Iwd", "ExitCode"]), "the job is idle again")
    assert ad["ExitCode"] == Exit.SERVER_LOST
    spool = Path(ad["Iwd"])
    assert f"while {State.WARMING}" in (spool / "early.jsonl.err").read_text()
    assert list(read_lines(spool / "early.out")) == [REFUSED]
    here = f'{Machine.TEMPLATE} == "{template.digest}" && {Machine.STATE} =!= "{State.LOADING}"'
    access_point.remove(job, "no other glidein is needed")
    eventually(lambda: not collector.lanes([Machine.STATE], here), "the failed glidein has ended")
