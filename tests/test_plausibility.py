"""Answers that can't be true, and the journal that says so."""

from __future__ import annotations

import json
from dataclasses import replace

from glide.factory.actions import Remove, Wait
from glide.factory.journal import Journal
from glide.factory.plan import plan
from glide.factory.plausibility import ACCEPT_AFTER_SECONDS, baseline, reject_implausible
from glide.factory.snapshot import Snapshot
from glide.vocabulary import JobStatus
from tests.snapshots import demand, glidein, lane, site

HERE = site()
THERE = (glidein(1), glidein(2))
BEFORE = Snapshot(THERE, (lane(THERE[0], claimed=True), lane(THERE[1])), (demand(),), now=1000.0)
SOON = 1000.0 + ACCEPT_AFTER_SECONDS / 2
LATER = 1000.0 + ACCEPT_AFTER_SECONDS + 1


def kinds(snapshot: Snapshot) -> set[str]:
    return {action.action for action in plan(snapshot, HERE)}


def test_unchanged_snapshot_is_accepted():
    assert reject_implausible(replace(BEFORE, now=SOON), BEFORE, HERE) == replace(BEFORE, now=SOON)
    assert reject_implausible(BEFORE, None, HERE) == BEFORE


def test_suddenly_empty_queue_is_accepted_after_delay():
    empty = Snapshot(demands=(demand(),), now=SOON)
    seen = reject_implausible(empty, BEFORE, HERE)
    assert "forgotten all 2 glideins" in seen.unavailable_entries["here"] and kinds(seen) == {"wait"}
    assert kinds(reject_implausible(replace(empty, now=LATER), BEFORE, HERE)) == {"submit"}


def test_empty_queue_is_distrusted_if_glideins_advertise_lanes():
    lanes = BEFORE.lanes
    for before, now in ((None, SOON), (BEFORE, SOON), (BEFORE, LATER)):
        seen = reject_implausible(Snapshot((), lanes, (demand(),), now=now), before, HERE)
        assert "2 glideins advertise" in seen.unavailable_entries["here"] and kinds(seen) == {"wait"}


def test_snapshot_lacking_busy_lanes_is_accepted_after_delay():
    seen = reject_implausible(Snapshot(THERE, (), (demand(),), now=SOON), BEFORE, HERE)
    assert "the collector has forgotten" in seen.unavailable_sources[0] and kinds(seen) == {"wait"}
    assert not reject_implausible(Snapshot(THERE, (), (demand(),), now=LATER), BEFORE, HERE).unavailable_sources
    idle = replace(BEFORE, lanes=tuple(map(lane, THERE)))
    seen = reject_implausible(Snapshot(THERE, (), now=SOON), idle, HERE)
    assert not seen.unavailable_sources, "idle glideins end by themselves"


def test_snapshot_lacking_removed_or_ended_glideins_is_accepted():
    empty = Snapshot(demands=(demand(),), now=SOON)
    removal = Remove("here", "T", 1, "why", ("7.1", "7.2"))
    assert not reject_implausible(empty, baseline(BEFORE, [removal]), HERE).unavailable_entries
    assert not reject_implausible(empty, BEFORE, HERE, drained=["here"]).unavailable_entries
    ended = tuple(replace(each, status=JobStatus.COMPLETED) for each in THERE)
    assert not reject_implausible(replace(empty, ended=ended), BEFORE, HERE).unavailable_entries
    going = replace(BEFORE, glideins=tuple(replace(each, status=JobStatus.REMOVED) for each in THERE))
    assert not reject_implausible(empty, baseline(going, []), HERE).unavailable_entries


def test_factory_remembers_glideins_while_entry_is_unreachable():
    seen = replace(BEFORE, now=BEFORE.now + 600, glideins=(), unavailable_entries={"here": "no answer"})
    believed = baseline(seen, [], BEFORE)
    assert believed.glideins == BEFORE.glideins
    empty = replace(BEFORE, now=BEFORE.now + 602, glideins=(), lanes=())
    assert "has forgotten all" in reject_implausible(empty, believed, HERE).unavailable_entries["here"]


def test_unavailable_entry_waits_while_other_entries_submit():
    both = site({"name": "here", "max_glideins": 4}, {"name": "there", "max_glideins": 4})
    ghost, unwanted = lane(glidein(9)), glidein(1, "U", JobStatus.IDLE)
    unavailable = {"here": "the access point does not query"}
    snapshot = Snapshot((unwanted,), (ghost,), (demand(),), unavailable_entries=unavailable)
    actions = plan(snapshot, both)
    assert [(action.action, action.entry) for action in actions] == [("wait", "here"), ("submit", "there")]
    assert "does not query" in actions[0].reason


# ---- the journal ---------------------------------------------------------------------------------


def test_factory_journal_grows_only_with_real_changes(tmp_path):
    journal = Journal(tmp_path)
    assert journal.age() is None and journal.latest() == {}
    wait = Wait("here", "T", 1, "full")
    for seconds in range(3):
        journal.write(replace(BEFORE, now=BEFORE.now + seconds), [wait])
    journal.write(replace(BEFORE, glideins=THERE[:1]), [wait])
    first, second = journal.lines()
    assert first["glideins"] == {"here": {"running": 2}} and second["glideins"] == {"here": {"running": 1}}
    assert first["lanes"] == {"model": {"Warm": 2}} and first["jobs"] == {"model": 10}
    assert first["actions"][0]["reason"] == "full"
    assert journal.latest() == second and journal.age() is not None


def test_journal_is_readable_despite_incomplete_line(tmp_path):
    journal = Journal(tmp_path)
    journal.write(BEFORE, [])
    with journal.path.open("a") as file:
        file.write('{"time": 1')
    assert [line["unseen"] for line in journal.lines()] == [[]]
    Journal(tmp_path).write(replace(BEFORE, unavailable_sources=("later",)), [])
    Journal(tmp_path).write(replace(BEFORE, unavailable_sources=("last",)), [])
    assert journal.latest()["unseen"] == ["last"]
    assert [line["unseen"] for line in journal.lines()] == [[], ["later"], ["last"]]


def test_journal_size_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("glide.factory.journal.LARGEST", 1000)
    journal = Journal(tmp_path)
    for number in range(50):
        journal.write(replace(BEFORE, unavailable_sources=(f"reason {number}",)), [])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3000
    assert json.loads(journal.path.read_text().splitlines()[-1])["unseen"] == ["reason 49"]
