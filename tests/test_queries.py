"""Queries to a real pool: they come from a process of their own, and this process does not grow."""

import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from glide.condor import AccessPoint, Collector, queries
from glide.condor.bounded import isolated
from glide.errors import CondorError


@pytest.fixture
def sender(monkeypatch, pool):
    """A new process for queries."""
    monkeypatch.setattr(queries, "_queries", queries.QueryProcess())
    yield queries._queries
    queries._queries._stop()


def jobs() -> list[dict]:
    return AccessPoint().jobs("ClusterId == 1000000", ["ClusterId", "Owner"])


def test_queries_leave_nothing_behind(sender):
    """The bindings never free the names of the attributes: 20 objects for each of these queries."""
    collector, access_point = Collector(), AccessPoint()
    names = [f"Attribute{number}" for number in range(20)]

    def query(times: int) -> int:
        for _ in range(times):
            collector.lanes(names)
            access_point.jobs("ClusterId == 1000000", names)
        return sys.getallocatedblocks()

    before = query(50)
    assert query(200) - before < 1000  # 8,000 if these queries lost the names


def test_process_is_replaced_after_its_last_query(sender, monkeypatch):
    monkeypatch.setattr(queries, "MOST_QUERIES", 2)
    pids = []
    for _ in range(5):
        assert jobs() == []
        pids.append(sender._process.pid)
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert not os.path.exists(f"/proc/{pids[0]}")


def test_killed_process_is_replaced(sender):
    assert jobs() == []
    os.kill(sender._process.pid, signal.SIGKILL)
    assert jobs() == []


def test_thread_that_started_the_process_may_end(sender):
    thread = threading.Thread(target=jobs)
    thread.start()
    thread.join()
    assert jobs() == []


def test_late_answer_is_an_error_and_is_never_taken_for_the_next_one(sender, monkeypatch):
    assert jobs() == []
    os.kill(sender._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(queries, "TIME_LIMIT", 0.2)
    with pytest.raises(CondorError, match="no answer within"):
        Collector().age()
    monkeypatch.undo()
    monkeypatch.setattr(queries, "_queries", sender)
    assert jobs() == []


def test_interrupted_query_is_given_up(sender, monkeypatch):
    assert jobs() == []
    os.kill(sender._process.pid, signal.SIGSTOP)
    threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        Collector().age()
    assert jobs() == []


def test_threads_take_turns(sender):
    failed: list[BaseException] = []

    def query() -> None:
        try:
            for _ in range(20):
                assert jobs() == [] and Collector().age() >= 0
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=query) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_forked_process_has_its_own(sender):
    assert jobs() == []
    assert isolated(jobs) == []
    pid = os.fork()
    if pid == 0:
        os._exit(0 if jobs() == [] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert jobs() == []


def test_process_holds_no_pipe_or_lock_of_its_parent(sender, tmp_path):
    reading, writing = os.pipe()
    with (tmp_path / "lock").open("w") as locked, (tmp_path / "lock").open("w") as again:
        fcntl.flock(locked, fcntl.LOCK_EX)
        assert jobs() == []
        locked.close()
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(writing)
    assert os.read(reading, 1) == b""  # without the end of the other side, this would wait
    os.close(reading)
    assert jobs() == []


def test_refused_query_is_one_error(sender):
    with pytest.raises(CondorError, match="access point: query failed"):
        AccessPoint().jobs("((", ["ClusterId"])
    with pytest.raises(CondorError, match="collector: query failed"):
        Collector().lanes(["Name"], "((")
    assert jobs() == []


# The time to evaluate this doubles with each attribute. With 30 of them, even the schedd does not answer.
NESTED = "[" + ";".join(["x0 = 1", *(f"x{n} = x{n - 1} + x{n - 1}" for n in range(1, 13))]) + "].x12"


@pytest.mark.parametrize("value", [NESTED, " + ".join(["1"] * 450), "strcat(B, B, B, B)", "{" * 50 + "1" + "}" * 50])
def test_expressions_of_other_users_neither_fail_nor_hang(sender, value):
    access_point = AccessPoint()
    cluster = access_point.submit(
        "executable = /bin/true\nhold = true\nqueue\n", {"My.A": value, "My.B": '"text"', "My.C": "2 * 3"}
    )
    try:
        (job,) = access_point.jobs(f"ClusterId == {cluster}", ["A", "B", "C"])
        assert {name: job.get(name) for name in "ABC"} == {"A": None, "B": "text", "C": 6}
    finally:
        access_point.remove(f"ClusterId == {cluster}", "the test ends")


def test_text_that_is_not_utf8_is_left_out(sender, tmp_path):
    description = tmp_path / "job.sub"
    description.write_bytes(b'executable = /bin/true\nhold = true\nMy.A = "caf\xe9"\nMy.B = "text"\nqueue\n')
    done = subprocess.run(["condor_submit", "-terse", description], capture_output=True, text=True, check=True)
    cluster = done.stdout.split(".")[0]
    try:
        (job,) = AccessPoint().jobs(f"ClusterId == {cluster}", ["A", "B"])
        assert "A" not in job and job["B"] == "text"
    finally:
        AccessPoint().remove(f"ClusterId == {cluster}", "the test ends")


SLOW_READER = """
import sys, threading
from glide.condor import AccessPoint, connect
connect()
threading.Thread(target=sys.stdin.read, daemon=True).start()
time = __import__("time"); time.sleep(0.5)
print(AccessPoint().jobs("false", ["ClusterId"]), AccessPoint().user != "", flush=True)
__import__("os")._exit(0)
"""


def test_query_starts_while_a_thread_reads_standard_input(pool):
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.read() == "[] True\n"


def test_values_that_are_neither_texts_nor_numbers_nor_lists_of_them_are_left_out(sender):
    access_point = AccessPoint()
    cluster = access_point.submit(
        "executable = /bin/true\nhold = true\nqueue\n",
        {
            "My.A": "[x = 1]", "My.B": "{1, {2}}", "My.C": '{1, 2.5, "c"}', "My.D": "1 + 1", "My.E": "undefined",
            "My.F": "1 / 0", "My.G": 'absTime("2020-01-01")', "My.H": '"text"',
        },
    )  # fmt: skip
    try:
        (job,) = access_point.jobs(f"ClusterId == {cluster}", list("ABCDEFGH"))
        assert {name: job[name] for name in "ABCDEFGH" if name in job} == {"C": [1, 2.5, "c"], "D": 2, "H": "text"}
    finally:
        access_point.remove(f"ClusterId == {cluster}", "the test ends")
