"""The event log is followed whatever becomes of its file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from glide.condor import EventLog

pytestmark = pytest.mark.pool


def event(number: int) -> str:
    return f"009 ({number:03d}.000.000) 11/28 11:11:11 Job was aborted.\n\tvia condor_rm\n...\n"


def test_event_log_reader_survives_rotation_truncation_and_garbage(pool, tmp_path: Path):
    path, old = tmp_path / "EventLog", tmp_path / "EventLog.old"
    log = EventLog(str(path))
    assert log.new_events() == [] and not log.readable, "there is none yet"

    def add(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    def new_events() -> list[str]:
        return [each.job for each in log.new_events()]

    add(event(1))
    assert new_events() == ["1.0"]
    later = EventLog(str(path))
    assert later.new_events() == [], "what was there before is no news"
    add(event(2))
    path.rename(old)
    assert new_events() == ["2.0"] and new_events() == [], "absent for a moment, between rename and the next event"
    add(event(3))
    assert new_events() == ["3.0"]
    add(event(4))
    path.rename(old)
    add(event(5))
    assert new_events() == ["4.0", "5.0"], "rotated since the last look, with an event in either file"
    path.write_text(event(6)[:30])
    assert new_events() == [], "cut short, and an event that is half written"
    add(event(6)[30:])
    assert new_events() == ["6.0"]
    add("garbage\n...\n")
    assert new_events() == []
    add(event(7))
    new_events()
    add(event(8))
    assert new_events()[-1] == "8.0", "it goes on after an event that nobody can read"
    path.unlink()
    path.mkdir()
    assert new_events() == []
    path.rmdir()
    add(event(9))
    assert new_events() == ["9.0"]


def test_event_log_reader_never_waits_although_the_clock_steps(pool, tmp_path: Path, monkeypatch):
    """The bindings compute until when they wait, and compare it with the clock: after a step back they waited."""
    path = tmp_path / "EventLog"
    path.write_text("")
    log = EventLog(str(path))
    ahead = time.time() + 86400
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert log.new_events() == []  # with a wait, this test would not end
    path.write_text(event(1))
    assert [each.job for each in log.new_events()] == ["1.0"]
