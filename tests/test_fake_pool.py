"""The fake pool in virtual time: what it models beyond the contract tests of tests/test_ports.py, and its faults."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glide.condor.event_log import LOST
from glide.condor.fake import FakePool, schedd
from glide.errors import CondorError, CondorRefused
from glide.invoke.jobs import InvocationJob, RunJobs, RunSpec
from glide.invoke.part import Part
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

TEMPLATE = Template("fake", "noop")
DAY = 24 * 3600.0


class Fake:
    """A fake pool, and the jobs of one run on it."""

    def __init__(self, folder: Path, **options: Any):
        self.pool = FakePool(**options)
        self.clock = self.pool.clock
        self.handle = self.pool.handle()
        self.jobs = RunJobs(RunSpec("fake-1", TEMPLATE, folder, max_glideins=9), self.handle.queue)
        self.parts: list[Part] = []

    def lanes(self, *glideins: str, **options: Any) -> None:
        for glidein in glideins:
            self.pool.add_lane(glidein, TEMPLATE.digest, **{"record_seconds": 0.1, **options})

    def submit(self, *sizes: int, **options: Any) -> list[Part]:
        records = [
            {"custom_id": f"r{each}", "prompt": f"text {each}", "generate": {}, "timeout": 60.0}
            for each in range(max(sizes))
        ]
        parts = [self.jobs.write(records[:size]) for size in sizes]
        self.jobs.submit(parts, **options)
        self.parts += parts
        return parts

    def jobs_of(self, parts: list[Part]) -> list[InvocationJob]:
        queue = {job.part: job for job in self.jobs.queue()}
        return [queue[part.name] for part in parts]

    def until(self, condition: Callable[[], Any], seconds: float = 600.0) -> float:
        """Wait until the condition is true, and return the seconds that this took."""
        began = self.clock.monotonic()
        while not condition():
            assert self.clock.monotonic() - began < seconds
            self.clock.sleep(0.01)
        return self.clock.monotonic() - began

    def statuses(self) -> list[int]:
        return [job.status for job in self.jobs.queue()]

    def until_done(self) -> float:
        return self.until(lambda: set(self.statuses()) == {JobStatus.COMPLETED})

    def results(self, part: Part) -> dict[str, Any]:
        return self.jobs.peek(self.jobs_of([part])[0], part.ids).results


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


# ---- matches and starts ------------------------------------------------------------------------------


def test_job_starts_a_second_after_submission(fake: Fake):
    fake.lanes("g-1.0")
    fake.submit(10)
    assert fake.until(lambda: fake.statuses() == [JobStatus.RUNNING]) == pytest.approx(1.06, abs=0.02)
    assert fake.until_done() == pytest.approx(1.0, abs=0.02)


def test_lanes_of_glidein_share_one_engine(fake: Fake):
    fake.lanes("g-1.0", "g-1.0")
    first, second = fake.submit(30, 30)
    fake.clock.sleep(2.5)
    assert fake.statuses() == [JobStatus.RUNNING] * 2
    assert fake.results(first) and not fake.results(second), "the engine serves the oldest job first"
    assert 2.5 + fake.until_done() == pytest.approx(1.06 + 6.0, abs=0.02)


def test_access_point_starts_jobs_one_after_another(fake: Fake):
    fake.lanes(*(f"g-{number}.0" for number in range(20)))
    fake.submit(*[100] * 20)
    fake.until(lambda: JobStatus.RUNNING in fake.statuses())
    assert fake.until(lambda: set(fake.statuses()) == {JobStatus.RUNNING}) == pytest.approx(19 * 0.06, abs=0.02)


def test_claim_is_reused_without_negotiation(fake: Fake):
    fake.lanes("g-1.0")
    fake.submit(10, 10)
    assert fake.until_done() == pytest.approx(1.06 + 1.0 + 0.06 + 1.0, abs=0.02)
    (lane,) = fake.handle.directory.lanes(["State"])
    assert lane == {"State": "Claimed"}
    fake.clock.sleep(5.1)  # keep_claim_idle
    assert fake.handle.directory.lanes(["State"]) == [{"State": "Unclaimed"}]


def test_early_job_waits_on_loading_lane(fake: Fake):
    fake.lanes("g-1.0", state=State.LOADING, warm_after=20.0)
    (part,) = fake.submit(10)
    fake.clock.sleep(19.0)
    assert fake.statuses() == [JobStatus.RUNNING] and not fake.results(part)
    assert 19.0 + fake.until_done() == pytest.approx(21.0, abs=0.02)


def test_failed_template_sends_job_to_other_lane(fake: Fake):
    fake.lanes("g-1.0", state=State.LOADING)
    (part,) = fake.submit(10)
    fake.clock.call_later(5.0, lambda: fake.pool.set_state("g-1.0", State.FAILED, "no memory"))
    fake.clock.sleep(7.0)
    fake.lanes("g-2.0")
    fake.until_done()
    (lane,) = fake.handle.directory.lanes([Machine.STATE, Machine.FAILURE], f'{Machine.ID} == "g-1.0"')
    assert lane == {Machine.STATE: State.FAILED, Machine.FAILURE: "no memory"}
    results = fake.results(part).values()
    assert {(each["glidein"], each["attempts"]) for each in results} == {("g-2.0", 1)}, "the first start does not count"


def test_refused_job_is_stuck_until_reconsidered(fake: Fake):
    """The lane changes its state after the match. The schedd does not match the refused job again by itself."""
    fake.lanes("g-1.0")
    fake.submit(10)
    fake.clock.call_later(0.9, lambda: fake.pool.set_state("g-1.0", State.BLANK))
    fake.clock.call_later(5.0, lambda: fake.pool.set_state("g-1.0", State.WARM))
    fake.clock.sleep(30.0)
    assert fake.statuses() == [JobStatus.IDLE]
    fake.jobs.reconsider(fake.jobs.queue())
    assert fake.until(lambda: fake.statuses() == [JobStatus.RUNNING]) == pytest.approx(1.06, abs=0.02)


def test_same_seed_gives_same_run(tmp_path: Path):
    def events(seed: int | None) -> list[str]:
        fake = Fake(tmp_path, seed=seed)
        fake.lanes(*(f"g-{number}.0" for number in range(8)))
        fake.submit(*range(1, 9))
        fake.clock.sleep(1.6)
        return [job.lane for job in fake.jobs_of(fake.parts)]

    assert events(1) == events(1) != events(2) != events(None)


# ---- lost nodes --------------------------------------------------------------------------------------


def test_lost_job_runs_again_after_eleven_seconds(fake: Fake):
    fake.lanes("g-1.0")
    (part,) = fake.submit(100)
    fake.clock.sleep(4.0)
    saved = fake.results(part)
    fake.pool.kill("g-1.0")
    fake.lanes("g-2.0")
    assert [event.kind for event in fake.handle.events.new_events()][-1] in LOST
    assert fake.until(lambda: fake.statuses() == [JobStatus.IDLE]) == pytest.approx(10.0, abs=0.02)
    assert fake.until(lambda: fake.statuses() == [JobStatus.RUNNING]) == pytest.approx(1.06, abs=0.02)
    fake.until_done()
    results = fake.results(part)
    assert len(results) == 100 and fake.jobs.queue()[0].starts == 2
    assert {name for name, each in results.items() if each["glidein"] == "g-1.0"} == saved.keys() != set()


@pytest.mark.parametrize(("avoid", "status"), [(["g-1.0"], JobStatus.IDLE), ([], JobStatus.RUNNING)])
def test_claim_of_removed_job_reaches_dead_lane(fake: Fake, avoid: list[str], status: int):
    """A waiting job starts on the dead lane of a removed job, if it does not avoid the glidein."""
    fake.lanes("g-1.0")
    lost = fake.submit(100)
    fake.clock.sleep(2.0)
    fake.pool.kill("g-1.0")
    fake.jobs.remove(fake.jobs_of(lost), "its node is gone")
    fake.handle.directory.expunge(f'{Machine.ID} == "g-1.0"')
    waiting = fake.submit(10, avoid=avoid)
    fake.handle.events.new_events()
    assert fake.statuses() == [JobStatus.IDLE], "the removed job is not visible"
    fake.clock.sleep(10.1)
    (job,) = fake.jobs_of(waiting)
    assert (job.status, job.lane) == (status, "slot1@g-1.0" if status == JobStatus.RUNNING else "")
    assert {event.kind for event in fake.handle.events.new_events()} == {"JOB_EVICTED", "JOB_ABORTED"}
    fake.clock.sleep(10.0)
    assert fake.jobs_of(waiting)[0].status == JobStatus.IDLE and fake.jobs_of(waiting)[0].starts == 0


def test_dead_free_lane_attracts_job_until_expunged(fake: Fake):
    fake.lanes("g-1.0", "g-2.0")
    fake.pool.kill("g-1.0")
    fake.submit(10)
    fake.clock.sleep(30.0)
    assert fake.statuses() == [JobStatus.IDLE], "the negotiator gives the job to the dead lane again and again"
    fake.handle.directory.expunge(f'{Machine.ID} == "g-1.0"')
    assert fake.until(lambda: fake.statuses() == [JobStatus.RUNNING]) < 3.2


def test_ads_of_dead_lane_expire_after_a_minute(fake: Fake):
    fake.lanes("g-1.0", "g-2.0")
    fake.clock.sleep(100.0)
    fake.pool.kill("g-1.0")
    directory = fake.handle.directory
    assert 45.0 <= fake.until(lambda: len(directory.lanes([])) == 1) <= 60.0
    assert abs(directory.lanes(["LastHeardFrom"])[0]["LastHeardFrom"] - fake.clock.time()) <= 16


def test_stopped_glidein_returns_jobs_immediately(fake: Fake):
    fake.lanes("g-1.0")
    fake.submit(100)
    fake.clock.sleep(3.0)
    fake.pool.stop("g-1.0")
    assert fake.statuses() == [JobStatus.IDLE] and fake.handle.directory.lanes([]) == []
    assert fake.handle.events.new_events()[-1].kind == "JOB_EVICTED"


# ---- faults ------------------------------------------------------------------------------------------


def test_failed_calls_do_not_stop_jobs(fake: Fake):
    fake.lanes("g-1.0")
    fake.submit(20)
    fake.pool.fail_calls(10.0)
    queue, directory = fake.handle.queue, fake.handle.directory
    for call in (queue.time, directory.age, fake.jobs.queue, lambda: queue.remove("true", ""), lambda: queue.user):
        with pytest.raises(CondorError):
            call()
    queue.reconsider("true", 1)
    fake.clock.sleep(10.0)
    assert fake.statuses() == [JobStatus.COMPLETED]


def test_refused_submission_leaves_no_job(fake: Fake):
    fake.pool.refuse("a limit of the access point")
    with pytest.raises(CondorRefused, match="a limit of the access point"):
        fake.submit(10)
    fake.pool.refuse("")
    fake.submit(10)
    assert len(fake.jobs.queue()) == 1


def test_lost_events_do_not_appear_later(fake: Fake):
    fake.lanes("g-1.0")
    fake.pool.lose_events()
    fake.submit(10)
    fake.until_done()
    fake.pool.lose_events(False)
    assert fake.handle.events.new_events() == []
    assert fake.pool.handle().events.new_events() == [], "a reader returns only events after its creation"


def test_restarted_collector_lists_lanes_again(fake: Fake):
    fake.lanes("g-1.0", "g-2.0")
    fake.clock.sleep(100.0)
    directory = fake.handle.directory
    fake.pool.restart_collector()
    assert directory.age() == 0 and directory.lanes([]) == []
    assert 0 < fake.until(lambda: len(directory.lanes([])) == 2) <= 15.01


def test_hosts_are_listed_without_glide_id(tmp_path: Path):
    fake = Fake(tmp_path, hosts=("node1", "node2"))
    fake.lanes("g-1.0")
    hosts = fake.handle.directory.lanes(["Machine"], f"{Machine.ID} =?= undefined")
    assert [ad["Machine"] for ad in hosts] == ["node1", "node2"] and len(fake.handle.directory.lanes([])) == 1


# ---- the job's own expressions -----------------------------------------------------------------------


def test_abandoned_and_completed_jobs_leave_after_thirty_days(fake: Fake, monkeypatch):
    monkeypatch.setattr(schedd, "PERIODIC_SECONDS", 3600.0)
    fake.lanes("g-1.0")
    fake.submit(10)
    fake.until_done()
    fake.pool.kill("g-1.0")
    fake.clock.sleep(100.0)
    fake.submit(10)
    fake.clock.sleep(29 * DAY)
    assert sorted(fake.statuses()) == [JobStatus.IDLE, JobStatus.COMPLETED]
    fake.clock.sleep(2 * DAY)
    assert fake.statuses() == []


def test_invalid_input_is_held(fake: Fake):
    fake.lanes("g-1.0")
    part = fake.jobs.write([{"custom_id": "a", "prompt": 5, "generate": {}, "timeout": 60.0}])
    fake.jobs.submit([part])
    fake.clock.sleep(3.0)
    (job,) = fake.jobs.queue()
    assert job.status == JobStatus.HELD and "a record in the input file is invalid" in job.hold_reason


def test_shadow_is_notified_once_in_thirty_seconds(fake: Fake):
    fake.lanes("g-1.0")
    (part,) = fake.submit(1000)
    fake.clock.sleep(5.0)
    (job,) = fake.jobs.queue()
    fake.handle.queue.edit({job.id: '"glide-keep=keep:"'}, "FileRemaps")

    def kept_after(keep: int, seconds: float) -> int | None:
        fake.handle.queue.edit({job.id: str(keep)}, Job.KEEP, notify_shadow=True)
        fake.clock.sleep(seconds)
        return fake.jobs.peek(job, part.ids).kept

    assert kept_after(900, 3.0) == 900
    assert kept_after(800, 3.0) == 900, "the shadow does not know the second value yet"
    assert kept_after(10, 40.0) in range(300, 400), "the job keeps the records that the engine has received"
    assert fake.statuses() == [JobStatus.COMPLETED]


# ---- the clock ---------------------------------------------------------------------------------------


def test_clock_calls_functions_in_order_of_time():
    clock, calls = FakePool().clock, []
    for number, seconds in enumerate((3.0, 1.0, 1.0)):
        clock.call_later(seconds, lambda number=number: calls.append((number, clock.monotonic() - began)))
    began = clock.monotonic()
    clock.sleep(2.0)
    assert calls == [(1, 1.0), (2, 1.0)] and clock.monotonic() - began == 2.0
    clock.sleep(1.0)
    assert calls[2:] == [(0, 3.0)]


def test_event_ends_sleep_of_clock():
    clock, wake = FakePool().clock, threading.Event()
    clock.call_later(2.0, wake.set)
    before = clock.monotonic(), clock.time()
    clock.sleep(10.0, wake)
    assert (clock.monotonic() - before[0], clock.time() - before[1]) == (2.0, 2.0)
    clock.sleep(10.0, wake)
    assert clock.monotonic() - before[0] == 2.0, "the event is still set"
