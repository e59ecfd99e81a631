"""Results that an earlier driver left: the next driver resumes them, repairs them, or retries their errors."""

from __future__ import annotations

import errno
import fcntl
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from glide.errors import GlideError, InputError
from glide.sweep.lines import BLOCK, drop_torn_line
from glide.sweep.results import Results
from glide.sweep.status import current_results, sweep_status
from tests import results_rig
from tests.results_rig import (
    EVERY,
    THREE,
    answer,
    finished,
    have,
    keep,
    lines_of,
    make,
    store,
    superseded,
    texts_of,
    unsent,
)

# These fixtures are shared by the modules about results.
sweep, begin = results_rig.sweep, results_rig.begin


# ---- the next driver -----------------------------------------------------------------------------


def test_next_driver_finds_results_of_previous_driver(sweep, begin):
    results = begin(sweep, "first")
    keep(results, "plain/a")
    keep(results, "kind/b", attempts=3)
    results = begin(sweep, "second", resume=True)
    assert have(results) == {"plain/a", "kind/b"}
    assert (results.resumed, results.tokens, results.notes) == (2, 4, [])
    assert results.run == "first"


def test_incomplete_last_result_is_dropped_and_recomputed(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", "plain/b")
    whole = results.path("plain").read_bytes()
    for cut in (1, 2, 40, len(whole.splitlines()[1])):
        results.path("plain").write_bytes(whole[:-cut])
        again = begin(sweep, resume=True)
        assert have(again) == {"plain/a"}, cut
        keep(again, "plain/b")
        assert again.recomputed == 0
        assert [line["custom_id"] for line in lines_of(again, "plain")] == ["a", "b"]


def test_very_long_incomplete_result_line_is_dropped(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", "plain/b", text="x" * 3 * BLOCK)
    whole = results.path("plain").read_bytes()
    first = whole.index(b"\n") + 1
    for end in (first, first + 1, first + BLOCK, len(whole) - 1):
        results.path("plain").write_bytes(whole[:end])
        drop_torn_line(results.path("plain"))
        assert results.path("plain").read_bytes() == whole[:first]
    results.path("plain").write_bytes(whole[: first - 1])
    drop_torn_line(results.path("plain"))
    assert results.path("plain").read_bytes() == b""


def test_result_line_ending_inside_utf8_character_is_dropped(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", text="🦉")
    content = results.path("plain").read_bytes()
    results.path("plain").write_bytes(content[: content.index("🦉".encode()) + 2])
    assert not begin(sweep, resume=True).done
    assert results.path("plain").read_bytes() == b""


NONSENSE = (
    b'{"custom_id": "../x"}', b'{"custom_id": 7}', b"[]", b"null", b"{", b"\xff\xfe", b"", b"[" * 100_000,
    b'{"custom_id": "b", "tokens": "x"}', b'{"custom_id": "b", "error": []}', b'{"custom_id": "b", "text": 5}',
    b'{"custom_id": "b", "seconds": 1e999}', b'{"custom_id": "gone", "text": "t"}',
)  # fmt: skip


def test_invalid_result_lines_are_ignored_and_moved_aside(sweep, begin):
    results = begin(sweep)
    keep(results, "plain/a", "plain/c/d")
    path = results.path("plain")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, *(line + b"\n" for line in NONSENSE), second, first.replace(b"yes", b"dup")]))
    assert sweep_status(sweep).done == {"plain": 2, "kind": 0}
    results = begin(sweep, resume=True)
    assert have(results) == {"plain/a", "plain/c/d"}
    assert texts_of(results, "plain") == {"c/d": "yes", "a": "dup"}  # the last one counts
    assert len(superseded(sweep, "plain")) == len(NONSENSE) + 1
    assert finished(results).finished
    assert {number for number, _ in current_results(sweep, "plain")} == {0, 1, 2}


def test_disappeared_results_raise_error_that_suggests_resume(sweep, begin):
    results = begin(sweep)
    keep(results, *EVERY)
    results.path("plain").write_bytes(b"")
    with pytest.raises(GlideError, match="3 results have disappeared; run: glide sweep resume"):
        results.finish({})
    assert unsent(begin(sweep, resume=True)) == EVERY[:3]


def test_resume_and_retry_without_earlier_results_are_refused(sweep, begin):
    for retry in (False, True):
        with pytest.raises(InputError, match="nothing to resume"):
            begin(sweep, resume=True, retry=retry)
    assert not sweep.out.exists()


@pytest.mark.parametrize("state", ["", "{}", "[]", "null", '{"finished": false}', '{"fini', '{"name": 3}'])
def test_results_are_reused_despite_invalid_state_file(sweep, begin, tmp_path, state):
    keep(begin(sweep, "first"), "plain/a")
    (sweep.out / ".glide" / "run.json").write_text(state)
    assert have(begin(sweep, "second")) == {"plain/a"}
    (sweep.out / ".glide" / "run.json").write_text(state)
    with pytest.raises(InputError, match="results of an unknown sweep"):
        begin(make(tmp_path, model="other"))


def test_output_folder_inside_regular_file_is_refused(tmp_path, begin):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*: Not a directory; `out` must name a folder"):
        begin(make(tmp_path, out=str(tmp_path / "file" / "out")))


# ---- errors that are run again -------------------------------------------------------------------


def with_errors(results: Results) -> Results:
    keep(results, "plain/a", text=None, error={"type": "Slow", "message": "1"})
    keep(results, "kind/b", text=None, error={"type": "Bad", "message": "2"})
    return finished(results, text="old")


@pytest.mark.parametrize("only, again", [(None, {"plain/a", "kind/b"}), ("Slow", {"plain/a"}), ("Else", set())])
def test_retry_recomputes_only_records_with_errors(sweep, begin, only, again):
    with_errors(begin(sweep))
    results = begin(sweep, resume=True, retry=True, only=only)
    assert set(unsent(results)) == again and results.resumed == 6 - len(again)
    assert [len(lines_of(results, prompt)) for prompt in ("plain", "kind")] == [3, 3]
    assert (results.notes == []) == bool(again)
    results = finished(results, text="new")
    for name, error in (("plain/a", "Slow"), ("kind/b", "Bad")):
        prompt, _, custom_id = name.partition("/")
        (line,) = [line for line in lines_of(results, prompt) if line["custom_id"] == custom_id]
        assert (line["text"], line["error"]) == ("new", None) if name in again else line["error"]["type"] == error
    assert sum(each["errors"] for each in results.finished_summary()["prompts"].values()) == 2 - len(again)
    assert [line["custom_id"] for line in lines_of(results, "plain")] == ["a", "b", "c/d"]


def test_interrupted_retry_loses_nothing_and_can_resume(sweep, begin):
    before = with_errors(begin(sweep))
    old = answer(before, "plain/a", text=None, error={"type": "Slow", "message": "1"})
    results = begin(sweep, resume=True, retry=True)
    store(results, old)  # a copy, of a job that was not removed
    assert set(unsent(results)) == {"plain/a", "kind/b"} and results.key(old["custom_id"]) is None
    results = begin(sweep)
    assert set(unsent(results)) == {"plain/a", "kind/b"}
    assert sweep_status(sweep).errors == {"plain": 1, "kind": 1}
    keep(results, "plain/a", text=None, error={"type": "Slow", "message": "1"})  # the very same again
    assert len(lines_of(results, "plain")) == 4
    results = begin(sweep, resume=True)
    assert unsent(results) == ["kind/b"] and results.errors == 1
    assert {line["custom_id"]: line["error"] for line in lines_of(results, "kind")}["b"]["type"] == "Bad"
    results.close()
    assert sweep_status(sweep).state == "interrupted"
    finished(begin(sweep, resume=True), text="new")
    assert [line["text"] for line in lines_of(results, "kind")] == ["old", "new", "old"]
    assert begin(sweep).finished and begin(sweep).errors == 1
    assert set(unsent(begin(sweep, resume=True, retry=True))) == {"plain/a"}


def test_request_that_changed_during_retry_is_recomputed(sweep, begin, tmp_path):
    with_errors(begin(sweep))
    begin(sweep, resume=True, retry=True)
    changed = make(tmp_path, records=[("a", "A"), *THREE[1:]])
    results = begin(changed)
    assert set(unsent(results)) == {"plain/a", "kind/a", "kind/b"}
    finished(results, text="new")
    assert not unsent(begin(changed)) and begin(changed).errors == 0


# ---- one driver ----------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from glide.sweep.out import Lock
lock = Lock(Path(sys.argv[1]))
print("mine", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other_driver(sweep) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder."""
    words = [sys.executable, "-c", HOLD, str(sweep.out)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_second_driver_is_refused_while_first_runs(sweep, begin, other_driver):
    holder = f"process {other_driver.pid} on {socket.gethostname()}"
    for how in ({}, {"again": True}):
        with pytest.raises(InputError, match=f"{sweep.out} is in use by {holder}; wait until this process ends"):
            begin(sweep, **how)
    assert (sweep_status(sweep).state, sweep_status(sweep).driver) == ("running", holder)
    other_driver.kill()
    other_driver.wait()
    assert sweep_status(sweep).state == "new"
    assert not begin(sweep).done


def test_file_system_without_locks_is_reported(sweep, begin, monkeypatch):
    def refused(*_) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # as Lustre, mounted without `flock`

    monkeypatch.setattr(fcntl, "flock", refused)
    assert "without locks" in begin(sweep).notes[0]
