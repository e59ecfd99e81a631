"""The factory against real pools: signals, files, tokens, breakers, and two pools with separate keys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from glide.condor import AccessPoint, Collector, EmbeddedPool
from glide.condor import access_point as access_point_module
from glide.condor.access_point import job_file_value, quoted
from glide.config import SiteFile, load
from glide.factory.act import apply
from glide.factory.actions import Submit
from glide.factory.housekeeping import housekeeping
from glide.factory.observe import observe
from glide.factory.site_client import SiteClient
from glide.factory.totals import Totals
from glide.protocol.ads import InvocationAd, LaneAd, OuterAd, attributes
from glide.report.status import document as status
from glide.template import Template
from glide.template.needs import Needs
from glide.vocabulary import Exit, Job, JobStatus, Machine, State
from tests.conftest import eventually
from tests.factory_rig import DESCRIPTION, FactoryProcess, command, entry

pytestmark = pytest.mark.pool


@pytest.fixture
def run_factory(
    pool: EmbeddedPool, tmp_path: Path, access_point: AccessPoint
) -> Iterator[Callable[..., FactoryProcess]]:
    """Make factories that do not outlive the test, nor their glideins."""
    made: list[FactoryProcess] = []

    def run_factory(name: str, *entries: dict[str, Any]) -> FactoryProcess:
        made.append(FactoryProcess(tmp_path, name, *entries))
        return made[-1]

    yield run_factory
    for factory in made:
        factory.stop()
        for each in yaml.safe_load(factory.file.read_text())["entries"]:
            access_point.remove(f"{Job.ENTRY} == {quoted(each['name'])}", "the test is over")


@pytest.fixture
def ask(access_point: AccessPoint, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Submit jobs that ask for a template, with as many glideins as there are jobs; they are gone after the test."""
    clusters: list[int] = []

    def ask(template: Template, jobs: int = 1, records: int = 1) -> int:
        for number in range(jobs):
            lines = (json.dumps({"custom_id": str(each), "prompt": "text"}) + "\n" for each in range(records))
            (tmp_path / f"records-{number}.jsonl").write_text("".join(lines))
        macros = {
            "digest": template.digest, "model": template.model, "initialdir": str(tmp_path),
            f"My.{Job.SPEC}": job_file_value(template.to_json()), f"My.{Job.WANTED}": str(jobs),
            "leave_in_queue": "JobStatus == 4",
        }  # fmt: skip
        clusters.append(access_point.submit(DESCRIPTION.replace("\nqueue", f"\nqueue {jobs}"), macros, spool=True))
        return clusters[-1]

    yield ask
    for cluster in clusters:
        access_point.remove(f"ClusterId == {cluster}", "the test is over")


def glideins(access_point: AccessPoint, name: str, *states: int) -> list[dict[str, Any]]:
    jobs = access_point.jobs(f"{Job.ENTRY} == {quoted(name)}", ["ClusterId", "ProcId", Job.STATE, Job.ERRORS])
    return [job for job in jobs if not states or job["JobStatus"] in states]


RUNNING = (JobStatus.IDLE, JobStatus.RUNNING)
SLOW = {"record_seconds": 0.5}


def test_glideins_require_the_gpus_that_their_models_need(ask, run_factory, access_point, pool):
    """No node here has a GPU, so the glideins wait in the queue."""
    needs = {"plain": Needs(), "modern": Needs(gpus=1, capability=8.0), "large": Needs(gpu_memory=20000)}
    for name, each in needs.items():
        ask(Template(name, "noop", needs=each), 1)
    run_factory("gpus", entry("gpus", request={"memory": 600, "disk": 100, "gpus": 1, "gpu_memory": 24000})).start()
    wanted = f'{Job.ENTRY} == "gpus"'
    eventually(lambda: len(access_point.jobs(wanted, ["ProcId"])) == 3, "a glidein for each model")
    shown = ["GlideModel", "RequestGPUs", "GPUsMinMemory", "GPUsMinCapability", "RequireGPUs"]
    text = pool.tool("condor_q", "-allusers", "-constraint", wanted, "-af:r,", *shown)
    memory = "GlobalMemoryMb >= GPUsMinMemory"
    assert sorted(text.splitlines()) == [
        f'"large", 1, 24000, undefined, {memory}',
        f'"modern", 1, 24000, 8, Capability >= GPUsMinCapability && {memory}',
        f'"plain", 1, 24000, undefined, {memory}',
    ]


def test_factory_sigterm_keeps_glideins_but_drain_removes_them(run_factory, ask, access_point):
    factory = run_factory("leaving", entry("stay"))
    factory.start()
    cluster = ask(Template("stay", "noop", options=SLOW), records=60)
    running = f"ClusterId == {cluster} && JobStatus == 2"
    eventually(lambda: access_point.jobs(running, ["ProcId"]), "the job runs")
    factory.stop()
    assert len(glideins(access_point, "stay", JobStatus.RUNNING)) == 1
    assert access_point.jobs(running, ["ProcId"])
    factory.log.unlink()
    factory.start("--drain")
    factory.says("factory leaving")
    factory.stop()
    eventually(lambda: not glideins(access_point, "stay", *RUNNING), "the glidein is gone")


def test_repeatedly_killed_factory_submits_no_extra_glidein(run_factory, ask, access_point):
    factory = run_factory("mortal", entry("twice", max_glideins=2))
    ask(Template("twice", "noop", options=SLOW), jobs=2, records=40)
    for _ in range(4):  # between its submission and its next look, as like as not
        factory.start()
        eventually(lambda: glideins(access_point, "twice"), "a glidein is in the queue")
        factory.stop(signal.SIGKILL)
    factory.start()
    eventually(lambda: len(glideins(access_point, "twice", JobStatus.RUNNING)) == 2, "both run")
    assert len(glideins(access_point, "twice")) == 2


def test_sighup_reloads_site_file_unless_it_is_invalid(run_factory, ask, access_point):
    factory = run_factory("reading", entry("again", max_glideins=0))
    factory.start()
    ask(Template("again", "noop"))
    factory.says("limit of 0 glideins")
    factory.file.write_text("site: reading\nentries: none\n")
    factory.process.send_signal(signal.SIGHUP)
    assert "the earlier version stays active" in factory.says("not reloaded")
    factory.write(entry("again", max_glideins=1))
    factory.process.send_signal(signal.SIGHUP)
    factory.says("read again")
    eventually(lambda: glideins(access_point, "again"), "a glidein is submitted")


def test_circuit_breaker_stays_open_until_a_glidein_succeeds(run_factory, ask, access_point, tmp_path):
    python = tmp_path / "python"
    breaker = {"failures": 2, "backoff_seconds": 6}
    factory = run_factory("breaking", entry("dies", python=str(python), breaker=breaker))
    factory.start()
    ask(Template("dies", "noop"))
    text = factory.says("breaker open")
    assert "2 glideins in a row were never warm" in text and "exit code 1" in text
    status = json.loads(command("factory", "status", "--json").stdout)
    (told,) = [each for site in status["sites"] for each in site["entries"] if each["entry"] == "dies"]
    assert told["room"] == 0 and "breaker open" in told["limit"] and told["ended"] == {"never warm": 2}
    assert "set the entry's 'python'" in command("factory", "logs", "dies").stdout
    python.symlink_to(sys.executable)
    healed = f'{Machine.ENTRY} == "dies" && {Machine.STATE} == "{State.WARM}"'
    eventually(lambda: Collector().lanes(["Name"], healed), "it heals")


def test_glidein_reports_failed_records_in_its_job_ad(run_factory, ask, access_point):
    # On a busy machine, a job needs some seconds to match. A glidein that is idle before must not end.
    factory = run_factory("failing", entry("errors", idle_seconds=15))
    factory.start()
    ask(Template("failing", "noop", options={"raise_on": "text"}), records=20)

    def told() -> list[dict[str, Any]]:
        return [job for job in glideins(access_point, "errors", JobStatus.COMPLETED) if job.get(Job.ERRORS, 0) >= 8]

    eventually(told, "it says so when it ends, if not before")


def test_glidein_past_its_lifetime_accepts_no_job(run_factory, ask, access_point, collector):
    factory = run_factory("retiring", entry("old", max_glideins=1, knobs={Machine.RETIRES: "1"}))
    factory.start()
    cluster = ask(Template("old", "noop"))
    retired = f'{Machine.ENTRY} == "old" && {Machine.STATE} == "{State.WARM}"'
    eventually(lambda: collector.lanes(["Name"], retired), "its lanes are warm")
    assert "limit of 1 glideins" in factory.says("no entry has room")
    assert not access_point.jobs(f"ClusterId == {cluster} && NumJobStarts > 0", ["ProcId"])
    factory.write(entry("old", max_glideins=2))
    factory.process.send_signal(signal.SIGHUP)
    eventually(lambda: access_point.jobs(f"ClusterId == {cluster} && JobStatus == 4", ["ProcId"]), "another one ran it")
    assert len(glideins(access_point, "old", *RUNNING)) == 2


def test_factory_finds_pool_from_glide_home_variable_alone(run_factory, pool):
    factory = run_factory("finding", entry("found"))
    hidden = {name: value for name, value in os.environ.items() if name != "CONDOR_CONFIG"}
    factory.environment = {**hidden, "GLIDE_HOME": str(pool.home)}
    factory.start("--once")
    assert factory.process.wait(60) == 0 and "no access point" not in factory.log.read_text()
    assert (pool.home / "factory" / "finding" / "journal.jsonl").exists()


def test_every_file_name_in_factory_folder_is_reserved(run_factory, ask, pool):
    factory = run_factory("tidy", entry("shelf"))
    factory.start()
    place = pool.home / "factory" / "tidy"
    ask(Template("shelf", "noop"))
    eventually(lambda: (place / "journal.jsonl").exists() and (place / "shelf").exists(), "it has submitted")
    assert command("factory", "drain", "shelf").returncode == Exit.OK
    own = {path.name for path in place.iterdir() if not path.name.startswith(".")} - {"shelf"}
    assert {"lock", "file", "journal.jsonl", "drained", "peers", "accounts"} <= own
    for name in own:
        with pytest.raises(ValueError, match="a file of its own"):
            SiteFile.model_validate({"site": "s", "entries": [{"name": name, "max_glideins": 1}]})


def test_drain_command_closes_entry_and_undo_reopens_it(run_factory, ask, access_point):
    factory = run_factory("closing", entry("door"))
    factory.start()
    ask(Template("door", "noop", options=SLOW), records=60)
    eventually(lambda: glideins(access_point, "door", JobStatus.RUNNING), "a glidein runs")
    assert command("factory", "drain", "door").returncode == Exit.OK
    factory.says("closed by `glide factory drain`")
    eventually(lambda: not glideins(access_point, "door", *RUNNING), "it is gone")
    assert command("factory", "drain", "door", "--undo").returncode == Exit.OK
    eventually(lambda: glideins(access_point, "door", *RUNNING), "there is another")
    assert command("factory", "drain", "nowhere").returncode == Exit.INPUT


def test_glidein_token_allows_only_advertising(run_factory, ask, access_point, pool, tmp_path):
    factory = run_factory("guarding", entry("token"))
    factory.start()
    ask(Template("token", "noop"))
    eventually(lambda: glideins(access_point, "token", JobStatus.RUNNING), "a glidein runs")
    (found,) = (pool.home / "factory" / "guarding" / "token").glob("*/token")
    assert found.stat().st_mode & 0o777 == 0o600 and found.parent.stat().st_mode & 0o777 == 0o700
    tokens = tmp_path / "tokens.d"
    tokens.mkdir(mode=0o700)
    (tokens / "stolen").write_text(found.read_text())
    (tokens / "stolen").chmod(0o600)
    environment = {
        **os.environ, "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
        "_CONDOR_SEC_TOKEN_DIRECTORY": str(tokens), "_CONDOR_SEC_TOKEN_SYSTEM_DIRECTORY": str(tokens),
    }  # fmt: skip
    (tmp_path / "job.sub").write_text("executable = /bin/true\nqueue\n")

    def with_token(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)

    for words in (("condor_submit", "job.sub"), ("condor_rm", "-all"), ("condor_q",)):
        refused = with_token(*words)
        assert refused.returncode != 0, (words, refused.stdout)
    ad = 'MyType = "Machine"\nName = "slot1@stolen"\nMachine = "stolen"\nMyAddress = "<127.0.0.1:1>"\n'
    (tmp_path / "ad").write_text(ad)
    advertised = with_token("condor_advertise", "-tcp", "UPDATE_STARTD_AD", "ad")
    assert advertised.returncode == 0, advertised.stderr
    Collector().expunge('Name == "slot1@stolen"')


def test_job_of_unlisted_owner_never_runs_on_entry(run_factory, ask, access_point, tmp_path):
    factory = run_factory("owners", entry("listed", owners=["somebody@else"]))
    factory.start()
    template = Template("listed", "noop")
    cluster = ask(template)
    factory.says("no entry serves")
    factory.stop()
    client = SiteClient(load(factory.file, SiteFile), tmp_path)
    by_anybody = observe(AccessPoint, Collector())
    assert apply(client, [Submit("listed", template.digest, 1, "nevertheless")], by_anybody) == []
    eventually(
        lambda: (
            housekeeping(client, client.observe())
            or Collector().lanes(["Name"], f'{Machine.ENTRY} == "listed" && {Machine.STATE} == "{State.WARM}"')
        ),
        "its lanes are warm",
    )
    time.sleep(5)  # several negotiation cycles
    (job,) = access_point.jobs(f"ClusterId == {cluster}", ["NumJobStarts"])
    assert (job["JobStatus"], job.get("NumJobStarts", 0)) == (JobStatus.IDLE, 0)


@pytest.mark.parametrize(
    "attributes",
    [
        {f"My.{Job.TEMPLATE}": '"T"', f"My.{Job.WANTED}": '"many"'},
        {f"My.{Job.TEMPLATE}": '"T"', f"My.{Job.RECORDS}": "-5"},
        {f"My.{Job.TEMPLATE}": "7"},
        {f"My.{Job.TEMPLATE}": r'"T\" || true"'},
        {f"My.{Job.TEMPLATE}": '"T"', f"My.{Job.MODEL}": r'"x\"\n+Evil = 1"'},
    ],
)
def test_factory_ignores_jobs_with_malformed_attributes(access_point, attributes):
    """Any user's job is an input of the factory."""
    description = "executable = /bin/true\nrequirements = false\nqueue\n"
    cluster = access_point.submit(description, attributes)
    try:
        snapshot = observe(lambda: access_point, Collector())
        assert not snapshot.unavailable_sources
        assert "T" not in {demand.template for demand in snapshot.demands}
    finally:
        access_point.remove(f"ClusterId == {cluster}", "the test is over")


NONSENSE = ("1e-320", '"text"', "-7", "16", 'real("INF")', "{ 1, { 2 } }", "[ a = 1 ]", "1 / 0", "undefined", "true")


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_factory_reads_queue_despite_nonsense_ad_values(access_point, pool, nonsense):
    description = "executable = /bin/true\nrequirements = false\nhold = true\nqueue 3\n"
    cluster = access_point.submit(description, {f"My.{Job.TEMPLATE}": '"T"'})
    glidein, moving, invoking = (f"ClusterId == {cluster} && ProcId == {proc}" for proc in range(3))
    ad = {"MyType": '"Machine"', "MyAddress": '"<127.0.0.1:1>"'} | dict.fromkeys(attributes(LaneAd), nonsense)
    ad |= {"Name": '"odd"', Machine.ID: '"odd-1.0"', "State": '"Claimed"'}
    kept = {"ClusterId", "ProcId", "User", Job.ENTRY}
    try:
        for name in sorted({*attributes(OuterAd), *attributes(InvocationAd), "HoldReasonCode"} - kept):
            access_point.schedd.edit(f"ClusterId == {cluster}", name, nonsense)
        access_point.schedd.edit(glidein, Job.ENTRY, '"odd"')
        access_point.schedd.edit(moving, "HoldReasonCode", "16")
        for text, name in ((nonsense, Job.BRINGS), ('"odd"', Job.LANE)):
            access_point.schedd.edit(moving, name, text)
        for name, text in {Job.TEMPLATE: '"T"', "JobStatus": "5", "HoldReasonCode": "16"}.items():
            access_point.schedd.edit(invoking, name, text)
        (pool.home / "odd.ad").write_text("".join(f"{name} = {text}\n" for name, text in ad.items()))

        def observed() -> Any:
            # The collector keeps the ad's own LastHeardFrom, and may delete the ad at any time, because it seems old.
            pool.tool("condor_advertise", "-tcp", "UPDATE_STARTD_AD", str(pool.home / "odd.ad"))
            snapshot = observe(lambda: access_point, Collector())
            return "odd" in {lane.name for lane in snapshot.lanes} and snapshot

        snapshot = eventually(observed, "the factory observes the lane")
        assert not snapshot.unavailable_sources
        assert f"{cluster}.0" in {each.job for each in (*snapshot.glideins, *snapshot.ended)}
        Totals().add(snapshot)
        assert json.dumps(status(snapshot), allow_nan=False)
    finally:
        access_point.schedd.edit(f"ClusterId == {cluster}", "JobStatus", "5")  # or they could not be removed
        access_point.remove(f"ClusterId == {cluster}", "the test is over")
        Collector().expunge('Name == "odd"')
    eventually(lambda: not access_point.jobs(f"ClusterId == {cluster}", ["ProcId"]), "none is left")


def test_queue_is_unavailable_after_account_of_factory_changes(access_point, monkeypatch):
    attributes = {f"My.{Job.ENTRY}": '"mine"', f"My.{Job.TEMPLATE}": '"T"'}
    cluster = access_point.submit("executable = /bin/true\nrequirements = false\nqueue\n", attributes)
    earlier = access_point.user.partition("@")[0]
    try:
        assert "mine" in {glidein.entry for glidein in observe(lambda: access_point, Collector()).glideins}
        monkeypatch.setitem(access_point_module._USERS, str(access_point.location["MyAddress"]), "mallory@else")
        seen = observe(lambda: access_point, Collector(), earlier_accounts=[earlier])
        assert "submitted glideins under the account" in seen.unavailable_sources[0] and not seen.glideins
        seen = observe(lambda: access_point, Collector())  # all users' jobs, as for a factory that never had this name
        assert not seen.unavailable_sources and "mine" not in {glidein.entry for glidein in seen.glideins}
        seen = observe(lambda: access_point, Collector(), accounts="all")  # as people look who run no factory
        assert not seen.unavailable_sources and "mine" in {glidein.entry for glidein in seen.glideins}
    finally:
        access_point.remove(f"ClusterId == {cluster}", "the test is over")
