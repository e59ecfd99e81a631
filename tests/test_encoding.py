"""No file and no program's output is read or written as the locale has it: UTF-8 is said wherever text is meant."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for room in ("glide", "workflows", "docs") for path in (REPOSITORY / room).rglob("*.py"))
# Where `encoding` may stand among the positional arguments.
POSITION = {"read_text": 0, "write_text": 1, "open": 2, "fdopen": 2, "TextIOWrapper": 1, "NamedTemporaryFile": 2}
BINARY_BY_DEFAULT = {"NamedTemporaryFile"}
# Calls of the same name that open no text file.
OTHERS = {"os.open", "self._connection.open", "webbrowser.open", "tarfile.open", "zipfile.open", "gzip.open"}


def without_encoding(source: str) -> Iterator[ast.Call]:
    """The calls that leave a text's encoding to the locale."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in words or None in words:  # **options say it, or are themselves a call that is looked at
            continue
        name = ast.unparse(call.func)
        last = name.rpartition(".")[2]
        program = bool({"text", "universal_newlines"} & words.keys())
        if program or (last in POSITION and name not in OTHERS and _is_text(call, words, last, "." in name)):
            yield call


def _is_text(call: ast.Call, words: dict[str | None, ast.expr], last: str, method: bool) -> bool:
    if last == "open" and method:  # a path's: no file among the arguments
        mode, place = (call.args[0] if call.args else words.get("mode")), 2
    else:
        mode, place = (call.args[1] if len(call.args) > 1 else words.get("mode")), POSITION[last]
    if last == "NamedTemporaryFile":
        mode = call.args[0] if call.args else words.get("mode")
    if len(call.args) > place:
        return False
    if last in ("read_text", "write_text", "TextIOWrapper"):
        return True
    if mode is None:
        return last not in BINARY_BY_DEFAULT
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_project_code_never_relies_on_locale_encoding(path):
    found = [f"{path}:{call.lineno}: {ast.unparse(call)}" for call in without_encoding(path.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source, count",
    [
        ("path.read_text()", 1), ("path.read_text('utf-8')", 0), ("path.write_text(x)", 1), ("path.open()", 1),
        ("path.write_text(x, encoding='utf-8')", 0), ("path.open('w')", 1), ("path.open('rb')", 0),
        ("open(path)", 1), ("open(path, 'w')", 1), ("open(path, mode='ab')", 0), ("os.fdopen(number, 'w')", 1),
        ("run(words, text=True)", 1), ("run(words, text=True, encoding='utf-8')", 0), ("os.open(path, flags)", 0),
        ("NamedTemporaryFile('w')", 1), ("NamedTemporaryFile()", 0), ("TextIOWrapper(pipe)", 1),
    ],
)  # fmt: skip
def test_encoding_check_finds_calls_without_encoding(source, count):
    assert len(list(without_encoding(source))) == count


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {}], ids=["C", ""])
def test_locale_does_not_affect_sweep(tmp_path, locale):
    (tmp_path / "r.jsonl").write_text('{"custom_id": "größe", "text": "日本"}\n', "utf-8")
    sweep = 'name: s\nmodel: {name: m, engine: noop}\nrecords: r.jsonl\nprompts: {"plain": "Übersetze: {text}{oh}"}\n'
    (tmp_path / "s.yaml").write_text(sweep, "utf-8")
    words = [sys.executable, "-m", "glide", "sweep", "status", "s.yaml"]
    environment = {**os.environ, **locale}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"") and b"r.jsonl:1: no field 'oh'" in done.stderr, done.stderr
    (tmp_path / "s.yaml").write_text(sweep.replace("{oh}", ""), "utf-8")
    done = subprocess.run([*words, "--json"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["records"] == 1
