"""The model server and its client: real processes on a real socket, some of them killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from glide.server.batcher import Batcher
from glide.template import Template
from glide.vocabulary import SOCKET_VARIABLE, Exit, Machine, State
from tests.conftest import eventually
from tests.server_rig import TICKET, assert_exactly_once, failure

ADVERTISE = TICKET.parents[1] / "server" / "advertise.sh"
HEALTHY = [*State.COMING_UP, State.WARM]


def records(count: int, prefix: str = "r") -> list[dict[str, Any]]:
    return [{"custom_id": f"{prefix}{n}", "prompt": f"{prefix} says {n}"} for n in range(count)]


def echoes(results: list[dict[str, Any]]) -> dict[str, str]:
    assert [result for result in results if result["error"] is not None] == []
    return {result["custom_id"]: result["text"] for result in results}


# ---- serving -------------------------------------------------------------------------------------


def test_concurrent_clients_get_exactly_their_own_results(start):
    server = start(record_seconds=0.001, parallel=8)
    server.reached(State.WARM)
    sent = [[{"custom_id": f"r{n}", "prompt": f"{client}:{n}"} for n in range(150)] for client in range(6)]
    for call, mine in zip([server.call(mine) for mine in sent], sent, strict=True):
        results = call.results()
        assert_exactly_once(results, mine)
        assert echoes(results) == {record["custom_id"]: record["prompt"] for record in mine}


def test_one_call_returns_twenty_thousand_results(start):
    server = start()
    sent = records(20_000)
    server.reached(State.WARM)
    results = server.call(sent).results()
    assert_exactly_once(results, sent)
    assert echoes(results) == {record["custom_id"]: record["prompt"] for record in sent}
    eventually(lambda: server.now()[Machine.SERVED] == 20_000, "all are counted")


def test_client_waits_until_model_is_loaded(start):
    server = start(load_seconds=0.5)
    server.states()
    assert echoes(server.call(records(3)).results()) == {f"r{n}": f"r says {n}" for n in range(3)}


def test_unusual_texts_are_returned_unchanged(start):
    texts = ["", "\n", "\r\n", "{x} {{", "🦉", "שלום", "\u2028\x85\x0b", "\x00", '"\\', "x" * 300_000]
    server = start()
    server.reached(State.WARM)
    results = server.call([{"custom_id": str(n), "prompt": text} for n, text in enumerate(texts)]).results()
    assert [echoes(results)[str(n)] for n in range(len(texts))] == texts


def test_single_record_and_empty_call_are_served(start):
    server = start()
    server.reached(State.WARM)
    assert server.call([]).results() == []
    (result,) = server.call(records(1)).results()
    assert result["glidein"] == "here-1.0" and result["attempts"] == 1 and result["seconds"] >= 0


def test_job_of_another_template_is_refused(start):
    server = start()
    server.reached(State.WARM)
    code, words = server.call(records(3), template="0" * 64).end()
    assert code == Exit.SERVER_LOST and "refused" in words and server.template.digest in words
    assert server.calls[-1].written() == []
    results = server.call(records(3), template=server.template.digest).results()
    assert {result["attempts"] for result in results} == {3}


def test_client_reports_missing_model_server(tmp_path, start):
    server = start()
    server.reached(State.WARM)
    server.process.kill()
    server.process.wait()
    code, words = server.call(records(1)).end()
    assert code == Exit.SERVER_LOST and "no model server" in words


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server that closes each connection before the shell script, which is slowed down, has written anything."""
    (tmp_path / "slow").write_text('trap "sleep 0.2" DEBUG\n')
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_each() -> None:
            with suppress(OSError):
                while True:
                    server.accept()[0].close()

        thread = Thread(target=close_each)
        thread.start()
        (tmp_path / "door").write_text(f"{server.getsockname()[1]} cookie\n")
        yield {**os.environ, SOCKET_VARIABLE: str(tmp_path / "door"), "BASH_ENV": str(tmp_path / "slow")}
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_exit_code_of_ticket_tells_that_server_died(tmp_path, dying):
    done = subprocess.run([TICKET, "in", "out"], env=dying, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert done.returncode == Exit.SERVER_LOST and "went away" in done.stderr


def test_lane_advertises_no_model_if_server_is_unreachable(tmp_path, dying):
    command = [ADVERTISE, tmp_path / "door", "1"]
    with subprocess.Popen(command, env=dying, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        blank = [line for line, _ in zip(process.stdout, range(8), strict=False) if line == 'GlideState = "Blank"\n']
        process.kill()
    assert len(blank) == 2


def test_record_without_prompt_fails_only_its_own_call(start):
    server = start(record_seconds=0.002)
    server.reached(State.WARM)
    good = server.call(records(100))
    code, words = server.call([*records(3), {"custom_id": "bad"}]).end()
    assert code != Exit.OK and words
    assert len(good.results()) == 100


def test_remaining_records_of_killed_client_are_not_computed(start):
    server = start(record_seconds=0.002)
    server.reached(State.WARM)
    call = server.call(records(1500))
    server.busy()
    call.process.kill()
    call.process.wait()
    # The one that comes after it gets the engine to itself: were the 1500 still worked on, they would get half.
    server.call(records(1200, "after")).results()
    served = eventually(lambda: (now := server.now()[Machine.SERVED]) >= 1200 and now, "the count arrives")
    assert served < 1200 + 1000


# ---- states --------------------------------------------------------------------------------------


def test_server_reports_states_in_order_with_load_time(start):
    server = start(load_seconds=0.4)
    seen = []
    for attributes in server.states():
        seen.append(attributes[Machine.STATE])
        if seen[-1] == State.WARM:
            break
    assert seen[-2:] == [State.LOADING, State.WARM]
    assert [HEALTHY.index(state) for state in seen] == sorted(map(HEALTHY.index, seen))
    assert attributes[Machine.TEMPLATE] == server.template.digest
    assert attributes[Machine.MODEL] == "fake"
    assert attributes[Machine.LOAD_SECONDS] > 0.3  # a phase is timed from where it is heard of


def test_model_server_reports_hanging_or_crashing_load_phase(start):
    servers = {}
    for phase in (State.IMPORTING, State.LOADING, State.WARMING):
        # The time limit must be long enough for the phase to begin, also on a busy machine.
        template = Template("ill", "noop", options={"hang_in": phase}, budgets={phase: 8.0})
        servers[phase] = start(template), start(Template("crashing", "noop", options={"crash_in": phase}))
    for phase, (hung, crashed) in servers.items():
        assert failure(crashed).startswith("the engine was killed by signal 11 (SIGSEGV)")
        assert f"while {phase}" in failure(crashed)
        reason = failure(hung)
        assert f"was {phase} for more than its time limit of 8 s, so it was killed; it was in File" in reason
        assert "noop.py" in reason and "in _hang" in reason
        assert "in main" in hung.log.read_text()  # the whole stack


def test_silent_engine_is_killed_after_its_time_limit(start, tmp_path, monkeypatch):
    slow = 'import sys, time\nif "glide.server.engine_process" in sys.orig_argv:\n    time.sleep(3600)\n'
    (tmp_path / "sitecustomize.py").write_text(slow)  # as on a file system that does not answer
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = start(Template("mute", "noop", budgets={State.IMPORTING: 1.0}))
    assert "was Importing for more than its time limit of 1 s" in failure(server)


def test_suspended_engine_is_replaced_and_call_completes(start):
    server = start(Template("stuck", "noop", budgets={State.WARM: 1.0}))
    server.reached(State.WARM)
    os.kill(server.engine, signal.SIGSTOP)
    assert len(server.call(records(10)).results()) == 10
    assert "has sent no message for" in server.log.read_text() and "so it was killed" in server.log.read_text()


def test_hanging_call_of_killed_client_is_interrupted(start):
    server = start(hang_on="HANG", record_seconds=0.001)
    server.reached(State.WARM)
    gone = server.call([*records(1), {"custom_id": "hangs", "prompt": "HANG"}])
    server.busy()  # so that now the other record is served
    gone.process.kill()
    assert len(server.call(records(10)).results()) == 10
    assert server.log.read_text().count("Loading") == 1  # interrupted, and the state has survived


def test_messages_to_engine_have_full_batches():
    batcher = Batcher(lambda job, error: None)
    assert [batcher.records_for(64, seconds) for seconds in (0.0, 0.003, 0.0001, 1.0)] == [64, 128, 4992, 64]


def test_server_advertises_seconds_per_record_and_busy_time(start):
    server = start(record_seconds=0.01)
    server.reached(State.WARM)
    server.call(records(60)).results()
    now = eventually(lambda: (ad := server.now())[Machine.SERVED] == 60 and ad, "all are counted")
    assert now[Machine.RECORD_SECONDS] > 0.005
    assert now[Machine.BUSY_SECONDS] > 60 * 0.005


def test_model_server_reports_missing_model_file(start, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"x" * 100)
    template = Template.of_folder("m", "noop", folder, {})
    (folder / "weights.bin").unlink()
    reason = failure(start(template))
    assert "No such file" in reason and f"{folder}/weights.bin" in reason


@pytest.mark.parametrize(
    "template, reason",
    [
        (Template("m", "noop", options={"speed": 3}), "speed"),
        (Template("m", "nope"), "no engine 'nope'"),
        (Template("m", "noop", options={"load_seconds": "long"}), "TypeError"),
    ],
)
def test_model_server_reports_invalid_template(start, template, reason):
    assert reason in failure(start(template))


def test_failed_server_rejects_its_clients(start):
    server = start(Template("m", "nope"))
    server.states()
    before = server.call(records(1))
    failure(server)
    for call in (before, server.call(records(1))):
        assert call.end()[0] == Exit.SERVER_LOST
        assert call.written() == []


# ---- deaths --------------------------------------------------------------------------------------


def test_killed_engine_is_replaced_without_client_errors(start):
    server = start(record_seconds=0.02, parallel=8)
    server.reached(State.WARM)
    sent = [records(200, f"c{client}-") for client in range(3)]
    calls = [server.call(mine) for mine in sent]
    server.busy()
    first = server.engine
    os.kill(first, signal.SIGKILL)
    for call, mine in zip(calls, sent, strict=True):
        results = call.results()
        assert_exactly_once(results, mine)
        assert echoes(results) == {record["custom_id"]: record["prompt"] for record in mine}
    assert server.engine != first
    assert server.now()[Machine.STATE] == State.WARM
    assert "SIGKILL" in server.log.read_text()


def test_killed_engine_costs_at_most_one_record_error(start):
    server = start(record_seconds=0.01, parallel=1)
    server.reached(State.WARM)
    sent = records(150)
    call = server.call(sent)
    server.busy()
    os.kill(server.engine, signal.SIGKILL)
    results = call.results()
    assert_exactly_once(results, sent)
    errors = [result["error"]["type"] for result in results if result["error"] is not None]
    assert errors in ([], ["EngineDied"])


def test_repeatedly_killed_engine_loses_no_record(start):
    server = start(record_seconds=0.02, parallel=8)
    server.reached(State.WARM)
    sent = records(1200)
    call = server.call(sent)
    server.busy()
    engine = server.engine
    for _ in range(3):
        os.kill(engine, signal.SIGKILL)
        engine = server.another_engine(engine)
        served = server.now()[Machine.SERVED]  # read now: the killed engine's last results have been counted
        eventually(
            lambda served=served: server.now()[Machine.SERVED] > served or call.process.poll() is not None,
            "it serves again, or has served everything meanwhile",
        )
    results = call.results()
    assert_exactly_once(results, sent)
    assert echoes(results) == {record["custom_id"]: record["prompt"] for record in sent}


def test_client_of_killed_server_keeps_complete_results(start):
    server = start(record_seconds=0.01, parallel=4)
    server.reached(State.WARM)
    sent = records(2000)
    calls = [server.call(sent) for _ in range(2)]
    server.busy()
    server.process.kill()
    for call in calls:
        code, words = call.end()
        assert code == Exit.SERVER_LOST and "went away" in words
        ids = [result["custom_id"] for result in call.written()]
        assert len(ids) == len(set(ids)) < len(sent)
        assert set(ids) <= {record["custom_id"] for record in sent}


def test_terminated_server_leaves_nothing_behind(start):
    server = start(record_seconds=0.01)
    server.reached(State.WARM)
    watching = server.states()
    next(watching)
    call = server.call(records(1000))
    server.busy()
    engine = server.engine
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert call.end()[0] == Exit.SERVER_LOST
    assert not server.door.exists()
    assert not Path(f"/proc/{engine}").exists()
    assert "Traceback" not in server.log.read_text()
    assert all(attributes[Machine.STATE] == State.WARM for attributes in watching)  # and then it ends
