"""What calls of a user's own code do to the process that they run in, on a real model server without HTCondor."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glide
from glide.sweep.functions import Invocation
from glide.template import Template
from glide.template.function import template_of
from glide.vocabulary import ENGINE_VARIABLE, Exit, Machine, State
from tests.conftest import eventually
from tests.server_rig import Server, value
from tests.test_sticky import stick

OWNER = "ada@here"


@glide.sticky
def loaded() -> dict[str, Any]:
    return {"loader": os.getpid()}


def state(name: str = "state") -> Template:
    return template_of(name, loaded.function, (), {}, OWNER)


def records(*calls: tuple[Callable, tuple]) -> list[dict[str, Any]]:
    return [
        {"custom_id": str(number), "prompt": made.prompt(arguments, {}), "generate": made.generate, "timeout": 30}
        for number, (function, arguments) in enumerate(calls)
        for made in [Invocation(function, loaded())]
    ]


class Caller:
    """A server for such state; called, it makes calls there and returns the results in order."""

    def __init__(self, server: Server):
        self.server = server
        server.reached(State.WARM)

    def __call__(self, *calls: Callable | tuple[Callable, tuple]) -> list[dict[str, Any]]:
        sent = records(*(each if isinstance(each, tuple) else (each, ()) for each in calls))
        return sorted(self.server.call(sent).results(), key=lambda result: int(result["custom_id"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("calls"), state())
    yield Caller(server)
    server.stop()


def pid() -> int:
    return os.getpid()


def until_another_serves(run: Caller, engine: int) -> None:
    """The old engine may take a call yet, in the moment before its keeper's end reaches it."""

    def by_another() -> bool:
        (answer,) = run(pid)
        return answer["error"] is None and value(answer) != engine

    eventually(by_another, "another engine serves")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---- exceptions ----------------------------------------------------------------------------------


class Own(BaseException):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def raises(error: BaseException) -> None:
    raise error


def test_call_that_raises_system_exit_keeps_state_loaded(run):
    kinds = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Own)
    first, *errors, last = run(pid, *((raises, (kind("stop"),)) for kind in kinds), pid)
    for kind, error in zip(kinds, errors, strict=True):
        assert error["error"] == {"type": kind.__name__, "message": "stop"}
        assert "in raises" in error["traceback"] and "raise error" in error["traceback"]
    assert value(first) == value(last)


def test_load_that_raises_asyncio_cancelled_error_is_reported(start):
    server = start(template_of("ill", raises, (asyncio.CancelledError("stop"),), {}, OWNER))
    reason = next(ad for ad in server.states() if ad[Machine.STATE] == State.FAILED)[Machine.FAILURE]
    assert reason == "asyncio.exceptions.CancelledError: stop"


def test_exception_without_printable_message_fails_only_its_call(run):
    results = run((raises, (ValueError("\ud800"),)), (raises, (Unspeakable(),)), pid)
    assert [result["error"] and result["error"]["type"] for result in results] == ["ValueError", "Unspeakable", None]
    assert results[0]["error"]["message"] == "\\ud800"


# ---- copies of the engine ------------------------------------------------------------------------


def forks() -> str:
    return "copy" if os.fork() == 0 else "original"


def forks_and_raises() -> str:
    if os.fork() == 0:
        raise ValueError("the copy")
    return "original"


def test_process_forked_by_call_never_sends_results(run):
    results = run(pid, forks, forks_and_raises, pid)
    assert [value(result) for result in results[1:3]] == ["original", "original"]
    assert value(results[0]) == value(results[3])


def leaves_a_child() -> int | None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    return child.pid


def exits() -> None:
    os._exit(9)


def test_child_process_of_dead_engine_is_killed(run):
    (left,) = run(leaves_a_child)
    died, after = run(exits, pid)
    assert died["error"]["type"] == "EngineDied" and "exited with code 9" in died["error"]["message"]
    assert value(after)
    assert not is_running(value(left))


# ---- processes that leave their parents ----------------------------------------------------------


def leaves_a_daemon() -> int:
    """A new session, a double fork, no open descriptor and no environment that tells where it is from."""
    script = "import os, sys, time\nos.setsid()\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\n"
    script += "os.closerange(0, 100)\nos.fork()\ntime.sleep(600)\n"
    return int(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, env={}).stdout)


def leaves_a_marked_daemon() -> int:
    script = (
        "import os, time\nos.setsid()\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout
    return int(process.stdout.readline())


def test_daemon_started_by_call_ends_with_engine(run):
    server = run.server
    for end in (
        lambda: os.kill(server.engine, signal.SIGKILL),
        lambda: run(exits),
        lambda: os.kill(server.keeper, signal.SIGTERM),
    ):
        left, engine = run(leaves_a_daemon, pid)
        assert is_running(value(left))
        end()
        until_another_serves(run, value(engine))
        assert not is_running(value(left))


def test_killed_model_server_leaves_no_call_processes(start):
    run = Caller(start(state()))
    (left,) = run(leaves_a_daemon)
    assert is_running(value(left))
    run.server.process.kill()
    eventually(lambda: not is_running(value(left)), "nothing is left of a killed server")


def test_processes_left_by_calls_die_with_engine_keeper(run):
    left, engine = run(leaves_a_marked_daemon, pid)
    assert is_running(value(left))
    os.kill(run.server.keeper, signal.SIGKILL)
    until_another_serves(run, value(engine))
    assert not is_running(value(left))


def test_model_server_kills_processes_of_earlier_server(start, tmp_path):
    log = tmp_path / "0" / "server.log"
    stray = subprocess.Popen(["sleep", "600"], env={ENGINE_VARIABLE: f"{log}#0123"}, start_new_session=True)
    server = start()
    assert server.log == log
    server.reached(State.WARM)
    assert stray.wait(60) == -signal.SIGKILL


def test_processes_of_previous_user_are_killed_before_loading(tmp_path):
    server = Server(tmp_path / "server", state(), lanes=1)
    try:
        server.reached(State.WARM)
        (result,) = server.call(records((leaves_a_daemon, ()))).results()
        seen = tmp_path / "seen"
        other = template_of("other", looks_for, (value(result), str(seen)), {}, "bob@here")
        assert stick(server, other, user="bob@here")[0] == Exit.OK
        assert seen.read_text() == "gone"
    finally:
        server.stop()


def looks_for(process: int, report: str) -> dict[str, Any]:
    Path(report).write_text("there" if Path(f"/proc/{process}").exists() else "gone")
    return {}


# ---- what a call changes of its process ----------------------------------------------------------


def spoils() -> None:
    os.chdir("/")
    os.environ["SPOILED"] = "1"
    del os.environ["PATH"]
    os.umask(0)
    sys.path.insert(0, "/spoiled")
    for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGCHLD else signal.SIG_DFL)
    signal.alarm(600)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    sys.stdout.close()
    sys.stderr = None


def looks() -> tuple[Any, ...]:
    print("heard")
    mask = os.umask(0)
    os.umask(mask)
    signals = signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.alarm(0)
    return os.getcwd(), dict(os.environ), mask, sys.path, signals, os.getpid()


def hangs() -> None:
    while True:
        time.sleep(0.1)


def test_call_cannot_change_environment_of_later_calls(run):
    before, _, after = run(looks, spoils, looks)
    assert value(before) == value(after)
    assert before["stdout"] == after["stdout"] == "heard\n"
    sent = records((spoils, ()), (hangs, ()), (looks, ()))
    sent[1]["timeout"] = 0.5
    results = {result["custom_id"]: result for result in run.server.call(sent).results()}
    assert results["1"]["error"]["type"] == "RecordTimeout"  # its signal still interrupts
    assert value(results["2"]) == value(before)


# ---- what a call writes into its engine's channel ------------------------------------------------


def writes_into_the_channel() -> None:
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and os.readlink(link).startswith("socket:"):
            os.write(int(link.name), pickle.dumps({"done": 1}))


def test_engine_is_replaced_after_it_sends_invalid_message(run):
    (first,) = run(pid)
    wrong, last = run(writes_into_the_channel, pid)
    assert wrong["error"]["type"] == "EngineDied" and "sent a frame" in wrong["error"]["message"]
    assert value(first) != value(last)
    assert run.server.now()[Machine.STATE] == State.WARM
