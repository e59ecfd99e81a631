"""The experiment that kills workers of several systems: whom it kills, and what it counts."""

from __future__ import annotations

import importlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import eventually


@pytest.fixture
def kills(workflow):
    workflow("peers")
    return importlib.import_module("kills")


def test_announced_worker_is_killed_with_its_processes(kills, tmp_path: Path):
    worker = subprocess.Popen(["sh", "-c", "sleep 1000 & wait"])
    try:
        (child,) = eventually(lambda: kills._descendants(worker.pid), "it has a child")
        killer = kills.Killer(tmp_path, every=0.0)
        killer()
        assert killer.kills == 0 and worker.poll() is None  # nobody is announced
        (tmp_path / f"{worker.pid}.worker").touch()
        killer()
        assert killer.kills == 1 and worker.wait(10) == -9
        eventually(lambda: not os.path.exists(f"/proc/{child}"), "its child is gone")
    finally:
        worker.kill()
        worker.wait()


def test_prompts_that_are_begun_again_are_counted(kills, tmp_path: Path):
    (tmp_path / "1.begun").write_text("32\n32\n")
    (tmp_path / "2.begun").write_text("36\n")
    assert kills.Killer(tmp_path, 60.0).begun == 100


def test_model_never_ends_a_text(kills, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = kills.write_endless_model(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    text = "Claim: a copper plate is made of copper.\nEvidence: copper is a metal.\nVerdict:"
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    known = inputs["input_ids"].shape[1]
    assert model.generate(**inputs, max_new_tokens=64, do_sample=False).shape[1] == known + 64


def test_system_that_lost_its_results_is_in_the_table(kills):
    runs = [
        {"system": "glide", "kills": 2, "done": 10, "again": 6, "seconds": 9.0, "digest": "x"},
        {"system": "two plain processes", "kills": 1, "done": 0, "problem": "it failed"},
    ]  # fmt: skip
    experiment = kills.account(runs, 10, 0.0)
    assert [row[:6] for row in experiment.rows] == [
        ("glide", 2, 10, 6, "3.00", 0), ("two plain processes", 1, 0, "–", "–", 10),
    ]  # fmt: skip
    assert len(kills.drawn(runs).axes[0].patches) == 1 and not any("fewest" in note for note in experiment.notes)


def test_page_says_if_another_system_begins_fewer_prompts_again(kills):
    runs = [
        {"system": name, "kills": 2, "done": 10, "again": again, "seconds": 9.0, "digest": "x"}
        for name, again in (("glide", 6), ("Dask", 4), ("glide, vLLM", 3), ("vLLM run-batch", 8))
    ]
    experiment = kills.account(runs, 10, 0.0)
    (note,) = [note for note in experiment.notes if "fewest" in note]
    assert note.startswith("'glide' loses no prompt") and "3.00 per kill, and 'Dask' 2.00" in note
    numbers = [(each.what, each.here.median, each.met) for each in experiment.compared]
    fewest = "prompts begun again per kill, glide over the fewest of the others"
    assert numbers == [
        ("prompts lost, glide", 0, True), (fewest, 1.5, False),
        ("prompts lost, glide, all on vLLM", 0, True), (f"{fewest}, all on vLLM", 0.375, True),
    ]  # fmt: skip


def test_page_says_if_a_system_was_never_killed(kills):
    runs = [{"system": "Dask", "kills": 0, "done": 10, "again": 0, "seconds": 9.0, "digest": "x"}]
    notes = kills.account(runs, 10, 0.0).notes
    assert notes[0] == (
        "**Never killed, because all prompts were done before: 'Dask'.** Run it again with more --records."
    )


def test_more_prompts_than_the_sweep_has_are_written(kills, tmp_path: Path):
    kills.write_records(tmp_path / "records.jsonl", 12_002)
    lines = (tmp_path / "records.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 12_002 and lines[12_000:] == lines[:2]
