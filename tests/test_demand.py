"""What the factory makes of demand: work, owners, memory, lives that end, and where a glidein is worth most."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glide.config import SiteFile
from glide.factory import headroom
from glide.factory.health import FAILED_RECORDS
from glide.factory.plan import plan
from glide.factory.snapshot import Glidein, Lane, Snapshot
from glide.template import FileSet, Template
from glide.vocabulary import JobStatus, State
from tests.snapshots import IN_VAIN, RUNNING, brief, demand, glidein, ids, lane, site

WARM = {"state": State.WARM, "warm_seconds": 100.0}


def measured(of: Glidein, record_seconds: float = 1.0, start_seconds: float = 60.0, **fields) -> Lane:
    return lane(of, claimed=True, record_seconds=record_seconds, start_seconds=start_seconds, **fields)


@pytest.mark.parametrize("records, submitted", [(30, 0), (119, 0), (130, 1), (200, 2), (10_000, 3)])
def test_no_glidein_is_submitted_shortly_before_work_ends(records, submitted):
    """One glidein of 1 s a record is there, and another takes 60 s to start."""
    there = glidein(1)
    snapshot = Snapshot((there,), (measured(there),), (demand(wanted=4, records=records),))
    assert brief(plan(snapshot, site())) == ([("submit", "T", submitted)] if submitted else [])


def test_run_without_measured_speed_gets_all_wanted_glideins():
    assert brief(plan(Snapshot(demands=(demand(wanted=3, records=1),)), site())) == [("submit", "T", 3)]
    there = glidein(1)
    unmeasured = Snapshot((there,), (lane(there),), (demand(wanted=3, records=1),))
    assert brief(plan(unmeasured, site())) == [("submit", "T", 2)]


def test_submission_reason_includes_amount_of_work():
    there = glidein(1)
    (action,) = plan(Snapshot((there,), (measured(there),), (demand(wanted=2, records=500),)), site())
    assert action.reason == "10 jobs of model want 1 more glideins for 500 s of work"


def test_running_jobs_need_no_further_glidein():
    busy = glidein(1)
    lanes = (lane(busy, claimed=True), lane(busy, claimed=True))
    assert plan(Snapshot((busy,), lanes, (demand(wanted=2, idle=0, running=2),)), site()) == []
    assert brief(plan(Snapshot((busy,), lanes, (demand(wanted=2, idle=1, running=2),)), site())) == [("submit", "T", 1)]


def test_retiring_glidein_is_replaced_but_counts_against_limit():
    retiring = glidein(1)
    lanes = (measured(retiring, retires=900.0),)
    snapshot = Snapshot((retiring,), lanes, (demand(wanted=1, records=10_000),), now=1000.0)
    assert brief(plan(snapshot, site())) == [("submit", "T", 1)]
    (action,) = plan(snapshot, site({"name": "here", "max_glideins": 1}))
    assert action.action == "wait" and "limit of 1" in action.reason
    assert plan(replace(snapshot, now=800.0), site()) == []


def test_idle_glidein_near_retirement_is_removed_first():
    there = tuple(glidein(proc, "U") for proc in (1, 2, 3))
    lanes = tuple(lane(of, retires=float(at)) for of, at in zip(there, (300, 100, 200), strict=True))
    snapshot = Snapshot(there, lanes, (demand(wanted=1),), retargets=(IN_VAIN,))
    assert ids(plan(snapshot, site({"name": "here", "max_glideins": 3})), "remove") == ["7.2"]


def test_idle_glidein_stays_if_wanted_model_cannot_fit():
    large = Template("large", "transformers", "/models/large", {"model.safetensors": ("0" * 64, 12_000_000_000)})
    small = {"name": "here", "max_glideins": 1, "request": {"memory": 8000}}
    there = glidein(1, "U")
    snapshot = Snapshot((there,), (lane(there),), (demand(wanted=1, spec=large),), retargets=(IN_VAIN,))
    assert ids(plan(snapshot, site(small)), "remove") == []
    assert ids(plan(snapshot, site({**small, "request": {"memory": 16000}})), "remove") == ["7.1"]


def test_glideins_of_unavailable_entry_are_not_replaced_elsewhere():
    both = site({"name": "here", "max_glideins": 4}, {"name": "there", "max_glideins": 4})
    lanes = (lane(glidein(1), claimed=True), lane(glidein(2), claimed=True))
    snapshot = Snapshot((), lanes, (demand(wanted=3),), unavailable_entries={"here": "timeout"})
    assert [(a.action, a.entry, a.count) for a in plan(snapshot, both)] == [("wait", "here", 0), ("submit", "there", 1)]


def test_entry_that_excludes_job_owner_gets_no_glidein():
    both = site(
        {"name": "here", "max_glideins": 4, "owners": ["them@here"]}, {"name": "there", "max_glideins": 1},
    )  # fmt: skip
    snapshot = Snapshot(demands=(demand(wanted=2, user="us@here"),), user="us@here")
    assert [(action.action, action.entry) for action in plan(snapshot, both)] == [("submit", "there")]
    (wait,) = plan(Snapshot(demands=(demand(wanted=2, user="who@else"),), user="us@here"), both)
    assert wait.action == "wait" and wait.reason == "no entry serves who@else"


def test_entry_for_several_users_refuses_code_by_default():
    code = Template("coded", "noop", environment=FileSet("/env"), user="us@here")
    snapshot = Snapshot(demands=(demand(spec=code, user="us@here"),), user="us@here")
    several = {"name": "here", "max_glideins": 4, "owners": ["us@here", "them@here"]}
    (wait,) = plan(snapshot, site(several))
    assert wait.action == "wait" and "coded contains a user's code" in wait.reason and "users_code" in wait.reason
    for allowed in ({**several, "users_code": True}, {**several, "owners": ["us@here"]}):
        assert [action.action for action in plan(snapshot, site(allowed))] == ["submit"]
    plain = replace(snapshot, demands=(demand(spec=Template("plain", "noop"), user="us@here"),))
    assert [action.action for action in plan(plain, site(several))] == ["submit"]


def test_demand_that_no_entry_may_serve_is_ignored():
    demands = (demand(wanted=3, user="who@else"), demand(wanted=1, run="other", user="us@here"))
    assert brief(plan(Snapshot(demands=demands, user="us@here"), site())) == [("submit", "T", 1)]


def test_entry_with_insufficient_memory_gets_no_glidein():
    large = Template("large", "transformers", "/models/large", {"model.safetensors": ("0" * 64, 12_000_000_000)})
    small = {"name": "small", "max_glideins": 4, "request": {"gpus": 1, "gpu_memory": 8000}}
    (wait,) = plan(Snapshot(demands=(demand(spec=large),)), site(small))
    assert (
        wait.action == "wait" and "large needs 12000 MB of memory, but the entry's glideins have 8000 MB" in wait.reason
    )
    unknown = {"name": "unknown", "max_glideins": 4, "request": {"gpus": 1}}
    (submit,) = plan(Snapshot(demands=(demand(spec=large),)), site(small, unknown))
    assert (submit.action, submit.entry) == ("submit", "unknown")


def test_idle_glidein_loads_wanted_model_during_entry_downtime():
    there = glidein(1, "U")
    snapshot = Snapshot((there,), (lane(there, name="one"),), (demand(),))
    down = {"start": "2020-01-01", "end": "2030-01-01", "reason": "repairs"}
    (move,) = plan(replace(snapshot, now=1.6e9), site({"name": "here", "max_glideins": 4, "downtimes": [down]}))
    assert move.action == "submit" and move.slots == ("one",)


def test_entry_whose_glideins_stayed_warm_longest_is_preferred():
    both = site({"name": "here", "max_glideins": 9}, {"name": "there", "max_glideins": 9})
    early = [replace(glidein(proc, status=JobStatus.COMPLETED, **WARM), warm_seconds=20.0) for proc in range(5)]
    long = [
        replace(glidein(9 + proc, status=JobStatus.COMPLETED, entry="there", **WARM), warm_seconds=3600.0)
        for proc in range(5)
    ]
    snapshot = Snapshot(demands=(demand(wanted=1),), ended=(*early, *long))
    here, there = (headroom.usefulness(entry, snapshot) for entry in both.entries)
    assert 0 < here < 0.5 < there < 1
    assert [action.entry for action in plan(snapshot, both)] == ["there"]
    assert headroom.usefulness(both.entries[0], Snapshot()) == 0.5


def test_glidein_that_was_warm_longer_scores_higher():
    assert headroom.score(glidein(1, **WARM)) == 1, "nobody knows how long it may yet be"
    assert headroom.score(replace(glidein(1, **WARM), status=JobStatus.COMPLETED, warm_seconds=60.0)) == pytest.approx(
        0.1
    )
    assert headroom.score(replace(glidein(1, **WARM), status=JobStatus.IDLE, warm_seconds=60.0)) == pytest.approx(0.1)
    assert headroom.score(glidein(1, status=JobStatus.COMPLETED)) == 0


# ---- records that fail ---------------------------------------------------------------------------


def serving(proc: int, served: int, errors: int, host: str, status: int = RUNNING) -> Glidein:
    return glidein(proc, status=status, host=host, served=served, errors=errors, state=State.WARM)


def test_failing_node_is_avoided_and_its_glidein_removed():
    well = serving(1, 500, 2, "good")
    ill = [serving(2, 40, 40, "bad"), serving(3, 0, 9, "bad", JobStatus.COMPLETED)]
    snapshot = Snapshot((well, ill[0]), (lane(well, claimed=True), lane(ill[0])), (demand(wanted=3),), ended=(ill[1],))
    actions = plan(snapshot, site())
    (submit,) = [action for action in actions if action.action == "submit"]
    assert submit.avoid == ("bad",)
    (remove,) = [action for action in actions if action.action == "remove"]
    assert remove.jobs == ("7.2",) and "40 of the 40 records it served failed" in remove.reason
    claimed = replace(snapshot, lanes=(lane(well, claimed=True), lane(ill[0], claimed=True)))
    assert not [action for action in plan(claimed, site()) if action.action == "remove"]


def test_node_is_not_avoided_if_records_fail_everywhere():
    there = tuple(serving(proc, 50, 50, f"n{proc}") for proc in (1, 2))
    lanes = tuple(lane(of) for of in there)
    assert brief(plan(Snapshot(there, lanes, (demand(wanted=3),)), site())) == [("submit", "T", 1)]


def test_circuit_breaker_opens_for_entry_where_records_fail():
    well = serving(1, 500, 0, "good")
    ill = tuple(
        replace(serving(2 + n, FAILED_RECORDS, FAILED_RECORDS, f"n{n}", JobStatus.COMPLETED), entry="there", age=10.0)
        for n in range(3)
    )
    both = SiteFile.model_validate(
        {"site": "s", "entries": [{"name": "here", "max_glideins": 1}, {"name": "there", "max_glideins": 9}]}
    )
    (wait,) = plan(Snapshot((well,), (lane(well, claimed=True),), (demand(wanted=3),), ended=ill), both)
    assert wait.action == "wait" and "breaker open" in wait.reason and "records it served failed" in wait.reason


# ---- what is about to change, and what is not seen -----------------------------------------------


def test_second_glidein_stays_while_first_is_being_removed():
    there = (glidein(1, "U", JobStatus.REMOVED), glidein(2, "U"), glidein(3, "U"))
    snapshot = Snapshot(there, tuple(lane(each) for each in there[1:]), (demand(wanted=1),), retargets=(IN_VAIN,))
    full = site({"name": "here", "max_glideins": 3})
    assert ids(plan(snapshot, full), "remove") == []
    assert ids(plan(replace(snapshot, glideins=there[1:]), site({"name": "here", "max_glideins": 2})), "remove") == [
        "7.2"
    ]


def test_one_failed_node_does_not_stop_submissions():
    well, ill = glidein(1), glidein(2)
    lanes = (lane(well, claimed=True), lane(ill, State.FAILED, failure="CUDA error"))
    assert brief(plan(Snapshot((well, ill), lanes, (demand(wanted=3),)), site())) == [("submit", "T", 2)]


def test_unavailable_entry_is_assumed_full_for_site_limit():
    both = SiteFile.model_validate(
        {"site": "s", "max_glideins": 4, "entries": [{"name": n, "max_glideins": 3} for n in ("here", "there")]}
    )
    actions = plan(Snapshot(demands=(demand(wanted=4),), unavailable_entries={"here": "timeout"}), both)
    assert [(each.entry, each.count) for each in actions if each.action == "submit"] == [("there", 1)]
