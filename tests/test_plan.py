"""The factory's policy: a snapshot in, actions out; neither clock nor HTCondor."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import pytest

from glide.factory import supply
from glide.factory.actions import Submit
from glide.factory.plan import drain, plan
from glide.factory.snapshot import Snapshot, StickyJob
from glide.template import FileSet, Template
from glide.vocabulary import JobStatus, State
from tests.snapshots import HELD, IDLE, IDS, REMOVED, RUNNING, brief, demand, glidein, ids, lane, retargets, site

# ---- when nothing is to be done ------------------------------------------------------------------


def test_empty_snapshot_causes_no_action():
    assert plan(Snapshot(), site()) == []
    assert drain(Snapshot(), site(), "why") == []


def test_unreachable_collector_pauses_all_entries_with_reason():
    running = glidein(1, "unwanted", IDLE)
    snapshot = Snapshot((running,), (lane(glidein(9)),), (demand(),), unavailable_sources=("collector: timeout",))
    actions = plan(snapshot, site({"name": "here", "max_glideins": 1}, {"name": "there", "max_glideins": 1}))
    assert [(action.action, action.entry, action.count) for action in actions] == [
        ("wait", "here", 0), ("wait", "there", 0),
    ]  # fmt: skip
    assert all("collector: timeout" in action.reason for action in actions)


def test_satisfied_demand_causes_no_action():
    there = (glidein(1), glidein(2, status=IDLE))
    assert plan(Snapshot(there, (lane(there[0], claimed=True),), (demand(),)), site()) == []


def test_unwanted_warm_glidein_is_not_removed():
    there = glidein(1)
    assert plan(Snapshot((there,), (lane(there),)), site()) == []


# ---- submitting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted, jobs, there, submitted",
    [(2, 10, 0, 2), (2, 10, 1, 1), (2, 10, 2, 0), (2, 10, 3, 0), (3, 1, 0, 1), (9, 10, 0, 4), (9, 10, 3, 1)],
)
def test_submissions_never_exceed_demand_or_entry_limit(wanted, jobs, there, submitted):
    snapshot = Snapshot(tuple(map(glidein, range(there))), (), (demand(wanted=wanted, idle=jobs),))
    assert brief(plan(snapshot, site())) == ([("submit", "T", submitted)] if submitted else [])


def test_planned_submission_contains_its_reason():
    (action,) = plan(Snapshot(demands=(demand(idle=7, running=3),)), site())
    assert action.reason == "10 jobs of model want 2 more glideins"
    assert action.public() == {
        "action": "submit", "entry": "here", "template": "T", "count": 2, "reason": action.reason
    }  # fmt: skip


def test_demands_of_runs_with_same_template_add_up():
    demands = (demand(wanted=1), demand(wanted=2, run="other"))
    assert brief(plan(Snapshot(demands=demands), site())) == [("submit", "T", 3)]


def test_glideins_of_another_template_do_not_satisfy_demand():
    there = glidein(1, "U")
    demands = (demand("T", 2), demand("U", 1))
    assert brief(plan(Snapshot((there,), (lane(there, claimed=True),), demands), site())) == [("submit", "T", 2)]


def test_submissions_do_not_exceed_limit_per_cycle():
    here = site({"name": "here", "max_glideins": 100, "submits_per_cycle": 3})
    assert brief(plan(Snapshot(demands=(demand(wanted=50, idle=99),)), here)) == [("submit", "T", 3)]


def test_submission_limit_per_cycle_applies_across_all_templates():
    here = site({"name": "here", "max_glideins": 100, "submits_per_cycle": 3})
    actions = plan(Snapshot(demands=(demand("T", 50, 99), demand("U", 50, 99))), here)
    assert sum(action.count for action in actions if action.action == "submit") <= 3


@pytest.mark.parametrize("of_t, of_u, wanted, gets", [
    (0, 0, (3, 3), [("T", 2), ("U", 2)]),
    (0, 0, (9, 1), [("T", 3), ("U", 1)]),  # what U does not need is T's
    (2, 0, (9, 9), [("U", 2)]),
    (1, 0, (9, 9), [("T", 1), ("U", 2)]),
    (3, 0, (9, 9), [("U", 1)]),
    (2, 1, (9, 9), [("U", 1)]),
    (1, 2, (9, 9), [("T", 1)]),
])  # fmt: skip
def test_free_places_go_to_template_with_fewest_glideins(of_t, of_u, wanted, gets):
    there = tuple(glidein(proc, "T" if proc < of_t else "U") for proc in range(of_t + of_u))
    lanes = tuple(lane(each, claimed=True) for each in there)
    actions = plan(Snapshot(there, lanes, (demand("T", wanted[0]), demand("U", wanted[1]))), site())
    assert [(each.template, each.count) for each in actions if each.action == "submit"] == gets


def test_templates_share_idle_glideins():
    blank = tuple(glidein(proc, "") for proc in range(5))
    lanes = tuple(lane(each, state=State.BLANK, name=each.job) for each in blank)
    full = site({"name": "here", "max_glideins": 5})
    actions = plan(Snapshot(blank, lanes, (demand("T", 9), demand("U", 9))), full)
    assert [(each.template, each.slots) for each in retargets(actions)] == [
        ("T", ("7.0", "7.2", "7.4")), ("U", ("7.1", "7.3")),
    ]  # fmt: skip


def test_template_without_room_leaves_its_share_to_others():
    here = site({"name": "here", "max_glideins": 6, "breaker": {"failures": 1}})  # until U was warm, one may be tried
    warm = glidein(1, state=State.WARM)
    demands = demand("U", 9, spec=Template("model", "noop", environment=FileSet("/env"))), demand("T", 9)
    actions = plan(Snapshot((warm,), (lane(warm, claimed=True),), demands), here)
    assert brief(actions) == [("submit", "U", 1), ("submit", "T", 4)]


def test_best_effort_demand_comes_after_other_demand():
    modest = demand("T", 9, best_effort=True)
    assert brief(plan(Snapshot((), (), (modest, demand("U", 3))), site())) == [("submit", "T", 1), ("submit", "U", 3)]


@pytest.mark.parametrize("useless", [{"state": State.FAILED}, {"retires": 1.0}])
def test_useless_glideins_do_not_count_for_a_share(useless):
    of_t, of_u = [glidein(proc) for proc in range(3)], [glidein(10 + proc, "U") for proc in range(2)]
    lanes = [lane(each, claimed=each in of_u, **(useless if each in of_t else {})) for each in (*of_t, *of_u)]
    snapshot = Snapshot((*of_t, *of_u), tuple(lanes), (demand("T", 9), demand("U", 9)), now=2.0)
    assert ("submit", "T", 1) in brief(plan(snapshot, site({"name": "here", "max_glideins": 6})))


def test_bug_that_a_template_triggers_takes_no_place_from_another(monkeypatch):
    def nodes(template: str, *groups: object) -> tuple[str, ...]:
        if template == "U":
            raise RuntimeError("a bug")
        return ()

    monkeypatch.setattr(supply, "nodes_without_success", nodes)
    actions = plan(Snapshot((), (), (demand("U", 9), demand("T", 9))), site())
    assert brief(actions) == [("wait", "U", 0), ("submit", "T", 4)] and "a bug" in actions[0].reason


def test_new_glideins_fill_entries_in_site_file_order():
    both = site({"name": "here", "max_glideins": 2}, {"name": "there", "max_glideins": 5})
    actions = plan(Snapshot((glidein(1, "U"),), (), (demand(wanted=4), demand("U", 1))), both)
    assert [(action.action, action.entry, action.count) for action in actions] == [
        ("submit", "here", 1), ("submit", "there", 3),
    ]  # fmt: skip


def test_demand_waits_with_reason_while_entry_is_full():
    there = tuple(glidein(proc, "U") for proc in range(4))
    lanes = tuple(lane(g, claimed=True) for g in there)
    (action,) = plan(Snapshot(there, lanes, (demand("U", 4), demand("T", 2))), site())
    assert (action.action, action.template, action.count) == ("wait", "T", 2)
    assert "here: its limit of 4" in action.reason


def test_host_where_template_failed_is_last_resort():
    there = glidein(1, host="n1", state=State.FAILED, failure="OSError: no weights")
    failed = lane(there, State.FAILED, failure=there.failure)
    (action,) = plan(Snapshot((there,), (failed,), (demand(wanted=1),)), site())
    assert (action.action, action.template, action.count) == ("submit", "T", 1), "the failed one does not count"
    assert action.last_resort == ("n1",) and action.avoid == () and "rather not on n1" in action.reason
    warm = glidein(2, host="n1", state=State.WARM)
    both = Snapshot((there, warm), (failed, lane(warm, claimed=True)), (demand(wanted=2),))
    (action,) = plan(both, site())
    assert action.last_resort == (), "there it loads at times"


def test_factory_says_why_template_failing_everywhere_must_wait():
    there = tuple(
        glidein(
            number, host=f"n{number}", state=State.FAILED, failure=f"OSError: no weights {number}", age=60.0 - number
        )
        for number in (1, 2, 3)
    )
    snapshot = Snapshot(there, tuple(lane(each, State.FAILED) for each in there), (demand(wanted=9),))
    (action,) = plan(snapshot, site({"name": "here", "max_glideins": 9, "breaker": {"failures": 3}}))
    assert (action.action, action.template) == ("wait", "T") and "breaker" in action.reason
    for number in (1, 2, 3):
        assert f"on n{number}: OSError: no weights {number}" in action.reason


def test_failing_template_does_not_block_other_templates():
    there = glidein(1, state=State.FAILED)
    snapshot = Snapshot((there,), (lane(there, State.FAILED),), (demand(wanted=9), demand("U", 1)))
    here = site({"name": "here", "max_glideins": 4, "breaker": {"failures": 3}})
    assert ("submit", "U", 1) in brief(plan(snapshot, here))


def test_demand_without_template_description_waits_with_reason():
    (action,) = plan(Snapshot(demands=(demand(spec=None),)), site())
    assert (action.action, action.template, action.count) == ("wait", "T", 2)
    assert "GlideTemplateSpec" in action.reason


def test_one_template_description_suffices_for_several_runs():
    actions = plan(Snapshot(demands=(demand(spec=None, wanted=1), demand(run="other", wanted=1))), site())
    assert brief(actions) == [("submit", "T", 2)]


# ---- whatever it sees ----------------------------------------------------------------------------


def worlds():
    """Small snapshots of every kind: two glideins of any status and template, any lanes, any demand."""
    statuses = (IDLE, RUNNING, REMOVED, HELD, JobStatus.TRANSFERRING)
    for first, second in itertools.product(statuses, repeat=2):
        for claims in itertools.product((False, True), repeat=2):
            for wanted in ((), ("T",), ("U",), ("T", "U"), ("V",)):
                glideins = (glidein(1, "T", first), glidein(2, "U", second))
                lanes = tuple(
                    lane(g, claimed=claimed)
                    for g, claimed in zip(glideins, claims, strict=True)
                    if g.status in (RUNNING, JobStatus.TRANSFERRING)
                )
                yield Snapshot(glideins, lanes, tuple(demand(template) for template in wanted))


def test_glidein_with_claimed_slot_is_never_removed():
    for snapshot in worlds():
        claimed = {lane.glide_id for lane in snapshot.lanes if lane.claimed}
        jobs = {f"{g.cluster}.{g.proc}" for g in snapshot.glideins if g.glide_id in claimed}
        actions = plan(snapshot, site({"name": "here", "max_glideins": 2}))
        assert not jobs & set(ids(actions, "remove")), (snapshot, actions)
        assert not claimed & set(ids(actions, "expunge")), (snapshot, actions)


def test_entry_never_exceeds_its_limit():
    for snapshot, limit in itertools.product(worlds(), (0, 1, 2, 3)):
        actions = plan(snapshot, site({"name": "here", "max_glideins": limit}))
        submitted = sum(action.count for action in actions if isinstance(action, Submit))
        assert submitted == 0 or len(snapshot.glideins) + submitted <= limit, (snapshot, actions)


def test_every_planned_action_states_count_and_reason():
    for snapshot in worlds():
        for action in plan(snapshot, site()):
            assert action.action in ("submit", "remove", "expunge", "wait")
            assert action.count > 0 and action.reason
            assert action.action in ("submit", "wait") or len(getattr(action, IDS[action.action])) == action.count


# ---- how much work it is -------------------------------------------------------------------------


def steps_of_a_plan(glideins: int) -> int:
    """Lines of Python that a plan of so many glideins runs: busy ones, idle ones, some on the move, three models."""
    templates = [f"T{number}" for number in range(3)]
    running = [glidein(number, templates[number % 2]) for number in range(glideins)]
    lanes = tuple(replace(lane(each, claimed=each.proc % 3 == 0), name=f"slot1@{each.proc}") for each in running)
    moves = tuple(StickyJob("T2", each.name) for each in lanes[::20])
    demands = tuple(demand(template, wanted=glideins, idle=glideins) for template in templates)
    snapshot = Snapshot(tuple(running), lanes, demands, retargets=moves)
    entries = site({"name": "here", "max_glideins": 3 * glideins, "max_idle": 3 * glideins})
    steps = 0

    def count(frame, event, argument):
        nonlocal steps
        steps += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        assert plan(snapshot, entries)
    finally:
        sys.settrace(before)
    return steps


def test_planning_steps_grow_subquadratically_with_number_of_glideins():
    assert steps_of_a_plan(800) < 6 * steps_of_a_plan(200)
