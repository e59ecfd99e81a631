"""A file or folder that cannot be used is one line that names it and the fix, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glide.cli import _describe_os_error
from glide.vocabulary import Exit

SWEEP = "name: s\nmodel: {name: m, engine: noop}\nrecords: r.jsonl\nprompts: {plain: x}\nout: OUT\n"


def refused(folder: Path, *words: str, **environment: str) -> str:
    """The one line with which a command ends."""
    unconfigured = {name: value for name, value in os.environ.items() if not name.startswith(("CONDOR_", "_CONDOR_"))}
    done = subprocess.run(
        [sys.executable, "-m", "glide", *words], cwd=folder, capture_output=True, encoding="utf-8",
        env=unconfigured | environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (Exit.INPUT, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    (tmp_path / "r.jsonl").write_text('{"custom_id": "a"}\n')
    (tmp_path / "s.yaml").write_text(SWEEP)
    return tmp_path


@pytest.mark.parametrize("command", [("sweep", "run", "s.yaml"), ("pool", "up")])
def test_error_for_unusable_glide_home_suggests_another_folder(folder, command):
    home = folder / "file" / "home"
    line = refused(folder, *command, GLIDE_HOME=str(home))
    assert line.startswith(f"glide: {home}") and "set GLIDE_HOME to a folder that you can write" in line


def test_error_for_unusable_output_folder_suggests_another_folder(folder):
    (folder / "s.yaml").write_text(SWEEP.replace("OUT", "file/out"))
    line = refused(folder, "sweep", "run", "s.yaml", GLIDE_HOME=str(folder / "home"))
    assert (
        line.startswith(f"glide: {folder / 'file' / 'out'}") and "`out` must name a folder that you can write" in line
    )
    assert not (folder / "home").exists()


def test_message_about_unencodable_file_name_suggests_utf8_locale(folder):
    (folder / "s.yaml").write_text(SWEEP.replace("r.jsonl", "größe.jsonl"), "utf-8")
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert refused(folder, "sweep", "status", "s.yaml", **locale).endswith("set LC_ALL=C.UTF-8")


@pytest.mark.parametrize("path, fix", [
    ("/h/glide/pool", "; set GLIDE_HOME to a folder that you can write"),
    ("/h", "; set GLIDE_HOME to a folder that you can write"),
    ("/c/glide/condor", "; set XDG_CACHE_HOME to a folder that you can write"),
    ("/elsewhere", ""),
    ("/", ""),
])  # fmt: skip
def test_message_about_unwritable_folder_suggests_environment_variable(monkeypatch, path, fix):
    monkeypatch.setenv("GLIDE_HOME", "/h/glide")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert _describe_os_error(PermissionError(13, "Permission denied", path)) == f"{path}: Permission denied{fix}"
