"""When a driver looks again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from glide.sweep import driver
from glide.sweep.calls import Calls
from glide.template import Template


@pytest.mark.parametrize("full", [False, True])
def test_new_calls_are_worth_a_look_at_once_unless_the_lanes_have_work(monkeypatch, full):
    monkeypatch.setattr(driver, "Collector", SimpleNamespace)
    monkeypatch.setattr(driver, "EventLog", lambda: SimpleNamespace(readable=True, new=lambda: []))
    calls = Calls(Template("m", "noop"), 1)
    waiting = driver.Driver(calls, SimpleNamespace())
    waiting.full = full
    calls.add({"prompt": ""})
    waiting._wait()
    assert calls.fresh.is_set() == full  # it was for that, or it is still to be seen
