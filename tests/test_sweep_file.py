"""Sweep files, and files that are no valid YAML: what is refused, at which line, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from glide.config import SweepFile, load
from glide.errors import InputError
from tests import config_rig

SWEEP = """\
name: tiny
model:
  name: fake
  engine: noop
  options: {record_seconds: 0.1}
records: r.jsonl
prompts:
  one: "{text}"
  two: "Say: {text}"
"""
refusal = config_rig.refusal  # a fixture


def test_valid_sweep_is_loaded_with_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text(SWEEP)
    sweep = load(tmp_path / "s.yaml", SweepFile)
    assert (sweep.name, sweep.glideins, sweep.batch, sweep.pack, sweep.out.folder) == (
        "tiny", 1, "auto", "auto", "results",
    )  # fmt: skip
    assert list(sweep.prompts) == ["one", "two"]


def test_example_sweep_is_valid():
    folder = Path(__file__).resolve().parent.parent / "workflows" / "promptverify"
    assert load(folder / "sweep.yaml", SweepFile).name == "promptverify"


# ---- sweeps --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        ("records:", "record:", 6, ["record", "unknown key"]),
        ("records: r.jsonl\n", "", 1, ["records", "required"]),
        ("  engine: noop", "  engin: noop", 4, ["engin", "unknown key"]),
        ("engine: noop", "engine: nope", 4, ["no engine 'nope'", "noop", "transformers"]),
        ("record_seconds", "record_second", 5, ["no option 'record_second'", "record_seconds", "load_seconds"]),
        ("0.1}", "slow}", 5, ["record_seconds", "number"]),
        ("engine: noop", "engine: transformers", 5, ["transformers", "no option 'record_seconds'"]),
        (
            "engine: noop\n  options: {record_seconds: 0.1}",
            "engine: openai",
            2,
            ["openai engine needs a url", "http://"],
        ),
        (
            "engine: noop\n  options: {record_seconds: 0.1}",
            "engine: openai\n  options: {chat: true}",
            5,
            ["needs a url"],
        ),
        (
            "noop\n  options: {record_seconds: 0.1",
            "openai\n  options: {url: ftp://h/v1",
            5,
            ["url", "not 'ftp://h/v1'"],
        ),
        ("noop\n  options: {record_seconds: 0.1", "openai\n  options: {url: host:8000", 5, ["url", "not 'host:8000'"]),
        ("noop\n  options: {record_seconds: 0.1", "openai\n  options: {url: http://h:port/v1", 5, ["Port", "'port'"]),
        ("noop\n  options: {record_seconds: 0.1", "openai\n  options: {url: http://me:key@h/v1", 5, ["key_file"]),
        ("noop\n  options: {record_seconds: 0.1", "openai\n  options: {url: http://h, parallel: 0", 5, ["parallel"]),
        (
            "noop\n  options: {record_seconds: 0.1",
            "openai\n  options: {url: http://h, key_file: pool",
            5,
            ["`service`"],
        ),
        ("name: tiny", "name: ../tiny", 1, ["name"]),
        ("name: tiny", "1: 2\nname: tiny", 1, ["1: ", "string"]),
        ("name: tiny", "name: [tiny]", 1, ["name", "string"]),
        ("records: r.jsonl", "records: 7", 6, ["records", "string"]),
        ('"{text}"', '"{text"', 8, ["prompts.one", "}"]),
        ('"{text}"', '"{"', 8, ["prompts.one", "{{"]),
        ('"{text}"', '"text}"', 8, ["prompts.one", "}}"]),
        ('"{text}"', '"{}"', 8, ["prompts.one", "{{"]),
        ('"{text}"', '"{0}"', 8, ["prompts.one", "{{"]),
        ('"{text}"', '"{text!r}"', 8, ["prompts.one", "{{"]),
        ('"{text}"', '"{text:>5}"', 8, ["prompts.one", "{{"]),
        ('"{text}"', '"{text.real}"', 8, ["prompts.one", "{{"]),
        ('"{text}"', "3", 8, ["prompts.one", "string"]),
        ("  one:", "  a/b:", 8, ["prompts.a/b"]),
        ("  one:", "  .glide:", 8, ["prompts..glide"]),
        ("  one:", "  summary.json:", 8, ["summary.json", "another name"]),
        ("  two:", "  one:", 9, ["one", "twice"]),
        ("prompts:", "generate:\n  max_new_tokens: 4\n  stop: [2024-01-01]\nprompts:", 9, ["generate.stop.0", "JSON"]),
        ('"{text}"', '"\\ud83d"', 8, ["half a character"]),
    ],
)
def test_bad_sweep_file_is_refused_with_line_number(refusal, old, new, line, words):
    assert old in SWEEP
    said = refusal(SWEEP.replace(old, new, 1))
    found = [text for at, text in said if at == line]
    assert any(all(word in text for word in words) for text in found), said


@pytest.mark.parametrize("key", ["glideins", "batch", "pack"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_invalid_number_is_refused_with_line_number(refusal, key, value):
    said = refusal(f"{SWEEP}{key}: {value}\n")
    assert said and all(line == 10 and words.startswith(f"{key}: ") for line, words in said), said


def test_error_message_contains_name_of_non_text_prompt(refusal):
    said = refusal(SWEEP.replace("  two:", "  int-two: 3\n  two:"))
    assert said == [(9, "prompts.int-two: Input should be a valid string")]


def test_sweep_without_prompts_is_refused(refusal):
    said = refusal(SWEEP.split("prompts:")[0] + "prompts: {}\n")
    assert [line for line, _ in said] == [7] and "prompts" in said[0][1]


def test_transformers_model_without_path_is_refused(refusal):
    ((line, words),) = refusal(SWEEP.replace("engine: noop", "engine: transformers").replace("record_seconds: 0.1", ""))
    assert line == 2 and "path" in words


def test_quoted_option_is_converted_to_number(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SWEEP.replace("0.1}", '"0.1"}'))
    assert load(path, SweepFile).model.options == {"record_seconds": 0.1}


def test_all_mistakes_in_sweep_file_are_reported_together(refusal):
    text = SWEEP.replace("records:", "record:").replace("name: tiny", "name: 5") + "glideins: 0\n"
    assert {line for line, _ in refusal(text)} == {1, 6, 10}


@pytest.mark.parametrize(
    "line",
    ["glideins: true", "glideins: '2'", "timeout: .inf", "timeout: '60'", "batch: true", "pack: '4'", "pack: 1.5"],
)
def test_invalid_value_of_numeric_sweep_key_is_refused(refusal, line):
    key = line.partition(":")[0]
    said = refusal(SWEEP.rstrip("\n") + f"\n{line}\n")
    assert said and all(at == len(SWEEP.rstrip("\n").splitlines()) + 1 and key in text for at, text in said)


# ---- files that contain no YAML mapping ----------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just words\n", "7\n"])
def test_yaml_file_without_mapping_is_refused(refusal, text):
    ((line, words),) = refusal(text)
    assert line == 1 and "mapping" in words


@pytest.mark.parametrize(
    "text, line",
    [
        ("name: tiny\nmodel: {engine: noop\nrecords: x\n", 3),
        ("name: tiny\n\tmodel: x\n", 2),
        ("name: 'tiny\n", 2),
        ("name: tiny\nout: *nowhere\n", 2),
        ("name: tiny\nout: !!python/object:os.system x\n", 2),
        ("name: tiny\n---\nname: other\n", 2),
        ("out: x\nname: 2024-13-45\n", 2),
        ("out: x\nname: !!bool maybe\n", 2),
        ("out: x\nname: a\x00b\n", 2),
        ("out: x\n? [a, b]\n: c\n", 2),
        ("out: " + "[" * 1000, 1),
    ],
)
def test_invalid_yaml_is_refused_with_line_number(refusal, text, line):
    ((at, words),) = refusal(text)
    assert at == line and words.startswith("not YAML: ")


def test_invalid_utf8_is_refused_with_line_number(refusal):
    ((line, words),) = refusal(b"out: x\nname: caf\xe9\n")
    assert line == 2 and words.startswith("not UTF-8")


def test_missing_sweep_file_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml", SweepFile)
