"""Filling records into prompts, and what a prompt needs of a record."""

from __future__ import annotations

from pathlib import Path

import pytest

from glide.sweep.prompts import field_problem, prompt_checks, render
from glide.sweep.records import Record


@pytest.mark.parametrize(
    "prompt, fields, text",
    [
        ("{a}", {"a": "plain"}, "plain"),
        ("{a}{b}{a}", {"a": "1", "b": "2"}, "121"),
        ("{a}", {"a": "{b} {{}} {"}, "{b} {{}} {"),
        ("{{a}} {{{a}}} }}{{", {"a": "x"}, "{a} {x} }{"),
        ("{a}", {"a": 3}, "3"),
        ("{a}", {"a": 0.5}, "0.5"),
        ("{a}", {"a": True}, "true"),
        ("{Customer Name}: {input-text}", {"Customer Name": "x", "input-text": "y"}, "x: y"),
        ("{a}", {"a": ["ö", {"k": 1}]}, '["ö", {"k": 1}]'),
        ("no field", {}, "no field"),
        ("", {}, ""),
        ("{a}\n", {"a": "line\nline\u2028"}, "line\nline\u2028\n"),
        ("{größe}", {"größe": "🦉"}, "🦉"),
    ],
)
def test_prompt_inserts_field_values_unchanged(prompt, fields, text):
    assert render(prompt, fields) == text


SOURCE = Path("r.jsonl")
RECORDS = [Record("a", {"custom_id": "a", "claim": "x"}, 1, SOURCE), Record("b", {"custom_id": "b"}, 7, SOURCE)]


def problems_with(prompts: dict[str, str], records: list[Record] = RECORDS) -> list[str]:
    """What is wrong with the records for each prompt."""
    checks = prompt_checks(prompts)
    return [problem for check in checks for problem in [next(filter(None, map(check, records)), "")] if problem]


def test_error_for_missing_field_gives_first_affected_record():
    assert problems_with({"good": "{custom_id}", "bad": "{claim}", "worse": "{evidence}"}) == [
        "r.jsonl:7: no field 'claim', but prompt bad uses this field; the record has custom_id",
        "r.jsonl:1: no field 'evidence', but prompt worse uses this field; the record has claim, custom_id",
    ]


def test_null_field_is_refused_like_missing_field():
    rows = [{"custom_id": "a", "claim": ""}, {"custom_id": "b", "claim": None}]
    records = [Record(row["custom_id"], row, line, SOURCE) for line, row in enumerate(rows, 1)]
    (problem,) = problems_with({"p": "{claim}"}, records)
    assert problem == "r.jsonl:2: field 'claim' is null, but prompt p uses this field; give it a value, \"\" for none"
    assert [bool(field_problem(["claim"], "`expect` uses this field", record)) for record in records] == [False, True]


def test_doubled_braces_in_prompt_are_not_a_field():
    assert problems_with({"p": "{{claim}} {custom_id}"}) == []


def test_record_without_expected_answer_field_is_refused():
    assert field_problem(["claim"], "`expect` uses this field", RECORDS[1]) == (
        "r.jsonl:7: no field 'claim', but `expect` uses this field; the record has custom_id"
    )
