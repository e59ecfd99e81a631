"""What anybody may write into ads and descriptions: it is ignored or used, and never an exception or an injection."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from glide.condor import bindings
from glide.condor.access_point import job_file_value, quoted
from glide.config import SiteFile
from glide.errors import CondorError
from glide.factory.descriptions import choose_description
from glide.factory.observe import observe
from glide.factory.plan import plan
from glide.factory.totals import Totals
from glide.protocol import names
from glide.protocol.ads import InvocationAd, LaneAd, OuterAd, StickyAd, attributes
from glide.report.status import document
from glide.ssh.access_point import OUTPUT, job_file_line
from glide.template import Template
from glide.template.spec import Function
from glide.vocabulary import Job, JobStatus, Machine, State

US = "us@here"
SITE = SiteFile.model_validate({"site": "s", "entries": [{"name": "here", "max_glideins": 4, "ready": 1}]})
HOSTILE = (
    'x" || true || "', "a\nqueue 9", "$(HOME)", "../../etc", "\x1b[31m", "\ud800", "a" * 5000, "\\", "", "here", "T",
    State.WARM, State.FAILED, "slot1@here", "here-7.1", "Claimed", US,
)  # fmt: skip
values = some.one_of(
    some.sampled_from(HOSTILE), some.text(max_size=20), some.integers(), some.floats(), some.booleans(), some.none(),
    some.sampled_from((10**400, -1, 0, 1, 2, 4, 5, 1e308, float("nan"), float("inf"))),
    some.lists(some.integers(), max_size=2), some.dictionaries(some.text(max_size=3), some.integers(), max_size=2),
)  # fmt: skip


def ad_of(attributes: Iterable[str], right: dict[str, Any]) -> some.SearchStrategy[dict[str, Any]]:
    """Ads that are right, but for some attributes that are anything or missing."""
    strange = some.dictionaries(some.sampled_from(sorted(attributes)), values, max_size=6)
    missing = some.sets(some.sampled_from(sorted(attributes)), max_size=2)
    return some.builds(
        lambda wrong, less: {k: v for k, v in (right | wrong).items() if k not in less}, strange, missing
    )


JOB = {"ClusterId": 7, "ProcId": 1, "JobStatus": JobStatus.IDLE, "User": US, "ServerTime": 100, Job.TEMPLATE: "T"}
invocations = ad_of(attributes(InvocationAd), JOB)
running = {**JOB, "JobStatus": JobStatus.RUNNING, Job.ENTRY: "here", "NumShadowStarts": 1}
glideins = ad_of(attributes(OuterAd), running)
moves = ad_of(attributes(StickyAd), {**JOB, Job.BRINGS: "T", Job.LANE: "slot1@here"})
lanes = ad_of(
    attributes(LaneAd),
    {"Name": "slot1@here", Machine.ID: "here-7.1", Machine.ENTRY: "here", Machine.TEMPLATE: "T", "State": "Claimed",
     Machine.STATE: State.WARM},
)  # fmt: skip
specs = some.one_of(
    values,
    some.text(max_size=40),
    some.builds(
        lambda wrong: json.dumps(asdict(Template("model", "noop")) | wrong),
        some.dictionaries(some.sampled_from(sorted(Template.__dataclass_fields__)), values, max_size=3),
    ),
)


GOOD = json.dumps(asdict(Template("model", "noop")))
HUGE = '"files": {"f": ["' + "0" * 64 + '", 1' + "0" * 400 + "]}"


class Queue:
    """What an access point and a collector answer, as values."""

    user = US

    def __init__(self, jobs: list[dict], moves: list[dict], lanes: list[dict], spec: Any):
        self.invocations, self.moves, self.machines, self.spec = jobs, moves, lanes, spec

    def jobs(self, constraint: str, attributes: Iterable[str], limit: int = -1) -> list[dict[str, Any]]:
        if Job.SPEC in attributes:
            return [{Job.SPEC: self.spec}] if self.spec is not None else [{}]
        return self.moves if Job.LANE in attributes else self.invocations

    def lanes(self, attributes: Iterable[str]) -> list[dict[str, Any]]:
        return self.machines


@settings(max_examples=150, deadline=None)
@given(
    some.lists(invocations | glideins, max_size=5), some.lists(moves, max_size=2), some.lists(lanes, max_size=4), specs
)
def test_hostile_ads_never_stop_factory(jobs, moving, machines, spec):
    queue: Any = Queue(jobs, moving, machines, spec)
    snapshot = observe(lambda: queue, queue)
    assert not snapshot.unavailable_sources
    actions = plan(snapshot, SITE)
    Totals().add(snapshot)
    assert json.dumps(document(snapshot), allow_nan=False)
    safe = re.compile(r"[\w.@:+-]*", re.ASCII)
    for action in actions:
        assert "an error in glide" not in action.reason
        named = [each for value in vars(action).values() if isinstance(value, tuple) for each in value]
        assert all(safe.fullmatch(each) for each in (action.entry, *named))
        assert safe.fullmatch(action.template) and "/" not in action.template
    for lane in snapshot.lanes:
        assert all(safe.fullmatch(each) for each in (lane.name, lane.glide_id, lane.entry, lane.template))


@settings(max_examples=150, deadline=None)
@given(specs)
@example(GOOD.replace('"files": {}', HUGE))
@example("[" * 100_000)
@example(GOOD.replace('"options": {}', '"options": ' + '{"a":' * 400 + "1" + "}" * 400))
def test_successfully_parsed_template_json_yields_valid_template(text):
    try:
        template = Template.from_json(text)
    except ValueError:
        return
    assert Template.from_json(template.to_json()) == template
    assert template.digest and 0 <= template.megabytes < 1e12 and template.budget(State.LOADING) > 0


FUNCTION = asdict(Function("", "cGlja2xl", "0" * 64, "3.11", "3.1", US))


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": 7}, {"path": "/a\nqueue"}, {"path": "/a\0"}, {"model": ""}, {"engine": None}, {"options": []},
        {"files": {"f": ["0" * 64, 1e3]}}, {"files": {"f": ["0" * 64, True]}}, {"files": {"f": ["0" * 64, 10**16]}},
        {"files": {"f\n": ["0" * 64, 1]}}, {"files": [["f", "0" * 64]]}, {"files": None}, {"keep": "for ever"},
        {"budgets": {State.LOADING: float("nan")}}, {"budgets": {State.LOADING: 0}}, {"budgets": {"Else": 5}},
        {"budgets": {State.LOADING: "1"}}, {"function": {**FUNCTION, "owner": 7}}, {"function": {"owner": US}},
        {"function": {**FUNCTION, "more": 1}}, {"function": "call"}, {"environment": {"path": 7, "files": {}}},
        {"environment": "env"}, {"key": None}, {"seed": ["a"]}, {"service": "http://x"}, {"more": 1},
    ],
)  # fmt: skip
def test_template_field_with_invalid_value_is_refused(wrong):
    good = asdict(Template("m", "python")) | {"function": FUNCTION}
    assert Template.from_json(json.dumps(good)).owner == US
    with pytest.raises(ValueError):
        Template.from_json(json.dumps(good | wrong))


def test_wrong_template_description_never_replaces_correct_one(tmp_path: Path):
    (tmp_path / "weights").write_bytes(b"1234")
    right = Template("m", "noop", str(tmp_path), {"weights": ("0" * 64, 4)})
    wrong = replace(right, files={"weights": ("0" * 64, 10**15)})
    assert wrong.digest == right.digest, "sizes are no part of it"
    assert choose_description([wrong, right]) == right, "the files are here"
    away = [replace(each, path="hf://org/model@1") for each in (wrong, right)]
    assert choose_description([away[0], away[1], away[1]]) == away[1], "most users say so"
    assert choose_description([away[1], away[0]]) == away[1], "the oldest job says so"
    assert choose_description([replace(right, key="k"), right]).key == "k", "the factory sets keys itself"


@pytest.mark.parametrize("text", [*HOSTILE[:8], "a b", "a'b", "a;b", "a`b", "-rf", ".", ".."])
def test_slot_and_glidein_names_cannot_contain_special_characters(text):
    patterns = (names.SLOT, names.GLIDE_ID, names.ENTRY, names.DIGEST)
    assert not [pattern.pattern for pattern in patterns if pattern.fullmatch(text)]


def test_real_slot_and_glidein_names_are_allowed():
    assert all(map(names.SLOT.fullmatch, ("slot1_2@n1.example.org", "slot1@glide-here-7-1-ab12cd", "slot1@123@n1")))
    assert all(map(names.GLIDE_ID.fullmatch, ("here-7.1", "a.b-c-7.1r3")))


def test_ad_text_is_shortened_and_control_characters_replaced():
    assert names.printable("a\x1b[2J\x07b\n\tc\x9b\u202e\ud800é") == "a?[2J?b\n\tc???é"
    assert len(names.printable("a" * 10_000)) < 3000


def test_expressions_with_line_breaks_never_enter_job_files():
    assert job_file_line("requirements", 'Machine == "a b"') == 'requirements = Machine == "a b"'
    for text in ("a\nqueue 9", "a\rb", "a\0b", "a\\"):
        with pytest.raises(CondorError, match="contains a control character, or ends with a backslash"):
            job_file_line("requirements", text)


@pytest.mark.parametrize(
    "place", ["../here/T/1.0", "site/../T/1.0", "/etc/here/T/1.0", "site/here/1.0", "site/he re/T/1.0", "s/h/.ssh/1.0",
              "site/here/T/1.0\n", "site/here/T/x.0"]
)  # fmt: skip
def test_glidein_outputs_are_stored_only_in_entry_folders(place):
    assert OUTPUT.fullmatch("site/here/blank/12.0") and not OUTPUT.fullmatch(place)


@given(some.text())
@example("a 'b' \"c\" $(HOME)")
def test_error_while_observing_entry_affects_no_other_entry(text):
    def broken() -> Any:
        raise ZeroDivisionError(text)

    queue: Any = Queue([JOB], [], [], GOOD)
    snapshot = observe(lambda: queue, queue, [(broken, ["far"])])
    assert not snapshot.unavailable_sources
    assert "an error in glide: ZeroDivisionError" in snapshot.unavailable_entries["far"]


@given(some.text(some.characters(exclude_categories=["Cs"])))
@example('"; x = "\n\\')
def test_quoted_text_stays_one_classad_string(text):
    written = quoted(text)
    assert bindings.classad2.ExprTree(written).eval() == text.replace("\0", "?")
    assert "\n" not in written and "\r" not in written


def test_job_file_string_with_line_break_is_refused():
    assert job_file_value('{"a": "b"}') == '"{\\"a\\": \\"b\\"}"'
    for text in ("a\nqueue 9", "a\\"):
        with pytest.raises(CondorError):
            job_file_value(text)
