"""A sweep is checked completely before anything is submitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from glide.errors import InputError
from glide.sweep.prepare import prepare

RECORDS = [{"custom_id": "a", "text": "one", "label": "x"}, {"custom_id": "b", "text": "two {x}", "label": "y"}]


@pytest.fixture
def write(tmp_path: Path):
    """Write a sweep file, its records and a model folder; `changes` replace the file's keys."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")

    def write(records: list[dict] | str = RECORDS, **changes) -> Path:
        lines = records if isinstance(records, str) else "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "r.jsonl").write_text(lines)
        sweep = {
            "name": "s",
            "model": {"name": "m", "engine": "transformers", "path": "model"},
            "records": "r.jsonl",
            "prompts": {"plain": "{text}", "kind": "Please: {text}"},
            "expect": "label",
        } | changes
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
        return tmp_path / "s.yaml"

    return write


def problems_of(source: Path) -> list[str]:
    with pytest.raises(InputError) as refused:
        prepare(source)
    return list(refused.value.problems)


NOOP = {"name": "m", "engine": "noop"}


def test_sweep_paths_are_relative_to_sweep_file(write, tmp_path, monkeypatch):
    source = write()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (sweep,) = prepare(source)
    assert sweep.total == 4
    assert sweep.template.path == str(tmp_path / "model")
    assert set(sweep.template.files) == {"config.json", "model.safetensors"}
    assert sweep.out == tmp_path / "elsewhere" / "results"


def test_request_has_unique_id_and_filled_prompt(write):
    (sweep,) = prepare(write())
    requests = [sweep.request(prompt, record) for prompt in sweep.cells for record in sweep.records]
    asked = {"custom_id": "plain/b", "prompt": "two {x}", "generate": sweep.file.generate, "timeout": 600.0}
    assert requests[1] == asked
    assert len({request["custom_id"] for request in requests}) == sweep.total


def test_engine_without_files_needs_no_model_folder(write):
    assert prepare(write(model=NOOP))[0].template.path is None


def test_missing_model_folder_is_reported_with_its_path(write, tmp_path):
    (problem,) = problems_of(write(model={"name": "m", "engine": "transformers", "path": "gone"}))
    assert problem == f"{tmp_path / 's.yaml'}:5: model.path: {tmp_path / 'gone'} is not a folder"


def test_model_path_to_file_is_refused(write, tmp_path):
    (problem,) = problems_of(write(model={"name": "m", "engine": "transformers", "path": "model/config.json"}))
    assert "not a folder" in problem


@pytest.mark.parametrize("content", [b"", b"{", b"not json", b"\xff\xfe{}"])
def test_model_with_invalid_config_json_is_refused(write, tmp_path, content):
    (tmp_path / "model" / "config.json").write_bytes(content)
    (problem,) = problems_of(write())
    assert str(tmp_path / "model" / "config.json") in problem and "not JSON" in problem


def test_model_without_config_json_is_refused(write, tmp_path):
    (tmp_path / "model" / "config.json").unlink()
    (problem,) = problems_of(write())
    assert "has no config.json; a transformers model needs one" in problem


def test_model_without_weights_is_refused(write, tmp_path):
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "model.gguf")
    (problem,) = problems_of(write())
    assert problem.startswith(f"{tmp_path / 's.yaml'}:5: ") and "no weights" in problem


def test_model_with_unsupported_url_is_refused(write):
    (problem,) = problems_of(write(model={"name": "m", "engine": "transformers", "path": "hf://who/what"}))
    assert "hf://who/what" in problem


def test_model_and_record_problems_are_reported_together(write, tmp_path):
    records = '{"custom_id": "a", "text": "x"}\nnot json\n{"custom_id": "a", "text": "x"}\n'
    problems = problems_of(write(records, model={"name": "m", "engine": "transformers", "path": "gone"}))
    assert len(problems) == 4 and "no field 'label'" in problems[3]
    assert "gone" in problems[0]
    assert problems[1].startswith(f"{tmp_path / 'r.jsonl'}:2: not JSON")
    assert problems[2].startswith(f"{tmp_path / 'r.jsonl'}:3: custom_id 'a'")


def test_missing_fields_and_model_are_reported_together(write, tmp_path):
    model = {"name": "m", "engine": "transformers", "path": "gone"}
    problems = problems_of(write(model=model, prompts={"p": "{no}"}, expect="verdict"))
    assert len(problems) == 3
    assert problems[1].startswith(f"{tmp_path / 'r.jsonl'}:1: no field 'no', but prompt p uses this field")
    assert problems[2].startswith(f"{tmp_path / 'r.jsonl'}:1: no field 'verdict', but `expect` uses this field")


def test_missing_records_file_is_reported_with_its_path(write, tmp_path):
    source = write(model=NOOP)
    (tmp_path / "r.jsonl").unlink()
    (problem,) = problems_of(source)
    assert problem.startswith(f"{tmp_path / 'r.jsonl'}: No such file")


# ---- the digest by which results are known -------------------------------------------------------


def test_sweep_digest_ignores_settings_that_leave_results_unchanged(write):
    before = prepare(write())[0].digest
    assert prepare(write(glideins=4, batch=2, pack=3, out="elsewhere"))[0].digest == before


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "m", "engine": "transformers", "path": "model", "options": {"batch": 2}}},
        {"prompts": {"plain": "{text}", "kind": "please: {text}"}},
        {"generate": {"max_new_tokens": 3}},
        {"records": [*RECORDS, {"custom_id": "c", "text": "", "label": ""}]},
        {"records": RECORDS[::-1]},
        {"records": [RECORDS[0], {**RECORDS[1], "text": "2"}]},
    ],
)
def test_sweep_digest_changes_with_settings_that_affect_results(write, changes):
    before = prepare(write())[0].digest
    assert prepare(write(**changes))[0].digest != before
