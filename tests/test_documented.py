"""What the README says about Python runs as printed: from a script, and from a Jupyter kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from glide.condor import EmbeddedPool

pytestmark = pytest.mark.pool
ROOT = Path(__file__).resolve().parents[1]
(EXAMPLE,) = re.findall(r"```python\n(import glide\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
VERDICTS = {"SUPPORTED", "REFUTED", "NOT ENOUGH INFO"}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """The environment of somebody who has no pool yet; whatever is left of theirs is stopped."""
    for name in ("CONDOR_CONFIG", "CONDOR_IDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path / "home"))
    pool = EmbeddedPool(tmp_path / "home")
    yield pool
    left = pool.processes()
    pool.down()
    assert not left


def test_readme_example_runs_as_script(alone, tmp_path):
    (tmp_path / "example.py").write_text(EXAMPLE)
    done = subprocess.run(
        [sys.executable, tmp_path / "example.py"], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert len(lines) == 2 and set(lines) <= VERDICTS, done.stdout


@pytest.mark.soak  # the script above runs the same lines
def test_readme_example_runs_twice_in_notebook(alone):
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT), env=dict(os.environ))
    try:
        head, tail = EXAMPLE.split("with glide.Session")
        assert _printed(client, head) == ""
        for _ in range(2):
            lines = [line.strip() for line in _printed(client, f"with glide.Session{tail}").splitlines()]
            assert len(lines) == 2 and set(lines) <= VERDICTS
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


def _printed(client, cell: str) -> str:
    texts: list[str] = []

    def note(message) -> None:
        content = message["content"]
        assert message["msg_type"] != "error", "\n".join(content["traceback"])
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            texts.append(content["text"])

    client.execute_interactive(cell, timeout=120, output_hook=note)
    return "".join(texts)


def test_parsl_example_of_paper_needs_only_changed_import(factory):
    workflows = ROOT / "workflows" / "stickyinvoc"
    before, after = ((workflows / name).read_text().splitlines() for name in ("before.py", "after.py"))
    assert [(one, other) for one, other in zip(before, after, strict=True) if one != other] == [
        (
            "from parsl import load_variable_from_state_manager, python_app",
            "from glide.parsl import load_variable_from_state_manager, python_app",
        )
    ]
    done = subprocess.run([sys.executable, workflows / "after.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(verdict in done.stdout for verdict in ("[", "]")) and any(each in done.stdout for each in VERDICTS)
