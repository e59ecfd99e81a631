"""The documentation: each of its commands is run, in its order, and what is generated is what the program says now."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glide.bench import BENCHMARKS
from glide.cli.bench import bench
from glide.condor import EmbeddedPool
from tests.debian import fetched

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\S+)(?: (\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# In the order in which somebody reads them who wants to know everything.
STORY = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("user.md", "admin.md", "inside.md"))]
# What root does on a machine with systemd; the units themselves are verified below.
ROOTS = {
    "useradd", "python3", "/opt/glide/bin/pip", "ln", "cp", "install", "condor_token_create", "systemctl", "sudo",
}  # fmt: skip


def commands(documents: list[Path]) -> str:
    """All of the documents' commands as one script; those of another terminal go on beside the others.

    What a reader has done for one document is not done again for the next, and the pool is theirs to the end.
    """
    lines: list[str] = []
    for document in documents:
        for language, where, text in BLOCK.findall(document.read_text()):
            if language == "sh":
                lines += [f"( exec {text.strip()} ) >&2 &"] if where == "terminal" else text.splitlines()
    return "\n".join(["set -eux", *sorted(dict.fromkeys(lines), key="glide pool down".__eq__)])


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A checkout of one's own, and the environment of somebody who has no pool yet."""
    shutil.copytree(
        ROOT, tmp_path / "glide", ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "build", "*.egg-info")
    )
    claims = tmp_path / "glide" / "workflows" / "promptverify" / "claims.jsonl"
    claims.write_text("".join(claims.read_text().splitlines(keepends=True)[:300]))  # enough to see it work
    home = tmp_path / "home"
    names = ("CONDOR_CONFIG", "CONDOR_IDS", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {
        "GLIDE_HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "glide"), "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_COMPILE": "0",  # what is installed runs once
    }  # fmt: skip
    yield tmp_path / "glide", environment
    EmbeddedPool(home).down()


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a script and what it starts beside itself, to the script's end."""
    script = f"trap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT\n{script}"
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done.stdout


@pytest.mark.pool
def test_every_readme_command_runs(alone: tuple[Path, dict[str, str]]):
    assert "report.html" in run(commands(STORY[:1]), *alone)


@pytest.mark.pool
@pytest.mark.soak
def test_every_documented_command_runs(alone: tuple[Path, dict[str, str]]):
    said = run(commands(STORY), *alone)
    assert "report.html" in said and '"custom_id": "a"' in said, said


def test_generated_documentation_pages_match_their_source():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from generate import REFERENCE, reference
        from results import PAGE, page
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert REFERENCE.read_text() == reference(), "make docs"
    assert PAGE.read_text() == page(), "make docs"


def test_results_page_needs_a_sentence_for_each_missed_goal(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import results

    row = {
        "what": "speed-up",
        "paper": 2.0,
        "unit": "×",
        "here": [1.5],
        "simulated": None,
        "better": "more",
        "goal": None,
    }
    told = [{"name": "rq9", "compared": [row, {**row, "here": [2.5]}]}]
    monkeypatch.setattr(results, "REASONS", ())
    with pytest.raises(SystemExit, match="rq9: 'speed-up' misses its goal"):
        results._compared(told)
    monkeypatch.setattr(results, "REASONS", (("rq9", "speed", "The nodes are slow."),))
    page = results._compared(told)
    assert page[-2] == "- [rq9](#rq9): The nodes are slow." and "**1.50×**" in page[1] and "**2.50×**" not in page[1]


def test_first_table_also_has_the_numbers_of_earlier_runs(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import results

    run = json.loads((results.FOLDER / "rq2.json").read_text())
    row = {"what": "speed-up", "paper": None, "unit": "×", "simulated": None, "better": "more", "goal": 2.0}
    (tmp_path / "earlier").mkdir()
    for commit, file, speed in (("a1", "earlier/rq9-a1", 1.0), ("b2", "earlier/rq9-b2", 1.5), ("c3", "rq9", 2.5)):
        compared = [{**row, "here": [speed]}, {**row, "what": f"number of {commit}", "here": [3.0]}]
        compared.append({**row, "unit": "%", "goal": 0.0, "here": [100.0]})
        document = {
            **run,
            "name": "rq9",
            "commit": commit,
            "columns": ["x"],
            "rows": [[f"row of {commit}"]],
            "compared": compared,
        }
        (tmp_path / f"{file}.json").write_text(json.dumps(document))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "EARLIER", tmp_path / "earlier")
    monkeypatch.setattr(results, "REASONS", (("rq9", "speed-up", "The nodes are slow."),))
    page = results.page()
    assert "**1.50× (1.00–2.50)**" in page and "number of c3" in page and "row of c3" in page
    assert not re.search("(number|row) of (a1|b2)", page)
    assert re.search("In the first table also: .*commit a1, .*; .*commit b2, ", page)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_named_in_documents_exist(document: Path):
    text = document.read_text()
    for target in LINK.findall(text):
        path, _, heading = target.partition("#")
        if "://" in target:
            continue
        there = document.parent / path if path else document
        assert there.exists(), target
        assert not heading or heading in _anchors(there), target
    for named in re.findall(r"`((?:site_configs|submit_templates|workflows|glide|docs)/[\w./@-]+)`", text):
        assert (ROOT / named).exists(), named


def _anchors(document: Path) -> set[str]:
    headings = [line for line in BLOCK.sub("", document.read_text()).splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in headings}


def test_documented_admin_commands_and_systemd_units_are_valid(tmp_path: Path):
    lines = [line for text in DOCUMENTS for kind, _, block in BLOCK.findall(text.read_text()) if kind == "console"
             for line in block.splitlines()]  # fmt: skip
    assert lines and {line.split()[1] for line in lines if line.startswith("# ")} == ROOTS
    for name in re.findall(r"site_configs/\S+", "\n".join(lines)):
        assert (ROOT / name).exists(), name
    analyze = fetched("systemd")
    for unit in (ROOT / "site_configs").glob("*.service"):
        # Which the units' program is not on this machine.
        text = unit.read_text().replace("/usr/local/bin/glide", sys.executable)
        (tmp_path / unit.name.replace("@", "@campus")).write_text(text)
        done = subprocess.run(
            [analyze.program("usr/bin/systemd-analyze"), "verify", str(tmp_path / unit.name.replace("@", "@campus"))],
            env=analyze.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert unit.name.partition("@")[0] not in done.stderr and done.returncode == 0, done.stderr


def test_help_of_bench_describes_each_benchmark():
    described = re.findall(r"^    (\S+)  +\S", bench.__doc__ or "", re.MULTILINE)
    assert described == list(BENCHMARKS)
