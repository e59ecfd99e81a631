"""Folders whose names have spaces and quotes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from glide.glidein.configuration import Node, preparation


def test_the_script_before_a_job_names_its_program_in_any_folder(tmp_path: Path):
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    node = Node(folder, "here-1.0", "glide-here", "python3", folder, folder, folder, 1, "cache")
    script = folder / "prepare"
    script.write_text(preparation(node))
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True)
    assert f'Cmd = "{node.invoke}"' in done.stdout.splitlines()
