"""glide:// for ordinary jobs: from the cache of a node, its peers or the source, by a plugin that the job brings."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from glide.bench.origin import origin
from glide.condor import AccessPoint, EmbeddedPool
from glide.files.cache import Cache
from glide.files.tree import CHUNK
from glide.template import Template
from glide.vocabulary import POOL_VARIABLE, JobStatus
from tests.conftest import eventually
from tests.factory_rig import ROOT, FactoryProcess, command, entry
from tests.file_trees import SIZES, described, same, written

JOB = (ROOT / "submit_templates" / "files.sub").read_text()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `glide template plugin` writes it; with no Python path, as nodes have nothing of glide."""
    path = tmp_path_factory.mktemp("plugin") / "glide_plugin"
    done = command("template", "plugin", str(path))
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def job(tmp_path: Path, plugin: Path):
    """A job's folder, and what the plugin does there."""
    (tmp_path / "job").mkdir()
    shutil.copy(plugin, tmp_path / "job")
    return Job(tmp_path / "job", tmp_path / "node")


class Job:
    def __init__(self, folder: Path, node: Path):
        self.folder = folder
        self.node = node
        node.mkdir()

    def ticket(self, template: Template, name: str = "model.glide") -> None:
        file_set = template.file_set
        (self.folder / name).write_text(
            json.dumps({"path": file_set.path, "files": file_set.files, "key": file_set.key, "seed": file_set.seed})
        )

    def transfers(self, *urls: str, **variables: str) -> tuple[int, list[str]]:
        """The exit code, and the answer to each."""
        ads = [f'[ Url = "{url}"; LocalFileName = "{self.folder / Path(url[8:]).name}" ]\n' for url in urls]
        (self.folder / ".in").write_text("".join(ads))
        done = self.run("-infile", str(self.folder / ".in"), "-outfile", str(self.folder / ".out"), **variables)
        return done.returncode, (self.folder / ".out").read_text().splitlines()

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], **(variables or {POOL_VARIABLE: str(self.node)})}
        return subprocess.run(
            [str(self.folder / "glide_plugin"), *words], capture_output=True, text=True, cwd="/", env=environment
        )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "here" / "model", SIZES)


def test_plugin_advertises_its_capabilities(job):
    said = job.run("-classad").stdout
    assert 'SupportedMethods = "glide"' in said and "MultipleFileSupport = true" in said


def test_plugin_fetches_files_once_per_host(job, model):
    with origin(model) as source:
        job.ticket(described(model, source.url))
        code, answers = job.transfers("glide://model", "glide://model/weights/two.bin")
        assert code == 0 and all("TransferSuccess = true" in answer for answer in answers)
        assert same(job.folder / "model", model)
        assert (job.folder / "two.bin").stat().st_size == CHUNK
        assert re.search(rf"TransferTotalBytes = {sum(SIZES.values())};", answers[0])
        shutil.rmtree(job.folder / "model")
        (job.folder / "two.bin").unlink()
        job.transfers("glide://model")
        assert same(job.folder / "model", model)
        assert sum(source.sent.values()) == sum(SIZES.values())
    linked = job.folder / "model" / "weights" / "one.bin"
    assert linked.stat().st_nlink == 3 and not linked.stat().st_mode & stat.S_IWUSR  # its own, a content, a tree


def test_job_that_changes_files_affects_no_later_job(job, model):
    with origin(model) as source:
        job.ticket(described(model, source.url))
        job.transfers("glide://model")
        spoilt = job.folder / "model" / "weights" / "two.bin"
        spoilt.chmod(0o600)
        spoilt.write_bytes(b"spoilt".ljust(CHUNK))
        shutil.rmtree(job.folder / "model")
        assert job.transfers("glide://model")[0] == 0
    assert same(job.folder / "model", model)


def test_local_model_folder_is_copied_but_not_modified(job, model):
    job.ticket(described(model))
    assert job.transfers("glide://model")[0] == 0
    spoilt = job.folder / "model" / "config.json"
    spoilt.write_bytes(b"mine")
    assert (model / "config.json").stat().st_size == SIZES["config.json"]
    (job.folder / "model.glide").rename(job.folder / "other.glide")
    assert job.transfers("glide://other/config.json", "glide://other/config.json")[0] == 0


def test_plugin_caches_no_files_under_shared_user_account(job, model):
    with origin(model) as source:
        job.ticket(described(model, source.url))
        (job.folder / ".job.ad").write_text('Owner = "somebody"\n')
        code, _ = job.transfers("glide://model", _CONDOR_JOB_AD=str(job.folder / ".job.ad"))
        assert code == 0 and same(job.folder / "model", model)
    assert not list(job.node.iterdir()) and not list(job.folder.glob(".glide-*"))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("glide://model", "the job has no model.glide; add it to transfer_input_files"),
        ("glide://torn", "Expecting value"),
        ("glide://outside", "'../evil' is no name of a file within a folder"),
        ("glide://gone", "gone/config.json: HTTP Error 404"),
        ("glide://gone/other.bin", "gone.glide lists no other.bin"),
    ],
)
def test_failed_plugin_transfer_reports_one_specific_error(job, model, url, why):
    (job.folder / "torn.glide").write_text("")
    evil = {"../evil": ("0" * 64, 1)}
    job.ticket(Template("m", "noop", str(model), evil), "outside.glide")
    with origin(model) as source:
        job.ticket(described(model, f"{source.url}/gone"), "gone.glide")
        code, (answer,) = job.transfers(url)
    assert code == 1 and "TransferSuccess = false" in answer and why in answer, answer


def test_plugin_refuses_uploads(job):
    done = job.run("-infile", "in", "-outfile", "out", "-upload")
    assert done.returncode == 1 and "glide:// is for input files" in done.stderr


# ---- tickets -------------------------------------------------------------------------------------


def test_ticket_command_writes_file_list_and_peer_key(tmp_path, monkeypatch, model):
    (tmp_path / "sweep.yaml").write_text(
        json.dumps(
            {
                "name": "s", "model": {"name": "m", "engine": "noop", "path": str(model)}, "records": "r.jsonl",
                "prompts": {"p": "{x}"},
            }
        )
    )  # fmt: skip
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path / "home"))
    words = ["template", "ticket", str(tmp_path / "sweep.yaml"), str(tmp_path / "model.glide")]
    done = command(*words)
    assert done.returncode == 0 and "no factory has run with this GLIDE_HOME" in done.stderr
    assert json.loads((tmp_path / "model.glide").read_text())["key"] == ""
    for site in ("one", "two"):
        (tmp_path / "home" / "factory" / site).mkdir(parents=True)
        (tmp_path / "home" / "factory" / site / "peers").write_bytes(site.encode())
    assert "add --site one or --site two" in command(*words).stderr
    assert "no factory of a site 'tow' has run" in command(*words, "--site", "tow").stderr
    assert command(*words, "--site", "one").returncode == 0
    ticket = json.loads((tmp_path / "model.glide").read_text())
    assert len(ticket["key"]) == 64 and ticket["files"].keys() == SIZES.keys()
    assert stat.S_IMODE((tmp_path / "model.glide").stat().st_mode) == 0o600
    assert command(*words[:3], str(tmp_path / "model")).returncode == 2


# ---- on a pool -----------------------------------------------------------------------------------


@pytest.mark.pool
def test_ordinary_job_brings_plugin_that_fetches_its_model(monkeypatch, request, tmp_path, model, plugin):
    monkeypatch.setenv("_CONDOR_ENABLE_URL_TRANSFERS", "True")  # as everywhere but on an embedded pool
    pool: EmbeddedPool = request.getfixturevalue("own_pool")
    job = Job(tmp_path / "job", tmp_path / "node")
    job.folder.mkdir()
    shutil.copy(plugin, job.folder)
    with origin(model) as source:
        job.ticket(described(model, source.url))
        access_point = AccessPoint()
        for _ in range(2):
            cluster = access_point.submit(
                JOB, {"initialdir": str(job.folder), "leave_in_queue": f"JobStatus == {JobStatus.COMPLETED}"}
            )
            assert ended(access_point, cluster)["ExitCode"] == 0
            listed = (job.folder / f"{cluster}.0.out").read_text()
            assert all(name.partition("/")[0] in listed for name in SIZES), listed
        assert sum(source.sent.values()) == sum(SIZES.values())
    assert Cache(pool.home / "cache").trees


@pytest.mark.pool
def test_ordinary_job_fetches_model_files_from_glideins(monkeypatch, request, sweep, tmp_path, plugin):
    monkeypatch.setenv("_CONDOR_ENABLE_URL_TRANSFERS", "True")
    request.getfixturevalue("own_pool")
    model = written(tmp_path / "model", {"weights": 10 * CHUNK})
    (model / "glide-files.json").write_text(command("template", "files", str(model)).stdout)
    shutil.copy(plugin, tmp_path)
    factory = FactoryProcess(tmp_path, "site", entry("here", cache={"folder": str(tmp_path / "node")}))
    factory.start()
    try:
        with origin(model) as source:
            named = {"name": "noop", "engine": "noop", "path": source.url}
            assert sweep.write([{"custom_id": "a", "text": "x"}], model=named).run().returncode == 0
            read = source.sent["weights"]  # by the glidein
            ticket = command("template", "ticket", str(sweep.file), str(tmp_path / "model.glide"))
            assert (ticket.returncode, ticket.stderr) == (0, "")
            macros = {"initialdir": str(tmp_path), "leave_in_queue": f"JobStatus == {JobStatus.COMPLETED}"}
            cluster = AccessPoint().submit(JOB, {**macros, "requirements": "TARGET.GlideId =?= undefined"})
            assert ended(AccessPoint(), cluster)["ExitCode"] == 0
            assert "weights" in (tmp_path / f"{cluster}.0.out").read_text()
            assert source.sent["weights"] == read
    finally:
        factory.stop()
        AccessPoint().remove("true", "the test is over")


def ended(access_point: AccessPoint, cluster: int) -> dict[str, Any]:
    def settled() -> dict[str, Any] | None:
        (job,) = access_point.jobs(f"ClusterId == {cluster}", ["HoldReason", "ExitCode"])
        assert job["JobStatus"] != JobStatus.HELD, job["HoldReason"]
        return job if job["JobStatus"] == JobStatus.COMPLETED else None

    return eventually(settled, "the job ends")
