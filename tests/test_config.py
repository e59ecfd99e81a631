"""The files users write: what is refused, at which line, and with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glide import resources
from glide.config import SiteFile, SweepFile, load
from glide.errors import InputError

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
SITE = """\
site: here
interval: 1
entries:
  - name: first
    max_glideins: 2
  - name: second
    max_glideins: 4
    request: {cpus: 2}
"""


@pytest.fixture
def refusal(tmp_path: Path):
    """What is said of such a file: a list of (line, words)."""

    def refusal(text: str | bytes, model: type = SweepFile) -> list[tuple[int, str]]:
        path = tmp_path / "f.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError) as refused:
            load(path, model)
        said = []
        for problem in refused.value.problems:
            assert problem.startswith(f"{path}:"), problem
            assert "\n" not in problem, f"more than one line: {problem}"
            line, _, words = problem.removeprefix(f"{path}:").partition(": ")
            said.append((int(line), words))
        return said

    return refusal


def test_valid_sweep_is_loaded_with_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text(SWEEP)
    sweep = load(tmp_path / "s.yaml", SweepFile)
    assert (sweep.name, sweep.glideins, sweep.batch, sweep.pack, sweep.out) == ("tiny", 1, "auto", "auto", "results")
    assert list(sweep.prompts) == ["one", "two"]


def test_valid_site_is_loaded_with_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text(SITE)
    site = load(tmp_path / "s.yaml", SiteFile)
    assert [entry.name for entry in site.entries] == ["first", "second"]
    assert [entry.request.cpus for entry in site.entries] == [1, 2]


def test_shipped_site_files_are_valid():
    files = resources.find("site_configs", "local.yaml").parent.glob("*.yaml")
    sites = {site.site: site.entries[0] for site in (load(file, SiteFile) for file in files)}
    assert sites.keys() == {"local", "service", "campus", "open-pool", "behind-ssh", "whole-node"}
    assert sites["whole-node"].request.model_memory == 4 * 80000
    login = sites["behind-ssh"].ssh
    assert login is not None and login.name == "glide@login.cluster.example.org"
    assert sites["campus"].request.model_memory == 40000
    service = sites["service"].service
    assert service is not None and service.serves == "tiny-verifier" and service.options["parallel"] == 16


def test_entry_with_both_pool_and_ssh_is_refused(refusal):
    text = SITE.replace("name: second", "name: second\n    pool: {collector: a}\n    ssh: {host: b}")
    assert refusal(text, SiteFile) == [(6, "entries.1: an entry has either pool or ssh; remove one of them")]


@pytest.mark.parametrize("key", ["condor", "environment"])
def test_condor_and_environment_must_be_absolute_paths(tmp_path, key):
    for name in ("env.tar.gz", "https://example.org/env.tar.gz"):
        (tmp_path / "s.yaml").write_text(f"site: s\nentries:\n  - {{name: a, max_glideins: 1, {key}: '{name}'}}\n")
        with pytest.raises(InputError, match=rf"s.yaml:3: .*{name} is not an absolute path"):
            load(tmp_path / "s.yaml", SiteFile)


def test_service_with_invalid_options_is_refused(tmp_path):
    wrong = "site: s\nentries:\n  - {name: a, max_glideins: 1, service: {serves: m, options: {url: 'vllm:8000'}}}\n"
    (tmp_path / "s.yaml").write_text(wrong)
    with pytest.raises(InputError, match=r"s.yaml:3: .*needs a url such as"):
        load(tmp_path / "s.yaml", SiteFile)


def test_gpu_memory_without_gpus_is_refused(tmp_path):
    (tmp_path / "s.yaml").write_text("site: s\nentries:\n  - {name: a, max_glideins: 1, request: {gpu_memory: 8000}}\n")
    with pytest.raises(InputError, match="gpu_memory without gpus"):
        load(tmp_path / "s.yaml", SiteFile)


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
def test_bad_sweep_is_refused_with_line_number(refusal, old, new, line, words):
    assert old in SWEEP
    said = refusal(SWEEP.replace(old, new, 1))
    found = [text for at, text in said if at == line]
    assert any(all(word in text for word in words) for text in found), said


@pytest.mark.parametrize("key", ["glideins", "batch", "pack"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_invalid_number_is_refused_with_line_number(refusal, key, value):
    said = refusal(f"{SWEEP}{key}: {value}\n")
    assert said and all(line == 10 and words.startswith(f"{key}: ") for line, words in said), said


def test_error_keeps_prompt_name_that_resembles_type(refusal):
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


def test_key_overrides_merged_yaml_key(tmp_path):
    text = "site: here\nentries:\n  - &first {name: first, max_glideins: 2}\n  - {<<: *first, name: second}\n"
    (tmp_path / "s.yaml").write_text(text)
    entries = load(tmp_path / "s.yaml", SiteFile).entries
    assert [(entry.name, entry.max_glideins) for entry in entries] == [("first", 2), ("second", 2)]


def test_all_mistakes_in_file_are_reported(refusal):
    text = SWEEP.replace("records:", "record:").replace("name: tiny", "name: 5") + "glideins: 0\n"
    assert {line for line, _ in refusal(text)} == {1, 6, 10}


# ---- sites ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        ("site: here", "sight: here", 1, ["sight", "unknown key"]),
        ("interval: 1", "interval: often", 2, ["interval", "number"]),
        ("interval: 1", "interval: 0", 2, ["interval", "greater than 0"]),
        ("max_glideins: 2", "max_glidein: 2", 5, ["max_glidein", "unknown key"]),
        ("max_glideins: 2", "max_glideins: -2", 5, ["max_glideins", "greater than or equal to 0"]),
        ("max_glideins: 4", "max_glideins: four", 7, ["max_glideins", "integer"]),
        ("{cpus: 2}", "{cpu: 2}", 8, ["cpu", "unknown key"]),
        ("{cpus: 2}", "{cpus: none}", 8, ["cpus", "integer"]),
        ("name: second", "name: first", 3, ["entries", "two entries", "first"]),
        ("name: second", "name: sec ond", 6, ["name"]),
    ],
)
def test_bad_site_is_refused_with_line_number(refusal, old, new, line, words):
    assert old in SITE
    said = refusal(SITE.replace(old, new, 1), SiteFile)
    found = [text for at, text in said if at == line]
    assert any(all(word in text for word in words) for text in found), said


def test_site_without_entries_is_refused(refusal):
    assert [line for line, _ in refusal("site: here\nentries: []\n", SiteFile)] == [2]


# ---- not even that -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just words\n", "7\n"])
def test_file_without_mapping_is_refused(refusal, text):
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


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml", SweepFile)


# ---- values that look like others ----------------------------------------------------------------

ENTRY = "site: s\nentries:\n  - name: e\n    max_glideins: 1\n"
TIMES = "    downtimes:\n      - {{start: {}, end: {}, reason: cooling}}\n"


@pytest.mark.parametrize(
    "start, end",
    [("20270104", "20270105"), ("8:00", "18:00"), ("2027", "2028"), ("1e9", "2e9"), ("'20270104'", "true")],
)
def test_number_is_refused_as_time(refusal, start, end):
    said = refusal(ENTRY + TIMES.format(start, end), SiteFile)
    assert [line for line, _ in said] == [6, 6] and all("as 2027-01-04 08:00" in text for _, text in said)


@pytest.mark.parametrize(
    "start, end", [("2027-01-04 08:00", "2027-01-04 18:00:00"), ("2027-01-04", "2027-01-05T08:00:00+01:00")]
)
def test_iso_dates_and_times_are_accepted(tmp_path, start, end):
    (tmp_path / "s.yaml").write_text(ENTRY + TIMES.format(start, end))
    (downtime,) = load(tmp_path / "s.yaml", SiteFile).entries[0].downtimes
    assert downtime.start.year == downtime.end.year == 2027


@pytest.mark.parametrize(
    "line",
    [
        "lanes: true", "lanes: '2'", "lanes: 2.0", "lifetime: .inf", "ready: .nan", "ready: 1e400",
        "request: {memory: true}", "breaker: {backoff_seconds: .inf}", "breaker: {backoff_seconds: '60'}",
        "cache: {gigabytes: .inf}", "cache: {folder: \"/a\\nb\"}", "ssh: {host: h, seconds: .inf}",
        "ssh: {host: \"h\\n\"}",
        "python: \"/a\\nqueue 9\"", "container: ''", "owners: [\"ada\\\"@here\"]", "owners: [ada @here]",
        "knobs: {\"A\\nB\": x}", "knobs: {A: \"x\\nB = y\"}", "pool: {collector: ''}",
    ],
)  # fmt: skip
def test_invalid_entry_value_is_refused_with_line_number(refusal, line):
    assert {at for at, _ in refusal(ENTRY + f"    {line}\n", SiteFile)} == {5}


@pytest.mark.parametrize(
    "line",
    ["glideins: true", "glideins: '2'", "timeout: .inf", "timeout: '60'", "batch: true", "pack: '4'", "pack: 1.5"],
)
def test_sweep_number_of_wrong_type_is_refused(refusal, line):
    key = line.partition(":")[0]
    said = refusal(SWEEP.rstrip("\n") + f"\n{line}\n")
    assert said and all(at == len(SWEEP.rstrip("\n").splitlines()) + 1 and key in text for at, text in said)


@pytest.mark.parametrize(
    "text", ["Cpus >", "TARGET.Cpus >= 1 // at least one", "true) || (true", "", "$(HOME)", '"abc', "a; b", "A /* x"]
)
def test_invalid_requirements_expression_is_refused(refusal, text):
    ((line, said),) = refusal(ENTRY + f"    requirements: {json.dumps(text)}\n", SiteFile)
    assert line == 5 and "HTCondor cannot read" in said


def test_requirements_may_span_several_lines(tmp_path):
    (tmp_path / "s.yaml").write_text(
        ENTRY + "    requirements: |\n      TARGET.Cpus >= 1 &&\n      TARGET.Memory > 10\n"
    )
    entry = load(tmp_path / "s.yaml", SiteFile).entries[0]
    assert entry.requirements == "TARGET.Cpus >= 1 && TARGET.Memory > 10"


@pytest.mark.parametrize(
    "name", ["peers", "seed", "file", "lock", "drained", "journal.jsonl", "accounts", "users.lock"]
)
def test_entry_named_like_factory_file_is_refused(refusal, name):
    ((line, said),) = refusal(ENTRY.replace("name: e", f"name: {name}"), SiteFile)
    assert line == 3 and f"a file of its own called {name}" in said


def test_ssh_site_named_like_remote_folder_is_refused(refusal):
    text = ENTRY.replace("site: s", "site: bundles")
    assert "a file of its own" in refusal(text + "    ssh: {host: h}\n", SiteFile)[0][1]
