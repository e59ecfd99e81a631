"""Whatever happens on a pool: each record gets one result, the run ends, and the queue stays short."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as some

from glide.condor.fake import FakePool
from glide.invoke.jobs import RunSpec
from glide.invoke.pack import AHEAD
from glide.sweep.driver import Driver
from glide.vocabulary import JobStatus, State
from tests.test_driver import TEMPLATE, CountedCalls

PACES = some.sampled_from((0.01, 0.1, 0.5, 3.0))
SECONDS = some.floats(0, 120)
# What happens, and when. A number chooses the glidein or the job that it happens to.
EVENTS = some.lists(
    some.tuples(
        some.sampled_from(("add", "kill", "hold", "outage", "restart collector", "lose events", "refuse")),
        SECONDS,
        some.integers(0, 100),
        PACES,
    ),
    max_size=8,
)


class History:
    """A pool to which scripted events happen."""

    def __init__(self, paces: list[float], events: list[tuple[str, float, int, float]]):
        self.pool = FakePool()
        self.glideins = 0
        self.kills = 0
        for pace in paces:
            self.add(pace, 0)
        for kind, at, number, pace in events:
            self.pool.clock.call_later(at, lambda what=(kind, number, pace): self.happen(*what))
        for minute in range(1, 60):  # in the end there is always a glidein, as from a factory
            self.pool.clock.call_later(60 * minute, lambda: self.add(0.1, 5))

    def add(self, pace: float, load_seconds: float) -> None:
        self.glideins += 1
        state = State.LOADING if load_seconds else State.WARM
        for _ in range(2):
            name = f"fake-{self.glideins}.0"
            self.pool.add_lane(name, TEMPLATE.digest, state=state, warm_after=load_seconds, record_seconds=pace)

    def happen(self, kind: str, number: int, pace: float) -> None:
        jobs = sorted(self.pool.schedd.queue)
        if kind == "add":
            self.add(pace, 10)
        elif kind == "kill" and self.glideins:
            name = f"fake-{1 + number % self.glideins}.0"
            if name in self.pool.glideins:
                self.kills += 1
                self.pool.kill(name)
        elif kind == "hold" and jobs:
            self.pool.hold(jobs[number % len(jobs)], "as the test wants")
        elif kind == "outage":
            self.pool.fail_calls(1 + number % 20)
        elif kind == "restart collector":
            self.pool.restart_collector()
        elif kind == "lose events":
            self.pool.lose_events(number % 2 == 0)
        elif kind == "refuse":
            self.pool.refuse("as the test wants")
            self.pool.clock.call_later(5, lambda: self.pool.refuse(""))


@settings(max_examples=40, deadline=None)
@given(some.integers(1, 1500), some.lists(PACES, max_size=3), EVENTS)
def test_each_record_gets_one_result_in_any_history(records, paces, events):
    history = History(paces, events)
    calls = CountedCalls(records)
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(calls, RunSpec("run", TEMPLATE, Path(folder), 4), history.pool.handle())
        longest = 0
        for _ in range(20_000):  # more cycles than any of these runs needs
            summary = driver.step(lambda progress: None)
            longest = max(longest, sum(job.status != JobStatus.COMPLETED for job in driver.actor.queue.values()))
            if summary is not None:
                break
            driver.wait()
        else:
            raise AssertionError(f"no end after {history.pool.clock.monotonic():.0f} s")
    assert calls.exactly_once
    assert driver.intake.pending == 0 and not driver.intake.in_flight
    lanes = 2 * max(4, history.glideins)
    assert longest <= AHEAD * lanes + lanes  # each lane may have a twin
    if not history.kills and not any(kind == "hold" for kind, *_ in events):
        assert summary["recomputed"] == 0
