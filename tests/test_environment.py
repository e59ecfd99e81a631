"""What engines run in, and HTCondor itself: packed, unpacked once per host, and run where it came to lie."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import sysconfig
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import glide
from glide.bench.origin import origin
from glide.condor import AccessPoint, Collector, install
from glide.errors import InputError
from glide.files import Cache, CacheFull, Tree
from glide.files.environment import environment
from glide.files.tree import CHUNK
from glide.template import FileSet, Template
from glide.template.spec import files_of
from glide.vocabulary import State
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, entry
from tests.file_trees import Process
from tests.processes import glideins, processes_in
from tests.server_rig import failure

HERE = "/".join(sysconfig.get_paths()["purelib"].split("/")[-3:])  # lib/python3.x/site-packages


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with a module that is nowhere else, and with what the python engine needs."""
    folder = tmp_path_factory.mktemp("venv") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (folder / HERE / "onlythere.py").write_text("WORD = 'from the environment'\n")
    (folder / HERE / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
    return folder


@pytest.fixture(scope="module")
def packed(venv: Path) -> Path:
    return pack(venv, venv.parent / "env.tar.gz")


def pack(folder: Path, archive: Path, name: str = ".") -> Path:
    with tarfile.open(archive, "w:gz", compresslevel=1, dereference=False) as packed:
        packed.add(folder, name)
    return archive


def in_environment(file_set: FileSet, **options: Any) -> Template:
    return Template("there", "noop", options=options, environment=file_set)


def variable(process: int, name: str) -> str:
    found = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next(each.partition(b"=")[2].decode() for each in found if each.startswith(f"{name}=".encode()))


# ---- as users name it ----------------------------------------------------------------------------


def test_environment_digest_depends_on_archive_contents(packed, venv, tmp_path):
    first = in_environment(environment(packed.name, packed.parent))
    (tmp_path / packed.name).symlink_to(packed)
    assert in_environment(environment(str(tmp_path / packed.name), Path())).digest == first.digest
    assert in_environment(environment(str(venv), Path())).digest != first.digest != Template("there", "noop").digest
    assert Template.from_json(first.to_json()) == first


def test_invalid_environment_is_refused_before_submission(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn.tar.gz").write_bytes(b"no archive")
    (tmp_path / "env.zip").write_bytes(b"PK")
    for name, why in [
        ("folder", "has no bin/python"), ("torn.tar.gz", "cannot be unpacked"), ("env.zip", "is neither an archive"),
        ("missing.tar.gz", "No such file"), ("/nowhere/env.tar.gz", "No such file"),
        ("http://127.0.0.1:9/env.zip", "is neither an archive"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=why):
            environment(name, tmp_path)
    with pytest.raises(InputError, match=f"the environment of <lambda>: {tmp_path}/missing.tar.gz: No such file"):
        glide.sticky(environment=str(tmp_path / "missing.tar.gz"))(lambda: {})().template("ada@here")


def test_cvmfs_and_docker_environments_are_accepted_unchecked():
    for name in ("/cvmfs/software.example/envs/llm", "/cvmfs/images.example/llm.sif", "docker://example/llm:1"):
        assert environment(name, Path()) == FileSet(name)


# ---- on a node -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "env"])
def test_environment_archive_is_unpacked_once_per_host(start, venv, tmp_path, name):
    file_set = environment(str(pack(venv, tmp_path / "env.tar.gz", name)), Path())
    servers = [start(in_environment(file_set), {"cache": str(tmp_path / "cache")}) for _ in range(3)]
    for server in servers:
        server.reached(State.WARM)
    (folder,) = (tmp_path / "cache" / "trees").glob("*.files")
    first = (folder / ".glide-bytes").stat()
    servers.append(start(in_environment(file_set), {"cache": str(tmp_path / "cache")}))
    servers[-1].reached(State.WARM)
    assert (folder / ".glide-bytes").stat() == first
    assert {variable(server.engine, "VIRTUAL_ENV") for server in servers} == {str((folder / name).resolve())}
    records = [{"custom_id": "a", "prompt": "text"}]
    assert [server.call(records).results()[0]["text"] for server in servers] == ["text"] * 4


def test_existing_environment_folder_is_used_directly(start, venv, tmp_path):
    server = start(in_environment(environment(str(venv), Path())), {"cache": str(tmp_path / "cache")})
    server.reached(State.WARM)
    assert variable(server.engine, "VIRTUAL_ENV") == str(venv)
    assert not list((tmp_path / "cache" / "trees").iterdir())


def test_model_server_reports_missing_environment_or_container_runtime(start, tmp_path, monkeypatch):
    assert "/nowhere/env has no bin/python" in failure(start(in_environment(FileSet("/nowhere/env"))))
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = failure(start(in_environment(FileSet("docker://example/llm:1"))))
    assert reason == "docker://example/llm:1 needs apptainer or singularity, but neither is on this node's PATH"


def test_environment_is_fetched_with_model_files(start, packed, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(random.Random(1).randbytes(CHUNK))
    with origin(model) as web, origin(packed.parent) as archive:
        files = files_of(packed, packed.parent)
        template = replace(
            Template.of_folder("there", "noop", model, {}), path=web.url, environment=FileSet(archive.url, files)
        )
        server = start(template, {"cache": str(tmp_path / "cache")})
        server.reached(State.WARM)
        assert archive.sent[packed.name] == packed.stat().st_size and web.sent["weights"] == CHUNK
    assert "there's environment: " in server.log.read_text() and "there's files: 4 MB" in server.log.read_text()


def test_corrupt_environment_archive_is_reported_and_leaves_nothing(start, packed, tmp_path):
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(packed.read_bytes()[:-2000])
    reason = failure(start(in_environment(environment(str(torn), Path())), {"cache": str(tmp_path / "cache")}))
    assert "torn.tar.gz cannot be unpacked" in reason
    assert not list((tmp_path / "cache" / "trees").glob("*.files"))


def test_killed_unpacking_is_restarted_without_leftovers(tmp_path):
    source = tmp_path / "env"
    (source / "bin").mkdir(parents=True)
    for number in range(300):
        (source / f"file-{number}").write_bytes(os.urandom(1 << 18))
    (source / "bin" / "python").write_text("#!/bin/sh\n")
    file_set = environment(str(pack(source, tmp_path / "env.tar.gz")), Path())
    template, chance = Template("m", "noop", file_set.path, file_set.files), random.Random(2)
    known: set[Path] = set()
    for _ in range(5):
        process = Process(tmp_path / "cache", template, open=True)
        known |= eventually(lambda: set((tmp_path / "cache").glob("trees/*.files")) - known, "it begins")  # noqa: B023
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
    place = Path(Process(tmp_path / "cache", template, open=True).end()["place"])
    assert list((tmp_path / "cache").glob("trees/*.files")) == [place]  # nothing is left of the others
    assert all((place / each.name).read_bytes() == each.read_bytes() for each in source.glob("file-*"))


def test_unpacked_archives_obey_cache_limit_and_are_evicted(packed, tmp_path):
    file_set = environment(str(packed), Path())
    digest = Tree(file_set.files).digest
    cache = Cache(tmp_path / "cache", limit=31 << 20)
    with pytest.raises(CacheFull):  # it is unpacked in steps of that much
        cache.unpack(digest, packed)
    assert not list((tmp_path / "cache" / "trees").glob("*.files"))
    cache = Cache(tmp_path / "cache", limit=64 << 20)
    with cache.in_use(digest):
        folder = cache.unpack(digest, packed)
        taken = int((folder / ".glide-bytes").read_text())
        assert taken == sum(
            path.stat().st_size for path in folder.rglob("[!.]*") if path.is_file() and not path.is_symlink()
        )
        with pytest.raises(CacheFull):
            cache.make_room((64 << 20) - taken + 1)
        assert folder.exists()
    cache.make_room((64 << 20) - taken + 1)
    assert not folder.exists()


def test_conda_unpack_runs_at_final_path_of_environment(tmp_path):
    source = tmp_path / "env"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "python").symlink_to(sys.executable)
    (source / "bin" / "conda-unpack").write_text("import sys; open(sys.argv[0] + '.ran', 'a').write(sys.argv[0])\n")
    file_set = environment(str(pack(source, tmp_path / "env.tar.gz")), Path())
    process = Process(tmp_path / "cache", Template("m", "noop", file_set.path, file_set.files), open=True)
    place = Path(process.end()["place"])
    assert (place / "bin" / "conda-unpack.ran").read_text() == str(place / "bin" / "conda-unpack")


def test_unpacked_read_only_folders_become_writable(tmp_path):
    source = tmp_path / "env"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "python").write_text("#!/bin/sh\n")
    (source / "bin" / "python").chmod(0o444)
    (source / "bin").chmod(0o555)
    file_set = environment(str(pack(source, tmp_path / "env.tar.gz")), Path())
    process = Process(tmp_path / "cache", Template("m", "noop", file_set.path, file_set.files), open=True)
    place = Path(process.end()["place"])
    assert os.stat(place / "bin").st_mode & 0o700 == 0o700 and os.access(place / "bin" / "python", os.W_OK)


def test_environment_with_missing_python_fails_with_reason(start, venv, tmp_path):
    copy = tmp_path / "copy"
    (copy / "bin").mkdir(parents=True)
    (copy / "bin" / "python").symlink_to("/nowhere/python3.99")
    reason = failure(start(in_environment(FileSet(str(copy)))))
    assert "needs a Python that this node lacks: its bin/python is a link to /nowhere/python3.99" in reason


# ---- on a pool -----------------------------------------------------------------------------------


@pytest.mark.pool
def test_python_functions_run_in_their_own_environment(factory, packed):
    @glide.sticky(environment=str(packed))
    def words():
        import onlythere

        return {"word": onlythere.WORD}

    @glide.invocation(state=words())
    def say(number, word):
        return f"{number} {word}"

    with glide.Session() as session:
        assert list(session.map(say, range(3))) == [f"{number} from the environment" for number in range(3)]


@pytest.mark.pool
def test_environment_of_entry_applies_to_models_without_environment(own_pool, sweep, packed, tmp_path):
    factory = FactoryProcess(tmp_path, "given", entry("given", environment=str(packed)))
    factory.start()
    try:
        assert sweep.write([{"custom_id": "a", "text": "x"}]).run().returncode == 0
        (engine,) = processes_in(own_pool.home)
        assert variable(engine, "VIRTUAL_ENV").startswith(f"{own_pool.home}/cache/trees/")
    finally:
        factory.stop()
        AccessPoint().remove("true", "the test is over")


@pytest.mark.pool
def test_htcondor_is_sent_to_nodes_without_it(own_pool, tmp_path):
    archive = install.bundle()
    assert archive, "HTCondor is not glide's own here"
    factory = FactoryProcess(
        tmp_path, "bare", entry("bare", condor=str(archive), ready=2, cache={"folder": str(tmp_path / "node")})
    )
    factory.start()
    try:
        masters = eventually(lambda: len(found := glideins(tmp_path / "node")) == 2 and found, "two glideins run")
        assert len({os.readlink(f"/proc/{master}/exe") for master in masters}) == 1  # unpacked once
        eventually(lambda: len(Collector().lanes(["Name"])) == 4, "their lanes are in the pool")
        with glide.Session() as session:  # whose jobs the same HTCondor runs
            assert list(session.map(abs, [-1, 2])) == [1, 2]
        # What it runs from is in use, though no process holds a file of it by the cache's own means.
        with pytest.raises(CacheFull):
            Cache(tmp_path / "node", limit=1).make_room(1)
        assert set(masters) <= set(glideins(tmp_path / "node"))  # and one for that which is no longer ready
    finally:
        factory.stop()
        AccessPoint().remove("true", "the test is over")
