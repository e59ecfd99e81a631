"""The comparison with neighbours: all systems are given, and give, the same texts, and one that is missing is named."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_end_to_end import ODD_TEXTS, greedy

PEERS = Path(__file__).resolve().parent.parent / "workflows" / "peers"


def test_what_the_neighbours_compute_is_plain_greedy_text(tmp_path):
    from tests.models import tiny_llama

    model, records, out = tiny_llama(tmp_path / "model", context=4096), tmp_path / "records", tmp_path / "out"
    prompts = [text for text in ODD_TEXTS if text] * 10  # more than a task, and batches of mixed lengths
    records.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    subprocess.run([sys.executable, PEERS / "processes.py", model, records, out], check=True)
    told = json.loads(out.read_text())
    texts = greedy(model, prompts[: len(prompts) // 10], 4) * 10
    assert told["records"] == len(prompts)
    assert told["digest"] == hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    assert told["total_s"] > told["makespan_s"] > 0


@pytest.mark.pool
def test_glide_and_plain_processes_agree_and_the_missing_are_named(tmp_path):
    names = ("glide", "two plain processes", "TaskVine functions")
    options = ["--repeat", "1", "--records", "60", "--taskvine", sys.executable, "--out", tmp_path, "--only", *names]
    ran = subprocess.run([sys.executable, PEERS / "run.py", *options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = json.loads((tmp_path / "peers.json").read_text())
    assert [row[0] for row in told["rows"]] == ["glide", "two plain processes"]
    assert all(run["records"] == 60 for runs in told["data"]["runs"].values() for run in runs)
    (missing,) = [note for note in told["notes"] if "left out" in note]
    assert missing.startswith("TaskVine functions was left out: ") and "--taskvine" in missing
    assert "All texts are equal, over all systems and runs." in told["notes"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
