"""Reading records and filling them into prompts."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from glide.errors import InputError
from glide.sweep import reading
from glide.sweep.prompts import field_problem
from glide.sweep.reading import MOST_PROBLEMS
from glide.sweep.records import FEVER_LABELS, Record, RecordFormat
from tests.results_rig import read_records as read


@pytest.fixture
def write(tmp_path: Path):
    """Put text or bytes into a file of that name, and return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def problems_of(path: Path) -> list[str]:
    """What is wrong with a file, without the file's name in front."""
    with pytest.raises(InputError) as refused:
        read(path)
    return [problem.removeprefix(str(path)) for problem in refused.value.problems]


# ---- formats -------------------------------------------------------------------------------------


def test_json_lines_become_records_with_line_numbers(write):
    path = write("r.jsonl", '{"custom_id": "a", "n": 1}\n\n  \n{"custom_id": "b", "n": [1, {"x": null}]}\n')
    assert read(path) == [
        Record("a", {"custom_id": "a", "n": 1}, 1, path),
        Record("b", {"custom_id": "b", "n": [1, {"x": None}]}, 4, path),
    ]


@pytest.mark.parametrize(
    "content", ['{"custom_id": "a"}\n{"custom_id": "b"}', '{"custom_id": "a"}\r\n{"custom_id": "b"}\r\n']
)
def test_crlf_and_missing_final_line_break_are_accepted(write, content):
    assert [(record.custom_id, record.line) for record in read(write("r.json", content))] == [("a", 1), ("b", 2)]


def test_unicode_line_separator_does_not_split_record(write):
    path = write("r.jsonl", '{"custom_id": "a", "t": "one\u2028two\x85three"}\n{"custom_id": "b", "t": ""}\n')
    assert [record.fields["t"] for record in read(path)] == ["one\u2028two\x85three", ""]


@pytest.mark.parametrize(
    "name, content",
    [("r.jsonl", '{"custom_id": "a", "t": "x"}\n'), ("r.csv", "custom_id,t\na,x\n")],
)
def test_byte_order_mark_is_ignored(write, name, content):
    path = write(name, b"\xef\xbb\xbf" + content.encode())
    assert [record.fields for record in read(path)] == [{"custom_id": "a", "t": "x"}]


def test_csv_rows_become_records_of_strings(write):
    path = write("r.csv", 'custom_id,claim,n\na,"one, ""two""\nthree",1\nb,"{x}",2\n')
    records = read(path)
    assert [record.fields for record in records] == [
        {"custom_id": "a", "claim": 'one, "two"\nthree', "n": "1"},
        {"custom_id": "b", "claim": "{x}", "n": "2"},
    ]
    assert records[1].line == 4


def test_csv_row_with_wrong_cell_count_is_refused(write):
    problems = problems_of(write("r.csv", "custom_id,t\na,x\nb,y,surplus\n\nc\n"))
    assert [problem.split(" columns")[0] for problem in problems] == [":3: 3 cells for 2", ":5: 1 cells for 2"]


def test_unclosed_csv_quote_is_refused(write):
    (problem,) = problems_of(write("r.csv", 'custom_id,t\na,"x\nb,y\n'))
    assert "not CSV" in problem


def test_long_csv_cell_is_accepted(write):
    text = "word " * 40_000
    assert read(write("r.csv", f"custom_id,t\na,{text}\n"))[0].fields["t"] == text


def test_parquet_rows_become_records(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"custom_id": "a", "t": "x", "n": 1}, {"custom_id": "b", "t": None, "n": 2}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    assert [(record.fields, record.line) for record in read(tmp_path / "r.parquet")] == [(rows[0], 1), (rows[1], 2)]


def test_parquet_dates_and_decimals_become_text(tmp_path):
    from datetime import date, datetime
    from decimal import Decimal

    import pyarrow
    from pyarrow import parquet

    row = {
        "custom_id": "a",
        "day": date(1908, 5, 1),
        "price": Decimal("1.50"),
        "seen": [{"at": datetime(2024, 1, 2, 3)}],
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet")[0].fields == {
        "custom_id": "a", "day": "1908-05-01", "price": "1.50", "seen": [{"at": "2024-01-02T03:00:00"}],
    }  # fmt: skip


def test_parquet_bytes_value_is_refused_with_row_number(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"custom_id": "a", "t": None}, {"custom_id": "b", "t": b"raw"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    (problem,) = problems_of(tmp_path / "r.parquet")
    assert problem.startswith(":2: b'raw' is neither text nor a number")


def test_invalid_parquet_file_is_reported(write):
    assert problems_of(write("r.parquet", b"PAR1 or not"))[0].startswith(": not Parquet: ")


def test_fever_dataset_line_becomes_record_with_evidence(write):
    row = {
        "id": 75397,
        "verifiable": "VERIFIABLE",
        "label": "SUPPORTS",
        "claim": "Nikolaj Coster-Waldau worked with the Fox Broadcasting Company.",
        "evidence": [
            [[92206, 104971, "Nikolaj_Coster-Waldau", 7], [92206, 104971, "Fox_Broadcasting_Company", 0]],
            [[92206, 104972, "Nikolaj_Coster-Waldau", 7]],
        ],
    }
    (record,) = read(write("train.jsonl", json.dumps(row) + "\n"))
    assert record.custom_id == "75397"
    assert record.fields["claim"] == row["claim"]
    assert record.fields["evidence"] == "Fox Broadcasting Company:0; Nikolaj Coster-Waldau:7"
    assert record.fields["label"] == FEVER_LABELS["SUPPORTS"]


def test_fever_dataset_line_without_evidence_is_accepted(write):
    row = {"id": 1, "label": "NOT ENOUGH INFO", "claim": "c", "evidence": [[[5, None, None, None]]]}
    (record,) = read(write("train.jsonl", json.dumps(row)))
    assert (record.fields["evidence"], record.fields["label"]) == ("", "NOT ENOUGH INFO")


def test_missing_label_in_fever_dataset_is_reported(write):
    row = {"id": 1, "claim": "c", "evidence": []}
    path = write("test.jsonl", json.dumps(row))
    got = field_problem(["label"], "`expect` uses this field", read(path)[0])
    has = "the record has claim, custom_id, evidence, id"
    assert got == f"{path}:1: no field 'label', but `expect` uses this field; {has}"


# ---- what is wrong -------------------------------------------------------------------------------


def test_every_bad_record_is_reported_with_line_number(write):
    lines = [
        '{"custom_id": "a"}', "{not json", '["custom_id"]', '{"text": "nobody"}', '{"custom_id": ""}',
        '{"custom_id": 7}', '{"custom_id": null}', '{"custom_id": "a"}', '"a"', '{"custom_id": "z"}',
    ]  # fmt: skip
    problems = problems_of(write("r.jsonl", "\n".join(lines)))
    assert [problem.split(":")[1] for problem in problems] == ["2", "3", "4", "5", "6", "7", "8", "9"]
    assert problems[0].startswith(":2: not JSON")
    assert problems[1] == ":3: not a JSON object"
    for missing in (*problems[2:4], problems[5]):
        assert "no custom_id" in missing
    assert problems[2].endswith("; it has text; set `id: FIELD`, or `id: line` to number the lines")
    assert problems[4] == ":6: custom_id 7 is a number; write it as text, in quotes, or set `id: custom_id`"
    assert problems[6] == ":8: custom_id 'a' is also in line 1"


@pytest.mark.parametrize("evidence", [[1], [[1]], [None], ["Somewhere"], [[["a", "b"]]]])
def test_malformed_fever_dataset_line_is_reported(write, evidence):
    line = {"id": 7, "claim": "c", "evidence": evidence}
    problems = problems_of(write("r.jsonl", '{"custom_id": "a"}\n' + json.dumps(line)))
    assert len(problems) == 1 and problems[0].startswith(":2: no custom_id")


def test_record_with_lone_surrogate_is_refused(write):
    (problem,) = problems_of(write("r.jsonl", '{"custom_id": "a"}\n{"custom_id": "b", "t": "\\ud83d"}\n'))
    assert problem.startswith(":2: '\\ud83d' is half a character")


def test_too_deeply_nested_line_is_refused(write):
    (problem,) = problems_of(write("r.jsonl", '{"custom_id": "a"}\n' + "[" * 100_000))
    assert problem == ":2: not JSON: nested too deeply"


def test_number_of_reported_record_problems_is_limited(write):
    problems = problems_of(write("r.jsonl", "nonsense\n" * 1000))
    assert len(problems) == MOST_PROBLEMS + 1
    assert problems[-1] == f": … and {1000 - MOST_PROBLEMS} more"


@pytest.mark.parametrize(
    "name, content", [("r.jsonl", ""), ("r.jsonl", "\n \n"), ("r.csv", ""), ("r.csv", "custom_id\n")]
)
def test_file_without_records_is_refused(write, name, content):
    assert problems_of(write(name, content)) == [": the file has no records"]


def test_every_csv_row_without_custom_id_is_reported(write):
    problems = problems_of(write("r.csv", "id,t\na,x\nb,y\n"))
    assert [problem.split(":")[1] for problem in problems] == ["2", "3"]


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
def test_records_with_invalid_utf8_are_refused(write, name):
    assert problems_of(write(name, b'custom_id\n"caf\xe9"\n'))[0].startswith(":2: not UTF-8")


@pytest.mark.parametrize("name", ["r.txt", "records", "r.xlsx"])
def test_error_for_unknown_file_suffix_mentions_known_suffixes(write, name):
    (problem,) = problems_of(write(name, "x"))
    assert ".jsonl, .ndjson, .json, .csv, .tsv, .parquet" in problem


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none.parquet"])
def test_nonexistent_records_file_is_reported(tmp_path, name):
    assert "No such file" in problems_of(tmp_path / name)[0]


def test_folder_without_readable_files_is_refused(write, tmp_path):
    write("notes.txt", "x")
    assert problems_of(tmp_path)[0].startswith(": the folder has no file that records can be read from (.jsonl")


@pytest.mark.parametrize("line", [
    '{"custom_id": "b", "text": "first", "text": "second"}', '{"custom_id": "b", "custom_id": "c"}',
    '{"custom_id": "b", "deep": [{"text": 1, "text": 1}]}',
])  # fmt: skip
def test_duplicate_json_key_is_refused_with_line_number(write, line):
    (problem,) = problems_of(write("r.jsonl", '{"custom_id": "a"}\n' + line))
    assert problem in [f":2: {key!r} is given twice; remove or rename one" for key in ("text", "custom_id")]


@pytest.mark.parametrize("name, sign", [("r.csv", ","), ("r.tsv", "\t")])
def test_duplicate_csv_column_is_refused(write, name, sign):
    content = "custom_id,text,text\na,first,second\n".replace(",", sign)
    assert problems_of(write(name, content)) == [":1: column 'text' is given twice; remove or rename one"]


def test_duplicate_parquet_column_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table([["a"], ["x"], ["y"]], names=["custom_id", "text", "text"])
    parquet.write_table(table, tmp_path / "r.parquet")
    assert problems_of(tmp_path / "r.parquet") == [":1: column 'text' is given twice; remove or rename one"]


@pytest.mark.parametrize("name, content", [
    ("r.JSONL", '{"custom_id": "a", "t": "x y"}\n'), ("r.ndjson", '{"custom_id": "a", "t": "x y"}\n'),
    ("r.Json", '{"custom_id": "a", "t": "x y"}'), ("r.CSV", "custom_id,t\na,x y\n"),
    ("r.tsv", "custom_id\tt\na\tx y\n"),
])  # fmt: skip
def test_records_file_with_alternative_suffix_is_read(write, name, content):
    assert [record.fields for record in read(write(name, content))] == [{"custom_id": "a", "t": "x y"}]


@pytest.mark.parametrize("name, content, says", [
    ("r.json", '{\n"custom_id": "a"\n}', ":1: an object on several lines; write one per line: jq -c . r.json"),
    ("r.csv", "custom_id;t\na;x\n", ":1: only one column, 'custom_id;t': ';' does not separate columns here; "
     "a .csv file needs commas, a .tsv file needs tabs"),
    ("r.csv", "custom_id\tt\na\tx\n", ":1: only one column, 'custom_id\\tt': '\\t' does not separate columns here; "
     "a .csv file needs commas, a .tsv file needs tabs"),
    ("r.jsonl.bz2", b"BZ", ": is compressed; unpack it first: bunzip2 -k r.jsonl.bz2, or use .gz or .zst"),
    ("r.jsonl.xz", b"", ": is compressed; unpack it first: unxz -k r.jsonl.xz, or use .gz or .zst"),
])  # fmt: skip
def test_error_for_unsupported_record_format_suggests_conversion(write, name, content, says):
    assert problems_of(write(name, content)) == [says]


def test_reading_records_needs_little_memory(write):
    path = write("r.jsonl", '{"custom_id": "a"}\n' + (" " * 999_999 + "\n") * 64)
    tracemalloc.start()
    try:
        reading.read(path, [path], RecordFormat())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 8
