"""Site files: what is refused, at which line, and with which words."""

from __future__ import annotations

import json

import pytest

from glide import resources
from glide.config import SiteFile, load
from glide.errors import InputError
from tests import config_rig

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
refusal = config_rig.refusal  # a fixture


def test_valid_site_is_loaded_with_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text(SITE)
    site = load(tmp_path / "s.yaml", SiteFile)
    assert [entry.name for entry in site.entries] == ["first", "second"]
    assert [entry.request.cpus for entry in site.entries] == [1, 2]


def test_shipped_site_files_are_valid():
    files = resources.find("site_configs", "local.yaml").parent.glob("*.yaml")
    sites = {site.site: site.entries[0] for site in (load(file, SiteFile) for file in files)}
    assert sites.keys() == {"local", "service", "campus", "open-pool", "behind-ssh", "whole-node", "serving"}
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
def test_entry_keys_condor_and_environment_need_absolute_paths(tmp_path, key):
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


def test_entry_key_overrides_merged_yaml_key(tmp_path):
    text = "site: here\nentries:\n  - &first {name: first, max_glideins: 2}\n  - {<<: *first, name: second}\n"
    (tmp_path / "s.yaml").write_text(text)
    entries = load(tmp_path / "s.yaml", SiteFile).entries
    assert [(entry.name, entry.max_glideins) for entry in entries] == [("first", 2), ("second", 2)]


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
def test_bad_site_file_is_refused_with_line_number(refusal, old, new, line, words):
    assert old in SITE
    said = refusal(SITE.replace(old, new, 1), SiteFile)
    found = [text for at, text in said if at == line]
    assert any(all(word in text for word in words) for text in found), said


def test_site_without_entries_is_refused(refusal):
    assert [line for line, _ in refusal("site: here\nentries: []\n", SiteFile)] == [2]


# ---- values that look like others ----------------------------------------------------------------

ENTRY = "site: s\nentries:\n  - name: e\n    max_glideins: 1\n"
TIMES = "    downtimes:\n      - {{start: {}, end: {}, reason: cooling}}\n"


@pytest.mark.parametrize(
    "start, end",
    [("20270104", "20270105"), ("8:00", "18:00"), ("2027", "2028"), ("1e9", "2e9"), ("'20270104'", "true")],
)
def test_number_as_downtime_date_is_refused(refusal, start, end):
    said = refusal(ENTRY + TIMES.format(start, end), SiteFile)
    assert [line for line, _ in said] == [6, 6] and all("as 2027-01-04 08:00" in text for _, text in said)


@pytest.mark.parametrize(
    "start, end", [("2027-01-04 08:00", "2027-01-04 18:00:00"), ("2027-01-04", "2027-01-05T08:00:00+01:00")]
)
def test_downtime_accepts_iso_dates_and_times(tmp_path, start, end):
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
    "text", ["Cpus >", "TARGET.Cpus >= 1 // at least one", "true) || (true", "", "$(HOME)", '"abc', "a; b", "A /* x"]
)
def test_invalid_requirements_expression_is_refused(refusal, text):
    ((line, said),) = refusal(ENTRY + f"    requirements: {json.dumps(text)}\n", SiteFile)
    assert line == 5 and "HTCondor cannot read" in said


def test_requirements_expression_may_span_several_lines(tmp_path):
    (tmp_path / "s.yaml").write_text(
        ENTRY + "    requirements: |\n      TARGET.Cpus >= 1 &&\n      TARGET.Memory > 10\n"
    )
    entry = load(tmp_path / "s.yaml", SiteFile).entries[0]
    assert entry.requirements == "TARGET.Cpus >= 1 && TARGET.Memory > 10"


@pytest.mark.parametrize(
    "name", ["peers", "seed", "file", "lock", "drained", "journal.jsonl", "accounts", "users.lock"]
)
def test_entry_name_reserved_for_factory_files_is_refused(refusal, name):
    ((line, said),) = refusal(ENTRY.replace("name: e", f"name: {name}"), SiteFile)
    assert line == 3 and f"a file of its own called {name}" in said


def test_ssh_site_named_bundles_is_refused(refusal):
    text = ENTRY.replace("site: s", "site: bundles")
    assert "a file of its own" in refusal(text + "    ssh: {host: h}\n", SiteFile)[0][1]
