"""How many records a job carries: properties over many inputs, and lanes run in virtual time."""

from __future__ import annotations

import heapq
import itertools
import math

import pytest

from glide.invoke.pack import (
    AHEAD,
    AP_SHARE,
    FIXED_AHEAD,
    LONGEST_SECONDS,
    MOST_RECORDS,
    SHARE,
    SHORTEST_SECONDS,
    START_SECONDS,
    UNMEASURED_RECORDS,
    pack,
)  # fmt: skip

LEFT = (0, 1, 2, 31, 32, 33, 100, 1000, 20_000, 1_000_000)
LANES = (0, 1, 2, 3, 8, 64, 500)
PACES: tuple[tuple[float, ...], ...] = (
    (), (0.0,), (1e-6,), (0.001,), (0.05,), (1.0,), (30.0,), (1000.0,), (0.02, 0.02, 0.1), (0.0, 0.01),
)  # fmt: skip
FIXED = (None, 1, 7, 100, 10**7)
GRID = [
    (left, lanes, queued, paces, fixed)
    for left, lanes, paces, fixed in itertools.product(LEFT, LANES, PACES, FIXED)
    for queued in (0, 1, AHEAD * lanes, FIXED_AHEAD)
]


def test_jobs_submitted_together_are_never_empty():
    for left, *rest in GRID:
        lanes, queued, paces, fixed = rest
        for batch in (1, 48):
            sizes = pack(left, lanes, queued, paces, batch, fixed).sizes
            assert sum(sizes) <= left, (left, *rest)
            assert all(size > 0 for size in sizes), (left, *rest)


def test_only_last_job_may_be_larger_than_previous():
    for left, lanes, queued, paces, fixed in GRID:
        sizes = pack(left, lanes, queued, paces, fixed=fixed).sizes
        assert list(sizes[:-1]) == sorted(sizes[:-1], reverse=True), (left, lanes, queued, paces, fixed)
        if len(sizes) > 1 and sizes[-1] > sizes[-2]:
            assert sum(sizes) == left and (sizes[-1] - sizes[-2]) * min(paces) < _shortest(lanes)


def test_job_size_reason_is_always_one_line():
    for inputs in GRID:
        left, lanes, queued, paces, fixed = inputs
        reason = pack(left, lanes, queued, paces, fixed=fixed).reason
        assert reason and "\n" not in reason, inputs


def test_jobs_are_submitted_only_if_queue_runs_low():
    for left, lanes, queued, paces, fixed in GRID:
        if fixed is None and queued >= AHEAD * max(1, lanes):
            assert pack(left, lanes, queued, paces, fixed=fixed).sizes == ()
        if left > 0 and queued == 0:
            assert pack(left, lanes, queued, paces, fixed=fixed).sizes


def test_number_of_queued_jobs_is_limited_by_lanes():
    for left, lanes, queued, paces, fixed in GRID:
        most = max(FIXED_AHEAD if fixed else 0, AHEAD * max(1, lanes))
        sizes = pack(left, lanes, queued, paces, fixed=fixed).sizes
        assert len(sizes) + queued <= max(queued, most), (left, lanes, queued, paces, fixed)


def test_fixed_job_size_applies_except_for_last_job():
    for left, lanes, queued, paces, fixed in GRID:
        sizes = pack(left, lanes, queued, paces, fixed=fixed).sizes
        if fixed and sizes:
            assert set(sizes[:-1]) <= {fixed} and sizes[-1] == min(fixed, left - fixed * (len(sizes) - 1))


def test_every_lane_gets_jobs_of_fixed_size():
    lanes = 3 * FIXED_AHEAD
    assert len(pack(10**6, lanes, 0, fixed=1).sizes) == AHEAD * lanes


def test_jobs_are_small_before_first_measurement():
    least, most = UNMEASURED_RECORDS
    assert set(pack(100_000, 4, 0).sizes) == {most}
    assert set(pack(4 * AHEAD * 50, 4, 0).sizes) == {50}
    assert set(pack(60, 4, 0).sizes[:-1]) == {least}


def test_first_wave_has_slightly_more_jobs_than_lanes():
    assert len(pack(10**6, 4, 0).sizes) == 8
    assert 500 < len(pack(10**6, 500, 0).sizes) < 550


def _shortest(lanes: int, work: float = float("inf")) -> float:
    """Of a job, in seconds, where all that is left would take one lane so many."""
    last = max(work / max(1, lanes), math.sqrt(work * START_SECONDS))
    return max(SHORTEST_SECONDS, min(lanes * START_SECONDS / AP_SHARE, last))


def test_job_duration_stays_between_shortest_and_longest_allowed():
    for left, lanes, queued, paces, fixed in GRID:
        sizes = pack(left, lanes, queued, paces, fixed=fixed).sizes
        if not sizes or fixed or len(paces) != 1 or not paces[0]:
            continue
        shortest = _shortest(lanes, left * paces[0])
        longest = max(LONGEST_SECONDS, shortest)
        assert max(sizes) == 1 or max(sizes) * paces[0] <= longest
        taken = 0
        for size in sizes:
            long_enough = size * paces[0] >= min(0.75 * shortest, longest / 2)
            assert size == left - taken or long_enough or size >= 0.5 * MOST_RECORDS
            taken += size


def test_first_job_takes_one_third_of_lane_share():
    assert pack(12_000, 4, 0, [0.01]).sizes[0] == 12_000 / (4 * SHARE)


def test_slow_lane_does_not_make_jobs_smaller():
    """A lane that turns out to be too slow for its job gives records back."""
    even, mixed = pack(31_000, 4, 0, [0.01] * 4), pack(31_000, 4, 0, [0.01, 0.01, 0.01, 0.1])
    assert even.sizes == mixed.sizes and "10 to 100 ms" in mixed.reason


def test_job_start_rate_is_respected_despite_slow_lane():
    """400 lanes of 100 ms and one of a second: the jobs are not cut for the slow lane, which gives records back."""
    paces = [0.1] * 400 + [1.0]
    size = pack(8_000_000, 401, 0, paces).sizes[0]
    assert 401 / (size * 0.1) * START_SECONDS <= AP_SHARE * 1.01


def test_job_sizes_are_multiples_of_engine_batch():
    for left, lanes in itertools.product((100, 1000, 10**5), (1, 4, 64)):
        sizes = pack(left, lanes, 0, [0.05], batch=48).sizes
        assert all(size % 48 == 0 for size in sizes[:-1])
        assert sizes[-1] % 48 == 0 or sum(sizes) == left


def test_jobs_for_many_lanes_respect_job_start_rate():
    for lanes in (10, 100, 400, 4000):
        wave = pack(10**9, lanes, 0, [0.01])
        assert lanes / (wave.sizes[0] * 0.01) * START_SECONDS <= AP_SHARE * 1.001


def test_few_records_are_spread_over_all_lanes():
    assert pack(16, 16, 0).sizes == (1,) * 16
    assert pack(6, 16, 0).sizes == (1,) * 6
    assert pack(64, 16, 0).sizes == (4,) * 16
    assert pack(500, 500, 0).sizes[0] == UNMEASURED_RECORDS[0]  # 500 jobs would take half a minute to start


def test_few_slow_records_are_spread_over_many_lanes():
    assert len(pack(100, 20, 0).sizes) == 20
    sizes = pack(1000, 20_000, 0, [1.0]).sizes
    assert 100 < len(sizes) < 200 and sum(sizes) == 1000


def test_jobs_are_larger_while_many_records_are_unfinished():
    assert len(pack(50, 400, 400, [1.0], unfinished=10**6).sizes) == 1
    assert len(pack(50, 400, 400, [1.0]).sizes) > 10


def test_frequent_evictions_make_jobs_shorter():
    calm, stormy = (max(pack(10**6, 4, 0, [0.01], eviction_rate=rate).sizes) * 0.01 for rate in (1e-6, 1 / 40))
    assert calm == LONGEST_SECONDS and stormy == 10.0


# ---- lanes in virtual time -----------------------------------------------------------------------


def simulate(records: int, lanes: int, seconds: float, start: float = 0.06, poll: float = 0.5) -> tuple[float, int]:
    """Makespan, and jobs: each lane serves a record in `seconds`; a driver looks at the queue every `poll`."""
    left, jobs, now, end = records, 0, 0.0, 0.0
    queue: list[int] = []
    busy: list[tuple[float, int]] = []  # (when it ends, lane), a heap
    free = list(range(lanes))
    measured: list[float] = []
    while left or queue or busy:
        wave = pack(left, lanes, len(queue) + len(busy), measured)
        queue += wave.sizes
        left -= sum(wave.sizes)
        jobs += len(wave.sizes)
        now += poll
        while True:
            while free and queue:
                began = end if end > now - poll else now - poll
                heapq.heappush(busy, (began + start + queue.pop(0) * seconds, free.pop()))
            if not busy or busy[0][0] > now:
                break
            end, lane = heapq.heappop(busy)
            free.append(lane)
            measured = [seconds]
    return end, jobs


@pytest.mark.parametrize("records", [10, 1000, 20_000])
@pytest.mark.parametrize("lanes", [1, 2, 7, 32])
@pytest.mark.parametrize("seconds", [0.002, 0.05, 0.5])
def test_simulated_makespan_is_near_work_divided_by_lanes(records, lanes, seconds):
    makespan, jobs = simulate(records, lanes, seconds)
    ideal = -(-records // lanes) * seconds
    # What no packing can avoid: a job's start each, the probes' turn, and a last job that one lane has alone.
    jobs_per_lane = -(-jobs // lanes)
    probe = min(max(records / lanes / SHARE + 1, UNMEASURED_RECORDS[0]), UNMEASURED_RECORDS[1])
    last = max(1.5 * _shortest(lanes), probe * seconds)
    assert ideal <= makespan <= ideal + jobs_per_lane * 0.06 + last + 0.5
    assert jobs_per_lane * 0.06 <= 0.1 * ideal + 1.0


@pytest.mark.parametrize("lanes", [2, 8])
def test_overhead_of_long_sweep_stays_below_ten_percent(lanes):
    makespan, _ = simulate(20_000, lanes, 0.05)
    assert makespan <= 1.1 * 20_000 * 0.05 / lanes


def test_average_job_duration_is_at_least_allowed_minimum():
    _, jobs = simulate(20_000, 8, 0.05)
    assert jobs <= 20_000 * 0.05 / SHORTEST_SECONDS


def test_job_size_stays_limited_when_records_are_fast():
    assert max(pack(10_000_000, 2, 0, [2e-5]).sizes) == MOST_RECORDS
    assert max(pack(10_000_000, 2, 0, [0.0]).sizes) == MOST_RECORDS
    assert max(pack(10_000_000, 2, 0, [2e-5], fixed=100_000).sizes) == 100_000
    # A thousand fast lanes need larger jobs: else the access point could not start enough of them.
    assert max(pack(100_000_000, 1000, 0, [5e-4]).sizes) > MOST_RECORDS
