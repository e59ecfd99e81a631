"""The factory's policy for glideins and ads that exist: remove, retarget, keep ready, drain or expunge them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glide.factory.actions import Submit
from glide.factory.observe import build_snapshot
from glide.factory.plan import START_GRACE_SECONDS, drain, plan
from glide.factory.snapshot import Snapshot, StickyJob
from glide.files import Tree
from glide.protocol.ads import InvocationAd, from_ad
from glide.template import Template
from glide.vocabulary import Job, JobStatus, State
from tests.snapshots import HELD, IDLE, IN_VAIN, OLD, REMOVED, brief, demand, glidein, ids, lane, retargets, site

# ---- removing ------------------------------------------------------------------------------------


def test_unwanted_queued_glidein_is_removed():
    queued = (glidein(1, status=IDLE), glidein(2, "U", IDLE))
    assert ids(plan(Snapshot(queued, (), (demand(wanted=1),)), site()), "remove") == ["7.2"]


def test_held_glidein_is_removed_later_if_demand_exists():
    held = glidein(1, status=HELD, hold_reason="no such file", age=500)
    for of, demands, removed in (
        (held, (), True), (held, (demand(wanted=1),), False), (replace(held, age=601), (demand(wanted=1),), True),
    ):  # fmt: skip
        removals = [action for action in plan(Snapshot((of,), (), demands), site()) if action.action == "remove"]
        assert [action.jobs for action in removals] == [("7.1",)] * removed
        assert all("no such file" in action.reason for action in removals)


def test_idle_glidein_is_removed_if_entry_is_full():
    busy, idle = glidein(1, "U"), glidein(2, "U")
    snapshot = Snapshot((busy, idle), (lane(busy, claimed=True), lane(idle)), (demand(),), retargets=(IN_VAIN,))
    assert ids(plan(snapshot, site({"name": "here", "max_glideins": 2})), "remove") == ["7.2"]
    assert ids(plan(snapshot, site({"name": "here", "max_glideins": 4})), "remove") == []


def test_glidein_that_loads_a_wanted_model_is_not_removed_for_another():
    there = glidein(1, "unwanted")
    full = site({"name": "here", "max_glideins": 1})
    actions = plan(Snapshot((there,), (lane(there, name="slot1"),), (demand("T", 1), demand("U", 1))), full)
    assert brief(actions) == [("submit", "T", 1), ("wait", "U", 1)] and retargets(actions)


def test_failing_glidein_is_removed_and_loads_no_other_model():
    failing, good = (
        glidein(1, "X", state=State.WARM, served=40, errors=30),
        glidein(2, "X", state=State.WARM, served=40),
    )
    lanes = tuple(lane(each, name=each.job) for each in (failing, good))
    actions = plan(
        Snapshot((failing, good), lanes, (demand("T", 1), demand("U", 1))), site({"name": "here", "max_glideins": 2})
    )
    assert ids(actions, "remove") == ["7.1"] and ids(retargets(actions), "submit") == ["7.2"]


@pytest.mark.parametrize("of_u, loads, ends", [(0, 2, 2), (3, 0, 1)])
def test_template_that_idle_glideins_cannot_load_gets_its_share_of_their_places(of_u, loads, ends):
    busy, idle = [glidein(proc, "U") for proc in range(of_u)], [glidein(10 + proc, "X") for proc in range(4 - of_u)]
    lanes = [lane(each, claimed=True) for each in busy] + [lane(each, name=each.job) for each in idle]
    snapshot = Snapshot((*busy, *idle), tuple(lanes), (demand("U", 9), demand("T", 9)), retargets=(IN_VAIN,))
    actions = plan(snapshot, site())
    assert (len(ids(retargets(actions), "submit")), len(ids(actions, "remove"))) == (loads, ends)


def test_best_effort_run_unloads_and_removes_nothing():
    idle, blank = glidein(1, "U"), glidein(2, "")
    lanes = (lane(idle, name="warm"), lane(blank, state=State.BLANK, name="blank"))
    modest = demand(wanted=1, best_effort=True)
    two = site({"name": "here", "max_glideins": 2})
    assert ids(plan(Snapshot((idle, blank), lanes, (modest,)), two), "submit") == ["blank"]
    for other, waits in ((site(), ["submit"]), (site({"name": "here", "max_glideins": 1}), ["wait"])):
        actions = plan(Snapshot((idle,), lanes[:1], (modest,)), other)
        assert [action.action for action in actions] == waits and not ids(actions, "submit")
    both = plan(Snapshot((idle,), lanes[:1], (modest, demand(wanted=1, run="other"))), site())
    assert ids(both, "submit") == ["warm"], "another run's wish counts as ever"


@pytest.mark.parametrize("said, modest", [((True, True), True), ((True, None), False), (("true",), False)])
def test_best_effort_demand_has_only_best_effort_jobs(said, modest):
    ad = {"ClusterId": 1, "JobStatus": IDLE, Job.TEMPLATE: "T", Job.RUN: "run"}
    jobs = [from_ad(InvocationAd, {**ad, "ProcId": n, Job.BEST_EFFORT: value}) for n, value in enumerate(said)]
    assert [each.best_effort for each in build_snapshot((), jobs, (), {}).demands] == [modest]


def test_idle_glideins_load_wanted_model_before_new_submissions():
    busy, idle, retiring, used = (glidein(proc, "U") for proc in range(1, 5))
    lanes = (
        lane(busy, claimed=True), lane(busy, name="busy"), lane(idle, name="one"), lane(idle, name="two"),
        lane(retiring, retires=0.0), lane(used, name="used"), lane(used, state=State.LOADING),
    )  # fmt: skip
    snapshot = Snapshot((busy, idle, retiring, used), lanes, (demand(wanted=2),), now=1.0)
    large = site({"name": "here", "max_glideins": 9})
    move, new = plan(snapshot, large)
    assert (move.action, move.count, move.slots) == ("submit", 1, ("one", "two"))
    assert "idle glideins load it: here-7.2" in move.reason
    assert (type(new), new.count) == (Submit, 1)
    both = replace(snapshot, demands=(demand(wanted=1), demand("V", wanted=1)))
    moves = [action.slots for action in retargets(plan(both, large))]
    assert moves == [("one", "two")], "for one of them only"
    under_way = replace(snapshot, retargets=(StickyJob("T", "one"), StickyJob("T", "two")))
    assert [type(action) for action in plan(under_way, large)] == [Submit]
    wanted_too = replace(snapshot, demands=(demand(wanted=2), demand("U", wanted=4)))
    assert not retargets(plan(wanted_too, large))
    starting = replace(snapshot, lanes=(lane(idle, state=State.BLANK, name="one"),), glideins=(idle,))
    assert not retargets(plan(replace(starting, demands=(demand("U"),)), large))
    mute = replace(starting, lanes=(replace(starting.lanes[0], template=""),), demands=(demand("U"),))
    assert not retargets(plan(mute, large)), "it has only not said yet what it has"
    others = tuple(replace(each, template="T") if each.name in ("one", "two") else each for each in lanes)
    assert brief(plan(replace(snapshot, lanes=others, demands=(demand(wanted=1),)), large)) == []


WITH_FILES = Template("model", "noop", "/model", {"weights": ("0" * 64, 10)})


def test_wanted_model_goes_where_its_files_are_cached():
    tree = Tree(WITH_FILES.files).digest[:16]
    idle = tuple(glidein(proc, "U") for proc in (1, 2, 3))
    lanes = tuple(lane(each, name=each.job, cached=(tree,) if each.proc == 2 else ("other",)) for each in idle)
    wants = demand(wanted=1, spec=WITH_FILES)
    (move,) = plan(Snapshot(idle, lanes, (wants,)), site())
    assert move.slots == ("7.2",)
    # In the queue of an outer pool: nodes where it was warm.
    gone = glidein(4, status=JobStatus.COMPLETED, state=State.WARM, host="n1")
    failed = glidein(5, status=JobStatus.COMPLETED, state=State.FAILED, host="n2")
    elsewhere = glidein(6, "U", status=JobStatus.COMPLETED, state=State.WARM, host="n3")
    ended = Snapshot(demands=(wants,), ended=(gone, failed, elsewhere))
    (submit,) = plan(ended, site())
    assert submit.prefer == ("n1",)
    (submit,) = plan(replace(ended, demands=(demand(wanted=1),)), site())
    assert submit.prefer == (), "it has no files"


def test_entry_key_ready_determines_number_of_blank_glideins():
    ready = site({"name": "here", "max_glideins": 4, "ready": 2})
    (submit,) = plan(Snapshot(), ready)
    assert (submit.action, submit.template, submit.count) == ("submit", "", 2) and "without a model" in submit.reason
    blank, busy = (glidein(proc, "") for proc in (1, 2)), glidein(3)
    blank = tuple(blank)
    lanes = tuple(lane(each, state=State.BLANK, name=each.job) for each in blank)
    assert plan(Snapshot(blank, lanes), ready) == []
    snapshot = Snapshot((*blank, busy), (*lanes, lane(busy, claimed=True)), (demand(wanted=2),))
    (move,) = plan(snapshot, ready)
    assert (move.template, move.slots) == ("T", ("7.1",))
    (more,) = plan(replace(snapshot, retargets=(StickyJob("T", "7.1"),)), ready)
    assert (type(more), more.template, more.count) == (Submit, "", 1)
    idle = Snapshot((glidein(1, "U"), glidein(2, "", IDLE)), (lane(glidein(1, "U")),))
    assert plan(idle, ready) == [], "an idle one is as ready as a blank one"
    assert [action.action for action in plan(idle, site())] == ["remove"], "where none are wanted, none are queued"


def test_plan_removes_no_more_glideins_than_necessary():
    there = tuple(glidein(proc, "U") for proc in range(4))
    snapshot = Snapshot(there, tuple(map(lane, there)), (demand(wanted=1),), retargets=(IN_VAIN,))
    assert len(ids(plan(snapshot, site()), "remove")) == 1


def test_glideins_of_unknown_entries_are_left_alone():
    others = (glidein(1, "U", IDLE, entry="theirs"), glidein(2, "U", HELD, entry="theirs"))
    ghost = lane(glidein(3, entry="theirs"))
    assert plan(Snapshot(others, (ghost,)), site()) == []
    assert drain(Snapshot(others), site(), "why") == []


def test_drain_removes_all_glideins_of_each_entry():
    both = site({"name": "here", "max_glideins": 2}, {"name": "there", "max_glideins": 2})
    there = (glidein(1), glidein(2, status=IDLE), glidein(3, entry="there"), glidein(4, entry="theirs"))
    assert [(a.action, a.entry, a.count, a.jobs, a.reason) for a in drain(Snapshot(there), both, "why")] == [
        ("drain", "here", 2, ("7.1", "7.2"), "why"),
        ("drain", "there", 1, ("7.3",), "why"),
    ]


# ---- ghosts --------------------------------------------------------------------------------------


def test_ads_of_glidein_without_outer_job_are_removed():
    gone = glidein(9)
    (action,) = plan(Snapshot((), (lane(gone), lane(gone, claimed=True))), site())
    assert (action.action, action.entry, action.glide_ids) == ("expunge", "here", (gone.glide_id,))


@pytest.mark.parametrize("status", [REMOVED, JobStatus.COMPLETED, HELD])
def test_ads_of_ended_glidein_job_are_removed(status):
    ended = glidein(1, status=status)
    assert ids(plan(Snapshot((ended,), (lane(ended),)), site()), "expunge") == ["here-7.1"]


def test_ads_of_requeued_glidein_are_removed():
    evicted = glidein(1, status=IDLE, starts=1)
    snapshot = Snapshot((evicted,), (lane(glidein(1)),), (demand(wanted=1),))
    assert ids(plan(snapshot, site()), "expunge") == ["here-7.1"]


def test_old_ads_of_restarted_glidein_are_removed():
    again = glidein(1, starts=3)
    assert again.glide_id == "here-7.1r2"
    lanes = (lane(glidein(1, starts=1)), lane(glidein(1, starts=2)), lane(again))
    assert ids(plan(Snapshot((again,), lanes), site()), "expunge") == ["here-7.1", "here-7.1r1"]


@pytest.mark.parametrize("started", [0, 1, 2])
def test_ads_are_kept_if_outer_job_just_started(started):
    """Queue and collector are not read at the same instant: its ads may be of a life not counted yet."""
    young = glidein(1, age=START_GRACE_SECONDS / 2, starts=started)
    lanes = (lane(glidein(1, starts=started + 1)),)
    assert plan(Snapshot((young,), lanes), site()) == []
    assert ids(plan(Snapshot((replace(young, age=OLD),), lanes), site()), "expunge") == (
        [] if started == 0 else [f"here-7.1r{started}"]
    )


def test_job_numbers_with_common_prefix_are_not_confused():
    young = glidein(1, age=0.0)
    assert ids(plan(Snapshot((young,), (lane(glidein(11)),)), site()), "expunge") == ["here-7.11"]
