"""Jobs that run on lanes that are coming up: the factory starts nothing for them, and leaves their lanes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glide.factory import headroom
from glide.factory.actions import Retarget
from glide.factory.activity import Activity, activity
from glide.factory.observe import build_snapshot
from glide.factory.plan import plan
from glide.factory.snapshot import Glidein, Lane, Snapshot, StickyJob
from glide.protocol.ads import InvocationAd, LaneAd, OuterAd, from_ad
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State
from tests.snapshots import HELD, IDLE, IN_VAIN, RUNNING, brief, demand, glidein, ids, lane, retargets, site

NEW, BUSY = glidein(1), glidein(2)
COMING = (State.LOADING, State.WARMING)


def lanes(
    of: Glidein, state: str = State.LOADING, claims: tuple[bool, ...] = (True, True), **fields
) -> tuple[Lane, ...]:
    return tuple(lane(of, state, claimed, name=f"slot{n}@{of.job}", **fields) for n, claimed in enumerate(claims, 1))


def early(idle: int = 0, running: int = 2, wanted: int = 3, glideins=(NEW,), claims=(True, True), **fields) -> Snapshot:
    """Glideins that load T, and jobs that run on their lanes already."""
    coming = tuple(each for of in glideins for each in lanes(of, claims=claims))
    return Snapshot(glideins, coming, (demand(wanted=wanted, idle=idle, running=running),), **fields)


# ---- nothing is started twice --------------------------------------------------------------------


@pytest.mark.parametrize("state", COMING)
def test_running_jobs_on_coming_lanes_need_no_glidein(state):
    coming = replace(early(), lanes=lanes(NEW, state))
    assert plan(coming, site()) == []
    assert plan(replace(coming, demands=(demand(wanted=9, idle=0, running=2, records=10_000),)), site()) == []


@pytest.mark.parametrize("idle, submitted", [(0, 0), (1, 1), (2, 2), (9, 2)])
def test_only_waiting_jobs_need_further_glideins(idle, submitted):
    expected = [("submit", "T", submitted)] if submitted else []
    assert brief(plan(early(idle), site())) == expected


def test_coming_glidein_counts_once_for_its_job_and_waiting_jobs():
    """One lane has a job, the other is free: neither is the glidein forgotten, nor does it count twice."""
    assert plan(early(running=1, claims=(True, False)), site()) == []
    assert brief(plan(early(1, running=1, claims=(True, False)), site())) == [("submit", "T", 1)]
    both = early(1, running=1, glideins=(NEW, BUSY), claims=(True, False))
    assert plan(both, site()) == [], "each of them has a lane for a job"


def test_running_job_counts_before_its_lane_reports_it():
    """The queue has the job as running, and the collector has the lane as unclaimed for a second."""
    assert plan(early(claims=(False, False)), site()) == []


def test_queued_glidein_counts_beside_jobs_that_sit_on_another():
    queued = glidein(3, status=IDLE)
    snapshot = early(1, glideins=(NEW,))
    assert plan(replace(snapshot, glideins=(NEW, queued)), site()) == []


def test_glideins_that_come_up_are_no_success_and_no_failure():
    here = site({"name": "here", "max_glideins": 9, "breaker": {"failures": 2}})
    (wait,) = plan(early(9, 4, 9, glideins=(NEW, BUSY)), here)
    assert wait.action == "wait" and "2 of at most 2 glideins are on trial" in wait.reason
    assert brief(plan(early(9, 2, 9), here)) == [("submit", "T", 1)]
    assert headroom.usefulness(here.entries[0], early()) == 0.5


def test_amount_of_work_is_unknown_until_lanes_are_warm():
    snapshot = early(9, wanted=3)
    snapshot = replace(snapshot, demands=(replace(snapshot.demands[0], records=1),))
    assert brief(plan(snapshot, site())) == [("submit", "T", 2)], "one record may take an hour"


def test_job_of_failed_start_gets_one_new_glidein():
    """The lane is Failed, its job returns to the queue a moment later, and one glidein is for this job."""
    failed = replace(NEW, state=State.FAILED, failure="no memory")
    on_lane = Snapshot((failed,), lanes(failed, State.FAILED, (True, False)), (demand(wanted=1, idle=0, running=1),))
    back = replace(on_lane, lanes=lanes(failed, State.FAILED, (False, False)), demands=(demand(wanted=1, idle=1),))
    for snapshot in (on_lane, back):
        assert brief(plan(snapshot, site())) == [("submit", "T", 1)]
        assert plan(replace(snapshot, glideins=(failed, glidein(3, status=IDLE))), site()) == []


def test_job_on_lost_lane_gets_new_glidein():
    ghosts = early(glideins=())
    ghosts = replace(ghosts, lanes=lanes(NEW), demands=(demand(wanted=1, idle=0, running=2),))
    assert ("submit", "T", 1) in brief(plan(ghosts, site())), "its glidein is gone"
    assert ids(plan(ghosts, site()), "expunge") == [NEW.glide_id]


def test_job_on_glidein_with_new_template_needs_no_other_glidein():
    """A sticky job waits for a lane, which a job of the earlier template has claimed meanwhile."""
    moving = StickyJob("U", "slot1@7.1")
    claimed = lanes(NEW, State.WARM, (True,))
    snapshot = Snapshot((NEW,), claimed, (demand(wanted=1, idle=0, running=1),), retargets=(moving,))
    assert plan(snapshot, site()) == []
    assert brief(plan(replace(snapshot, demands=(demand(wanted=2, idle=1, running=1),)), site())) == [
        ("submit", "T", 1)
    ]


# ---- their glideins are left alone ---------------------------------------------------------------


def test_coming_glidein_with_jobs_is_not_removed_for_others():
    full = site({"name": "here", "max_glideins": 1})
    snapshot = replace(early(), retargets=(StickyJob("U", "x", "it does not load"),))
    others = replace(snapshot, demands=(*snapshot.demands, demand("U", wanted=4)))
    assert [action.action for action in plan(others, full)] == ["wait"]
    assert ids(plan(replace(others, demands=(demand("U", wanted=4),)), full), "remove") == [], "its run was removed"
    unclaimed = replace(others, demands=(demand("U", wanted=4),), lanes=lanes(NEW, claims=(False, False)))
    assert ids(plan(unclaimed, full), "remove") == ["7.1"]


@pytest.mark.parametrize("state", [*COMING, State.BLANK, State.WARM])
def test_coming_glidein_with_jobs_is_not_retargeted(state):
    coming = replace(early(), lanes=lanes(NEW, state, (True, False)))
    for demands in ((demand("U", wanted=4),), (*coming.demands, demand("U", wanted=4))):
        assert not [action for action in plan(replace(coming, demands=demands), site()) if isinstance(action, Retarget)]


def test_blank_glidein_that_loads_for_a_job_is_not_retargeted_again():
    blank = glidein(1, "")
    loading = tuple(replace(each, template="T") for each in lanes(blank, State.LOADING, (True, False)))
    snapshot = Snapshot((blank,), loading, (demand(wanted=1, idle=0, running=1), demand("U", wanted=2)))
    actions = plan(snapshot, site())
    assert not retargets(actions) and brief(actions) == [("submit", "U", 2)]


def test_coming_glidein_with_jobs_is_not_ready():
    ready = site({"name": "here", "max_glideins": 4, "ready": 1})
    (more,) = plan(early(), ready)
    assert (more.template, more.count) == ("", 1)
    ended = replace(early(), demands=())  # its run was removed, and the job still ends on the lane
    assert [(each.template, each.count) for each in plan(ended, ready)] == [("", 1)]


def test_held_sticky_job_does_not_free_claimed_lanes():
    snapshot = replace(early(), retargets=(IN_VAIN,), demands=(demand("U", wanted=1),))
    assert brief(plan(snapshot, site())) == [("submit", "U", 1)]


@pytest.mark.parametrize("state", COMING)
def test_coming_glidein_with_jobs_is_not_serving_yet(state):
    assert activity(NEW, lanes(NEW, state)) == Activity.COMING
    assert activity(NEW, (*lanes(NEW, state), *lanes(NEW, State.WARM))) == Activity.SERVING


# ---- as the ads say it ---------------------------------------------------------------------------


def test_ads_of_early_jobs_become_demand_without_idle_jobs():
    outer = from_ad(OuterAd, {
        "ClusterId": 7, "ProcId": 1, "JobStatus": RUNNING, "NumShadowStarts": 1, Job.ENTRY: "here", Job.TEMPLATE: "T",
        "EnteredCurrentStatus": 100, "ServerTime": 1000,
    })  # fmt: skip
    slots = [from_ad(LaneAd, {
        "Name": f"slot{n}@here", Machine.ID: "here-7.1", Machine.ENTRY: "here", Machine.TEMPLATE: "T",
        Machine.MODEL: "m", Machine.STATE: State.WARMING, "State": "Claimed",
    }) for n in (1, 2)]  # fmt: skip
    jobs = [from_ad(InvocationAd, {
        "ClusterId": 8, "ProcId": n, "JobStatus": status, Job.TEMPLATE: "T", Job.MODEL: "m", Job.RUN: "run",
        Job.WANTED: 4, Job.RECORDS: 10,
    }) for n, status in enumerate((RUNNING, JobStatus.TRANSFERRING))]  # fmt: skip
    assert outer and all(slots) and all(jobs)
    snapshot = build_snapshot([outer], jobs, slots, {"T": Template("m", "noop")})
    (found,) = snapshot.demands
    assert (found.idle, found.running, found.records) == (0, 2, 20)
    assert snapshot.glideins[0].state == "" and plan(replace(snapshot, now=1000.0), site()) == []


def test_held_outer_job_with_claimed_ads_is_not_kept():
    """HTCondor has stopped this glidein, whatever its last ads say."""
    held = glidein(1, status=HELD, hold_reason="no disk", age=700.0)
    snapshot = Snapshot((held,), lanes(held), (demand(wanted=1, idle=1),))
    assert ids(plan(snapshot, site()), "remove") == ["7.1"]
