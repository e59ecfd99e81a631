"""Which records are taken back at the end of a run, and which jobs get a twin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from glide.sweep.balance import ANSWER_SECONDS, MOST_REQUESTS, balance, from_loading_glideins
from glide.sweep.view import GlideinView, JobView, SubmitTwin, TakeBack
from glide.vocabulary import JobStatus

LATENCY = 3.0


def glidein(pace: float = 1.0, free: int = 0, warm: bool = True) -> GlideinView:
    return GlideinView(2, free, warm, pace)


def job(name: str, glide_id: str, records: int, begun: int = 1, **more) -> JobView:
    return JobView(name, name, JobStatus.RUNNING, records, records, begun, glide_id, f"{glide_id} lane", **more)


def moved(*jobs: JobView, waiting: int = 0, now: float = 0.0, **glideins: GlideinView):
    return balance(jobs, waiting, glideins, LATENCY, now)


def kept(actions) -> list[int]:
    """The numbers of records that jobs are asked to keep, in one action."""
    (action,) = actions
    assert isinstance(action, TakeBack)
    return [keep for _, keep in action.keep]


def test_idle_glidein_takes_half_of_work():
    # Both finish at the same time: the idle one begins four seconds later.
    assert kept(moved(job("1.0", "busy", 100), busy=glidein(), idle=glidein(free=2))) == [pytest.approx(52, abs=1)]


def test_faster_glidein_takes_more_of_work():
    actions = moved(job("1.0", "busy", 100), busy=glidein(1.0), idle=glidein(0.1, free=2))
    assert kept(actions) == [pytest.approx(12, abs=2)]


def test_nothing_moves_if_all_glideins_have_work():
    assert moved(job("1.0", "a", 100), job("2.0", "b", 20), a=glidein(), b=glidein()) == []


def test_nothing_moves_if_waiting_jobs_suffice():
    assert moved(job("1.0", "busy", 10), waiting=100, busy=glidein(), idle=glidein(free=2)) == []


def test_job_gives_back_records_if_its_glidein_gets_no_more_jobs():
    assert kept(moved(job("1.0", "draining", 100), idle=glidein(free=2))) == [pytest.approx(52, abs=1)]


def test_retired_glidein_gives_records_to_one_that_has_not_been_measured():
    old = glidein(1.0)
    old.retired = True
    assert kept(moved(job("1.0", "old", 100), old=old, new=glidein(0.0, free=2))) == [pytest.approx(52, abs=1)]


def test_retired_glidein_takes_no_work():
    idle = glidein()
    idle.retired = True
    assert moved(job("1.0", "busy", 100), busy=glidein(), idle=idle) == []


def test_requests_of_one_cycle_are_limited():
    jobs = [job(f"{number}.0", f"busy{number}", 100) for number in range(3 * MOST_REQUESTS)]
    glideins = {each.glidein: glidein() for each in jobs} | {f"idle{n}": glidein(free=2) for n in range(len(jobs))}
    assert len(kept(moved(*jobs, **glideins))) == MOST_REQUESTS


def test_begun_records_are_not_taken_back():
    (keep,) = kept(moved(job("1.0", "busy", 100, begun=90), busy=glidein(), idle=glidein(free=2)))
    assert keep >= 90


def test_job_is_not_asked_twice_until_it_answers():
    asked = job("1.0", "busy", 100, asked=52, asked_at=0.0, read=5.0)
    assert moved(asked, now=5.0, busy=glidein(), idle=glidein(free=2)) == []
    late = ANSWER_SECONDS + 1
    asked.read = late
    assert moved(asked, now=late, busy=glidein(), idle=glidein(free=2))


def test_last_record_on_slow_glidein_gets_twin():
    last = job("1.0", "slow", 1)
    (action,) = moved(last, slow=glidein(600.0), fast=glidein(60.0, free=2))
    assert action == SubmitTwin(last)
    last.twin = "another"
    assert moved(last, slow=glidein(600.0), fast=glidein(60.0, free=2)) == []


def test_no_twin_if_slow_glidein_is_nearly_as_fast():
    assert moved(job("1.0", "slow", 1), slow=glidein(100.0), fast=glidein(60.0, free=2)) == []


def test_unmeasured_glidein_counts_as_slow_after_a_while():
    last = job("1.0", "new", 1, read=300.0)
    (action,) = moved(last, now=300.0, new=glidein(0.0), fast=glidein(1.0, free=2))
    assert action == SubmitTwin(last)


def test_glidein_that_has_just_become_warm_does_not_count_as_slow():
    """Its job has waited on its lane while the template was loaded."""
    first = job("1.0", "new", 50, begun=0, since=0.0, read=300.0)
    new = glidein(0.0)
    new.since = 299.0
    assert moved(first, now=300.0, new=new, old=glidein(1.0, free=2)) != []  # ten times as long as a helper needs
    (keep,) = kept(moved(first, now=300.0, new=new, old=glidein(1.0, free=2)))
    assert keep == pytest.approx(26, abs=2), "both count as equally fast"


def test_job_on_loading_lane_returns_if_warm_lane_is_free():
    waiting = job("1.0", "loading", 50, begun=0)
    glideins = {"loading": glidein(0.0, warm=False), "warm": glidein(free=1)}
    assert from_loading_glideins([waiting], 0, glideins, 0.0) == [TakeBack(((waiting, 0),))]
    assert from_loading_glideins([waiting], 1, glideins, 0.0) == []  # an idle job gets the lane


@given(
    some.lists(some.tuples(some.integers(1, 500), some.integers(0, 500), some.sampled_from("abcd")), max_size=8),
    some.dictionaries(some.sampled_from("abcd"), some.tuples(some.floats(0.001, 100), some.booleans()), min_size=1),
    some.integers(0, 500),
)
def test_actions_never_touch_begun_records(jobs, paces, waiting):
    glideins = {name: glidein(pace, free=2, warm=warm) for name, (pace, warm) in paces.items()}
    views = [job(str(i), name, records, min(begun, records)) for i, (records, begun, name) in enumerate(jobs)]
    actions = moved(*views, waiting=waiting, **glideins)
    taken = [each for action in actions if isinstance(action, TakeBack) for each in action.keep]
    assert all(each.begun <= keep < each.records for each, keep in taken)
    asked = [each.part for each, _ in taken] + [action.job.part for action in actions if isinstance(action, SubmitTwin)]
    assert len(set(asked)) == len(asked)
