"""The decisions of `glide serve`: whose call is next, on which lane, and how many standing jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glide.errors import CondorError, InputError
from glide.live.cycles import repeat
from glide.live.identity import LiveIdentity
from glide.live.jobs import PoolState
from glide.live.model import LiveModel, ServedModel
from glide.live.plan import ConnectedJob, EndJob, ModelDemand, StartJobs, WaitingJob, plan
from glide.live.router import MOST_LOSSES, CallRouter, LaneLoad, LiveCall
from glide.live.service import LiveService
from glide.serve.answers import answer_of, merged
from glide.serve.batch_store import BatchStore
from glide.serve.batches import MOST_BATCHES, BatchRunner
from glide.serve.errors import ApiError
from glide.serve.file_store import FileStore
from glide.serve.limits import UserLimits
from glide.serve.live_api import parse
from glide.serve.models import read_catalogue
from glide.template import Template

# ---- calls and lanes -----------------------------------------------------------------------------


@pytest.fixture
def router() -> Iterator[CallRouter]:
    """An empty router, and a loop for the futures of calls."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield CallRouter()
    asyncio.set_event_loop(None)
    loop.close()


def add(router: CallRouter, user: str, prompt: Any = "p") -> LiveCall:
    number = sum(map(len, router.waiting.values())) + router.in_flight + 1000 * len(router.waiting)
    call = LiveCall(number, user, {"prompt": prompt}, asyncio.get_event_loop().create_future())
    call.number = id(call)
    router.add(call)
    return call


def test_users_take_turns(router):
    for _ in range(100):
        add(router, "ada")
    bob = [add(router, "bob") for _ in range(2)]
    router.lanes.append(LaneLoad("g", capacity=4))
    users = [call.user for _, call in router.assignments()]
    assert sorted(users) == ["ada", "ada", "bob", "bob"]
    router.finish(bob[0])
    assert [call.user for _, call in router.assignments()] == ["ada"]


def test_lane_gets_no_more_than_its_capacity(router):
    lane = LaneLoad("g", capacity=3)
    router.lanes.append(lane)
    calls = [add(router, "ada") for _ in range(5)]
    assert len(list(router.assignments())) == 3 and router.queued == 2
    router.finish(calls[0])
    assert [call for _, call in router.assignments()] == [calls[3]]


def test_calls_go_to_the_least_loaded_lane(router):
    router.lanes += [LaneLoad("a", capacity=10), LaneLoad("b", capacity=20)]
    for number in range(15):
        add(router, "ada", f"different beginning of call number {number}")
    assert len(list(router.assignments())) == 15
    assert [len(lane.calls) for lane in router.lanes] == [5, 10]


def test_calls_with_one_beginning_go_to_one_lane(router):
    router.lanes += [LaneLoad("a", capacity=40), LaneLoad("b", capacity=40)]
    stories = {name: name * 300 for name in "xy"}
    for number in range(10):
        for story in stories.values():
            add(router, "ada", f"{story} {number}")
    places = {name: set() for name in stories}
    for lane, call in router.assignments():
        places[call.fields["prompt"][0]].add(lane.glidein)
    assert all(len(lanes) == 1 for lanes in places.values()) and places["x"] != places["y"]


def test_common_beginning_does_not_overload_a_lane(router):
    router.lanes += [LaneLoad("a", capacity=40), LaneLoad("b", capacity=40)]
    for number in range(40):
        add(router, "ada", f"{'s' * 500} {number}")
    assert len(list(router.assignments())) == 40
    assert min(len(lane.calls) for lane in router.lanes) >= 15


def test_calls_of_a_lost_lane_are_first_again(router):
    lost, other = LaneLoad("a", capacity=2), LaneLoad("b", capacity=0)
    router.lanes += [lost, other]
    calls = [add(router, "ada") for _ in range(4)]
    assert [call for _, call in router.assignments()] == calls[:2]
    assert router.lose(lost) == [] and router.lost == 2 and router.active["ada"] == 0
    other.capacity = 4
    assert [call for _, call in router.assignments()] == calls


def test_call_that_loses_every_lane_is_refused(router):
    call = add(router, "ada")
    for number in range(MOST_LOSSES):
        lane = LaneLoad(f"g{number}", capacity=1)
        router.lanes.append(lane)
        assert [each for _, each in router.assignments()] == [call]
        refused = router.lose(lane)
    assert refused == [call] and router.queued == router.in_flight == 0


def test_cancelled_call_leaves_the_queue(router):
    first, second = add(router, "ada"), add(router, "ada")
    router.finish(first)
    router.lanes.append(LaneLoad("a", capacity=2))
    assert [call for _, call in router.assignments()] == [second]
    router.finish(second)
    assert not router.waiting and not router.active and router.in_flight == 0


# ---- standing jobs -------------------------------------------------------------------------------


def connected(name: str, calls: int = 0, **changes: Any) -> ConnectedJob:
    return ConnectedJob(**{
        "name": name, "glidein": f"g-{name}", "capacity": 10, "calls": calls, "retires": 0, "is_ending": False,
        **changes,
    })  # fmt: skip


def test_one_standing_job_is_kept_without_calls():
    (action,) = plan(ModelDemand(most=3))
    assert isinstance(action, StartJobs) and action.count == 1 and "always kept" in action.reason
    assert plan(ModelDemand(most=3, waiting=[WaitingJob("a")])) == []
    assert plan(ModelDemand(most=3, connected=[connected("a")], capacity=10)) == []


def test_model_on_demand_has_a_job_while_it_is_used():
    used = ModelDemand(most=3, capacity=10, idle_seconds=300, last_call=1000.0, now=1299.0)
    assert plan(used) == []
    (start,) = plan(replace(used, demand=1))
    assert isinstance(start, StartJobs) and start.count == 1 and "a call needs a lane" in start.reason
    loaded = replace(used, connected=[connected("a")])
    assert plan(loaded) == []
    assert plan(replace(loaded, now=1300.0)) == [EndJob("a", "no call for 300 s")]


def test_file_of_a_model_may_limit_its_idle_time(tmp_path):
    path = tmp_path / "echo.yaml"
    path.write_text("name: echo\nmodel: {name: echo, engine: noop}\nidle_seconds: 600\n")
    assert read_catalogue([path]).models["echo"].idle_seconds == 600
    path.write_text("name: echo\nmodel: {name: echo, engine: noop}\n")
    assert read_catalogue([path]).models["echo"].idle_seconds is None
    path.write_text("name: echo\nmodel: {name: echo, engine: noop}\nidle_seconds: 5\n")
    with pytest.raises(InputError, match=f"{path}:3: idle_seconds: "):
        read_catalogue([path])


def test_pause_after_failed_submissions_grows():
    model = ServedModel(LiveModel("m", Template("m", "noop"), 1, None))
    pauses = []
    for _ in range(7):
        model.note_outcome("no schedd")
        pauses.append(model.pause)
    assert pauses == [1, 2, 4, 8, 10, 10, 10] and model.retry_at > time.monotonic() + 5
    model.note_outcome("")
    assert model.pause == 0 and model.retry_at <= time.monotonic() and model.problem == ""


def test_more_calls_need_more_standing_jobs_up_to_the_limit():
    one = [connected("a", calls=10)]
    (action,) = plan(ModelDemand(most=8, connected=one, demand=25, capacity=10))
    assert isinstance(action, StartJobs) and action.count == 2 and action.avoid == ("g-a",)
    (limited,) = plan(ModelDemand(most=2, connected=one, demand=10_000, capacity=10))
    assert isinstance(limited, StartJobs) and limited.count == 1


def test_surplus_jobs_end_idle_ones_first():
    jobs = [connected("a", calls=3), connected("b", calls=1), connected("c", calls=2)]
    assert [each.name for each in plan(ModelDemand(most=3, connected=jobs, demand=6, capacity=10))] == ["b", "c"]
    waiting = [WaitingJob("w")]
    (action,) = plan(ModelDemand(most=3, connected=jobs[:1], waiting=waiting, demand=3, capacity=10))
    assert isinstance(action, EndJob) and action.name == "w"


def test_retiring_lane_is_replaced():
    jobs = [connected("a", retires=1010)]
    end, start = plan(ModelDemand(most=1, connected=jobs, now=1000.0, capacity=10))
    assert isinstance(end, EndJob) and "retires" in end.reason
    assert isinstance(start, StartJobs) and start.avoid == ("g-a",)


def test_lost_lane_is_replaced_at_once_and_may_connect_again():
    lost = WaitingJob("a", running_seconds=0.1, was_lost=True)
    (start,) = plan(ModelDemand(most=1, waiting=[lost]))
    assert isinstance(start, StartJobs) and start.count == 1
    assert plan(ModelDemand(most=1, waiting=[lost, WaitingJob("b")])) == []
    back = [connected("a")]
    (end,) = plan(ModelDemand(most=1, connected=back, waiting=[WaitingJob("b")], capacity=10))
    assert isinstance(end, EndJob) and end.name == "b"


def test_held_and_silent_jobs_are_replaced():
    waiting = [WaitingJob("a", hold_reason="no such file"), WaitingJob("b", running_seconds=100.0)]
    *ends, start = plan(ModelDemand(most=1, waiting=waiting))
    assert [(each.name, each.reason) for each in ends if isinstance(each, EndJob)] == [
        ("a", "held: no such file"), ("b", "its lane does not connect"),
    ]  # fmt: skip
    assert isinstance(start, StartJobs) and start.count == 1


def test_model_whose_actions_fail_does_not_stop_the_others(tmp_path, caplog):
    submitted = []

    class Worker:
        async def ask(self, method: str, *arguments: Any) -> Any:
            if method == "submit" and arguments[0].model == "bad":
                raise CondorError("refused")
            submitted.extend([arguments[0].model] if method == "submit" else [])
            return PoolState((), {})

    models = [LiveModel(name, Template(name, "noop"), 1, None) for name in ("bad", "good")]
    worker: Any = Worker()
    service = LiveService(models, LiveIdentity.load(tmp_path), worker)
    asyncio.run(service._cycle())
    assert submitted == ["good"] and service.models["bad"].problem == "refused"
    asyncio.run(service._cycle())  # the other model pauses before its next try
    assert caplog.messages == ["bad: standing jobs: refused"] and service.models["good"].problem == ""


def test_outage_of_many_cycles_is_logged_once(caplog):
    caplog.set_level(logging.INFO, "glide")
    outcomes = [CondorError("no schedd"), CondorError("no schedd"), None, None, CondorError("no schedd")]

    async def cycle() -> None:
        if not outcomes:
            raise asyncio.CancelledError
        if outcome := outcomes.pop(0):
            raise outcome

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(repeat("jobs", cycle, asyncio.Event(), lambda: 0.0))
    assert caplog.messages == ["jobs: no schedd", "jobs: HTCondor answers again", "jobs: no schedd"]


# ---- secrets -------------------------------------------------------------------------------------


def test_each_secret_is_valid_once_and_for_one_template(tmp_path: Path):
    identity = LiveIdentity.load(tmp_path)
    first = identity.secret("job", "T")
    assert identity.use("job", "other", first) is None
    second = identity.use("job", "T", first)
    assert second and identity.use("job", "T", first) == second  # the welcome may have been lost
    identity.confirm("job")
    assert identity.use("job", "T", first) is None
    assert identity.use("job", "T", second) not in (None, first, second)
    assert LiveIdentity.load(tmp_path).uses == {"job": 2}


def test_limits_count_each_prompt():
    limits = UserLimits(most_calls=10)
    with limits.count("ada", 5, calls=8):
        with pytest.raises(ApiError, match="you have 8 unfinished calls"), limits.count("ada", 5, calls=3):
            pass
        with limits.count("bob", 5, calls=10):
            pass
    assert not limits.calls and not limits.bytes


# ---- requests and answers ------------------------------------------------------------------------


def test_completion_of_several_prompts_is_merged():
    requests = parse("/v1/completions", {"model": "m", "prompt": ["a", "b"], "n": 2})
    two = [{"index": 0, "text": "x", "finish_reason": "stop"}, {"index": 1, "text": "y", "finish_reason": "stop"}]
    result = {"text": "x", "error": None, "choices": two, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    answers = [
        answer_of(each, {**result, "seconds": seconds}, "m")
        for each, seconds in zip(requests, (0.5, 0.25), strict=True)
    ]
    answer = merged(answers)
    assert [choice["index"] for choice in answer.content["choices"]] == [0, 1, 2, 3]
    assert answer.content["usage"] == {"prompt_tokens": 2, "total_tokens": 6, "completion_tokens": 4}
    assert (answer.tokens, answer.engine_seconds) == (4, 0.5)
    assert answer.timing(0.75) == {"Server-Timing": "total;dur=750.000, engine;dur=500.000"}


# ---- batches -------------------------------------------------------------------------------------


def test_new_server_advances_and_counts_the_batches_of_the_one_before(tmp_path):
    store = BatchStore(tmp_path / "batches")
    nothing: Any = None  # no catalogue and no pool are needed to begin a batch
    asked = "ada", "/v1/completions", "file", "24h", None
    earlier = [store.create(*asked) for _ in range(MOST_BATCHES - 1)]
    ended = store.create(*asked)
    store.save(replace(ended, status="completed"))
    runner = BatchRunner(store, FileStore(tmp_path / "files"), nothing, nothing, None, "ada")
    new = runner.create(*asked)
    assert set(runner.active) == {batch.id for batch in [*earlier, new]}
    with pytest.raises(ApiError, match="have not ended"):
        runner.create(*asked)
