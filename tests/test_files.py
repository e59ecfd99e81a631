"""Files on their way to a node: the cache, the source, and what can go wrong with either; in real processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from glide.bench.origin import origin
from glide.files import Cache, CacheFull, Tree
from glide.files.fetch import Fetch, FetchAccount, WrongContent
from glide.files.sources import FolderSource, WebSource, open_source
from glide.files.tree import CHUNK
from glide.template import Template
from glide.vocabulary import Machine, State
from tests.conftest import eventually
from tests.server_rig import Server, failure

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


# ---- a tree from its source ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "web", "web without ranges"])
def test_file_tree_is_fetched_correctly_and_only_once(model, cache, kind):
    with origin(model) as server:
        server.ranges = kind == "web"
        source = FolderSource(model) if kind == "folder" else WebSource(server.url)
        folder, account = fetched(cache, tree(model), source)
        assert same(folder, model) and account.source == account.size == sum(SIZES.values())
        again, account = fetched(cache, tree(model), source)
        assert again == folder and account.source == 0
        if kind != "folder":
            assert sum(server.sent.values()) == sum(SIZES.values())
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in folder.rglob("*") if path.is_file())


def test_contents_shared_with_cached_tree_are_not_refetched(model, cache, tmp_path):
    fetched(cache, tree(model), FolderSource(model))
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text("{}")
    shutil.copy(other / "weights/two.bin", other / "twice.bin")
    folder, account = fetched(cache, tree(other), FolderSource(other))
    assert same(folder, other) and account.source == 2


def test_broken_download_resumes_at_its_position(model, cache):
    with origin(model) as server:
        server.cut, server.cuts = CHUNK // 2, 3
        folder, _ = fetched(cache, tree(model), WebSource(server.url))
        assert same(folder, model)
        assert sum(server.sent.values()) < sum(SIZES.values()) + CHUNK
        assert any(wanted.startswith("bytes=") and wanted != "bytes=0-" for _, wanted in server.requests)


def test_temporary_server_error_is_retried(model, cache):
    with origin(model) as server:
        server.status, server.failures = 503, 2
        assert same(fetched(cache, tree(model), WebSource(server.url))[0], model)


def test_missing_file_is_reported_with_its_url(model, cache):
    with origin(model) as server, pytest.raises(OSError, match=f"{server.url}/config.json: .*404"):
        wanted = tree(model)
        (model / "config.json").unlink()
        fetched(cache, wanted, WebSource(server.url))


@pytest.mark.parametrize("fault", ["corrupt", "short", "long"])
def test_fetched_content_is_verified(model, cache, fault):
    wanted = tree(model)
    path = model / "weights/one.bin"
    data = bytearray(path.read_bytes())
    data[CHUNK + 5] ^= 1
    path.write_bytes({"corrupt": data, "short": path.read_bytes()[:-1], "long": path.read_bytes() + b"x"}[fault])
    with origin(model) as server:
        if fault == "long":  # what is too much is not read
            assert fetched(cache, wanted, WebSource(server.url))[0]
            return
        with pytest.raises(WrongContent, match=r"weights/one.bin"):
            fetched(cache, wanted, WebSource(server.url))
    assert cache.tree_folder(wanted) is None and not cache.trees


def test_model_path_with_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="begins with https://, hf:// or osdf://"):
        open_source("ftp://host/model")


# ---- killed at any byte --------------------------------------------------------------------------


def test_data_fetched_before_kill_is_not_refetched(model, tmp_path):
    template = None
    with origin(model, rate=8e6) as server:
        template = described(model, server.url)
        chance = random.Random(3)
        for _ in range(4):
            process = Process(tmp_path / "cache", template)
            time.sleep(chance.uniform(0.3, 0.6))
            process.kill()
        server.rate = None
        said = Process(tmp_path / "cache", template).end()
        assert same(Path(said["folder"]), model)
        assert sum(server.sent.values()) < sum(SIZES.values()) + 6 * CHUNK  # what was under way, and in sockets


def test_processes_wanting_same_files_fetch_them_once(model, tmp_path):
    with origin(model, rate=20e6) as server:
        template = described(model, server.url)
        processes = [Process(tmp_path / "cache", template) for _ in range(4)]
        folders = {process.end()["folder"] for process in processes}
        assert len(folders) == 1 and same(Path(folders.pop()), model)
        assert sum(server.sent.values()) == sum(SIZES.values())


def test_waiting_process_continues_fetch_of_killed_process(model, tmp_path):
    with origin(model, rate=8e6) as server:
        template = described(model, server.url)
        first = Process(tmp_path / "cache", template)
        time.sleep(0.8)
        second = Process(tmp_path / "cache", template)
        time.sleep(0.3)
        first.kill()
        assert same(Path(second.end()["folder"]), model)
        assert sum(server.sent.values()) < sum(SIZES.values()) + 2 * CHUNK


# ---- the cache -----------------------------------------------------------------------------------


def test_foreign_or_shared_cache_folder_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="0700"):
        Cache(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        Cache(tmp_path / "link")


def test_changed_cache_file_is_fetched_again(model, cache):
    folder, _ = fetched(cache, tree(model), FolderSource(model))
    changed = folder / "weights/two.bin"
    changed.chmod(0o600)
    changed.write_bytes(b"x" * CHUNK)
    folder, account = fetched(cache, tree(model), FolderSource(model))
    assert same(folder, model) and account.source == CHUNK


def test_deleted_cache_is_filled_again(model, cache, tmp_path):
    fetched(cache, tree(model), FolderSource(model))
    shutil.rmtree(cache.folder)
    assert same(fetched(Cache(tmp_path / "cache"), tree(model), FolderSource(model))[0], model)


def test_cache_evicts_oldest_tree_but_none_in_use(tmp_path):
    models = [written(tmp_path / f"model-{number}", {"file": CHUNK}, number) for number in range(4)]
    trees = [tree(model) for model in models]
    cache = Cache(tmp_path / "cache", limit=2 * CHUNK + 100_000)
    for number in (0, 1):
        with cache.in_use(trees[number].digest):
            fetched(cache, trees[number], FolderSource(models[number]))
        os.utime(cache.folder / "trees" / f"{trees[number].digest}.lock", (number, number))
    with cache.in_use(trees[0].digest), cache.in_use(trees[2].digest):
        fetched(cache, trees[2], FolderSource(models[2]))
        assert cache.tree_folder(trees[0]) and cache.tree_folder(trees[2]) and not cache.tree_folder(trees[1])
        with pytest.raises(CacheFull, match="4 MB are needed and 0 MB are available"):
            fetched(cache, trees[3], FolderSource(models[3]))
    with cache.in_use(trees[3].digest):
        assert same(fetched(cache, trees[3], FolderSource(models[3]))[0], models[3])
    assert not cache.tree_folder(trees[0])


def _taken(folder: Path) -> int:
    """Bytes of the disk that the files of a folder, which may not be there yet, take."""
    return sum(512 * path.stat().st_blocks for path in folder.glob("*"))


def test_leftovers_of_killed_fetch_are_evicted(model, tmp_path):
    with origin(model, rate=8e6) as server:
        process = Process(tmp_path / "cache", described(model, server.url))
        eventually(lambda: _taken(tmp_path / "cache" / "partial") > 1_000_000, "a megabyte has come")
        process.kill()
    cache = Cache(tmp_path / "cache", limit=CHUNK + 100_000)
    other = written(tmp_path / "other", {"file": CHUNK}, 9)
    assert list((cache.folder / "partial").iterdir())
    fetched(cache, tree(other), FolderSource(other))
    assert not list((cache.folder / "partial").glob("*.have"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which takes root")
def test_full_disk_is_reported_and_space_released(model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", disk], check=True)
    try:
        cache = Cache(disk / "cache", limit=1 << 40)
        ballast = disk / "ballast"
        with origin(model, rate=2e6) as server:
            process = Process(cache.folder, described(model, server.url), limit=1 << 40)
            said = process.end()
            assert "MB are needed" in said["failed"]  # seen before
            (disk / "small").write_bytes(b"")
            wanted = written(tmp_path / "small", {"file": 2 * CHUNK})
            server.folder = wanted
            process = Process(cache.folder, described(wanted, server.url), limit=1 << 40)
            eventually(lambda: list(cache.folder.glob("partial/*.lock")), "the fetch has begun")
            ballast.write_bytes(b"x" * (6 << 20))  # somebody else
            assert "No space left on device" in process.end()["failed"]
        ballast.unlink()
        assert shutil.disk_usage(disk).free > 9 << 20
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# ---- where they are ------------------------------------------------------------------------------


def test_folder_on_local_disk_is_used_in_place(model, tmp_path):
    said = Process(tmp_path / "cache", described(model)).end()
    assert said == {"folder": str(model), "place": str(model)}
    cache = Cache(tmp_path / "cache")
    assert all(cache.is_verified(model / name, content) for name, (content, _) in described(model).files.items())


def test_changed_local_folder_is_refused(model, tmp_path):
    template = described(model)
    Process(tmp_path / "cache", template).end()
    (model / "weights/two.bin").write_bytes(b"y" * CHUNK)
    said = Process(tmp_path / "cache", template).end()
    assert "weights/two.bin is not the file that the template describes: it has changed since" in said["failed"]


def test_unusable_cache_is_failure_reason(start, model):
    (model.parent / "cache").write_text("no folder")
    reason = failure(start(described(model), {"cache": str(model.parent / "cache")}))
    assert "the node's cache cannot be used" in reason and str(model.parent / "cache") in reason


def test_templates_with_same_files_fetch_once(start, model):
    with origin(model, rate=20e6) as source:
        first = described(model, source.url)
        server = start(first, {"cache": str(model.parent / "cache")})
        other = start(replace(first, options={"load_seconds": 0.1}), {"cache": str(model.parent / "cache")})
        server.reached(State.WARM), other.reached(State.WARM)
        assert sum(source.sent.values()) == sum(SIZES.values())


def test_fetch_progress_is_advertised(start, model):
    with origin(model, rate=5e6) as source:
        server = start(described(model, source.url), {"cache": str(model.parent / "cache")})
        told = []
        for ad in server.states():
            told.append(ad.get(Machine.FETCHED))
            if ad[Machine.STATE] == State.WARM:
                break
    shares = [share for share in told if share is not None]
    assert len(set(shares)) >= 3 and shares == sorted(shares) and told[-1] is None


def test_stalled_fetch_fails_after_its_time_budget(start, model):
    """In a real model server."""
    with origin(model) as server:
        server.stall = CHUNK
        template = replace(described(model, server.url), budgets={State.FETCHING: 2.0})
        assert "Fetching for more than 2 s" in failure(start(template, {"cache": str(model.parent / "cache")}))


# ---- what stays from job to job ------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "loads", "reads"), [("state", 1, 1), ("files", 3, 1), ("nothing", 3, 3)])
def test_kept_files_or_state_are_not_loaded_again(start, model, keep, loads, reads):
    with origin(model) as source:
        template = replace(described(model, source.url), keep=keep, options={"load_seconds": 0.3})
        server = start(template, {"cache": str(model.parent / "cache")})
        server.reached(State.WARM)
        for _ in range(3):
            assert len(server.call([{"custom_id": "a", "prompt": "text"}], template.digest).results()) == 1
            eventually(lambda: keep == "state" or not engines_of(server), "the end of its engine")
        ad = next(server.states())
        assert ad["GlideLoadSeconds"] >= 0.2 * loads  # the engine says when it begins a little late
        assert server.log.read_text().count(" Loading") == (1 if keep == "state" else 0)  # a job's own load is no state
        assert sum(source.sent.values()) == reads * sum(SIZES.values())


def test_job_arriving_during_engine_shutdown_is_served(start, tmp_path):
    template = Template("noop", "noop", keep="files")
    server = start(template)
    server.reached(State.WARM)
    records = [{"custom_id": str(number), "prompt": "text"} for number in range(4)]
    for after in range(24):
        eventually(lambda: not engines_of(server), "the end of the last one's engine")
        first = server.call(records, template.digest)
        first.end()
        time.sleep(0.001 * after)  # engines are ended some 20 ms after their jobs
        assert len(server.call(records, template.digest).results()) == 4


def test_engine_death_with_kept_files_fails_one_record(start, model):
    options = {"crash_on": "POISON"}
    template = replace(described(model), keep="files", options=options)
    server = start(template, {"cache": str(model.parent / "cache")})
    server.reached(State.WARM)
    call = server.call(
        [{"custom_id": str(n), "prompt": "POISON" if n == 3 else "text"} for n in range(8)], template.digest
    )
    assert [bool(result["error"]) for result in sorted(call.results(), key=lambda each: each["custom_id"])] == [
        n == 3 for n in range(8)
    ]


def engines_of(server: Server) -> list[str]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [each for each in children if b"engine_process" in Path(f"/proc/{each}/cmdline").read_bytes()]
