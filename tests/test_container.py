"""Engines and whole glideins in containers of a real Apptainer."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from glide.condor import AccessPoint, Collector
from glide.condor.access_point import quoted
from glide.files.environment import SANDBOX
from glide.template import FileSet, Template
from glide.vocabulary import Machine, State
from tests.apptainer import program_folder
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, entry
from tests.processes import glideins, processes_in

SYSTEM = ("bin", "lib", "lib64", "sbin", "usr")


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's folder, with this system's programs in it, and Apptainer on the PATH."""
    folder = tmp_path / "image"
    for name in (SANDBOX, "dev", "etc", "proc", "root", "sys", "tmp", "var/tmp", *SYSTEM):
        (folder / name).mkdir(parents=True)
    for name in ("group", "hosts", "passwd", "resolv.conf"):
        (folder / "etc" / name).touch()
    monkeypatch.setenv("PATH", f"{program_folder()}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("APPTAINER_BIND", ",".join(f"/{name}" for name in SYSTEM))
    monkeypatch.setenv("APPTAINER_USERNS", "1")  # as an ordinary user has it
    return folder


def test_engine_in_container_recovers_from_hang_and_kill(start, image, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"x")
    template = replace(Template.of_folder("there", "noop", model, {"hang_on": "HANG"}), environment=FileSet(str(image)))
    server = start(template)
    server.reached(State.WARM)
    inside = [process for process in processes_in(server.folder) if Path(f"/proc/{process}/root/{SANDBOX}").is_dir()]
    assert len(inside) == 1
    call = server.call([{"custom_id": text, "prompt": text, "timeout": 1} for text in ("before", "HANG", "after")])
    results = {result["custom_id"]: result for result in call.results()}
    assert results["HANG"]["error"]["type"] == "RecordTimeout"
    assert [results[text]["text"] for text in ("before", "after")] == ["before", "after"]
    os.kill(inside[0], signal.SIGKILL)
    assert server.call([{"custom_id": "a", "prompt": "again"}]).results()[0]["text"] == "again"
    eventually(lambda: processes_in(server.folder), "another engine")
    server.process.kill()
    eventually(lambda: not processes_in(server.folder), "nothing of it is left")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Not in /tmp, of which containers have their own, as caches may be."""
    with tempfile.TemporaryDirectory(prefix=".glide-test-", dir=Path.home()) as folder:
        yield Path(folder)


@pytest.mark.pool
def test_glidein_runs_in_image_that_contains_no_htcondor(monkeypatch, request, sweep, image, elsewhere, tmp_path):
    monkeypatch.setenv("_CONDOR_SINGULARITY", str(program_folder() / "apptainer"))
    monkeypatch.setenv("_CONDOR_SINGULARITY_BIND_EXPR", f'"{os.environ["APPTAINER_BIND"]}"')
    monkeypatch.setenv("_CONDOR_EXECUTE", str(elsewhere))
    monkeypatch.setenv("_CONDOR_SINGULARITY_RUN_TEST_BEFORE_JOB", "False")  # this image has no test
    request.getfixturevalue("own_pool")
    factory = FactoryProcess(tmp_path, "contained", entry(
        "contained", container=str(image), python="/usr/bin/python3", cache={"folder": "$PWD/cache"},
    ))  # fmt: skip
    factory.start()
    try:
        assert sweep.write([{"custom_id": "a", "text": "inside"}]).run().returncode == 0
        assert [result["text"] for result in sweep.results()] == ["inside"]
        (lane, _) = Collector().lanes([Machine.INVOKE], f"regexp({quoted(str(elsewhere))}, {Machine.INVOKE})")
        masters = glideins(Path(lane[Machine.INVOKE]).parents[3] / "cache")
        assert masters and all(Path(f"/proc/{master}/root/{SANDBOX}").is_dir() for master in masters)
    finally:
        factory.stop()
        AccessPoint().remove("true", "the test is over")
