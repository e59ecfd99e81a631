"""What a job's output says is checked: it was written on a node."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

import glide
from glide.errors import InvocationError
from glide.invoke import answers
from glide.invoke.answers import MOST_NESTED
from glide.protocol.ads import InvocationAd, LaneAd, OuterAd, RunAd, StickyAd, attributes, from_ad
from glide.sweep.audit import MOST_UNANSWERED, Audit
from glide.sweep.calls import Calls
from glide.sweep.lines import to_line
from glide.template import Template
from glide.vocabulary import Job, Machine

IDS = {"a", "b"}
GOOD = {
    "custom_id": "a", "text": "x", "tokens": 1, "error": None, "glidein": "here-1.0", "attempts": 1, "seconds": 0.5,
}  # fmt: skip


def line(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode() + b"\n"


def nested(levels: int) -> bytes:
    """A valid line with a list in a list in a list, and so on."""
    return line(extra=0).replace(b'"extra": 0', b'"extra": ' + b"[" * levels + b"]" * levels)


def read(folder: Path, *content: bytes, max_result_bytes: int = 4096) -> answers.OutputContent:
    (folder / "x.out").write_bytes(b"".join(content))
    return answers.read(folder / "x.out", IDS, max_result_bytes)


@pytest.mark.parametrize(
    "right",
    [
        {}, {"text": "ö\u2028\n\0"}, {"text": ""}, {"tokens": 0}, {"seconds": 0}, {"embedding": [0.5, -1e-9]},
        {"text": None, "error": {"type": "E", "message": "m" * 5000}}, {"glidein": ""}, {"text": "\U0001f989"},
        {"text": "[{" * 500}, {"extra": [[[0.5]]] * 200},
    ],
)  # fmt: skip
def test_valid_result_is_read_unchanged(tmp_path, right):
    found = read(tmp_path, line(**right), max_result_bytes=10000)
    assert found.results == {"a": GOOD | right} and not found.rejected


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_link_to_another_output_counts_as_empty(tmp_path, link):
    (tmp_path / "other.out").write_bytes(line())
    link(tmp_path / "x.out", tmp_path / "other.out")
    found = answers.read(tmp_path / "x.out", IDS, 4096)
    assert found.results == {} and not found.rejected


def test_two_files_of_one_output_complete_each_other(tmp_path):
    found = read(tmp_path, line(text="first"), b'{"begun": 3}\n')
    found.add(
        read(tmp_path, line(text="second"), line(custom_id="b"), b'{"begun": 2, "kept": 1, "asked": 1}\n', b"?\n")
    )
    assert {name: result["text"] for name, result in found.results.items()} == {"a": "first", "b": "x"}
    assert (found.begun, found.kept, found.asked, found.rejected) == (2, 1, 1, 1)


def test_result_with_deepest_allowed_nesting_is_stored(tmp_path):
    deepest = nested(MOST_NESTED - 1)
    assert to_line(read(tmp_path, deepest).results["a"]) == deepest


@pytest.mark.parametrize(
    "wrong",
    [
        line(custom_id="c"), line(custom_id="../a"), line(custom_id=1), line(custom_id=["a"]),
        line(text=7), line(text=None), line(text=["x"]), line(text="\ud800"),
        line(tokens="x"), line(tokens=-1), line(tokens=True), line(tokens=[]), line(tokens=10**400), line(tokens=1.5),
        line(error="no"), line(error={}), line(error={"type": 1, "message": "m"}),
        line(error={"type": "E", "message": "\udfff"}), line(error={"type": "E", "message": "m", "more": 1}),
        line(seconds=float("nan")), line(seconds=float("inf")), line(seconds=-1), line(seconds="1"), line(seconds=True),
        line(seconds=10**400), line(glidein=None), line(glidein={}), line(glidein="g" * 1001), line(attempts="1"),
        line(attempts=[1]), line(finish_reason=1), line(usage={}), line(usage={"prompt_tokens": 1}), line(usage=[1]),
        line(usage={"prompt_tokens": 1, "completion_tokens": -1}), line(choices={}), line(choices=["text"]),
        line().replace(b'"tokens"', b'"token"'), line(extra=float("-inf")), nested(MOST_NESTED), nested(980),
        b'{"seconds": 1e999, ' + line()[1:].replace(b'"seconds"', b'"other"'), line(extra="\ud800"),
        line().replace(b'"x"', b'"\xc3"'), line().replace(b'"x"', b'"\xed\xa0\x80"'), b"\xff\xfe\n", b"[]\n", b"7\n",
        b"nonsense\n", b"[" * 100_000 + b"\n", line()[:20] + line(),
        b'{"begun": -1}\n', b'{"begun": "x"}\n', b'{"begun": true}\n', b"{}\n",
        b'{"kept": 1}\n', *(b'{"begun": 2, "kept": %s}\n' % kept for kept in (b"-1", b'"1"', b"true", b"null", b"1.0")),
    ],
)  # fmt: skip
def test_output_reader_rejects_invalid_line_and_continues(tmp_path, wrong):
    found = read(tmp_path, wrong, line(custom_id="b"), max_result_bytes=1 << 20)
    assert list(found.results) == ["b"] and found.rejected == 1 and found.reason and not found.too_long


def test_output_reader_ignores_blank_duplicate_and_incomplete_lines(tmp_path):
    found = read(
        tmp_path, b"\n", line(), line(), line(text="other"), b" \n", b'{"begun": 2}\n', line(custom_id="b")[:-9]
    )
    assert found.results == {"a": GOOD} and (found.rejected, found.begun) == (0, 2)
    assert read(tmp_path, b'{"begun": 100}\n').begun == len(IDS)


def test_smallest_number_of_kept_records_counts(tmp_path):
    assert read(tmp_path, b'{"begun": 2}\n').kept is None
    assert read(tmp_path, b'{"begun": 0, "kept": 100, "asked": 100}\n').kept == len(IDS)
    found = read(
        tmp_path, b'{"begun": 1, "kept": 2}\n', b'{"begun": 2, "kept": 1}\n', b'{"begun": 0, "kept": 2}\n', line()
    )
    assert (found.kept, found.begun, found.results, found.rejected) == (1, 2, {"a": GOOD}, 0)
    assert read(tmp_path, b'{"begun": 0, "kept": 0}\n', b'{"begun": 0, "refused": true}\n').kept == 0


def test_oversized_output_is_not_read_completely(tmp_path):
    too_long = read(tmp_path, line(), line(text="y" * 5000), line(custom_id="b"))
    assert too_long.too_long and list(too_long.results) == ["a"] and too_long.rejected == 1
    with (tmp_path / "x.out").open("wb") as file:
        file.write(line())
        file.truncate(1 << 40)  # a terabyte without a line's end
    assert answers.read(tmp_path / "x.out", IDS, 4096).too_long
    many = read(tmp_path, line(), b"\n" * (answers.output_limit(2, 4096) + 1), line(custom_id="b"))
    assert many.too_long and list(many.results) == ["a"]
    assert not read(tmp_path).too_long and answers.read(tmp_path, IDS, 4096) == answers.OutputContent()


def test_repeatedly_unanswered_record_gets_an_error():
    audit = Audit()
    given_up = [
        audit.count_unanswered({"a", "b"} if time else {"a"}, "here-1.0 (node)", "torn")
        for time in range(MOST_UNANSWERED)
    ]
    assert [[result["custom_id"] for result in each] for each in given_up] == [[], [], ["a"]]
    (result,) = given_up[-1]
    assert not answers.problem(result) and "here-1.0 (node): torn" in result["error"]["message"]


def test_invalid_attributes_of_lane_ad_are_ignored():
    ad = {"Name": "slot1@here", Machine.ID: "here-1.0", Machine.BATCH: -1, Machine.RECORD_SECONDS: 1e300, "State": 7}
    assert from_ad(LaneAd, ad) == LaneAd("slot1@here", "here-1.0")
    assert from_ad(LaneAd, ad | {"Name": 'x" || true || "'}) is None and from_ad(LaneAd, {"Name": "slot1@here"}) is None


@pytest.mark.parametrize("kind", [LaneAd, InvocationAd, OuterAd, StickyAd, RunAd])
def test_each_field_of_an_ad_has_one_attribute_and_a_valid_default(kind):
    names = attributes(kind)
    assert len(names) == len(set(names)) == len(fields(kind))
    assert attributes(kind) is names  # Python would keep the memory of each cycle's new tuple
    for each in fields(kind):
        if each.default is not MISSING and each.default not in (None, float("inf"), 0, ""):
            assert each.metadata["check"](each.default), each.name


def test_strictly_read_ad_is_refused_for_any_wrong_attribute():
    ad = {"ClusterId": 1, "ProcId": 2, "JobStatus": 1, Job.TEMPLATE: "T", Job.WANTED: True}
    loose = from_ad(InvocationAd, ad)
    assert loose is not None and loose.wanted == 1
    assert from_ad(InvocationAd, ad, strict=True) is None
    assert from_ad(InvocationAd, ad | {Job.WANTED: 3}, strict=True) == replace(loose, wanted=3)


def test_texts_of_ads_are_safe_to_print():
    read = from_ad(LaneAd, {"Name": "slot1@here", Machine.ID: "here-1.0", Machine.FAILURE: "a\x1b[2Jb"})
    assert read is not None and read.failure == "a?[2Jb"


# ---- sessions ------------------------------------------------------------------------------------


class Exits:
    """Unpickled, it ends the interpreter."""

    def __reduce__(self):
        return sys.exit, (3,)


def test_undecodable_result_value_fails_only_its_own_call():
    calls = Calls(Template("m", "python"), 1)
    first, second, third = (calls.add({"prompt": ""}) for _ in range(3))
    assert (
        calls.check_result(GOOD)
        and calls.check_result(GOOD | {"value": "x", "stdout": 7})
        and not calls.check_result(GOOD | {"error": {"type": "E", "message": ""}, "traceback": "t"})
    )
    for call in (first, second, third):
        call.set_running_or_notify_cancel()
    value = base64.b64encode(pickle.dumps(Exits())).decode()
    results = [GOOD | {"custom_id": name, "value": value} for name in ("1", "999")]
    results += [GOOD | {"custom_id": "2", "value": "nonsense"}, GOOD | {"custom_id": "3", "value": "gAROLg=="}]
    calls.store((calls.key(each["custom_id"]), each) for each in results)
    assert isinstance(first.exception(), InvocationError) and first.exception().type == "SystemExit"
    assert second.exception() is not None and third.result() is None


def forge(kind: str) -> str:
    """Runs on a node, and writes into the outputs of the jobs there what is not true of their first record."""
    import json
    import os
    from contextlib import suppress
    from pathlib import Path

    lie = {"text": "", "tokens": 0, "error": None, "glidein": "x", "attempts": 1, "seconds": 0.0, "value": "gARLKi4="}
    forged = 0
    # Jobs end meanwhile: a walk leaves out the folders that have gone, where a glob would raise.
    walk = os.walk(Path.cwd().parent / "execute")
    for path in [Path(folder, name) for folder, _, names in walk for name in names if name.endswith(".out")]:
        with suppress(FileNotFoundError):  # the output of another job, which has ended
            lines = path.with_suffix(".in").read_text().splitlines()
            own = json.loads(next(line for line in lines if "custom_id" in line))["custom_id"]
            lies = {
                "foreign": json.dumps({"custom_id": "999", **lie}).encode(),
                "types": json.dumps({"custom_id": own, **lie, "tokens": "x"}).encode(),
                "torn": json.dumps({"custom_id": own, **lie}).encode().replace(b'"x"', b'"\xc3"'),
                "flood": b"y" * 8_000_000,
            }
            # Behind what the server writes next: its file's position is where it was.
            with path.open("r+b") as file:
                file.seek(0, os.SEEK_END)
                file.write(b"\n" * 20000 + lies[kind] + b"\n")
                os.fsync(file.fileno())
            forged += 1
    return f"{kind} in {forged} outputs"


@pytest.mark.pool
def test_forged_job_output_is_logged_and_discarded(factory, monkeypatch, caplog):
    monkeypatch.setattr(Calls, "max_result_bytes", 1 << 20)
    with caplog.at_level(logging.WARNING, "glide"), glide.Session() as session:
        for kind in ("foreign", "types", "torn", "flood"):
            calls = [session.submit(forge, kind)] + [session.submit(divmod, number, 3) for number in range(5)]
            assert calls[0].result(120).startswith(f"{kind} in ")
            assert [call.result(120) for call in calls[1:]] == [divmod(number, 3) for number in range(5)]
    told = [record.getMessage() for record in caplog.records if "here-" in record.getMessage()]
    for reason in ("is not in the job", "`tokens`", "not valid Unicode"):
        assert any(reason in line and "no valid results" in line for line in told), (reason, told)
    assert any("was held" in line or "longer than" in line for line in told), told
