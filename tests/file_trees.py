"""Folders of files and their templates, the cache that they are fetched to, and the process that fetches them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from glide.files import Cache, Tree
from glide.files.fetch import Fetch, FetchAccount
from glide.files.tree import CHUNK
from glide.template import Template

SIZES = {"config.json": 300, "weights/one.bin": 3 * CHUNK + 17, "weights/two.bin": CHUNK, "empty": 0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model", SIZES)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def written(folder: Path, sizes: dict[str, int], seed: int = 1) -> Path:
    chance = random.Random(seed)
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(chance.randbytes(size))
    return folder


def described(folder: Path, path: str = "") -> Template:
    template = Template.of_folder("model", "noop", folder, {})
    return Template("model", "noop", path or str(folder), template.files)


def tree(folder: Path) -> Tree:
    return Tree(described(folder).files)


def fetched(cache: Cache, wanted: Tree, source: Any) -> tuple[Path, FetchAccount]:
    fetch = Fetch(cache, wanted, source, None, lambda account: None)
    return fetch.run(), fetch.account


def same(folder: Path, other: Path) -> bool:
    mine, theirs = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (folder, other)
    )
    return mine == theirs


class Process:
    """`python -m glide.files`, as a model server starts it."""

    def __init__(self, cache: Path, template: Template, limit: int | None = None, **request: Any):
        request = {
            "parcel": asdict(template.file_set), "cache": {"folder": str(cache), "limit": limit}, "plugins": None,
            "swarm": None, "open": False, **request,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glide.files"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request))
        self.process.stdin.close()

    def end(self) -> dict[str, Any]:
        said: dict[str, Any] = {}
        assert self.process.stdout
        for line in self.process.stdout:
            said |= json.loads(line)
        self.process.wait(60)
        return said

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
