"""Records that stay on disk: what a large sweep keeps in memory, finds again, and notices when its input changes."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
import yaml

from glide.errors import InputError
from glide.invoke import part as parts
from glide.invoke.jobs import RunJobs, RunSpec
from glide.sweep import check_cache, reading
from glide.sweep import prepare as preparing
from glide.sweep.opening import open_results, opened
from glide.sweep.prepare import Sweep, prepare
from glide.sweep.record_set import RecordSet, id_hash
from glide.sweep.records import Record
from glide.template import Template
from tests.results_rig import answer, finished, store, unsent


def write(folder: Path, count: int, name: str = "r.jsonl", prompt: str = "{text}") -> Path:
    lines = (json.dumps({"custom_id": f"r{n}", "text": f"text {n}"}) + "\n" for n in range(count))
    (folder / name).write_text("".join(lines), encoding="utf-8")
    file = folder / "s.yaml"
    content = {
        "name": "s", "model": {"name": "noop", "engine": "noop"}, "records": name, "prompts": {"p": prompt},
        "out": str(folder / "out"),
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def opened_once(sweep: Sweep) -> None:
    """As a driver that starts and ends."""
    with opened([sweep], "run"):
        pass


# ---- memory --------------------------------------------------------------------------------------


def test_checked_record_takes_few_bytes_of_memory(tmp_path):
    count = 50_000
    prepare(write(tmp_path, 10))  # imports modules, which take memory, too
    file = write(tmp_path, count)
    tracemalloc.start()
    try:
        (sweep,) = prepare(file)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(sweep.records) == count
    assert kept / count < 60 and peak / count < 100


def test_pending_requests_are_found_without_a_scan_of_results(tmp_path):
    (sweep,) = prepare(write(tmp_path, 2000))
    results = open_results(sweep, "run")
    try:
        read: list[int] = []
        store(results, *(answer(results, f"p/r{n}") for n in range(2000) if n not in (700, 1500)))
        sweep.records.parse = lambda source, line: read.append(1) or preparing.RecordFormat().parse(source, line)
        assert unsent(results) == ["p/r700", "p/r1500"]
        assert len(read) == 4  # two requests, and their names here
        assert (results.first_cell, results.first_number) == (0, 700)
    finally:
        results.close()


def test_size_of_job_input_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 10_000)
    jobs = RunJobs(RunSpec("run", Template("m", "noop"), tmp_path / "parts", 1), access_point=None)
    records = [{"custom_id": str(n), "prompt": "x" * 1000, "generate": {}, "timeout": 5.0} for n in range(100)]
    part = jobs.write(iter(records))
    assert 9 <= len(part.ids) <= 11
    assert (tmp_path / "parts" / f"{part.name}.in").stat().st_size < 12_000


# ---- the kept check ------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The inputs that were read; the check of every input is kept, however small it is."""
    monkeypatch.setattr(check_cache, "LARGE", 1)
    inputs: list[Path] = []

    def read(path, *arguments):
        inputs.append(path)
        return reading.read(path, *arguments)

    monkeypatch.setattr(preparing, "read", read)
    return inputs


def test_unchanged_input_is_not_read_again(tmp_path, counted):
    file = write(tmp_path, 100)
    (first,) = prepare(file)
    opened_once(first)
    (second,) = prepare(file)
    assert len(counted) == 1
    assert second.digest == first.digest and second.fingerprints == first.fingerprints
    assert [record.fields for record in second.records] == [record.fields for record in first.records]
    assert second.records.number("r42") == 42


@pytest.mark.parametrize("change", ["content", "prompt", "damage", "file"])
def test_changed_input_or_sweep_is_read_again(tmp_path, counted, change):
    file = write(tmp_path, 100)
    opened_once(prepare(file)[0])
    if change == "content":
        (tmp_path / "r.jsonl").write_text((tmp_path / "r.jsonl").read_text().replace("text 99", "text 00"))
    elif change == "prompt":
        write(tmp_path, 100, prompt="Say: {text}")
    elif change == "damage":
        ids = tmp_path / "out" / ".glide" / "check" / "ids"
        ids.write_bytes(ids.read_bytes()[:-4])
    else:
        write(tmp_path, 100, name="other.jsonl")
    (sweep,) = prepare(file)
    assert len(counted) == 2 and len(sweep.records) == 100
    assert sweep.records[99].fields["text"] == ("text 00" if change == "content" else "text 99")


def test_input_file_change_during_sweep_raises_error(tmp_path):
    (sweep,) = prepare(write(tmp_path, 100))
    path = tmp_path / "r.jsonl"
    path.write_text(path.read_text()[10:])
    with pytest.raises(InputError, match="has changed while the sweep was running"):
        sweep.records[50]
    os.unlink(path)
    with pytest.raises(InputError, match="No such file"):
        prepare(tmp_path / "s.yaml")


def test_final_result_order_is_independent_of_completion_order(tmp_path):
    (sweep,) = prepare(write(tmp_path, 500))
    results = open_results(sweep, "run")
    try:
        store(results, *(answer(results, f"p/r{n}") for n in reversed(range(500))))
        finished(results)
        lines = (tmp_path / "out" / "p" / "results.jsonl").read_text().splitlines()
        assert [json.loads(line)["custom_id"] for line in lines] == [f"r{n}" for n in range(500)]
    finally:
        results.close()


def test_equal_hashes_of_different_ids_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "id_hash", lambda custom_id: len(custom_id))
    monkeypatch.setattr("glide.sweep.record_set.id_hash", lambda custom_id: len(custom_id))
    with pytest.raises(InputError, match="custom_id 'r1' cannot be told from 'r0'"):
        prepare(write(tmp_path, 2))


def test_records_given_as_list_need_no_files():
    records = [Record(f"r{n}", {"custom_id": f"r{n}", "t": "ö" * n}, n, Path("x")) for n in range(5)]
    kept = RecordSet.of(records)
    assert list(kept) == records and kept[1:3] == records[1:3] and kept[-1] == records[-1]
    assert kept.number("r3") == 3 and kept.number("r9") is None and kept.ids[2] == id_hash("r2")
