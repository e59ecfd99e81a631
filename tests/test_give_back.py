"""A running job gives back the records that have not begun, and streams its results at the time that its ad sets."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from glide.condor import AccessPoint
from glide.condor.access_point import job_file_value
from glide.invoke import answers
from glide.protocol import keep
from glide.protocol.json_lines import read_lines, read_results
from glide.server.ticket import _stream_seconds
from glide.template import Template
from glide.vocabulary import Exit, Job, JobStatus, Machine, State
from tests.chirp_rig import Starter, records
from tests.conftest import eventually
from tests.factory_rig import DESCRIPTION
from tests.server_rig import Call, Server, assert_exactly_once

REMAPS = {"FileRemaps": keep.FILE_REMAPS}


def input_lines(count: int) -> list[dict[str, Any]]:
    """Records, and lines without a custom_id, which do not count as records."""
    return [line for record in records(count) for line in ({"generate": {"n": 1}}, record)]


def called(server: Server, starter: Starter, lines: list[dict[str, Any]], **attributes: Any) -> Call:
    texts = {name: str(value) for name, value in attributes.items()}
    return server.call(lines, attributes=REMAPS | texts, chirp=starter.config)


def kept_lines(lines: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Each number of records that a job keeps, with the value of GlideKeep that it answers."""
    return [(line["kept"], line["asked"]) for line in lines if "kept" in line]


def kept(starter: Starter, name: str, asked: int) -> int:
    """Wait until the answer to a value of GlideKeep is on the access point, and return the answer."""

    def answer() -> list[int]:
        return [each for each, number in kept_lines(starter.lines(name)) if number == asked]

    return eventually(lambda: [*answer(), None][:1] if answer() else None, f"the job answers {asked}")[0]


def assert_keeps_first(call: Call, count: int, sent: list[dict[str, Any]]) -> None:
    """A job has ended well with results for exactly the first `count` records."""
    code, errors = call.end()
    assert code == Exit.OK, errors
    assert_exactly_once(call.written(), [each for each in sent if "custom_id" in each][:count])


# ---- records are given back ----------------------------------------------------------------------


def test_running_job_gives_back_records_not_begun(start, starter):
    server = start(record_seconds=0.1)
    server.reached(State.WARM)
    sent = input_lines(600)
    call = called(server, starter, sent)
    eventually(lambda: starter.lines(call.out.name), "results are streamed")
    starter.keep = "1"
    count = kept(starter, call.out.name, 1)
    assert 1 < count < 600  # some more had begun
    assert_keeps_first(call, count, sent)
    lines = list(read_lines(call.out))
    assert kept_lines(lines) == [(count, 1)]
    begun = [line["begun"] for line in starter.lines(call.out.name) if "begun" in line]
    assert max(begun) == count
    content = answers.read(call.out, {f"r{number}" for number in range(600)}, 4096)
    assert (content.kept, len(content.results), content.rejected) == (count, count, 0)
    eventually(lambda: server.now()[Machine.SERVED] == count, "exactly these are counted")


def test_job_ad_sets_records_to_keep_at_start(start, starter):
    server = start()
    server.reached(State.WARM)
    for number in (0, 7, 50):
        call = called(server, starter, sent := input_lines(50), GlideKeep=number)
        assert_keeps_first(call, number, sent)
        assert kept_lines(list(read_lines(call.out))) == [(number, number)]


def test_request_to_keep_is_answered_while_no_record_finishes(start, starter):
    server = start(record_seconds=4.0)
    server.reached(State.WARM)
    call = called(server, starter, sent := records(50))
    eventually(lambda: starter.lines(call.out.name), "records have begun")
    starter.keep = "0"
    count = kept(starter, call.out.name, 0)
    assert 0 < count < 5 and call.process.poll() is None
    assert_keeps_first(call, count, sent)


def test_each_request_to_keep_is_answered_once_and_kept_never_grows(start, starter):
    server = start(record_seconds=0.02)
    server.reached(State.WARM)
    call = called(server, starter, sent := records(9000))
    answered = []
    for number in (8000, 8500, 300):
        starter.keep = str(number)
        answered.append(kept(starter, call.out.name, number))
    assert answered[:2] == [8000, 8000] and 300 <= answered[2] < 8000
    assert_keeps_first(call, answered[2], sent)
    assert kept_lines(list(read_lines(call.out))) == list(zip(answered, (8000, 8500, 300), strict=True))


@pytest.mark.parametrize("text", ["UNDEFINED", "-1", "2.5", "true", "strange", "1e2", "9" * 30, ""])
def test_value_that_is_no_count_changes_nothing(start, starter, text):
    server = start(record_seconds=0.01)
    server.reached(State.WARM)
    starter.keep = text
    call = called(server, starter, sent := records(150), GlideKeep=text, GlideStreamSeconds=0.25)
    eventually(lambda: starter.lookups > 1, "the value is read")
    assert_keeps_first(call, 150, sent)
    assert kept_lines(list(read_lines(call.out))) == []


def test_job_without_file_remaps_reads_no_attribute(start, starter):
    server = start(record_seconds=0.01)
    server.reached(State.WARM)
    starter.keep = "1"
    call = server.call(sent := records(200), chirp=starter.config)
    assert_keeps_first(call, 200, sent)
    assert starter.lookups == 0


def test_records_of_dead_engine_stay_in_their_job(start, starter):
    server = start(record_seconds=0.05, parallel=8)
    server.reached(State.WARM)
    call = called(server, starter, sent := records(2000))
    server.busy()
    engine = server.engine
    os.kill(engine, signal.SIGSTOP)  # it finishes nothing until the job has answered
    starter.keep = "0"
    count = kept(starter, call.out.name, 0)
    os.kill(engine, signal.SIGKILL)
    assert_keeps_first(call, count, sent)
    assert "SIGKILL" in server.log.read_text()


def test_job_with_more_records_than_its_queue_gives_back(start, starter):
    server = start(record_seconds=0.02)
    server.reached(State.WARM)
    call = called(server, starter, sent := records(12_000))
    eventually(lambda: starter.lines(call.out.name), "it is served")
    starter.keep = "200"
    assert_keeps_first(call, max(200, kept(starter, call.out.name, 200)), sent)


# ---- the job starts again ------------------------------------------------------------------------


def killed(call: Call) -> None:
    call.process.kill()
    call.process.wait()


def test_restarted_job_keeps_what_it_answered_before(start, starter):
    first, second = (start(record_seconds=seconds) for seconds in (0.1, 0.001))
    first.reached(State.WARM)
    call = called(first, starter, sent := records(400))
    eventually(lambda: starter.lines(call.out.name), "results are streamed")
    starter.keep = "1"
    count = kept(starter, call.out.name, 1)
    killed(call)
    second.reached(State.WARM)
    # GlideKeep is smaller than the answer to it, because more records had begun. These are served.
    again = called(second, starter, sent, NumJobStarts=1, GlideKeep=1)
    assert_keeps_first(again, count, sent)
    assert (count, 1) in kept_lines(list(read_lines(again.out)))


def test_restarted_job_gives_back_more_if_asked_again(start, starter):
    first, second = (start(record_seconds=seconds) for seconds in (0.1, 0.001))
    first.reached(State.WARM)
    call = called(first, starter, sent := records(400))
    starter.keep = "300"
    assert kept(starter, call.out.name, 300) == 300
    eventually(lambda: len(starter.lines(call.out.name)) > 3, "results are streamed")
    killed(call)
    done = {line["custom_id"] for line in starter.lines(call.out.name) if "custom_id" in line}
    second.reached(State.WARM)
    starter.keep = "2"
    again = called(second, starter, sent, NumJobStarts=1, GlideKeep=2)
    again.results()
    ((first_answer, _), (count, asked)) = kept_lines(list(read_lines(again.out)))
    assert (first_answer, asked) == (300, 2)
    assert max(2, len(done)) <= count < 300  # records that have a result are not given back
    assert_keeps_first(again, count, sent)


# ---- the stream period ---------------------------------------------------------------------------


def test_stream_seconds_of_job_ad_are_limited():
    texts = {"5": 5.0, "2.500000000000000E+00": 2.5, "0.1": 0.25, "-3": 0.25, "1000": 60.0}
    texts |= dict.fromkeys(("", "UNDEFINED", "true", "nan", "inf", "2 * 3", "five"), 1.0)
    assert {text: _stream_seconds(text) for text in texts} == texts


def test_stream_seconds_limit_appends_of_fast_engine(start, starter):
    server = start(record_seconds=0.0005)
    server.reached(State.WARM)
    numbers = []
    for seconds in (60, 1):
        before = len(starter.appended)
        assert_keeps_first(called(server, starter, sent := records(4000), GlideStreamSeconds=seconds), 4000, sent)
        numbers.append(len(starter.appended) - before)
    assert numbers[0] == 0 and numbers[1] > 3  # 256 unsent results are appended immediately only by default


def test_large_unsent_results_are_appended_despite_long_period(start, starter):
    server = start(record_seconds=0.05)
    server.reached(State.WARM)
    sent = [{"custom_id": f"r{number}", "prompt": "x" * 1_000_000} for number in range(30)]
    call = called(server, starter, sent, GlideStreamSeconds=60)
    assert_keeps_first(call, 30, sent)
    assert len(starter.appended) > 1


# ---- on a real pool ------------------------------------------------------------------------------


@pytest.mark.pool
def test_edit_of_running_job_reaches_its_lane(factory: Path, access_point: AccessPoint, tmp_path: Path):
    template = Template("giving", "noop", options={"record_seconds": 0.2})
    (tmp_path / "records-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in input_lines(200)))
    macros = {
        "digest": template.digest, "model": template.model, "initialdir": str(tmp_path), "leave_in_queue": "true",
        f"My.{Job.SPEC}": job_file_value(template.to_json()), f"My.{Job.WANTED}": "1",
        "My.FileRemaps": keep.FILE_REMAPS, f"My.{Job.STREAM}": "0.5",
    }  # fmt: skip
    cluster = access_point.submit(DESCRIPTION, macros, spool=True)
    try:
        (job,) = access_point.jobs(f"ClusterId == {cluster}", ["Iwd"])
        streamed = Path(job["Iwd"]) / "result-0.jsonl"
        results = eventually(lambda: list(read_results(streamed)), "results are streamed")
        access_point.edit({f"{cluster}.0": "3"}, Job.KEEP, notify_shadow=True)
        eventually(lambda: kept_lines(list(read_lines(streamed))), "the job answers")
        done = f"ClusterId == {cluster} && JobStatus == {JobStatus.COMPLETED}"
        eventually(lambda: access_point.jobs(done, []), "the job has ended")
        access_point.retrieve(f"ClusterId == {cluster}")
    finally:
        access_point.remove(f"ClusterId == {cluster}", "the test is over")
    found = answers.read(tmp_path / "result-0.jsonl", {f"r{number}" for number in range(200)}, 4096)
    assert found.rejected == 0 and found.kept is not None and 3 <= found.kept < 200
    assert set(found.results) == {f"r{number}" for number in range(found.kept)}
    assert {each["custom_id"] for each in results} <= set(found.results)


# ---- a job that starts again -----------------------------------------------------------------------


def test_job_that_starts_again_has_streamed_all_its_results(start, starter):
    """HTCondor keeps only what a job has streamed: its next start does not see its output file."""
    server = start(record_seconds=0.01)
    server.reached(State.WARM)
    call = called(server, starter, records(5000), **{Job.STREAM: "60"})
    eventually(lambda: len(call.written()) > 20, "results are written")
    assert starter.lines(call.out.name) == []
    server.process.terminate()
    assert call.end()[0] == Exit.SERVER_LOST
    streamed = [line["custom_id"] for line in starter.lines(call.out.name) if "custom_id" in line]
    assert len(set(streamed)) == len(streamed) > 20
    assert set(streamed) == {result["custom_id"] for result in call.written()}
