"""Files on their way to a node: the source, the cache, and what can go wrong with either; in real processes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from glide.bench.origin import origin
from glide.files import Cache, CacheFull
from glide.files.fetch import WrongContent
from glide.files.sources import FolderSource, WebSource, open_source
from glide.files.tree import CHUNK
from tests import file_trees
from tests.conftest import eventually
from tests.file_trees import SIZES, Process, described, fetched, same, tree, written

model, cache = file_trees.model, file_trees.cache  # fixtures


# ---- a tree from its source ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "web", "web without ranges"])
def test_file_tree_is_fetched_intact_and_never_refetched(model, cache, kind):
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


def test_files_equal_to_cached_files_are_not_refetched(model, cache, tmp_path):
    fetched(cache, tree(model), FolderSource(model))
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text("{}")
    shutil.copy(other / "weights/two.bin", other / "twice.bin")
    folder, account = fetched(cache, tree(other), FolderSource(other))
    assert same(folder, other) and account.source == 2


def test_broken_download_resumes_where_it_stopped(model, cache):
    with origin(model) as server:
        server.cut, server.cuts = CHUNK // 2, 3
        folder, _ = fetched(cache, tree(model), WebSource(server.url))
        assert same(folder, model)
        assert sum(server.sent.values()) < sum(SIZES.values()) + CHUNK
        assert any(wanted.startswith("bytes=") and wanted != "bytes=0-" for _, wanted in server.requests)


def test_download_is_retried_after_temporary_server_error(model, cache):
    with origin(model) as server:
        server.status, server.failures = 503, 2
        assert same(fetched(cache, tree(model), WebSource(server.url))[0], model)


def test_missing_file_is_reported_with_its_url(model, cache):
    with origin(model) as server, pytest.raises(OSError, match=f"{server.url}/config.json: .*404"):
        wanted = tree(model)
        (model / "config.json").unlink()
        fetched(cache, wanted, WebSource(server.url))


@pytest.mark.parametrize("fault", ["corrupt", "short", "long"])
def test_fetch_refuses_corrupt_files_and_ignores_excess_bytes(model, cache, fault):
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


def test_processes_share_one_fetch_of_same_files(model, tmp_path):
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


def test_cache_folder_accessible_to_others_is_refused(tmp_path):
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


def test_cache_evicts_oldest_files_but_none_in_use(tmp_path):
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
def test_fetch_onto_full_disk_fails_and_frees_space(model, tmp_path):
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
