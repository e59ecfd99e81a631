"""The driver on the fake pool in virtual time, and once on a real pool: a stopped sweep resumes."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glide.condor.fake import FakePool
from glide.condor.fake.queue import FakeQueue
from glide.errors import CondorError, CondorRefused, TemplateError
from glide.invoke.jobs import RunJobs, RunSpec
from glide.protocol.ads import LaneAd
from glide.sweep import act
from glide.sweep.calls import Calls
from glide.sweep.driver import PATIENCE_SECONDS, Driver
from glide.sweep.lanes import glidein_views
from glide.template import Template
from glide.vocabulary import Exit, State
from tests.conftest import eventually

TEMPLATE = Template("m", "noop")


class CountedCalls(Calls):
    """Calls whose results are only counted."""

    def __init__(self, count: int):
        super().__init__(TEMPLATE, 4)
        self.results: Counter[str] = Counter()
        for _ in range(count):
            self.add({"prompt": "", "generate": {}, "timeout": 60.0})
        self.close()

    def check_result(self, result: dict[str, Any]) -> str:
        return ""

    def deliver(self, results) -> None:
        self.results.update(results.keys())
        for number in results:
            self.open.pop(number, None)

    @property
    def exactly_once(self) -> bool:
        return self.results == Counter(map(str, range(1, self.added + 1)))


def pool_of(*paces: float, **options: Any) -> FakePool:
    """A fake pool with a warm glidein of two lanes for each of these seconds per record."""
    pool = FakePool(**options)
    for number, seconds in enumerate(paces):
        for _ in range(2):
            pool.add_lane(f"fake-{number}.0", TEMPLATE.digest, record_seconds=seconds)
    return pool


def driver_on(pool: FakePool, calls: Calls, folder: Path) -> Driver:
    return Driver(calls, RunSpec("run", TEMPLATE, folder, calls.glideins), pool.handle())


def test_driver_computes_each_record_once(tmp_path):
    calls, pool = CountedCalls(1000), pool_of(0.1, 0.1)
    began = pool.clock.monotonic()
    summary = driver_on(pool, calls, tmp_path).run()
    assert calls.exactly_once and summary["recomputed"] == summary["evictions"] == 0
    assert pool.clock.monotonic() - began < 1.2 * 50
    assert not pool.schedd.queue and not list(tmp_path.iterdir())


def test_slow_glidein_gives_records_back(tmp_path):
    calls, pool = CountedCalls(1000), pool_of(0.1, 1.0)
    began = pool.clock.monotonic()
    summary = driver_on(pool, calls, tmp_path).run()
    assert calls.exactly_once and summary["recomputed"] == 0
    assert pool.clock.monotonic() - began < 1.15 * 1000 / (10 + 1)


def test_twin_replaces_record_on_slow_glidein(tmp_path):
    """Each glidein has begun its only record: the fast ones are done long before the slow one."""
    calls, pool = CountedCalls(8), pool_of(5.0, 300.0)
    began = pool.clock.monotonic()
    summary = driver_on(pool, calls, tmp_path).run()
    assert calls.exactly_once and summary["twins"] >= 1 and summary["recomputed"] == 0
    assert pool.clock.monotonic() - began < 200


def test_next_driver_knows_which_records_were_taken_back(tmp_path):
    """The first driver is killed when the records that it took back are in another job."""
    calls, pool = CountedCalls(1000), pool_of(0.1, 1.0)
    first = driver_on(pool, calls, tmp_path)
    while not any(each.kept < len(each.keys) for each in first.intake.parts.values()) or first.intake.pending:
        assert first.step(lambda progress: None) is None
        first.wait()
    second = driver_on(pool, calls, tmp_path)
    assert second.step(lambda progress: None) is None and second.intake.overlap
    summary = second.run()
    assert calls.exactly_once and summary["recomputed"] == 0 and not second.intake.overlap
    assert not second.memory.avoided  # giving records back is no fault of a glidein


def test_stopped_driver_stores_streamed_results(tmp_path):
    calls, pool = CountedCalls(100), pool_of(0.5)
    driver = driver_on(pool, calls, tmp_path)
    for _ in range(3):
        driver.step(lambda progress: None)
        driver.wait()
    pool.clock.sleep(5)
    known = sum(calls.results.values())
    assert driver.stop("the test stops it")
    assert sum(calls.results.values()) >= known + 5


def test_job_matched_early_begins_when_lane_is_warm(tmp_path):
    calls, pool = CountedCalls(100), FakePool()
    pool.add_lane("fake-1.0", TEMPLATE.digest, state=State.LOADING, warm_after=30, record_seconds=0.1)
    began = pool.clock.monotonic()
    driver_on(pool, calls, tmp_path).run()
    assert calls.exactly_once and pool.clock.monotonic() - began < 30 + 10 + 3


def test_lost_glidein_loses_no_record(tmp_path):
    calls, pool = CountedCalls(2000), pool_of(0.1, 0.1, 0.1)
    for at in (10, 25):
        pool.clock.call_later(at, lambda at=at: pool.kill(f"fake-{at // 20}.0"))
    summary = driver_on(pool, calls, tmp_path).run()
    assert calls.exactly_once and summary["evictions"] >= 2 and summary["recomputed"] == 0


def test_results_of_several_jobs_are_delivered_together(tmp_path, monkeypatch):
    """Each delivery flushes files to disk."""
    calls, pool = CountedCalls(1000), pool_of(0.1, 0.1, 0.1, 0.1)
    gathered: list[tuple[int, int]] = []
    deliveries: list[int] = []
    gather, deliver = RunJobs.gather, CountedCalls.deliver

    def noted_deliver(calls, results):
        deliveries.append(len(results))
        deliver(calls, results)

    def noted_gather(jobs, some, known, store):
        before = len(deliveries)
        gather(jobs, some, known, store)
        gathered.append((len(some), len(deliveries) - before))

    monkeypatch.setattr(CountedCalls, "deliver", noted_deliver)
    monkeypatch.setattr(RunJobs, "gather", noted_gather)
    driver_on(pool, calls, tmp_path).run()
    assert max(jobs for jobs, _ in gathered) > 1
    assert all(delivered <= 1 for _, delivered in gathered)


def test_request_to_give_back_counts_although_its_answer_is_lost(tmp_path, monkeypatch):
    calls, pool = CountedCalls(1000), pool_of(0.1, 1.0)
    edit = FakeQueue.edit
    lost = []

    def edit_and_fail(queue, expressions, attribute, notify_shadow=False):
        edit(queue, expressions, attribute, notify_shadow)
        if not lost:
            lost.append(attribute)
            raise CondorError("no answer within 20 s")

    monkeypatch.setattr(FakeQueue, "edit", edit_and_fail)
    driver = driver_on(pool, calls, tmp_path)
    summary = driver.run()
    assert lost and calls.exactly_once and summary["recomputed"] == 0
    assert not driver.intake.audit.unanswered, "nobody is blamed for the records that were given back"


def test_request_that_did_not_arrive_is_repeated_soon(tmp_path, monkeypatch):
    calls, pool = CountedCalls(1000), pool_of(0.1, 1.0)
    edit = FakeQueue.edit
    failures = iter(["no answer within 20 s"])

    def fail_once(queue, expressions, attribute, notify_shadow=False):
        if reason := next(failures, ""):
            raise CondorError(reason)
        edit(queue, expressions, attribute, notify_shadow)

    monkeypatch.setattr(FakeQueue, "edit", fail_once)
    began = pool.clock.monotonic()
    driver_on(pool, calls, tmp_path).run()
    assert calls.exactly_once and not next(failures, "")
    assert pool.clock.monotonic() - began < 1.25 * 1000 / (10 + 1), "not 90 s later"


def test_late_twin_is_removed_although_all_records_have_results(tmp_path):
    calls, pool = CountedCalls(5), pool_of(5.0, 300.0)
    calls.closed = False
    driver = driver_on(pool, calls, tmp_path)
    while len(calls.done) < 5:
        driver.step(lambda progress: None)
        driver.wait()
    assert driver.intake.twins
    old = set(driver.intake.parts)
    assert old, "the slow glidein still computes its record"
    calls.add({"prompt": "", "generate": {}, "timeout": 60.0})
    for _ in range(5):
        driver.step(lambda progress: None)
        driver.wait()
    assert old.isdisjoint(driver.intake.parts)


def test_one_refusal_after_a_long_pause_does_not_end_the_run(tmp_path, monkeypatch):
    calls, pool = CountedCalls(100), pool_of(0.5)
    driver = driver_on(pool, calls, tmp_path)
    assert driver.step(lambda progress: None) is None
    pool.clock.sleep(2 * PATIENCE_SECONDS)
    cycle, refusals = driver._cycle, iter(["busy"])

    def refused_once():
        if reason := next(refusals, ""):
            raise CondorRefused(reason)
        return cycle()

    monkeypatch.setattr(driver, "_cycle", refused_once)
    assert driver.step(lambda progress: None) is None
    driver.run()
    assert calls.exactly_once


def test_jobs_are_expected_only_on_lanes_that_accept_them():
    clock = FakePool().clock
    clock.sleep(100)
    warm = LaneAd("slot1@a", "a", state=State.WARM, state_since=clock.time() - 30, claim="Unclaimed")
    retired = replace(warm, glide_id="b", retires=clock.time() - 1)
    later = replace(warm, glide_id="c", retires=clock.time() + 1, state=State.LOADING)
    views = glidein_views([warm, retired, later], 0, clock)
    assert {name: (each.warm, each.since, each.free) for name, each in views.items()} == {
        "a": (True, clock.monotonic() - 30, 1), "b": (True, clock.monotonic() - 30, 0), "c": (False, 0.0, 1),
    }  # fmt: skip
    assert [name for name, each in views.items() if each.retired] == ["b"]


def test_driver_waits_out_an_outage(tmp_path):
    calls, pool = CountedCalls(1000), pool_of(0.1, 0.1)
    pool.clock.call_later(15, lambda: pool.fail_calls(20))
    summary = driver_on(pool, calls, tmp_path).run()
    assert calls.exactly_once and summary["recomputed"] == 0


def test_repeatedly_held_jobs_end_the_run(tmp_path):
    calls, pool = CountedCalls(100), FakePool()

    def hold_all() -> None:
        for number in list(pool.schedd.queue):
            pool.hold(number, "no space")
        pool.clock.call_later(1, hold_all)

    pool.clock.call_later(1, hold_all)
    with pytest.raises(CondorRefused, match="holds jobs repeatedly"):
        driver_on(pool, calls, tmp_path).run()


def test_template_that_never_loads_ends_the_run(tmp_path):
    calls, pool = CountedCalls(100), FakePool(hosts=("n1", "n2", "n3"))
    for number in range(3):
        pool.add_lane(f"fake-{number}.0", TEMPLATE.digest, state=State.LOADING, host=f"n{number + 1}")
        pool.set_state(f"fake-{number}.0", State.FAILED, "no such file")
    with pytest.raises(TemplateError, match="no such file"):
        driver_on(pool, calls, tmp_path).run()


@pytest.mark.parametrize("full", [False, True])
def test_new_call_wakes_driver_unless_lanes_are_full(tmp_path, full):
    calls = Calls(TEMPLATE, 1)
    waiting = driver_on(FakePool(), calls, tmp_path)
    waiting.lanes_full = full
    calls.add({"prompt": "", "generate": {}, "timeout": 60.0})
    waiting.wait()
    assert calls.new_work.is_set() == full  # it was for that, or it is still to be seen


def test_large_wave_is_submitted_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(act, "GROUP_RECORDS", 10)
    clusters = submitted_clusters(tmp_path, monkeypatch, lambda: None)
    sizes = [sum(each) for each, _ in clusters]
    assert sizes == [12, 11]
    # Each lane of the last wave is released when its job has ended, whatever group the job was in.
    assert all(last for _, last in clusters)


def test_full_disk_discards_only_what_is_not_submitted(tmp_path, monkeypatch):
    monkeypatch.setattr(act, "GROUP_RECORDS", 10)
    files = iter(range(99))

    def fail_at_eighth_file() -> None:
        if next(files) == 7:
            raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        submitted_clusters(tmp_path, monkeypatch, fail_at_eighth_file)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".in"] * 4


def submitted_clusters(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before_file: Callable[[], None]
) -> list[tuple[list[int], bool]]:
    """Run one cycle with 23 records. Return each submission: the jobs' numbers of records, and whether it is the last.

    Args:
        before_file: function that is called before each input file is written.
    """
    submissions: list[tuple[list[int], bool]] = []
    submit, write = RunJobs.submit, RunJobs.write

    def noted_submit(jobs, parts, avoid, pending, last, period):
        submissions.append(([len(part.ids) for part in parts], last))
        submit(jobs, parts, avoid, pending, last, period)

    def noted_write(jobs, records):
        before_file()
        return write(jobs, records)

    monkeypatch.setattr(RunJobs, "submit", noted_submit)
    monkeypatch.setattr(RunJobs, "write", noted_write)
    driver_on(FakePool(), CountedCalls(23), folder).step(lambda progress: None)
    return submissions


@pytest.mark.pool
def test_stopped_sweep_resumes_without_recomputation(factory, access_point, sweep):
    records = [{"custom_id": f"r{each}", "text": f"text {each}"} for each in range(200)]
    model = {"name": "stopped", "engine": "noop", "options": {"record_seconds": 0.05}}
    process = sweep.write(records, model=model, name="stopped", pack=20).start()
    results = sweep.out / "plain" / "results.jsonl"
    eventually(lambda: results.exists() and results.read_text().count("\n") > 20, "results come in")
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == Exit.INTERRUPTED, errors
    assert "glide sweep resume" in errors
    assert not access_point.jobs('regexp("^stopped-", GlideRun) && JobStatus != 3', ["ClusterId"])
    done = sweep.run("resume")
    assert done.returncode == Exit.OK, done.stderr
    assert [result["custom_id"] for result in sweep.results()] == [record["custom_id"] for record in records]
    assert sweep.summary["recomputed"] == 0
    assert not list((sweep.out / ".glide" / "parts").iterdir())
