"""Answers that can't be true, and the journal that says so."""

from __future__ import annotations

import json
from dataclasses import replace

from glide.factory.doubt import DOUBT_SECONDS, doubted, expected
from glide.factory.journal import Journal
from glide.factory.plan import Action, plan
from glide.factory.snapshot import Snapshot
from glide.vocabulary import JobStatus
from tests.test_plan import demand, glidein, lane, site

HERE = site()
THERE = (glidein(1), glidein(2))
BEFORE = Snapshot(THERE, (lane(THERE[0], claimed=True), lane(THERE[1])), (demand(),), now=1000.0)
SOON = 1000.0 + DOUBT_SECONDS / 2
LATER = 1000.0 + DOUBT_SECONDS + 1


def kinds(snapshot: Snapshot) -> set[str]:
    return {action.action for action in plan(snapshot, HERE)}


def test_what_has_not_changed_is_believed():
    assert doubted(replace(BEFORE, now=SOON), BEFORE, HERE) == replace(BEFORE, now=SOON)
    assert doubted(BEFORE, None, HERE) == BEFORE


def test_a_queue_that_is_empty_from_one_look_to_the_next_is_not_believed_for_a_while():
    empty = Snapshot(demands=(demand(),), now=SOON)
    seen = doubted(empty, BEFORE, HERE)
    assert "forgotten all 2 glideins" in seen.blind["here"] and kinds(seen) == {"wait"}
    assert kinds(doubted(replace(empty, now=LATER), BEFORE, HERE)) == {"submit"}


def test_a_queue_that_knows_nothing_of_those_who_advertise_is_never_believed():
    lanes = BEFORE.lanes
    for before, now in ((None, SOON), (BEFORE, SOON), (BEFORE, LATER)):
        seen = doubted(Snapshot((), lanes, (demand(),), now=now), before, HERE)
        assert "2 glideins advertise" in seen.blind["here"] and kinds(seen) == {"wait"}


def test_a_collector_that_has_lost_all_lanes_with_work_is_not_believed_for_a_while():
    seen = doubted(Snapshot(THERE, (), (demand(),), now=SOON), BEFORE, HERE)
    assert "the collector has forgotten" in seen.failed[0] and kinds(seen) == {"wait"}
    assert not doubted(Snapshot(THERE, (), (demand(),), now=LATER), BEFORE, HERE).failed
    idle = replace(BEFORE, lanes=tuple(map(lane, THERE)))
    assert not doubted(Snapshot(THERE, (), now=SOON), idle, HERE).failed, "idle glideins end by themselves"


def test_what_was_removed_or_has_ended_or_was_closed_may_be_gone():
    empty = Snapshot(demands=(demand(),), now=SOON)
    removal = Action("remove", "here", "T", 1, "why", ("7.1", "7.2"))
    assert not doubted(empty, expected(BEFORE, [removal]), HERE).blind
    assert not doubted(empty, BEFORE, HERE, drained=["here"]).blind
    ended = tuple(replace(each, status=JobStatus.COMPLETED) for each in THERE)
    assert not doubted(replace(empty, ended=ended), BEFORE, HERE).blind
    going = replace(BEFORE, glideins=tuple(replace(each, status=JobStatus.REMOVED) for each in THERE))
    assert not doubted(empty, expected(going, []), HERE).blind


def test_an_entry_that_is_not_seen_takes_no_doubt_from_the_others_and_is_remembered_itself():
    seen = replace(BEFORE, now=BEFORE.now + 600, glideins=(), blind={"here": "no answer"})
    believed = expected(seen, [], BEFORE)
    assert believed.glideins == BEFORE.glideins
    empty = replace(BEFORE, now=BEFORE.now + 602, glideins=(), lanes=())
    assert "has forgotten all" in doubted(empty, believed, HERE).blind["here"]


def test_an_entry_that_is_not_seen_is_left_alone_and_others_are_not():
    both = site({"name": "here", "max_glideins": 4}, {"name": "there", "max_glideins": 4})
    ghost, unwanted = lane(glidein(9)), glidein(1, "U", JobStatus.IDLE)
    snapshot = Snapshot((unwanted,), (ghost,), (demand(),), blind={"here": "the access point does not query"})
    actions = plan(snapshot, both)
    assert [(action.action, action.entry) for action in actions] == [("wait", "here"), ("submit", "there")]
    assert "does not query" in actions[0].reason


# ---- the journal ---------------------------------------------------------------------------------


def test_the_journal_has_a_line_for_each_change_and_none_for_passing_seconds(tmp_path):
    journal = Journal(tmp_path)
    assert journal.age() is None and journal.latest() == {}
    waits = [Action("wait", "here", "T", 1, f"breaker open for {seconds} s more") for seconds in (9, 8, 7)]
    for wait in waits:
        journal.write(BEFORE, [wait])
    journal.write(replace(BEFORE, glideins=THERE[:1]), waits[:1])
    first, second = journal.lines()
    assert first["glideins"] == {"here": {"running": 2}} and second["glideins"] == {"here": {"running": 1}}
    assert first["lanes"] == {"model": {"Warm": 2}} and first["jobs"] == {"model": 10}
    assert first["actions"][0]["reason"] == "breaker open for 9 s more"
    assert journal.latest() == second and journal.age() is not None


def test_a_journal_that_was_torn_is_read_to_its_last_whole_line(tmp_path):
    journal = Journal(tmp_path)
    journal.write(BEFORE, [])
    with journal.path.open("a") as file:
        file.write('{"time": 1')
    assert [line["unseen"] for line in journal.lines()] == [[]]
    Journal(tmp_path).write(replace(BEFORE, failed=("later",)), [])
    Journal(tmp_path).write(replace(BEFORE, failed=("last",)), [])
    assert journal.latest()["unseen"] == ["last"]
    assert [line["unseen"] for line in journal.lines()] == [[], ["later"], ["last"]]


def test_a_journal_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("glide.factory.journal.LARGEST", 1000)
    journal = Journal(tmp_path)
    for number in range(50):
        journal.write(replace(BEFORE, failed=(f"reason {number}",)), [])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3000
    assert json.loads(journal.path.read_text().splitlines()[-1])["unseen"] == ["reason 49"]
