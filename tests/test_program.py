"""The engine `server` with a program that fails on purpose: starts, failures, ends, and what users see of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from glide.server.engines.server import launch
from glide.server.engines.server.share import tree_megabytes
from glide.template import FileSet, Template
from glide.vocabulary import UNSUITABLE, State
from tests.conftest import eventually
from tests.server_rig import Server, assert_exactly_once, children, failure

PROGRAM = Path(__file__).parent / "fake_program.py"


def template(*words: str, where: str = "--port {port}", budgets: dict[str, float] | None = None, **options) -> Template:
    command = f"{sys.executable} {PROGRAM} {where} {' '.join(words)}"
    return Template(
        "m", "server", options={"command": command, **options}, budgets=budgets or {}, user="ada@here.example.org"
    )


def records(count: int, **more) -> list[dict]:
    return [{"custom_id": f"r{number}", "prompt": f"text {number}", **more} for number in range(count)]


def tree(process: int) -> list[int]:
    """Return a process and all its descendants."""
    return [process, *(each for child in children(process) for each in tree(child))]


def remaining(processes: list[int]) -> list[int]:
    """Return the processes that still run. A zombie no longer runs."""
    found = []
    for process in processes:
        with suppress(OSError):
            status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
            found += [process] if status != "Z" else []
    return found


def program_of(server: Server) -> list[int]:
    """Return the processes of the program: all processes below the keeper, except the engine's own."""
    keeper, engine = server.keeper, server.engine
    return [process for process in tree(keeper) if process not in (keeper, engine)]


# ---- start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["--port {port}", "--socket {socket}"])
def test_command_serves_at_port_or_socket(start, where):
    server = start(template(where=where))
    server.reached(State.WARM)
    results = server.call(records(40)).results()
    assert {each["custom_id"]: each["text"] for each in results} == {r["custom_id"]: r["prompt"] for r in records(40)}
    assert results[0]["usage"]["completion_tokens"] == 1


def test_program_gets_another_port_if_its_port_is_taken(start, tmp_path):
    server = start(template(f"--port-taken {tmp_path / 'marker'}"))
    server.reached(State.WARM)
    assert "Address already in use" in server.log.read_text()
    assert len(server.call(records(3)).results()) == 3


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--fail start"], ["command exited with code 3", "fails on purpose: start"]),
        (["--fail start", "--how 'exit 0'"], ["command exited with code 0", "fails on purpose: start"]),
        (["--fail ready", "--how 'signal 9'"], ["command was killed by signal 9", "fails on purpose: ready"]),
        (["--fail first"], ["first request failed", "exited with code 3", "fails on purpose: first"]),
        (["--no-such-flag"], ["exited with code 2", "unrecognized arguments: --no-such-flag"]),
    ],
)
def test_failed_start_is_reported_with_the_last_lines(start, words, expected):
    reason = failure(start(template(*words)))
    for part in expected:
        assert part in reason
    assert "\n" not in reason


def test_missing_program_is_reported_with_its_name(start):
    reason = failure(start(Template("m", "server", options={"command": "no-such-program {port}"}, user="ada@here")))
    assert "command not found: the environment and its PATH lack the program no-such-program" in reason


def test_program_missing_in_the_environment_is_reported(start, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "one.gguf").touch()
    plain = Template.of_folder("m", "server", tmp_path / "model", {"program": "llamacpp"})
    reason = failure(start(replace(plain, environment=FileSet(str(tmp_path)), user="ada@here.example.org")))
    assert "lack the program llama-server or the Python package xllamacpp" in reason


def test_socket_has_a_short_path_even_in_a_deep_folder(tmp_path):
    server = Server(tmp_path / ("long" * 30), template(where="--socket {socket}"))
    try:
        server.reached(State.WARM)
        assert len(server.call(records(3)).results()) == 3
    finally:
        server.stop()


@pytest.mark.parametrize("where, phase", [("start", State.LOADING), ("ready", State.LOADING), ("first", State.WARMING)])
def test_hanging_start_ends_with_its_phase_and_last_line(start, where, phase):
    server = start(template(f"--fail {where}", "--how hang", budgets={State.LOADING: 8.0, State.WARMING: 8.0}))
    reason = failure(server)
    assert f"was {phase} for more than its time limit of 8 s" in reason
    assert f"the program fails on purpose: {where}" in reason, server.log.read_text()
    eventually(lambda: not children(server.process.pid), "the program is killed")


@pytest.mark.parametrize("how", ["--fail start --how 'signal 4'", "--fail start --says 'no kernel image is available'"])
def test_failure_of_unsuitable_node_is_marked(start, how):
    assert UNSUITABLE in failure(start(template(how)))


# ---- records -------------------------------------------------------------------------------------


def test_poisonous_record_is_found_when_it_ends_the_program(start):
    server = start(template("--poison bad"))
    server.reached(State.WARM)
    sent = [*records(30), {"custom_id": "p", "prompt": "bad"}]
    results = server.call(sent).results()
    assert_exactly_once(results, sent)
    failed = {each["custom_id"]: each["error"]["message"] for each in results if each["error"]}
    assert set(failed) == {"p"} and "exited with code 3" in failed["p"]


def test_record_that_hangs_the_program_gets_an_error(start):
    """The program counts its tokens, so that a hang is noticed long before the timeout of a record."""
    server = start(template("--counts", "--poison bad", "--how hang", hang_seconds=1.0))
    server.reached(State.WARM)
    sent = [{"custom_id": "p", "prompt": "bad"}, *records(1)]
    results = server.call(sent).results()
    assert_exactly_once(results, sent)
    failed = {each["custom_id"]: each["error"]["message"] for each in results if each["error"]}
    assert set(failed) == {"p"} and "generated no token for 1 s" in failed["p"]


def test_program_without_counters_is_restarted_after_a_timeout(start):
    """The hanging record gets its timeout. The next one, which then waits in vain, must not be blamed."""
    server = start(template("--poison bad", "--how hang", parallel=1, hang_seconds=1.0))
    server.reached(State.WARM)
    engine = server.engine
    sent = [{"custom_id": "p", "prompt": "bad", "timeout": 2}, *records(3)]
    results = server.call(sent).results()
    assert_exactly_once(results, sent)
    assert {each["custom_id"]: each["error"]["type"] for each in results if each["error"]} == {"p": "RecordTimeout"}
    assert server.engine != engine


def test_slow_answer_is_no_hang_while_tokens_come(start):
    server = start(template("--counts", "--seconds 5", hang_seconds=1.0))
    server.reached(State.WARM)
    engine = server.engine
    (result,) = server.call(records(1)).results()
    assert result["error"] is None and server.engine == engine


def test_prompts_stay_in_flight_while_records_wait(start, tmp_path):
    server = start(template(f"--busy {tmp_path / 'busy'}", "--seconds 0.2", parallel=24))
    server.reached(State.WARM)
    server.call(records(240)).results()
    assert int((tmp_path / "busy").read_text()) == 24


def test_record_over_its_timeout_does_not_stop_the_others(start):
    server = start(template("--seconds 3", "--counts", parallel=4))
    server.reached(State.WARM)
    sent = [{**record, "timeout": 1} for record in records(2)] + [{"custom_id": "slow", "prompt": "x", "timeout": 60}]
    results = {each["custom_id"]: each["error"] for each in server.call(sent).results()}
    assert results["slow"] is None
    assert results["r0"]["type"] == results["r1"]["type"] == "RecordTimeout"


# ---- ends ----------------------------------------------------------------------------------------


def test_program_ended_by_a_signal_that_python_ignores_is_restarted(start):
    server = start(template("--poison bad", f"--how 'signal {signal.SIGPIPE:d}'"))
    server.reached(State.WARM)
    sent = [*records(5), {"custom_id": "p", "prompt": "bad"}]
    results = server.call(sent).results()
    assert_exactly_once(results, sent)
    assert {each["custom_id"] for each in results if each["error"]} == {"p"}


@pytest.mark.parametrize("victim", ["program", "engine", "keeper", "server"])
def test_no_process_of_the_program_survives(start, victim):
    server = start(template("--orphan", "--seconds 0.05"))
    server.reached(State.WARM)
    keeper, engine, program = server.keeper, server.engine, program_of(server)
    assert len(program) >= 2  # the program, and the process that has left it
    job = server.call(records(60))
    server.busy()
    pid = {"program": children(engine)[0], "engine": engine, "keeper": keeper, "server": server.process.pid}[victim]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not remaining([*program, engine, keeper]), "all processes have ended", budget=10)
    if victim == "server":
        return
    assert_exactly_once(job.results(), records(60))
    assert all(each["error"] is None for each in job.written())


def test_folder_of_running_engine_is_kept_and_others_are_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir("/tmp")
    old = Path(tempfile.mkdtemp(prefix=launch.PREFIX, dir="/tmp"))
    (old / "lock").touch()
    first = launch.work_folder()
    second = launch.work_folder()
    assert not old.exists() and first.is_dir() and second.is_dir()
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    for folder in (first, second):
        shutil.rmtree(folder)


def test_only_own_listener_is_trusted():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert launch.is_own_listener(port)
    assert not launch.is_own_listener(port)
    lines = ["  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"]
    lines += ["   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1"]
    lines += ["   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1"]
    assert launch.listeners("\n".join(lines), 0x1F90) == [1000] and launch.listeners("\n".join(lines), 80) == []


HOLDS_MEMORY = "import sys, time; held = b'x' * 100_000_000; print('held', flush=True); time.sleep(60)"


def test_memory_of_descendants_counts():
    before = tree_megabytes(os.getpid())
    command = ["sh", "-c", '"$@" & wait', "sh", sys.executable, "-c", HOLDS_MEMORY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as shell:
        assert shell.stdout and shell.stdout.readline() == b"held\n"
        held = tree_megabytes(os.getpid()) - before
        os.killpg(shell.pid, signal.SIGKILL)
    assert 95 < held < 140
