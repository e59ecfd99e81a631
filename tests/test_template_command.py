"""glide template: what something is to the nodes, and whether it loads, before anything is submitted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from glide.template import Template

CODE = """
import glide

@glide.sticky
def numbers(base, sleeps=0.0):
    import time
    time.sleep(sleeps)
    if base < 0:
        raise ValueError("a base below zero")
    return {"base": base}

@glide.invocation(state=numbers(40))
def add(number, base):
    return number + base

slow = numbers(1, sleeps=0.3)
broken = numbers(-1)

if __name__ == "__main__":
    raise SystemExit("it is run")
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "infer.py").write_text(CODE)
    return tmp_path / "infer.py"


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "glide", "template", *map(str, words)], capture_output=True, text=True)


def test_template_check_loads_function_and_reports_times(code):
    done = command("check", "--json", f"{code}:slow")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["failure"] == "" and told["megabytes"] > 5
    # A phase is timed from where it is heard of, which may be a little later at its beginning than at its end.
    assert told["seconds"]["load"] > 0.2 and set(told["seconds"]) == {"fetch", "import", "load", "warm"}
    assert "numbers: Loading" in done.stderr and "numbers: Warm" in done.stderr


def test_template_check_shows_traceback_of_failed_load(code):
    done = command("check", f"{code}:broken")
    assert done.returncode == 1
    assert "numbers does not load: ValueError: a base below zero" in done.stderr
    assert 'raise ValueError("a base below zero")' in done.stderr


def test_template_digest_ignores_code_of_functions_using_state(code, tmp_path):
    first = command("digest", f"{code}:add").stdout.strip()
    assert len(first) == 64 and command("digest", f"{code}:slow").stdout.strip() != first
    code.write_text("# moved down\n\n" + CODE.replace("number + base", "number - base"))
    assert command("digest", f"{code}:add").stdout.strip() == first, "what uses the state is not the state"
    code.write_text(CODE.replace('"base": base', '"base": base + 1'))
    assert command("digest", f"{code}:add").stdout.strip() != first
    shown = json.loads(command("show", f"{code}:slow").stdout)
    assert shown["engine"] == "python" and "def numbers" in shown["function"]["source"]
    assert "characters" in shown["function"]["pickle"]
    assert Template.from_json(command("show", "--json", f"{code}:slow").stdout).digest == shown["digest"]


@pytest.mark.parametrize(
    ("source", "words"), [("{code}:nothing", "choose a sticky state"), ("nowhere.py:x", "no such file"),
                          ("{code}", "choose a sticky state"), ("nowhere.yaml", "nowhere.yaml")],
)  # fmt: skip
def test_missing_template_source_is_reported_in_one_line(code, source, words):
    done = command("digest", source.format(code=code))
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_template_command_accepts_sweep_file(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        "name: s\nmodel: {name: m, engine: noop, options: {load_seconds: 0.3}, budgets: {load: 5}}\n"
        "records: none.jsonl\nprompts: {plain: text}\n"
    )
    done = command("check", "--json", tmp_path / "sweep.yaml")
    assert done.returncode == 0 and json.loads(done.stdout)["seconds"]["load"] > 0.2  # as above
    assert json.loads(command("show", tmp_path / "sweep.yaml").stdout)["budgets"] == {"Loading": 5.0}
