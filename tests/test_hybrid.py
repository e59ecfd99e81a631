"""workflows/hybrid: a DAGMan workflow whose jobs ask a model through `glide serve`, while a glidein is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.pool, pytest.mark.models]
SCRIPT = Path(__file__).resolve().parents[1] / "workflows" / "hybrid" / "run.py"


def test_workflow_finishes_with_a_killed_glidein(tmp_path: Path):
    out = tmp_path / "out"
    options = ["--mountains", "2", "--steps", "3", "--evictions", "1", "--out", str(out)]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = json.loads((out / "hybrid.json").read_text())
    assert (numbers["jobs"], numbers["evictions"]) == (6, 1) and 2 <= numbers["calls"] <= 4
    verdicts = {json.loads(path.read_text())["verdict"] for path in (out / "files").glob("*-1.json")}
    assert verdicts <= {"SUPPORTED", "REFUTED"}
    assert (out / "hybrid.png").stat().st_size > 1000
