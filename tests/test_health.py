"""Breakers, nodes to avoid, downtimes: what the factory makes of how glideins ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glide.config import Breaker, SiteFile
from glide.factory.health import LONGEST_BACKOFF, bad_nodes, breaker_state
from glide.factory.plan import plan
from glide.factory.snapshot import Demand, Glidein, Snapshot
from glide.template import Template
from glide.vocabulary import UNSUITABLE, JobStatus, State

BREAKER = Breaker(failures=3, backoff_seconds=600)


def ended(proc: int, age: float, state: str = "", host: str = "n1", entry: str = "here") -> Glidein:
    return Glidein(1, proc, entry, "T", JobStatus.COMPLETED, 1, age, state=state, failure="no GPU", host=host)


def alive(proc: int, state: str = "", host: str = "n1", status: int = JobStatus.RUNNING) -> Glidein:
    return Glidein(2, proc, "here", "T", status, 1, 10.0, state=state, host=host)


def site(**entry) -> SiteFile:
    return SiteFile.model_validate({"site": "s", "entries": [{"name": "here", "max_glideins": 50, **entry}]})


def demand(wanted: int) -> Demand:
    return Demand("T", "model", "run", "", idle=50, running=0, wanted=wanted, spec=Template("model", "noop"))


def test_entry_gets_at_most_three_glideins_before_success():
    assert breaker_state([], [], BREAKER).allowed == 3
    assert breaker_state([alive(1), alive(2)], [], BREAKER).allowed == 1
    assert breaker_state([alive(1), alive(2)], [ended(1, 5)], BREAKER).allowed == 0
    assert breaker_state([alive(1, State.WARM)], [], BREAKER).allowed is None


def test_repeated_failures_open_circuit_breaker_with_reason():
    verdict = breaker_state([], [ended(1, 30), ended(2, 20), ended(3, 10)], BREAKER)
    assert verdict.open and verdict.allowed == 0
    assert (
        "600 s after the last failure" in verdict.reason and "here-1.3" in verdict.reason and "no GPU" in verdict.reason
    )


def test_circuit_breaker_allows_one_retry_and_doubles_backoff():
    three = [ended(number, 700 + number) for number in range(3)]
    assert breaker_state([], three, BREAKER).allowed == 1
    assert breaker_state([alive(9)], three, BREAKER).allowed == 0
    four = [*(replace(each, age=each.age + 650) for each in three), ended(4, 650)]
    assert breaker_state([], four, BREAKER).allowed == 0
    assert breaker_state([], [replace(each, age=each.age + 600) for each in four], BREAKER).allowed == 1
    failing = alive(9, State.FAILED)  # it has failed now, and has not ended yet
    verdict = breaker_state([failing], four, BREAKER)
    assert verdict.allowed == 0 and "open for 1200 s" in verdict.reason, "its try came before the pause was over"
    verdict = breaker_state([failing], [replace(each, age=each.age + 600) for each in four], BREAKER)
    assert verdict.allowed == 0 and "open for 2400 s" in verdict.reason


def test_failures_of_one_try_do_not_double_backoff():
    together = [ended(number, 30.0 + 20 * number) for number in range(12)]
    verdict = breaker_state([], together, BREAKER)
    assert verdict.allowed == 0 and "open for 600 s" in verdict.reason and verdict.failures == 12
    late = [replace(each, age=each.age + 600) for each in together]
    assert breaker_state([], late, BREAKER).allowed == 1
    assert "open for 1200 s" in breaker_state([], [*late, ended(20, 1)], BREAKER).reason


def test_backoff_is_at_most_one_day():
    daily = [ended(number, LONGEST_BACKOFF * (20 - number)) for number in range(20)]
    assert f"open for {LONGEST_BACKOFF:.0f} s" in breaker_state([], [*daily, ended(20, 1)], BREAKER).reason
    long = Breaker(failures=1, backoff_seconds=10 * LONGEST_BACKOFF)
    assert breaker_state([], [ended(1, LONGEST_BACKOFF)], long).allowed == 1


def test_more_glideins_on_trial_are_limited_after_first_failure():
    trying = [alive(number) for number in range(5)]
    assert breaker_state(trying, [], BREAKER, trials=12).allowed == 7
    assert breaker_state(trying, [ended(1, 5)], BREAKER, trials=12).allowed == 0
    assert breaker_state([], [ended(1, 5)], BREAKER, trials=12).allowed == 2
    assert breaker_state([*trying, alive(9, State.WARM)], [], BREAKER, trials=12).allowed is None


def test_success_closes_circuit_breaker_and_clears_earlier_failures():
    failures = [ended(number, 100 + number) for number in range(5)]
    assert breaker_state([], [*failures, ended(9, 50, State.WARM)], BREAKER).allowed is None
    assert breaker_state([alive(9, State.WARM)], failures, BREAKER).allowed is None
    assert breaker_state([], [*failures, ended(9, 500, State.WARM)], BREAKER).open


def test_glidein_that_was_warm_counts_as_success():
    assert breaker_state([], [ended(number, 1, State.WARM) for number in range(50)], BREAKER).allowed is None


def test_failing_entry_gets_three_submissions_in_ten_minutes():
    gone: list[Glidein] = []
    submissions = 0
    for second in range(0, 600, 2):
        snapshot = Snapshot(demands=(demand(8),), ended=tuple(gone), now=float(second))
        count = sum(action.count for action in plan(snapshot, site()) if action.action == "submit")
        submissions += count
        gone = [replace(each, age=each.age + 2) for each in gone] + [ended(submissions + n, 0.0) for n in range(count)]
    assert submissions == 3


def test_circuit_breaker_of_template_blocks_no_other_template():
    failures = tuple(replace(ended(number, 10, State.FAILED), template="broken") for number in range(4))
    actions = plan(Snapshot(demands=(demand(2), replace(demand(2), template="broken")), ended=failures), site())
    assert [(action.action, action.template) for action in actions] == [("submit", "T"), ("wait", "broken")]
    assert "breaker open" in actions[1].reason


def test_failing_node_is_avoided_if_another_node_succeeds():
    failures = [ended(1, 10, host="bad"), ended(2, 20, host="bad")]
    assert bad_nodes([alive(9, State.WARM, host="good")], failures) == ("bad",)
    assert bad_nodes([], failures) == ()
    assert bad_nodes([alive(9, State.WARM, host="bad")], failures) == ()
    snapshot = Snapshot((alive(9, State.WARM, host="good"),), (), (demand(3),), ended=tuple(failures))
    (submit,) = plan(snapshot, site())
    assert submit.avoid == ("bad",) and "bad" in submit.reason


def test_node_that_cannot_run_the_program_is_avoided_without_a_breaker():
    lacks = [replace(ended(n, 10, State.FAILED, host=f"old{n}"), failure=f"{UNSUITABLE}: no AVX2") for n in range(4)]
    assert breaker_state([], lacks, BREAKER).allowed == BREAKER.failures
    (submit,) = plan(Snapshot(demands=(demand(2),), ended=tuple(lacks)), site())
    assert submit.action == "submit" and submit.avoid == ("old0", "old1", "old2", "old3")
    nameless = [replace(each, host="") for each in lacks]
    assert breaker_state([], nameless, BREAKER).open, "a node without a name cannot be avoided"


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("status", [JobStatus.IDLE, JobStatus.RUNNING, JobStatus.HELD])
def test_entry_limit_counts_glideins_in_every_state(limit, status):
    for there in range(limit + 1):
        mine = tuple(alive(proc, State.WARM, status=status) for proc in range(there))
        actions = plan(Snapshot(mine, (), (demand(9),)), site(max_glideins=limit))
        assert sum(action.count for action in actions if action.action == "submit") == limit - there


def test_downtime_prevents_submissions():
    downtime = {"start": "2026-11-21 08:00", "end": "2026-11-21 10:00", "reason": "new switches"}
    noon, nine = 1795262400.0, 1795251600.0
    down = site(downtimes=[downtime])
    (wait,) = plan(Snapshot(demands=(demand(1),), now=nine), down)
    assert wait.action == "wait" and "new switches" in wait.reason and "10:00" in wait.reason
    (submit,) = plan(Snapshot(demands=(demand(1),), now=noon), down)
    assert submit.action == "submit"


def test_drained_entry_gets_no_glidein():
    (wait,) = plan(Snapshot(demands=(demand(1),)), site(), drained=["here"])
    assert wait.action == "wait" and "--undo" in wait.reason
