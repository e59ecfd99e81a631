"""The factory's policy: a snapshot in, actions out; neither clock nor HTCondor."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import pytest

from glide.config import SiteFile
from glide.factory.actions import Action, Retarget, Submit
from glide.factory.observe import build_snapshot
from glide.factory.plan import START_GRACE_SECONDS, drain, plan
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot, StickyJob
from glide.files import Tree
from glide.template import Template
from glide.vocabulary import Job, JobStatus, State

IDLE, RUNNING, REMOVED, HELD = JobStatus.IDLE, JobStatus.RUNNING, JobStatus.REMOVED, JobStatus.HELD
OLD = 10 * START_GRACE_SECONDS


def site(*entries: dict) -> SiteFile:
    """A site with these entries, by default one called `here` for four glideins."""
    entries = entries or ({"name": "here", "max_glideins": 4},)
    trusting = {"breaker": {"failures": 10}}  # a test of something else is not to wait for a first success
    return SiteFile.model_validate({"site": "s", "entries": [trusting | entry for entry in entries]})


def demand(template: str = "T", wanted: int = 2, idle: int = 10, running: int = 0, **fields) -> Demand:
    fields = {"model": "model", "run": "run", "user": "", "spec": Template("model", "noop"), **fields}
    return Demand(template, idle=idle, running=running, wanted=wanted, **fields)


def glidein(proc: int, template: str = "T", status: int = RUNNING, age: float = OLD, **fields) -> Glidein:
    fields = {"entry": "here", "starts": int(status != IDLE), **fields}
    return Glidein(7, proc, template=template, status=status, age=age, **fields)


def lane(of: Glidein, state: str = State.WARM, claimed: bool = False, **fields) -> Lane:
    return Lane(of.glide_id, of.entry, of.template, "model", state, claimed, **fields)


IN_VAIN = StickyJob("T", "slot1@here", "it does not load")  # so idle glideins are not asked again


def brief(actions: list[Action]) -> list[tuple[str, str, int]]:
    return [(action.action, action.template or action.entry, action.count) for action in actions]


IDS = {"remove": "jobs", "drain": "jobs", "expunge": "glide_ids"}


def retargets(actions: list[Action]) -> list[Retarget]:
    return [action for action in actions if isinstance(action, Retarget)]


def ids(actions: list[Action], kind: str) -> list[str]:
    return [each for action in actions if action.action == kind for each in getattr(action, IDS.get(kind, "slots"), ())]


# ---- when nothing is to be done ------------------------------------------------------------------


def test_empty_snapshot_causes_no_action():
    assert plan(Snapshot(), site()) == []
    assert drain(Snapshot(), site(), "why") == []


def test_unavailable_source_pauses_all_entries_with_reason():
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
def test_submission_is_limited_by_demand_jobs_and_entry(wanted, jobs, there, submitted):
    snapshot = Snapshot(tuple(map(glidein, range(there))), (), (demand(wanted=wanted, idle=jobs),))
    assert brief(plan(snapshot, site())) == ([("submit", "T", submitted)] if submitted else [])


def test_submission_reports_its_reason():
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


def test_submissions_stay_within_submits_per_cycle():
    here = site({"name": "here", "max_glideins": 100, "submits_per_cycle": 3})
    assert brief(plan(Snapshot(demands=(demand(wanted=50, idle=99),)), here)) == [("submit", "T", 3)]


def test_templates_together_stay_within_submits_per_cycle():
    here = site({"name": "here", "max_glideins": 100, "submits_per_cycle": 3})
    actions = plan(Snapshot(demands=(demand("T", 50, 99), demand("U", 50, 99))), here)
    assert sum(action.count for action in actions if action.action == "submit") <= 3


def test_templates_share_limit_of_entry():
    actions = plan(Snapshot(demands=(demand("T", 3), demand("U", 3))), site())
    assert brief(actions) == [("submit", "T", 3), ("submit", "U", 1)]


def test_entries_are_filled_in_file_order():
    both = site({"name": "here", "max_glideins": 2}, {"name": "there", "max_glideins": 5})
    actions = plan(Snapshot((glidein(1, "U"),), (), (demand(wanted=4), demand("U", 1))), both)
    assert [(action.action, action.entry, action.count) for action in actions] == [
        ("submit", "here", 1), ("submit", "there", 3),
    ]  # fmt: skip


def test_demand_waits_for_full_entry_with_reason():
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


def test_template_failing_on_all_hosts_waits_with_reasons():
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


def test_one_template_description_serves_all_demands():
    actions = plan(Snapshot(demands=(demand(spec=None, wanted=1), demand(run="other", wanted=1))), site())
    assert brief(actions) == [("submit", "T", 2)]


# ---- removing ------------------------------------------------------------------------------------


def test_unwanted_queued_glidein_is_removed():
    queued = (glidein(1, status=IDLE), glidein(2, "U", IDLE))
    assert ids(plan(Snapshot(queued, (), (demand(wanted=1),)), site()), "remove") == ["7.2"]


def test_held_glidein_is_removed_later_if_wanted():
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
    assert ids(plan(snapshot, site({"name": "here", "max_glideins": 3})), "remove") == []


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
def test_run_is_best_effort_if_all_jobs_are(said, modest):
    ad = {"ClusterId": 1, "JobStatus": IDLE, Job.TEMPLATE: "T", Job.RUN: "run"}
    jobs = [{**ad, "ProcId": number, Job.BEST_EFFORT: value} for number, value in enumerate(said)]
    assert [each.best_effort for each in build_snapshot(jobs, (), {}).demands] == [modest]


def test_idle_glideins_are_retargeted_before_new_submissions():
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


def test_glideins_and_nodes_with_files_are_preferred():
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


def test_ready_glideins_are_kept_and_retargeted_on_demand():
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


def test_only_necessary_number_of_glideins_is_removed():
    there = tuple(glidein(proc, "U") for proc in range(4))
    snapshot = Snapshot(there, tuple(map(lane, there)), (demand(wanted=1),), retargets=(IN_VAIN,))
    assert len(ids(plan(snapshot, site()), "remove")) == 1


def test_glideins_of_unknown_entries_are_left_alone():
    others = (glidein(1, "U", IDLE, entry="theirs"), glidein(2, "U", HELD, entry="theirs"))
    ghost = lane(glidein(3, entry="theirs"))
    assert plan(Snapshot(others, (ghost,)), site()) == []
    assert drain(Snapshot(others), site(), "why") == []


def test_drain_includes_all_glideins_of_each_entry():
    both = site({"name": "here", "max_glideins": 2}, {"name": "there", "max_glideins": 2})
    there = (glidein(1), glidein(2, status=IDLE), glidein(3, entry="there"), glidein(4, entry="theirs"))
    assert [(a.action, a.entry, a.count, a.jobs, a.reason) for a in drain(Snapshot(there), both, "why")] == [
        ("drain", "here", 2, ("7.1", "7.2"), "why"),
        ("drain", "there", 1, ("7.3",), "why"),
    ]


# ---- ghosts --------------------------------------------------------------------------------------


def test_ads_without_job_are_expunged():
    gone = glidein(9)
    (action,) = plan(Snapshot((), (lane(gone), lane(gone, claimed=True))), site())
    assert (action.action, action.entry, action.glide_ids) == ("expunge", "here", (gone.glide_id,))


@pytest.mark.parametrize("status", [REMOVED, JobStatus.COMPLETED, HELD])
def test_ads_of_ended_job_are_expunged(status):
    ended = glidein(1, status=status)
    assert ids(plan(Snapshot((ended,), (lane(ended),)), site()), "expunge") == ["here-7.1"]


def test_ads_of_requeued_glidein_are_removed():
    evicted = glidein(1, status=IDLE, starts=1)
    snapshot = Snapshot((evicted,), (lane(glidein(1)),), (demand(wanted=1),))
    assert ids(plan(snapshot, site()), "expunge") == ["here-7.1"]


def test_only_ads_of_earlier_job_starts_are_expunged():
    again = glidein(1, starts=3)
    assert again.glide_id == "here-7.1r2"
    lanes = (lane(glidein(1, starts=1)), lane(glidein(1, starts=2)), lane(again))
    assert ids(plan(Snapshot((again,), lanes), site()), "expunge") == ["here-7.1", "here-7.1r1"]


@pytest.mark.parametrize("started", [0, 1, 2])
def test_unexpected_ads_of_recently_started_job_are_kept(started):
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


def test_claimed_glidein_is_never_removed_or_expunged():
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


def test_every_action_has_correct_count_and_reason():
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


def test_planning_work_grows_less_than_quadratically():
    assert steps_of_a_plan(800) < 6 * steps_of_a_plan(200)
