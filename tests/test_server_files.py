"""The files of a model server: used in place or fetched, with progress, and kept from job to job."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from glide.bench.origin import origin
from glide.files import Cache
from glide.files.tree import CHUNK
from glide.template import Template
from glide.vocabulary import Machine, State
from tests import file_trees
from tests.conftest import eventually
from tests.file_trees import SIZES, Process, described
from tests.server_rig import Server, failure

model = file_trees.model  # a fixture


# ---- where they are ------------------------------------------------------------------------------


def test_model_folder_on_local_disk_is_used_directly(model, tmp_path):
    said = Process(tmp_path / "cache", described(model)).end()
    assert said == {"folder": str(model), "place": str(model)}
    cache = Cache(tmp_path / "cache")
    assert all(cache.is_verified(model / name, content) for name, (content, _) in described(model).files.items())


def test_changed_local_model_folder_is_refused(model, tmp_path):
    template = described(model)
    Process(tmp_path / "cache", template).end()
    (model / "weights/two.bin").write_bytes(b"y" * CHUNK)
    said = Process(tmp_path / "cache", template).end()
    assert "weights/two.bin is not the file that the template describes: the file has changed since" in said["failed"]


def test_model_server_reports_unusable_cache_folder(start, model):
    (model.parent / "cache").write_text("no folder")
    reason = failure(start(described(model), {"cache": str(model.parent / "cache")}))
    assert "the node's cache cannot be used" in reason and str(model.parent / "cache") in reason


def test_templates_with_same_files_fetch_them_once(start, model):
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
def test_template_key_keep_determines_what_each_job_reloads(start, model, keep, loads, reads):
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


def test_engine_crash_without_sticky_state_affects_one_record(start, model):
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
