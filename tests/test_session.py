"""Python calls on a real pool: state loaded once per glidein, results and exceptions as if they were local."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import glide
from glide.condor import home
from glide.errors import InputError, InvocationError
from tests.conftest import eventually

pytestmark = pytest.mark.pool


@pytest.fixture
def session(factory):
    with glide.Session(glideins=2) as session:
        yield session


def state_that_counts(folder: Path, **values):
    """Sticky state that leaves a line in a file each time that it is loaded."""

    @glide.sticky
    def counted(path: str, **values):
        with Path(path).open("a") as file:
            file.write("loaded\n")
        return values

    return counted(str(folder / "loads"), **values), lambda: (folder / "loads").read_text().count("loaded")


def test_failing_calls_among_thousand_affect_no_other_calls(factory, tmp_path):
    state, loads = state_that_counts(tmp_path, base=1000)

    @glide.invocation(state=state, timeout=3)
    def add(number, base):
        if number % 100 == 7:
            raise ValueError(f"not {number}")
        if number == 500:
            os._exit(3)
        while number == 600:
            time.sleep(0.1)
        return base + number

    with glide.Session(glideins=1) as session:
        calls = [session.submit(add, number) for number in range(1000)]
        errors = {number: call.exception() for number, call in enumerate(calls) if call.exception() is not None}
    assert sorted(errors) == sorted([*range(7, 1000, 100), 500, 600])
    assert [call.result() for number, call in enumerate(calls) if number not in errors] == [
        1000 + number for number in range(1000) if number not in errors
    ]
    for number in range(7, 1000, 100):
        assert isinstance(errors[number], ValueError) and str(errors[number]) == f"not {number}"
        assert 'raise ValueError(f"not {number}")' in str(errors[number].__cause__)
    assert isinstance(errors[500], InvocationError) and errors[500].type == "EngineDied"
    assert "exited with code 3" in str(errors[500])
    assert isinstance(errors[600], InvocationError) and errors[600].type == "RecordTimeout"
    assert loads() == 2  # once, and once for the exit


def test_call_results_include_printed_output_and_keep_order(session, capfd):
    @glide.invocation()
    def talk(number):
        print("from Python", number)
        subprocess.run(["sh", "-c", "echo from a child >&2"])
        return number * number

    assert list(session.map(talk, range(50))) == [number * number for number in range(50)]
    calls = [session.submit(talk, number) for number in range(5)]
    assert {call.result() for call in concurrent.futures.as_completed(calls, timeout=60)} == {0, 1, 4, 9, 16}
    assert calls[3].stdout == "from Python 3\n" and calls[3].stderr == "from a child\n"
    assert calls[3].glidein and calls[3].attempts == 1
    assert "from" not in capfd.readouterr().out


def test_calls_use_current_state_of_functions_and_modules(session, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text(BESIDE)
    monkeypatch.syspath_prepend(tmp_path)
    import beside  # a module that no node has

    calls = [session.submit(sorted, [3, 1, 2], reverse=True), session.submit(beside.times, 5)]
    calls.append(session.submit(lambda number: beside.times(number) + 1, 5))
    assert [call.result(60) for call in calls] == [[3, 2, 1], 15, 16]
    counter = beside.Counter()
    first = session.submit(counter.next)
    counter.count = 7
    assert (first.result(60), session.submit(counter.next).result(60)) == (1, 8), "each call takes it as it is"
    assert session.submit(functools.partial(beside.times, 4)).result(60) == 12
    call = glide.invocation()(lambda: beside.FACTOR)
    assert session.submit(call).result(60) == 3
    beside.FACTOR = 5
    assert session.submit(call).result(60) == 5, "so does an invocation: helpers change in notebooks"


def test_call_that_cannot_be_sent_is_refused_immediately(session):
    import threading

    @glide.invocation()
    def take(one, two=2):
        return one

    @glide.invocation()
    def nested(one):
        return take(one)

    with pytest.raises(TypeError, match="too many"):
        session.submit(take, 1, 2, 3)
    with pytest.raises(InputError, match=r"arguments of take cannot be sent to a node: cannot pickle '_thread.lock'"):
        session.submit(take, threading.Lock())
    with pytest.raises(InputError, match=r"take has the decorator @glide\.invocation, so a node cannot call it"):
        session.submit(nested, 1)
    with pytest.raises(InputError, match="let the function read this file"):
        session.submit(take, bytes(2_000_000))
    assert session.submit(take, 1).result(60) == 1  # and none of it has hurt


def test_cancelled_calls_and_calls_after_shutdown_never_run(factory, tmp_path):
    @glide.invocation()
    def mark(number):
        (tmp_path / str(number)).touch()

    session = glide.Session()
    calls = [session.submit(time.sleep, 0)] + [session.submit(mark, number) for number in range(200)]
    cancelled = [number for number, call in enumerate(calls[1:]) if call.cancel()]
    session.shutdown()
    made = {int(path.name) for path in tmp_path.iterdir()}
    assert made == set(range(200)) - set(cancelled)
    with pytest.raises(RuntimeError, match="after shutdown"):
        session.submit(mark, 1)


def test_exception_inside_session_terminates_its_calls_and_jobs(factory, access_point):
    with pytest.raises(ZeroDivisionError), glide.Session() as session:
        call = session.submit(time.sleep, 3600)
        eventually(call.running, "it is on its way")
        1 / 0  # noqa: B018
    assert isinstance(call.exception(), InvocationError)
    mine = f'regexp("^{session.name}", GlideRun) && JobStatus < 3'
    eventually(lambda: not access_point.jobs(mine, ["ClusterId"]), "its jobs are gone")


BESIDE = """
FACTOR = 3

def times(number):
    return FACTOR * number

class Counter:
    count = 0
    def next(self):
        return self.count + 1
"""


KILLED = """
import glide, os, time
from glide.condor import AccessPoint

session = glide.Session()
session.submit(time.sleep, 3600)
while not AccessPoint().jobs(f'regexp("^{session.name}", GlideRun) && JobStatus == 2', ["ClusterId"]):
    time.sleep(0.1)
print(session.name, flush=True)
os._exit(9)
"""


def test_next_session_removes_jobs_of_killed_session(factory, access_point, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    done = subprocess.run([sys.executable, tmp_path / "killed.py"], capture_output=True, text=True)
    mine = f'regexp("^{done.stdout.strip()}", GlideRun) && JobStatus < 3'
    assert done.returncode == 9, done.stderr
    (job, *_) = access_point.jobs(mine, ["Iwd"])
    assert Path(job["Iwd"]).is_relative_to(home() / "pool" / "jobs")  # the job is not spooled
    with glide.Session():
        eventually(lambda: not access_point.jobs(mine, ["ClusterId"]), "its jobs are gone")
        eventually(lambda: not Path(job["Iwd"]).exists(), "its job's folder is deleted")


def test_error_while_loading_state_fails_call_with_reason(session, tmp_path):
    @glide.sticky
    def broken():
        raise OSError("the weights are gone")

    @glide.invocation(state=broken())
    def use():
        return 1

    with pytest.raises(glide.errors.TemplateError, match="OSError: the weights are gone"):
        session.submit(use).result(90)


# ---- sharing -------------------------------------------------------------------------------------

DRIVER = """
import os
import sys
import glide

def helper(text):
    return text.upper()

@glide.sticky
def shout(folders, mark):  # in a list, folders are only texts: their content, which changes here, does not count
    with open(folders[0] + "/loads", "a") as file:
        file.write(os.environ["CONDOR_CONFIG"] + "\\n")  # the glidein's
    return {"mark": mark, "known": {"a", "b", "c"}}

@glide.invocation(state=shout([sys.argv[1]], "!"))
def say(text, mark, known):
    return helper(text) + mark

with glide.Session() as session:
    print(say.state.template(session.user).digest, session.submit(say, "hello").result())
"""


def drive(folder: Path, text: str = DRIVER) -> tuple[str, str]:
    """Run a driver of its own; returns the digest of its template, and what came back."""
    (folder / "driver.py").write_text(text)
    command = [sys.executable, folder / "driver.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    digest, _, result = done.stdout.strip().partition(" ")
    return digest, result


def test_sessions_with_equal_code_and_arguments_share_state(factory, tmp_path):
    digest, result = drive(tmp_path)
    assert result == "HELLO!"
    assert drive(tmp_path) == (digest, "HELLO!")  # another process, with other random hashes
    loads = (tmp_path / "loads").read_text().splitlines()
    assert len(loads) == len(set(loads)), "equal state is loaded once on each glidein"
    other_argument, result = drive(tmp_path, DRIVER.replace('"!"', '"?"'))
    assert other_argument != digest and result == "HELLO?"
    in_state = DRIVER.replace('"mark": mark', '"mark": helper(mark)')
    helped, _ = drive(tmp_path, in_state)
    other_helper, _ = drive(tmp_path, in_state.replace("text.upper()", "text.upper().strip()"))
    assert len({digest, other_argument, helped, other_helper}) == 4
    assert len((tmp_path / "loads").read_text().splitlines()) >= len(loads) + 3


def test_template_digest_depends_on_contents_of_argument_files(tmp_path):
    @glide.sticky
    def of_file(path):
        return {"path": path}

    (tmp_path / "one").write_text("content")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "one").write_text("content")
    first, same = (of_file(path).template("me") for path in (tmp_path / "one", tmp_path / "two" / "one"))
    assert first.digest == same.digest and first.path != same.path
    (tmp_path / "one").write_text("Content")
    assert of_file(tmp_path / "one").template("me").digest != first.digest
    assert of_file(tmp_path / "two" / "one").template("you").digest != first.digest


def test_function_with_invocation_decorator_can_be_called_locally():
    @glide.sticky
    def numbers(base):
        return {"base": base, "unused": 0}

    @glide.invocation(state=numbers(40))
    def add(number, base, more=0):
        return base + number + more

    assert add(2) == 42 and add(2, more=1) == 43 and add(2, base=0) == 2


def test_chain_of_calls_takes_the_standing_job(session):
    links = [session.submit(lambda number: number + 1, 0)]
    eventually(lambda: links.append(session.submit(_plus_one, links[-1].result())) or _is_live(session), "a live call")
    for _ in range(20):
        links.append(session.submit(_plus_one, links[-1].result()))
    assert [link.result() for link in links] == list(range(1, len(links) + 1))
    with pytest.raises(ZeroDivisionError):
        session.submit(_divide, 1, 0).result()
    assert all(not calls.live_open for calls in session.calls.values())


def _plus_one(number):
    return number + 1


def _divide(a, b):
    return a / b


def _is_live(session) -> bool:
    """Whether a call would go over the connection of a standing job."""
    return any(calls.live and calls.live.served and calls.live.served.is_ready for calls in session.calls.values())
