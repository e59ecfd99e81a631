"""How many glideins may be on trial with a template that was never warm on an entry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glide.config import SiteFile
from glide.factory.actions import Action, Retarget, Submit
from glide.factory.headroom import of_template
from glide.factory.plan import plan
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot, StickyJob
from glide.factory.trials import TRIAL_FACTOR, TrialLimit, trial_limit
from glide.files import Tree
from glide.template import FileSet, Template
from glide.template.spec import Function
from glide.vocabulary import UNSUITABLE, JobStatus, State
from tests.snapshots import HELD, IDLE, demand, glidein, lane

FAILURES, MOST = 3, 3 * TRIAL_FACTOR
WEIGHTS = Template("large", "transformers", "/models/large", {"weights": ("0" * 64, 10)})
TREE = Tree(WEIGHTS.files).digest[:16]
USED = glidein(99, "U", state=State.WARM)  # the entry works: another template is warm there
CACHED = (lane(USED, claimed=True, cached=("other", TREE)),)  # and its host has the files


def site(**keys) -> SiteFile:
    entry = {"name": "here", "max_glideins": 50, "max_idle": 50, "submits_per_cycle": 50, **keys}
    return SiteFile.model_validate({"site": "s", "entries": [entry]})


def wants(spec: Template = WEIGHTS, wanted: int = 40, **fields) -> Demand:
    return demand(wanted=wanted, idle=100, spec=spec, **fields)


def busy(of: Glidein = USED, **fields) -> Demand:
    """The jobs of the other template, which need nothing more."""
    return demand(of.template, wanted=1, idle=0, running=1, run="other", **fields)


def submitted(actions: list[Action], template: str = "T") -> int:
    return sum(each.count for each in actions if isinstance(each, Submit) and each.template == template)


def proven(**fields) -> Snapshot:
    return replace(Snapshot((USED,), CACHED, (wants(),)), **fields)


# ---- when more than the usual number may start ---------------------------------------------------


def test_new_entry_gets_usual_number():
    assert submitted(plan(Snapshot(demands=(wants(),)), site())) == FAILURES
    assert submitted(plan(Snapshot(demands=(wants(Template("none", "noop")),)), site())) == FAILURES


def test_working_entry_with_cached_files_gets_more():
    (action,) = plan(proven(), site())
    assert isinstance(action, Submit) and action.count == MOST
    assert "up to 12 starts may fail instead of 3" in action.reason and "its files are verified" in action.reason
    assert "here yet, but glideins with other models were" in action.reason


def test_template_without_files_needs_no_cache():
    (action,) = plan(proven(lanes=(lane(USED, claimed=True),), demands=(wants(Template("none", "noop")),)), site())
    assert action.count == MOST and "it needs no files" in action.reason


def test_glidein_that_was_warm_in_last_hour_suffices():
    was_warm = replace(USED, status=JobStatus.COMPLETED, age=3000.0)
    assert submitted(plan(proven(glideins=(), lanes=(), ended=(was_warm,)), site())) == FAILURES, "files unknown"
    fileless = proven(glideins=(), lanes=(), ended=(was_warm,), demands=(wants(Template("none", "noop")),))
    assert submitted(plan(fileless, site())) == MOST


def test_files_are_verified_if_template_was_warm_elsewhere():
    """Files on a disk that nodes share are never in a cache."""
    elsewhere = glidein(98, "T", entry="there", state=State.WARM)
    assert submitted(plan(proven(glideins=(USED, elsewhere), lanes=()), site())) == MOST
    other = replace(WEIGHTS, options={"dtype": "auto"})  # another template with the same files
    there = replace(elsewhere, template="V")
    both = (wants(), demand("V", wanted=1, idle=0, running=1, spec=other))
    assert submitted(plan(proven(glideins=(USED, there), lanes=(), demands=both), site())) == MOST


@pytest.mark.parametrize(
    "keys, count",
    [
        ({"max_glideins": 8}, 7), ({"max_idle": 5}, 5), ({"submits_per_cycle": 4}, 4),
        ({"breaker": {"failures": 1}}, TRIAL_FACTOR), ({"breaker": {"failures": 10}}, 40),
    ],
)  # fmt: skip
def test_other_limits_still_apply(keys, count):
    assert submitted(plan(proven(), site(**keys))) == count


def test_site_limit_still_applies():
    small = SiteFile.model_validate(site().model_dump() | {"max_glideins": 8})
    assert submitted(plan(proven(), small)) == 7


def test_usual_number_has_no_risk_in_its_reason():
    (action,) = plan(proven(demands=(wants(wanted=FAILURES),)), site())
    assert action.count == FAILURES and "may fail" not in action.reason
    more = tuple(glidein(proc, "T", IDLE) for proc in range(FAILURES))
    (action,) = plan(proven(glideins=(USED, *more), demands=(wants(wanted=FAILURES + 1),)), site())
    assert action.count == 1 and "may fail" in action.reason


def test_templates_on_trial_share_places_of_entry():
    second = replace(WEIGHTS, model="second")
    demands = (wants(), wants(second, run="second", template="V"), busy())
    actions = plan(proven(demands=demands), site(max_glideins=22))
    assert (submitted(actions), submitted(actions, "V")) == (7, 7)
    small = SiteFile.model_validate(site().model_dump() | {"max_glideins": 16})
    actions = plan(proven(demands=demands), small)
    assert (submitted(actions), submitted(actions, "V")) == (5, 5)


# ---- when the usual number applies ---------------------------------------------------------------


def function(owner: str = "") -> Function:
    return Function("def f(): ...", "", "0" * 64, "3.11", "3", owner)


@pytest.mark.parametrize(
    "spec",
    [
        Template("code", "python", function=function()),
        replace(WEIGHTS, environment=FileSet("/env")),
        Template("odd", "server", options={"program": ["sh", "-c", "sleep 1"]}),
        replace(WEIGHTS, files={"weights": ("1" * 64, 10)}),
        replace(WEIGHTS, adapters={"one": FileSet("/adapter", {"lora": ("2" * 64, 1)})}),
        Template("unlisted", "noop", "/models/unlisted"),
    ],
)
def test_code_or_unknown_files_get_usual_number(spec):
    assert submitted(plan(proven(demands=(wants(spec),)), site())) == FAILURES


def test_cache_of_unknown_glidein_does_not_count():
    foreign = Lane("theirs-1.0", "theirs", "U", "model", State.WARM, True, cached=(TREE,))
    assert submitted(plan(proven(lanes=(lane(USED, claimed=True), foreign)), site())) == FAILURES


@pytest.mark.parametrize(
    "failed, count",
    [
        (glidein(1, "T", JobStatus.COMPLETED, age=60.0, failure="no weights"), FAILURES - 1),
        (glidein(1, "T", JobStatus.COMPLETED, age=60.0, host="n1", failure=f"{UNSUITABLE}: no AVX2"), FAILURES),
    ],
)
def test_failure_of_template_restores_usual_number(failed, count):
    assert submitted(plan(proven(ended=(failed,)), site())) == count


def test_failure_while_others_start_stops_submissions():
    started = tuple(glidein(proc, "T", IDLE) for proc in range(10))
    assert submitted(plan(proven(glideins=(USED, *started)), site())) == MOST - 10
    failed = replace(started[0], status=JobStatus.RUNNING, starts=1, state=State.FAILED, failure="no weights")
    (wait,) = plan(proven(glideins=(USED, failed, *started[1:])), site())
    assert wait.action == "wait" and "9 of at most 3 glideins are on trial" in wait.reason


def test_held_glidein_or_sticky_job_restores_usual_number():
    held = glidein(1, "T", HELD, hold_reason="no")
    assert submitted(plan(proven(glideins=(USED, held)), site())) == FAILURES - 1
    assert trial_limit(site().entries[0], "T", proven(glideins=(USED, held))) == TrialLimit(FAILURES)
    assert submitted(plan(proven(retargets=(StickyJob("T", "x", "it does not load"),)), site())) == FAILURES


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, HELD])
def test_entry_with_new_failures_gets_usual_number(status):
    broken = glidein(1, "V", status, age=60.0, hold_reason="no")
    was_warm = replace(USED, status=JobStatus.COMPLETED, age=3000.0)
    fileless = (wants(Template("none", "noop")),)
    group = {"ended": (was_warm, broken)} if status == JobStatus.COMPLETED else {"glideins": (USED, broken)}
    assert submitted(plan(proven(**{"glideins": (), "lanes": (), **group, "demands": fileless}), site())) == FAILURES


def test_evicted_glidein_does_not_prove_entry():
    evicted = replace(USED, status=IDLE)
    fileless = (wants(Template("none", "noop")), busy())
    assert submitted(plan(proven(glideins=(evicted,), lanes=(), demands=fileless), site())) == FAILURES


def test_template_that_cannot_load_does_not_disprove_entry():
    bad = glidein(1, "V", JobStatus.COMPLETED, age=60.0, state=State.FAILED, failure="no weights")
    was_warm = replace(USED, status=JobStatus.COMPLETED, age=3000.0)
    fileless = (wants(Template("none", "noop")),)
    snapshot = proven(glideins=(), lanes=(), ended=(was_warm, bad), demands=fileless)
    assert submitted(plan(snapshot, site())) == MOST


def test_circuit_breaker_stays_open_for_minutes_after_all_fail():
    """Twelve failures together are one try, not ten."""
    failed = tuple(glidein(n, "T", JobStatus.COMPLETED, age=30.0 + n, failure="no") for n in range(MOST))
    (wait,) = plan(proven(ended=failed), site())
    assert "circuit breaker open for 600 s" in wait.reason
    later = tuple(replace(each, age=each.age + 600) for each in failed)
    assert submitted(plan(proven(ended=later), site())) == 1


# ---- glideins that were retargeted ---------------------------------------------------------------


def test_retargeted_warm_glidein_proves_template():
    moved = glidein(1, "", state=State.WARM)
    warm = replace(lane(moved, claimed=True, name="one"), template="T")
    code = wants(Template("code", "python", function=function()), wanted=20)
    assert submitted(plan(Snapshot((moved,), (warm,), (code,)), site())) == 19
    loading = replace(warm, state=State.LOADING)
    assert submitted(plan(Snapshot((moved,), (loading,), (code,)), site())) == FAILURES


def test_idle_glideins_load_verified_template_together():
    idle = tuple(glidein(proc, "U", state=State.WARM) for proc in range(15))
    lanes = tuple(lane(each, name=each.job, cached=(TREE,)) for each in idle)
    actions = plan(Snapshot(idle, lanes, (wants(wanted=15),)), site())
    assert [each.count for each in actions if isinstance(each, Retarget)] == [MOST]


def test_headroom_names_usual_number():
    headroom = of_template(site().entries[0], "T", proven())
    assert (headroom.left, headroom.usual) == (MOST, FAILURES) and headroom.risk
    usual = of_template(site().entries[0], "T", Snapshot(demands=(wants(),)))
    assert (usual.left, usual.risk) == (FAILURES, "")
