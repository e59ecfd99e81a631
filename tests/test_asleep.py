"""A sleeping model gives its GPU memory to another model, and wakes up without a new load.

vLLM can sleep only on a GPU. So these tests use a fake program that accepts vLLM's flags and requests.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glide.factory.snapshot import Lane
from glide.factory.supply import retarget_rank
from glide.template import Template
from glide.vocabulary import Exit, Machine, State
from tests.conftest import eventually
from tests.server_rig import Server, children
from tests.test_sticky import stick

FAKE = Path(__file__).with_name("fake_program.py")
WEIGHTS = 400  # MB that the program takes while it is awake
MEMORY = 700.0  # MB for all models of a server; so two of them cannot be awake


@pytest.fixture
def serve(tmp_path: Path, monkeypatch):
    """A model server on a node whose PATH has a program `vllm`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "vllm").write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@" $FAKE_FLAGS\n')
    (programs / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    servers: list[Server] = []

    def serve(template: Template, flags: str = "", memory: float = MEMORY) -> Server:
        monkeypatch.setenv("FAKE_FLAGS", flags)
        servers.append(Server(tmp_path / "server", template, lanes=2, memory=memory))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


def template(name: str, *args: str, user: str = "") -> Template:
    # The fake program takes the first flag as MB of memory that it uses while it is awake. It takes the flag
    # --max-num-batched-tokens as MB that it always uses.
    arguments = ("--max-model-len", str(WEIGHTS), "--enable-sleep-mode", *args)
    return Template(name, "server", path="/none", options={"program": "vllm", "args": list(arguments)}, user=user)


def programs(server: Server) -> int:
    """Number of programs that run below a model server."""
    found, rest = 0, [server.process.pid]
    while rest:
        each = rest.pop()
        rest += children(each)
        words = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
        found += str(FAKE).encode() in words
    return found


def asked(server: Server, of: Template) -> list[str]:
    call = server.call([{"custom_id": "a", "prompt": "hello", "generate": {"max_tokens": 1}}], of.digest)
    return [each["text"] for each in call.results()]


def test_idle_model_sleeps_while_another_has_its_memory(serve):
    first, second = template("first"), template("second")
    server: Server = serve(first)
    server.reached(State.WARM)
    assert stick(server, second)[0] == Exit.OK
    ad = server.now()
    assert (ad[Machine.MODEL], ad[Machine.STATE], ad[Machine.ASLEEP]) == ("second", State.WARM, first.digest)
    assert programs(server) == 2 and asked(server, second) == ["hello"]
    code, errors = server.call([{"custom_id": "a", "prompt": "hello"}], first.digest).end()
    assert code == Exit.SERVER_LOST and "the template is asleep" in errors
    assert stick(server, first)[0] == Exit.OK
    ad = server.now()
    assert (ad[Machine.MODEL], ad[Machine.STATE], ad[Machine.ASLEEP]) == ("first", State.WARM, second.digest)
    assert asked(server, first) == ["hello"]
    log = server.log.read_text()
    assert log.count("first Warming") == 1 and log.count("second Warming") == 1


@pytest.mark.parametrize("flags", ["--fail sleep --how exit=3", "--fail sleep --how signal=9"])
def test_model_that_dies_instead_of_sleeping_is_unloaded(serve, flags):
    first, second = template("first"), template("second")
    server: Server = serve(first, flags)
    server.reached(State.WARM)
    assert stick(server, second)[0] == Exit.OK
    ad = server.now()
    assert ad[Machine.MODEL] == "second" and Machine.ASLEEP not in ad
    assert asked(server, second) == ["hello"] and programs(server) == 1


def test_failed_wake_up_loads_the_model_again(serve):
    first, second = template("first"), template("second")
    server: Server = serve(first, "--fail wake --how exit=3")
    server.reached(State.WARM)
    assert stick(server, second)[0] == Exit.OK
    assert stick(server, first)[0] == Exit.OK
    assert asked(server, first) == ["hello"]
    log = server.log.read_text()
    assert log.count("first Warming") == 2 and log.count("second Warming") == 1


def test_job_that_arrives_while_model_wakes_up_is_served(serve):
    first, second = template("first"), template("second")
    server: Server = serve(first, "--wake-seconds 4")
    server.reached(State.WARM)
    assert stick(server, second)[0] == Exit.OK
    with ThreadPoolExecutor() as pool:
        waking = pool.submit(stick, server, first)
        eventually(lambda: server.now()[Machine.STATE] == State.LOADING, "it wakes up")
        call = server.call([{"custom_id": "a", "prompt": "hello", "generate": {"max_tokens": 1}}], first.digest)
        assert [each["text"] for each in call.results()] == ["hello"]
        assert waking.result()[0] == Exit.OK
    assert server.log.read_text().count("first Warming") == 1


def test_dead_sleeping_model_is_no_longer_advertised(serve):
    first, second = template("first"), template("second")
    server: Server = serve(first)
    server.reached(State.WARM)
    engine = server.engine
    assert stick(server, second)[0] == Exit.OK
    os.kill(engine, 9)
    eventually(lambda: Machine.ASLEEP not in server.now(), "the dead model is not offered", budget=20)
    assert asked(server, second) == ["hello"]
    assert stick(server, first)[0] == Exit.OK and asked(server, first) == ["hello"]


@pytest.mark.parametrize("memory", [MEMORY, 0.0])
def test_sleeping_model_is_unloaded_if_its_rest_does_not_fit(serve, memory):
    """A sleeping program keeps some memory. If the limit is unknown, no model sleeps at all."""
    first, second = (template(name, "--max-num-batched-tokens", "200") for name in ("first", "second"))
    server: Server = serve(first, memory=memory)
    server.reached(State.WARM)
    assert stick(server, second)[0] == Exit.OK
    eventually(lambda: programs(server) == 1, "the first program has ended", budget=20)
    assert Machine.ASLEEP not in server.now() and asked(server, second) == ["hello"]


def test_failed_model_leaves_the_lane_to_the_sleeping_one(serve):
    first, broken = template("first"), Template("broken", "noop", options={"crash_in": State.LOADING})
    server: Server = serve(first)
    server.reached(State.WARM)
    assert stick(server, template("second"))[0] == Exit.OK
    assert stick(server, broken)[0] == Exit.FAILED
    assert asked(server, template("second")) == ["hello"]
    assert server.now()[Machine.STATE] == State.WARM


def test_model_of_another_owner_does_not_sleep(serve):
    first, second = template("first", user="ann@pool"), template("second", user="bob@pool")
    server: Server = serve(first)
    server.reached(State.WARM)
    assert stick(server, second, user="bob@pool")[0] == Exit.OK
    assert Machine.ASLEEP not in server.now() and programs(server) == 1


def test_glidein_with_sleeping_model_is_chosen_first():
    def rank(**facts):
        lane = Lane("a", "entry", "other", "other", State.WARM, False, **facts)
        return retarget_rank(lane, "wanted", {"tree": 100})

    awake_soon = rank(asleep=("wanted", "another"), retires=10.0)
    assert awake_soon < rank(cached=("tree",), retires=1000.0) < rank(retires=1000.0)
