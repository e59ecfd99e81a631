"""What the factory's plan never does, whatever it sees."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as some

from glide.config import SiteFile
from glide.factory.actions import Action, Expunge, Remove, Retarget, Submit
from glide.factory.health import is_unsuitable, mark_failing_glideins
from glide.factory.plan import plan
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot, StickyJob
from glide.factory.trials import TRIAL_FACTOR
from glide.files import Tree
from glide.template import FileSet, Template
from glide.vocabulary import UNSUITABLE, JobStatus, State

ENTRIES, TEMPLATES, HOSTS = ("a", "b"), ("T", "U"), ("n1", "n2", "n3")
ALIVE = (JobStatus.IDLE, JobStatus.RUNNING, JobStatus.HELD, JobStatus.REMOVED, JobStatus.TRANSFERRING)
PLAIN = Template("model", "noop")
WEIGHTS = Template("model", "noop", "/model", {"weights": ("0" * 64, 10)})
CODE = Template("model", "noop", environment=FileSet("/env"))
TREE = Tree(WEIGHTS.files).digest[:16]


@some.composite
def sites(draw: some.DrawFn, factor: int = 1) -> SiteFile:
    """Sites, with limits that are multiplied by a factor."""
    entry = some.fixed_dictionaries(
        {
            "max_glideins": some.integers(0, 12 * factor), "max_idle": some.integers(1, 6 * factor),
            "ready": some.integers(0, 3),
            "submits_per_cycle": some.integers(1, 5 * factor), "removals_per_cycle": some.integers(1, 5),
            "breaker": some.fixed_dictionaries({"failures": some.integers(1, 5)}),
        }
    )  # fmt: skip
    entries = [{"name": name, **draw(entry)} for name in ENTRIES]
    limit = draw(some.none() | some.integers(0, 15 * factor))
    return SiteFile.model_validate({"site": "s", "entries": entries, "max_glideins": limit})


@some.composite
def snapshots(draw: some.DrawFn) -> Snapshot:
    def glidein(proc: int, status: int) -> Glidein:
        return Glidein(
            1, proc, draw(some.sampled_from(ENTRIES)), draw(some.sampled_from(TEMPLATES)), status,
            starts=int(status != JobStatus.IDLE), age=draw(some.floats(0, 5000)),
            state=draw(some.sampled_from(("", State.WARM, State.FAILED))),
            failure=draw(some.sampled_from(("why", "why", UNSUITABLE))),
            host=draw(some.sampled_from(HOSTS)), warm_seconds=draw(some.floats(0, 5000)),
            served=draw(some.integers(0, 40)), errors=draw(some.integers(0, 20)),
        )  # fmt: skip

    statuses = draw(some.lists(some.sampled_from(ALIVE), max_size=14))
    alive = tuple(glidein(proc, status) for proc, status in enumerate(statuses))
    ended = tuple(glidein(100 + proc, JobStatus.COMPLETED) for proc in range(draw(some.integers(0, 8))))
    lanes = tuple(
        Lane(of.glide_id, of.entry, draw(some.sampled_from((of.template, of.template, *TEMPLATES))), "model",
             draw(some.sampled_from((State.WARM, State.LOADING, State.FAILED))),
             claimed=draw(some.booleans()), record_seconds=draw(some.floats(0, 3)),
             cached=draw(some.sampled_from(((), (TREE,)))),
             start_seconds=draw(some.floats(0, 100)), retires=draw(some.sampled_from((0.9e9, 1.1e9, float("inf")))),
             name=f"slot1@{of.glide_id}")
        for of in alive + ended[:2] if of.status in (JobStatus.RUNNING, JobStatus.COMPLETED) and draw(some.booleans())
    )  # fmt: skip
    specs = {template: draw(some.sampled_from((PLAIN, WEIGHTS, CODE))) for template in TEMPLATES}
    demands = tuple(
        Demand(template, "model", f"run{number}", "", idle=draw(some.integers(0, 20)),
               running=draw(some.integers(0, 9)), wanted=draw(some.integers(1, 12)), spec=specs[template],
               records=draw(some.integers(0, 5000)))
        for number, template in enumerate(draw(some.lists(some.sampled_from(TEMPLATES), max_size=3)))
    )  # fmt: skip
    blind = {name: "timeout" for name in ENTRIES if draw(some.integers(0, 9)) == 0}
    moves = tuple(
        StickyJob(draw(some.sampled_from(TEMPLATES)), lane.name, draw(some.sampled_from(("", "", "it does not load"))))
        for lane in lanes if draw(some.integers(0, 3)) == 0
    )  # fmt: skip
    return Snapshot(alive, lanes, demands, ended=ended, now=1e9, unavailable_entries=blind, retargets=moves)


@some.composite
def with_a_new_template(draw: some.DrawFn) -> Snapshot:
    """Snapshots in which no glidein with the template T has failed or was warm yet."""
    snapshot = draw(snapshots())

    def renamed(glidein: Glidein) -> Glidein:
        tried = glidein.state or glidein.status in (JobStatus.HELD, JobStatus.COMPLETED)
        return replace(glidein, template="U") if tried else glidein

    lanes = (each if each.state == State.LOADING else replace(each, template="U") for each in snapshot.lanes)
    return replace(
        snapshot, glideins=tuple(map(renamed, snapshot.glideins)), ended=tuple(map(renamed, snapshot.ended)),
        lanes=tuple(lanes), retargets=(),
    )  # fmt: skip


def submitted(actions: list[Action], entry: str) -> int:
    """New glideins."""
    return sum(action.count for action in actions if isinstance(action, Submit) and action.entry == entry)


def on_trial(snapshot: Snapshot, entry: str, template: str) -> int | None:
    """The number of glideins that may yet fail; None if the template was warm on the entry."""
    alive, ended = snapshot.glideins_of(entry)
    mine = [glidein for glidein in (*alive, *ended) if glidein.template == template]
    moved = {lane.glide_id for lane in snapshot.lanes if lane.template == template and lane.state == State.WARM}
    if any(glidein.state == State.WARM for glidein in mine) or any(glidein.glide_id in moved for glidein in alive):
        return None
    return sum(
        glidein.status not in (JobStatus.COMPLETED, JobStatus.HELD) and not glidein.state and not is_unsuitable(glidein)
        for glidein in mine
    )


def may_exceed_usual_trials(snapshot: Snapshot, entry: str, template: str) -> bool:
    """Whether the entry works, and the template has not failed there, contains no code and has known files."""
    alive, ended = snapshot.glideins_of(entry)
    mine = [glidein for glidein in (*alive, *ended) if glidein.template == template]
    others = [glidein for glidein in (*alive, *ended) if glidein.template != template]
    spec = snapshot.description(template)
    known = (
        spec == PLAIN
        or any(TREE in lane.cached for lane in snapshot.lanes)
        or any(
            glidein.state == State.WARM and snapshot.description(glidein.template) == WEIGHTS
            for glidein in (*snapshot.glideins, *snapshot.ended)
        )
        or any(lane.state == State.WARM and snapshot.description(lane.template) == WEIGHTS for lane in snapshot.lanes)
    )
    failed = any(each.state == State.FAILED or each.status in (JobStatus.HELD, JobStatus.COMPLETED) for each in mine)
    return spec != CODE and known and not failed and any(each.state == State.WARM for each in others)


def moved(actions: list[Action]) -> dict[str, str]:
    """The templates that lanes are to get."""
    return {name: action.template for action in actions if isinstance(action, Retarget) for name in action.slots}


def removed(actions: list[Action]) -> set[str]:
    return {job for action in actions if isinstance(action, Remove) for job in action.jobs}


def applied(snapshot: Snapshot, actions: list[Action]) -> Snapshot:
    """The next look: what was submitted waits, lanes have what they were brought, what was removed is gone."""
    new = [action for action in actions if isinstance(action, Submit)]
    submissions = [action for action in new for _ in range(action.count)]
    lanes = [replace(each, template=moved(actions).get(each.name, each.template)) for each in snapshot.lanes]
    fresh = [Glidein(2, proc, action.entry, action.template, JobStatus.IDLE) for proc, action in enumerate(submissions)]
    gone = removed(actions)
    ghosts = {ghost for action in actions if isinstance(action, Expunge) for ghost in action.glide_ids}
    return replace(
        snapshot,
        glideins=(*(glidein for glidein in snapshot.glideins if glidein.job not in gone), *fresh),
        lanes=tuple(lane for lane in lanes if lane.glide_id not in ghosts),
        retargets=tuple(move for move in snapshot.retargets if move.lane not in moved(actions)),
    )


@settings(max_examples=100, deadline=None)
@given(snapshots(), sites())
def test_plan_never_exceeds_any_limit(snapshot: Snapshot, site: SiteFile):
    actions = plan(snapshot, site)
    for entry in site.entries:
        mine = [glidein for glidein in snapshot.glideins if glidein.entry == entry.name]
        more = submitted(actions, entry.name)
        idle = sum(glidein.status == JobStatus.IDLE for glidein in mine)
        assert more <= entry.submits_per_cycle
        assert more == 0 or len(mine) + more <= entry.max_glideins
        assert more == 0 or idle + more <= entry.max_idle
        removals = [action for action in actions if (action.action, action.entry) == ("remove", entry.name)]
        assert len(removals) <= entry.removals_per_cycle
    total = sum(submitted(actions, entry.name) for entry in site.entries)
    assert site.max_glideins is None or total == 0 or len(snapshot.glideins) + total <= site.max_glideins


@settings(max_examples=300, deadline=None)
@given(with_a_new_template() | snapshots(), sites(factor=4))
def test_plan_never_exceeds_trial_limits(snapshot: Snapshot, site: SiteFile):
    actions = plan(snapshot, site)
    snapshot = mark_failing_glideins(snapshot)
    wanted = {demand.template for demand in snapshot.demands}
    limits = {entry.name: (entry.breaker.failures, entry.max_glideins) for entry in site.entries}
    for action in actions:
        trying = on_trial(snapshot, action.entry, action.template)
        if not isinstance(action, Submit) or not action.template or trying is None:
            continue
        usual, places = limits[action.entry]
        share = min(places, places if site.max_glideins is None else site.max_glideins) // len(wanted)
        assert action.count + trying <= max(usual, min(TRIAL_FACTOR * usual, share))
        if action.count + trying > usual:
            assert may_exceed_usual_trials(snapshot, action.entry, action.template)
            assert f"may fail instead of {usual}" in action.reason


@settings(max_examples=200, deadline=None)
@given(snapshots(), sites(factor=4))
def test_plan_starts_no_glidein_for_jobs_on_lanes(snapshot: Snapshot, site: SiteFile):
    """New glideins are for idle jobs, and for jobs whose lanes are lost, failed or retiring, warm or not."""
    actions = plan(snapshot, site)
    snapshot = mark_failing_glideins(snapshot)
    there = {glidein.glide_id for glidein in snapshot.glideins}
    there |= {lane.glide_id for lane in snapshot.lanes if lane.entry in snapshot.unavailable_entries}
    useless = {lane.glide_id for lane in snapshot.lanes if lane.retires <= snapshot.now or lane.state == State.FAILED}
    useless |= {glidein.glide_id for glidein in snapshot.glideins if glidein.state == State.FAILED}
    for template in TEMPLATES:
        idle = sum(demand.idle for demand in snapshot.demands if demand.template == template)
        claimed = {lane.glide_id for lane in snapshot.lanes if lane.template == template and lane.claimed}
        new = (each for each in actions if isinstance(each, Submit | Retarget) and each.template == template)
        assert sum(action.count for action in new) <= idle + len(claimed - (there - useless))


@settings(max_examples=100, deadline=None)
@given(snapshots(), sites())
def test_plan_never_removes_running_claimed_glidein(snapshot: Snapshot, site: SiteFile):
    claimed = {lane.glide_id for lane in snapshot.lanes if lane.claimed}
    running = {
        glidein.job for glidein in snapshot.glideins
        if glidein.glide_id in claimed and glidein.status in (JobStatus.RUNNING, JobStatus.TRANSFERRING)
    }  # fmt: skip
    assert not removed(plan(snapshot, site)) & running


@settings(max_examples=100, deadline=None)
@given(snapshots(), sites())
def test_plan_never_retargets_claimed_or_wanted_lanes(snapshot: Snapshot, site: SiteFile):
    wanted = {demand.template for demand in snapshot.demands}
    lanes = {lane.name: lane for lane in snapshot.lanes}
    coming = {move.lane for move in snapshot.retargets if not move.hold_reason and move.template in wanted}
    for name in moved(plan(snapshot, site)):
        assert not lanes[name].claimed and lanes[name].template not in wanted and lanes[name].retires > snapshot.now
        assert name not in coming and lanes[name].entry not in snapshot.unavailable_entries


@given(snapshots(), sites())
def test_unreachable_collector_leaves_only_wait_actions_in_plan(snapshot: Snapshot, site: SiteFile):
    actions = plan(replace(snapshot, unavailable_sources=("collector: timeout",)), site)
    assert {action.action for action in actions} == {"wait"}


@given(snapshots(), sites())
def test_plan_never_acts_on_unreachable_entry(snapshot: Snapshot, site: SiteFile):
    for action in plan(snapshot, site):
        assert action.action == "wait" or action.entry not in snapshot.unavailable_entries


@given(snapshots(), sites())
def test_every_planned_action_has_one_line_reason(snapshot: Snapshot, site: SiteFile):
    for action in plan(snapshot, site):
        assert action.reason.strip() and "\n" not in action.reason


@settings(max_examples=100, deadline=None)
@given(snapshots(), sites())
def test_repeated_planning_soon_yields_only_wait_actions(snapshot: Snapshot, site: SiteFile):
    """Cycle after cycle without anything happening outside, the factory comes to rest, and takes nothing back."""
    started: set[str] = set()
    for _ in range(40):
        actions = plan(snapshot, site)
        assert not removed(actions) & started, "what was submitted is removed again"
        if all(action.action == "wait" for action in actions):
            return
        before = {glidein.job for glidein in snapshot.glideins}
        snapshot = applied(snapshot, actions)
        fresh = [glidein for glidein in snapshot.glideins if glidein.cluster == 2]
        renamed = {glidein: replace(glidein, cluster=3, proc=len(before) + 1000 + i) for i, glidein in enumerate(fresh)}
        snapshot = replace(snapshot, glideins=tuple(renamed.get(each, each) for each in snapshot.glideins))
        started |= {glidein.job for glidein in renamed.values()}
    raise AssertionError("it never comes to rest")
