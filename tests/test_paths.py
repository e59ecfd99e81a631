"""Folders whose names have spaces and quotes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from glide.glidein.configuration import GlideinNode, prepare_script


def test_prepare_hook_succeeds_in_folder_with_special_characters(tmp_path: Path):
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    node = GlideinNode(folder, "here-1.0", "glide-here", "python3", folder, folder, folder, 1, "cache")
    script = folder / "prepare"
    script.write_text(prepare_script(node))
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True)
    assert f'Cmd = "{node.invoke}"' in done.stdout.splitlines()
