"""When a driver looks again."""

from __future__ import annotations

import pytest

from glide.condor import AccessPoint
from glide.invoke.carriers import Carriers, Run
from glide.sweep.calls import Calls
from glide.sweep.driver import Driver
from glide.template import Template


@pytest.mark.pool
@pytest.mark.parametrize("full", [False, True])
def test_new_calls_are_worth_a_look_at_once_unless_the_lanes_have_work(pool, tmp_path, full):
    calls = Calls(Template("m", "noop"), 1)
    waiting = Driver(calls, Carriers(Run("waiting", calls.template, tmp_path, 1), AccessPoint()))
    waiting.full = full
    calls.add({"prompt": ""})
    waiting._wait()
    assert calls.fresh.is_set() == full  # it was for that, or it is still to be seen
