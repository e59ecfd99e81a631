"""Several states on one model server: brought by sticky jobs, evicted when idle, never while they serve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from glide import resources
from glide.condor import AccessPoint, Collector
from glide.condor.access_point import quoted
from glide.server.settings import ServerSettings
from glide.server.supply import SupplySettings
from glide.template import FileSet, Template
from glide.template.function import template_of
from glide.vocabulary import SOCKET_VARIABLE, Exit, Job, JobStatus, Machine, State
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, entry
from tests.server_rig import TICKET, Server

ROOM = 100.0  # MB; each template here has 40 MB of files
NO_ROOM = "no room: other templates are in use\nanother lane may serve this job\n"


@pytest.fixture
def serve(tmp_path: Path):
    """A model server with two lanes, blank or not; stopped whatever happens."""
    servers: list[Server] = []

    def serve(template: Template | None = None, **settings: Any) -> Server:
        servers.append(Server(tmp_path / f"server-{len(servers)}", template, lanes=2, memory=ROOM, **settings))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def sized(tmp_path: Path):
    """Templates with 40 MB of files each."""

    def sized(name: str, **options: Any) -> Template:
        folder = tmp_path / name
        folder.mkdir()
        with (folder / "weights").open("wb") as file:
            file.truncate(40_000_000)
        return Template.of_folder(name, "noop", folder, options)

    return sized


def stick(server: Server, template: Template, lane: int = 1, user: str = "ada@here") -> tuple[int, str]:
    """What a sticky job on a lane does: exit code and words."""
    folder = server.folder / f"sticky-{template.model}-{lane}"
    folder.mkdir(exist_ok=True)
    (folder / "template.json").write_text(template.to_json())
    (folder / ".job.ad").write_text(f'{Job.STICKY} = true\nUser = "{user}"\n')
    (folder / ".machine.ad").write_text(f"SlotID = {lane}\n")
    environment = {**os.environ, SOCKET_VARIABLE: str(server.door), "_CONDOR_JOB_AD": str(folder / ".job.ad")}
    done = subprocess.run(
        [TICKET, "template.json", "out.json"], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def ads(server: Server) -> dict[int, dict[str, Any]]:
    """What each lane advertises."""
    seen: dict[int, dict[str, Any]] = {}
    for ad in server.states():
        seen[ad["SlotId"]] = ad
        if len(seen) == 2:
            return seen
    raise AssertionError("the server ended")


def lanes(server: Server) -> dict[int, tuple[str, str]]:
    """Model and state of each lane."""
    return {lane: (ad.get(Machine.MODEL, ""), ad[Machine.STATE]) for lane, ad in ads(server).items()}


def records(count: int) -> list[dict[str, Any]]:
    return [{"custom_id": str(number), "prompt": f"text {number}"} for number in range(count)]


def test_sticky_jobs_load_their_templates_on_blank_lanes(serve, sized):
    server, one, other = serve(), sized("one"), sized("other")
    assert lanes(server) == {1: ("", State.BLANK), 2: ("", State.BLANK)}
    assert server.call(records(1), one.digest).end()[0] == Exit.SERVER_LOST
    assert stick(server, one, 1) == (0, "one is warm\n")
    assert stick(server, other, 2) == (0, "other is warm\n")
    assert lanes(server) == {1: ("one", State.WARM), 2: ("other", State.WARM)}
    calls = [server.call(records(50), template.digest) for template in (one, other) * 3]
    assert [len(call.results()) for call in calls] == [50] * 6
    assert server.log.read_text().count("Loading") == 2


def test_busy_template_is_not_unloaded_to_free_memory(serve, sized):
    busy, idle, third, fourth = (sized(name, record_seconds=0.05) for name in ("busy", "idle", "third", "fourth"))
    server = serve(busy)
    server.reached(State.WARM)
    assert stick(server, idle, 2)[0] == 0
    call = server.call(records(100), busy.digest)  # for five seconds
    server.busy()
    assert stick(server, third, 2) == (0, "third is warm\n")
    assert lanes(server) == {1: ("busy", State.WARM), 2: ("third", State.WARM)}
    also = server.call(records(100), third.digest)
    eventually(lambda: ads(server)[2].get(Machine.SERVED), "it is being served")
    assert stick(server, fourth, 2) == (Exit.SERVER_LOST, NO_ROOM)
    assert len(call.results()) == len(also.results()) == 100
    assert stick(server, fourth, 2)[0] == 0  # now that they are idle
    assert dict(lanes(server))[2] == ("fourth", State.WARM)
    assert stick(server, busy, 1)[0] == 0 and server.call(records(3), busy.digest).results()


def test_lane_reuses_template_that_is_still_in_memory(serve, sized):
    first, second, third = sized("first"), sized("second"), sized("third")
    server = serve(first)
    server.reached(State.WARM)
    assert stick(server, second, 1)[0] == 0 and stick(server, second, 2)[0] == 0
    assert lanes(server) == {1: ("second", State.WARM), 2: ("second", State.WARM)}
    assert stick(server, first, 1)[0] == 0
    assert server.log.read_text().count("Loading") == 2  # it had stayed
    assert stick(server, third, 2)[0] == 0  # in the place of one of them, and of its lanes
    assert lanes(server)[2] == ("third", State.WARM)


def test_template_that_fails_to_load_changes_no_lane(serve, sized):
    server = serve(sized("well"))
    server.reached(State.WARM)
    code, words = stick(server, Template("ill", "noop", options={"crash_in": State.LOADING}), 1)
    assert code == Exit.FAILED and "ill does not load: the engine was killed by signal 11" in words
    assert lanes(server) == {1: ("well", State.WARM), 2: ("well", State.WARM)}
    assert server.call(records(5), server.template.digest).results()


def test_invalid_oversized_or_unauthorized_template_is_refused(serve, sized, tmp_path):
    server = serve()
    assert ads(server)[1][Machine.ROOM] == ROOM
    vast = Template("vast", "noop", files={"weights": ("0" * 64, 200_000_000)})
    code, words = stick(server, vast)
    assert code == Exit.SERVER_LOST and "vast needs 200 MB, but this glidein has 100 MB" in words
    code = template_of("hers", dict, (), {}, "ada@here")
    assert stick(server, code, user="mallory@here") == (
        Exit.INPUT,
        "hers contains code of ada@here; a job of mallory@here must not load this template\n",
    )
    assert stick(server, code, user="ada@here")[0] == 0
    environment = Template("packed", "noop", environment=FileSet("/nowhere/env"))
    assert stick(server, environment, user="ada@here")[0] == Exit.INPUT  # nobody's, so anybody's
    broken = Template("broken", "noop")
    object.__setattr__(broken, "to_json", lambda: "{")
    assert stick(server, broken)[0] == Exit.INPUT
    shared = serve(users_code=False)
    assert lanes(shared) == {1: ("", State.BLANK), 2: ("", State.BLANK)}
    code, words = stick(shared, code)
    assert code == Exit.INPUT and "hers brings a user's code (a function), which this entry does not allow" in words


def test_template_being_loaded_is_not_evicted_by_another(serve, sized, tmp_path):
    slow, quick = sized("slow", load_seconds=3), sized("quick")
    server = Server(tmp_path / "one-at-a-time", None, lanes=2, memory=0)
    try:
        assert lanes(server)[1] == ("", State.BLANK)
        with ThreadPoolExecutor() as threads:
            first = threads.submit(stick, server, slow, 1)
            eventually(lambda: State.LOADING in dict(lanes(server).values()).values(), "it is being loaded")
            assert stick(server, quick, 2) == (Exit.SERVER_LOST, NO_ROOM)
            assert first.result() == (0, "slow is warm\n")
        assert stick(server, quick, 2) == (0, "quick is warm\n")
        assert lanes(server)[2] == ("quick", State.WARM) and server.call(records(3), quick.digest).results()
    finally:
        server.stop()


def test_idle_time_begins_after_template_is_loaded(tmp_path):
    """Its parent stands for condor_master."""
    (tmp_path / "template.json").write_text(Template("slow", "noop", options={"load_seconds": 3}).to_json())
    (tmp_path / "server.json").write_text(
        ServerSettings(SupplySettings(str(tmp_path / "cache")), lanes=2, idle_seconds=1).to_json()
    )
    paths = [tmp_path / name for name in ("server.json", "template.json", "door", "log")]
    words = [sys.executable, "-m", "glide.server", *map(str, paths)]
    kept = str(tmp_path / "pid")
    script = f"import subprocess, time; server = subprocess.Popen({words!r}); "
    script += f"open({kept!r}, 'w').write(str(server.pid)); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script])
    assert parent.wait(60) == -signal.SIGTERM
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)  # which condor_master does with its children
    log = (tmp_path / "log").read_text()
    assert log.index("slow Warm") < log.index("no job for 1 s")


def test_code_of_different_owners_never_shares_server(serve, sized):
    server = serve(sized("open"))
    server.reached(State.WARM)
    hers, his = (template_of(user, dict, (), {}, f"{user}@here") for user in ("ada", "bob"))
    assert stick(server, hers, 1, "ada@here")[0] == 0
    assert {ad.get(Machine.OWNER) for ad in ads(server).values()} == {"ada@here"}
    assert {model for model, _ in lanes(server).values()} == {"ada"}
    assert stick(server, his, 2, "bob@here")[0] == 0
    assert {model for model, _ in lanes(server).values()} == {"bob"}
    assert server.call([], hers.digest).end()[0] == Exit.SERVER_LOST


@pytest.mark.pool
def test_two_models_on_one_glidein_serve_concurrently(own_pool, sweep, tmp_path):
    """By hand, with plain job files: no factory acts on what it sees here but that there is one glidein."""
    factory = FactoryProcess(
        tmp_path, "two-models", entry("both", max_glideins=1, request={"memory": 600, "disk": 100})
    )
    text = [{"custom_id": str(number), "text": f"text {number}"} for number in range(400)]
    model = {"engine": "noop", "options": {"record_seconds": 0.005}}
    access_point, collector = AccessPoint(), Collector()
    factory.start()
    try:
        sweep.write(text, model={"name": "first", **model}, out="first")
        assert sweep.run().returncode == 0
        sweep.write(text, model={"name": "second", **model}, out="second")
        shown = [sys.executable, "-m", "glide", "template", "show", "--json", str(sweep.file)]
        (tmp_path / "template.json").write_text(subprocess.run(shown, capture_output=True, text=True).stdout)
        description = resources.find("submit_templates", "sticky.sub").read_text()
        macros = {"template": "template.json", "model": "second", "megabytes": "1", "initialdir": str(tmp_path)}
        here = f"TARGET.{Machine.ENTRY} =?= {quoted('both')}"
        cluster = access_point.submit(description, macros | {"requirements": here}, spool=True)
        ended = f"ClusterId == {cluster} && JobStatus == {JobStatus.COMPLETED}"
        gone = lambda: not access_point.jobs(f"ClusterId == {cluster}", ["JobStatus"]) or access_point.jobs(ended, [])  # noqa: E731
        eventually(gone, "the sticky job has ended")
        mine = f'{Machine.ENTRY} == "both"'
        models = lambda: {lane.get(Machine.MODEL) for lane in collector.lanes([Machine.MODEL], mine)}  # noqa: E731
        eventually(lambda: models() == {"first", "second"}, "each has a lane")
        second = sweep.start()
        (tmp_path / "other").mkdir()
        other = type(sweep)(tmp_path / "other").write(text, model={"name": "first", **model}, name="other")
        assert other.run().returncode == 0 and second.wait(60) == 0
        for folder in (tmp_path / "second", tmp_path / "other" / "results"):
            (glidein,) = json.loads((folder / "summary.json").read_text())["glideins"]
            assert glidein["records"] == 400
        outer = access_point.jobs(f'{Job.ENTRY} == "both"', ["ClusterId"])
        assert len(outer) == 1
    finally:
        factory.stop()


@pytest.mark.pool
def test_idle_glideins_switch_between_models_without_new_submissions(own_pool, sweep, tmp_path):
    factory = FactoryProcess(tmp_path, "moving", entry("moving", max_glideins=2, idle_seconds=120))
    text = [{"custom_id": str(number), "text": f"text {number}"} for number in range(4000)]
    access_point, collector = AccessPoint(), Collector()
    factory.start()
    mine = f'{Job.ENTRY} == "moving"'
    try:
        for number, name in enumerate(("ant", "bee", "ant")):
            options = {"record_seconds": 0.06, "load_seconds": 0.5}
            model = {"name": name, "engine": "noop", "options": options}
            sweep.write(text, name=f"{name}-{number}", model=model, out=f"out-{number}", glideins=2, pack=10)
            process = sweep.start()
            here = f'{Machine.ENTRY} == "moving" && {Machine.MODEL} == "{name}"'
            # The sweep has work for a minute: a glidein that still loads its model has to be wanted until it has it.
            eventually(lambda here=here: len(collector.lanes(["Name"], here)) == 4, "all lanes have it")
            results = sweep.folder / f"out-{number}" / "plain" / "results.jsonl"
            eventually(lambda results=results: results.exists() and results.stat().st_size, "there are results")
            process.terminate()
            _, errors = process.communicate()
            assert process.returncode == Exit.INTERRUPTED, errors
            assert len(access_point.jobs(mine, ["ClusterId"])) == 2, "no new glidein"
        assert "idle glideins load it" in factory.log.read_text()
    finally:
        factory.stop()


@pytest.mark.pool
def test_glidein_without_model_serves_newly_requested_model(own_pool, sweep, tmp_path):
    mine = f'{Job.ENTRY} == "ready"'
    factory = FactoryProcess(tmp_path, "readiness", entry("ready", max_glideins=2, ready=1, idle_seconds=120))
    access_point, collector = AccessPoint(), Collector()
    factory.start()
    try:
        eventually(lambda: len(collector.lanes(["Name"], f'{Machine.ENTRY} == "ready"')) == 2, "one is up")
        (before,) = access_point.jobs(mine, ["ClusterId", Job.STATE])
        model = {"name": "comer", "engine": "noop"}
        text = [{"custom_id": str(number), "text": f"text {number}"} for number in range(50)]
        assert sweep.write(text, model=model).run().returncode == 0
        assert {result["glidein"] for result in sweep.results()} == {f"ready-{before['ClusterId']}.0"}
        assert "idle glideins load it" in factory.log.read_text()
    finally:
        factory.stop()
