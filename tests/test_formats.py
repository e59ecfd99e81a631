"""Input files: arrays, tables and datasets, compressed or in several files, and what is wrong with them."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard

from glide.errors import InputError
from glide.sweep import reading
from glide.sweep.records import RecordFormat
from tests.results_rig import read_records as read

ROWS = [
    {"custom_id": "a", "t": "plain"}, {"custom_id": "b", "t": 'quoted "x", comma\nand a second line'},
    {"custom_id": "ö", "t": "🦉 \u2028 {brace}"},
]  # fmt: skip


def as_csv(sign: str) -> str:
    table = "".join('{}{}"{}"\r\n'.format(row["custom_id"], sign, row["t"].replace('"', '""')) for row in ROWS)
    return f"custom_id{sign}t\r\n{table}"


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


FORMATS: dict[str, Any] = {
    "r.jsonl": "\n".join(map(json.dumps, ROWS)),
    "bom.jsonl": "\ufeff" + "\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    "array.json": json.dumps(ROWS),
    "pretty.json": "\ufeff\n" + json.dumps(ROWS, indent=2, ensure_ascii=False) + "\n\n",
    "tight.json": json.dumps(ROWS, separators=(",", ":")).replace("},{", "}\n,{"),
    "r.csv": as_csv(","),
    "bom.csv": "\ufeff" + as_csv(","),
    "r.tsv": as_csv("\t"),
    "r.parquet": lambda: as_parquet(ROWS),
}


def packed(content: bytes) -> bytes:
    """gzip, the same at every call: the names of tests contain it."""
    return gzip.compress(content, mtime=0)


PACKED = {"": lambda data: data, ".gz": packed, ".zst": lambda data: zstandard.compress(data)}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("name", FORMATS)
def test_every_records_file_format_gives_same_records(tmp_path, name, suffix):
    content = FORMATS[name]() if callable(FORMATS[name]) else FORMATS[name].encode()
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACKED[suffix](content))
    assert [record.fields for record in read(path)] == ROWS


def problem(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        read(path, **options)
    (found,) = refused.value.problems
    return found.removeprefix(str(path))


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("r.json", '[{"custom_id": "a"}', ":1: the JSON array has no end"),
        ("r.json", '[{"custom_id": "a"} {"custom_id": "b"}]', ":1: no comma between two elements"),
        ("r.json", '[{"custom_id": "a"}]\nmore', ":2: text after the end of the JSON array"),
        ("r.json", '[\n{"custom_id": "a"},\n{"custom_id": b}\n]', ":3: not JSON"),
        ("r.json", '[\n{"custom_id": "a", "custom_id": "b"}]', ":2: 'custom_id' is given twice"),
        ("r.json", '[{"custom_id": "a", "t": "\\ud83d"}]', ":1: '\\ud83d' is half a character"),
        ("r.json", "[" * 100_000, ":1: not JSON: nested too deeply"),
        ("r.json", "[]", ": the file has no records"),
        ("r.json", "[1, 2]", ":1: not a JSON object"),
        ("r.jsonl", '{"custom_id": "a"}\n{"custom_id": "b", "t": "to', ":2: not JSON"),
        ("r.jsonl", '{"custom_id": "a"}\n{"custom_id": "a"}', ":2: custom_id 'a' is also in line 1"),
        ("r.jsonl", '{"custom_id": "a"}\n{"custom_id": "b", "t": NaN}', ":2: not JSON: NaN is no number; write null"),
        ("r.json", '[{"custom_id": "a", "t": [-Infinity]}]', ":1: not JSON: -Infinity is no number"),
        ("r.jsonl.gz", packed(b'{"custom_id": "a"}\n')[:-9], ": the compressed file is damaged or incomplete"),
        ("r.jsonl.gz", b"plain text", ": the compressed file is damaged or incomplete"),
        ("r.jsonl.zst", zstandard.compress(b'{"custom_id": "a"}\n' * 99)[:-5], ": the compressed file is damaged"),
        ("r.jsonl.zst", b"plain text", ": the compressed file is damaged or incomplete"),
        ("r.parquet.gz", packed(b"PAR1"), ": not Parquet"),
        ("r.arrow", b"ARROW1", ": not Arrow"),
    ],
)
def test_broken_input_file_is_reported(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        read(path)
    assert refused.value.problems[0].removeprefix(str(path)).startswith(said)


def test_json_array_elements_get_their_line_numbers(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('[{"custom_id": "a"}, {"custom_id": "b"},\n{"custom_id":\n"c"}\n, {"custom_id": "d"}]', "utf-8")
    assert [(record.custom_id, record.line) for record in read(path)] == [("a", 1), ("b", 1), ("c", 2), ("d", 4)]


def test_long_array_is_read_with_little_memory(tmp_path):
    path = tmp_path / "r.json"
    rows = ",\n".join(f'{{"custom_id": "{number}", "t": 1}}' + " " * 999_000 for number in range(40))
    path.write_text(f"[{rows}]", "utf-8")
    tracemalloc.start()
    try:
        assert len(reading.read(path, [path], RecordFormat())) == 40
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 4


def test_line_of_100_megabytes_is_one_record(tmp_path):
    path = tmp_path / "r.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"custom_id": "a", "t": "' + b"x" * 100_000_000 + b'"}\n{"custom_id": "b"}\n')
    first, second = read(path)
    assert (len(first.fields["t"]), second.line) == (100_000_000, 2)


def test_missing_number_in_table_is_null(tmp_path):
    (tmp_path / "r.parquet").write_bytes(as_parquet([{"custom_id": "a", "n": {"x": [0.5, float("nan")]}}]))
    assert [record.fields for record in read(tmp_path / "r.parquet")] == [{"custom_id": "a", "n": {"x": [0.5, None]}}]


# ---- several files -------------------------------------------------------------------------------


def test_folders_and_glob_patterns_expand_to_sorted_files(tmp_path):
    (tmp_path / "shards").mkdir()
    for number in (10, 2, 1):
        line = json.dumps({"custom_id": f"r{number}"})
        (tmp_path / "shards" / f"part-{number:02}.jsonl.gz").write_bytes(packed(line.encode()))
    (tmp_path / "shards" / "README.md").write_text("not records")
    expected = ["r1", "r2", "r10"]
    for named in ("shards", "shards/*.jsonl.gz", "**/part-*", "shar*"):
        assert [record.custom_id for record in read(tmp_path / named)] == expected
    assert read(tmp_path / "shards")[0].place == f"{tmp_path}/shards/part-01.jsonl.gz:1"
    assert problem(tmp_path / "shards/*.csv") == ": no file matches"


def test_custom_id_must_be_unique_across_files(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"custom_id": "x"}\n')
    with pytest.raises(InputError) as refused:
        read(tmp_path)
    assert [*refused.value.problems] == [f"{tmp_path}/b.jsonl:1: custom_id 'x' is also in {tmp_path}/a.jsonl:1"]


def test_dataset_files_listed_in_state_json_are_read(tmp_path):
    """The layout that `datasets.Dataset.save_to_disk` writes: Arrow streams, named by state.json."""
    import pyarrow

    folder = tmp_path / "train"
    folder.mkdir()
    for number, row in enumerate(ROWS):
        table = pyarrow.Table.from_pylist([row])
        with pyarrow.ipc.new_stream(str(folder / f"data-{number:05}-of-00003.arrow"), table.schema) as stream:
            stream.write_table(table)
    names = [{"filename": f"data-{number:05}-of-00003.arrow"} for number in range(3)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": "train"}))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert [record.fields for record in read(folder)] == ROWS
    assert problem(tmp_path) == ": is a dataset with several splits; name one of its folders: train"
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    assert "names a file outside the folder" in problem(folder)


# ---- ids -----------------------------------------------------------------------------------------


def test_sweep_key_id_selects_field_or_line_numbers(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"key": 7, "t": "x"}\n\n{"key": "b", "t": "y"}\n')
    assert [record.custom_id for record in read(path, "key")] == ["7", "b"]
    assert [record.fields["custom_id"] for record in read(path, "line")] == ["1", "3"]
    with pytest.raises(InputError, match="field 'nokey' holds no id"):
        read(path, "nokey")
    (tmp_path / "s.jsonl").write_text('{"key": "c"}\n')
    assert [record.custom_id for record in read(tmp_path, "line")] == ["r.jsonl:1", "r.jsonl:3", "s.jsonl:1"]


def test_numeric_id_and_equal_text_id_are_duplicates(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"key": 7}\n{"key": "7"}\n')
    assert problem(path, id_field="key") == ":2: custom_id '7' is also in line 1"
