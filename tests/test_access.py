"""What a node can do to the access point, and what a lane runs for its owners: nothing but what each is meant to."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glide.condor import AccessPoint, EmbeddedPool, bindings, configured_pool, tokens
from glide.condor.access_point import job_file_value
from glide.condor.knobs import PROTECTED, VITAL, protected
from glide.glidein.configuration import FORBIDDEN_ATTRIBUTES
from glide.invoke.jobs import RunJobs, RunSpec
from glide.protocol.json_lines import read_results
from glide.server.chirp import classad_string
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State
from tests.conftest import eventually
from tests.factory_rig import DESCRIPTION, FactoryProcess, entry

pytestmark = pytest.mark.pool

ENTRY = "guarded"
TEMPLATE = Template("guarded", "noop", options={"record_seconds": 0.2})
LIFETIME = 86400 * 1.1  # seconds
# Of an ad, what nothing on a node may have changed.
KEPT = ("TransferInput", "Iwd", "Requirements", "OnExitRemove", "LimitDirectoryAccess", "Cmd", "Environment")


class Chirp:
    """Code on the node that has read a job's chirp file, as all code of the glidein's account can."""

    def __init__(self, config: Path):
        host, port, cookie = config.read_text().split()
        self.file = socket.create_connection((host, int(port)), timeout=60).makefile("rwb")
        assert self.ask(f"cookie {cookie}") == 0

    def ask(self, request: str) -> int:
        self.file.write(request.encode() + b"\n")
        self.file.flush()
        return int(self.file.readline())


@pytest.fixture(scope="module")
def guarded(pool: EmbeddedPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    """A factory for one glidein, which ends soon after its work."""
    folder = tmp_path_factory.mktemp("guarded")
    process = FactoryProcess(folder, ENTRY, entry(ENTRY, max_glideins=1, idle_seconds=5))
    process.start("--drain")
    yield process
    process.stop()


@pytest.fixture
def submit(guarded: FactoryProcess, access_point: AccessPoint, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submit a job for the template to the guarded lanes, and return the constraint that selects it."""
    clusters: list[str] = []

    def submit(name: str, records: int = 1, **changes: str) -> str:
        lines = [{"custom_id": f"r{number}", "prompt": f"text {number}"} for number in range(records)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        macros = {
            "digest": TEMPLATE.digest, "model": TEMPLATE.model, "initialdir": str(tmp_path),
            "records": f"{name}.jsonl", "results": f"{name}.out", "leave_in_queue": "JobStatus == 4",
            f"My.{Job.SPEC}": job_file_value(TEMPLATE.to_json()), f"My.{Job.WANTED}": "1", **changes,
        }  # fmt: skip
        cluster = access_point.submit(DESCRIPTION, macros, spool=True)
        clusters.append(f"ClusterId == {cluster}")
        return clusters[-1]

    yield submit
    for cluster in clusters:
        access_point.remove(cluster, "the test is over")


@pytest.fixture
def finish(access_point: AccessPoint) -> Callable[[str], dict[str, Any]]:
    def finish(job: str) -> dict[str, Any]:
        wanted = ("NumShadowStarts", "HoldReason")
        ended = f"({job}) && (JobStatus == {JobStatus.COMPLETED} || JobStatus == {JobStatus.HELD} && NumJobStarts > 0)"
        (ad,) = eventually(lambda: access_point.jobs(ended, wanted), "the job ends", 120)
        assert ad["JobStatus"] == JobStatus.COMPLETED, ad
        return ad

    return finish


def chirp_file(pool: EmbeddedPool, program: str) -> Path:
    """Of the job that a program of a node belongs to."""

    def found() -> list[str]:
        each = [each.variable("_CONDOR_CHIRP_CONFIG") for each in pool.processes() if each.name == program]
        return sorted({name for name in each if name})

    return Path(eventually(found, f"a job runs {program}")[0])


def expressions(pool: EmbeddedPool, job: str) -> str:
    """Of the attributes of a job that nothing on a node may change."""
    return pool.tool("condor_q", "-constraint", job, "-af:lr", *KEPT)


def is_refused(config: Path, request: str) -> bool:
    """Whether the starter or the access point refuses it; a delayed update of a wrong name is answered with 1."""
    answer = Chirp(config).ask(request)
    return answer == 1 if request.startswith("set_job_attr_delayed") else answer < 0


def requests_outside(folder: Path) -> list[str]:
    """Requests for files that are not in the job's folder: `folder` has the files `secret` and `target`."""
    secret, target = folder / "secret", folder / "target"
    secret.write_text("secret")
    target.write_text("target")
    return [
        f"getfile {secret}", f"open {secret} r 0", f"open {target} wct 384", f"open {folder}/new wc 384",
        f"unlink {target}", f"rename {target} stolen", f"mkdir {folder}/new 448", f"rmall {folder}",
        f"putfile {folder}/new 384 0", "getfile ../../../job_queue.log", f"truncate {target} 0",
        f"link {secret} hard", f"link {target} hard",
    ]  # fmt: skip


def test_job_with_its_own_folder_reaches_nothing_else(pool, guarded, access_point, tmp_path):
    """A driver's jobs on this machine are not spooled. Each has a folder of its own in GLIDE_JOBS."""
    folders = configured_pool(access_point).job_folders
    assert folders and folders.stat().st_mode & 0o777 == 0o700
    jobs = RunJobs(RunSpec("own", TEMPLATE, tmp_path / "parts", 1), access_point, folders)
    records = [{"custom_id": f"r{each}", "prompt": "", "generate": {}, "timeout": 9.0} for each in range(50)]
    parts = [jobs.write(records), jobs.write(records)]
    jobs.submit(parts)
    try:
        eventually(lambda: any(job.status == JobStatus.RUNNING for job in jobs.queue()), "a job runs")
        config = chirp_file(pool, "ticket.sh")
        mine, other = parts if Chirp(config).ask(f"getfile {parts[0].name}.in") > 0 else reversed(parts)
        assert Chirp(config).ask(f"getfile {mine.name}.in") > 0  # what it is for
        (running,) = (job for job in jobs.queue() if job.part == mine.name)
        changes = [f"set_job_attr {name} true" for name in KEPT]
        there = [f"getfile ../{other.name}/{other.name}.in", f"getfile {jobs.files.input(mine.name)}"]
        for request in (*requests_outside(tmp_path), *changes, *there):
            assert is_refused(config, request), request
        assert (tmp_path / "target").read_text() == "target" and not list(tmp_path.glob("new*"))
        assert Chirp(config).ask(f"symlink {tmp_path}/secret link") == 0
        assert is_refused(config, "getfile link")
        # It can replace its own output, but the driver follows no link.
        eventually(lambda: jobs.peek(running, [record["custom_id"] for record in records]).results, "results arrive")
        assert Chirp(config).ask(f"unlink {running.part}.out") == 0
        assert Chirp(config).ask(f"symlink {tmp_path}/secret {running.part}.out") == 0
        assert not jobs.peek(running, [record["custom_id"] for record in records]).results
    finally:
        jobs.remove(jobs.queue(), "the test is over")
    assert not [part for part in parts if (folders / part.name).exists()]


def test_chirp_refuses_outside_files_and_protected_job_attributes(
    pool, guarded, submit, finish, access_point, tmp_path
):
    secret, target = tmp_path / "secret", tmp_path / "target"
    job = submit("records", records=25)
    streamed = f"{job} && JobStatus == {JobStatus.RUNNING}"
    eventually(lambda: access_point.jobs(streamed, ["ProcId"]), "it runs")
    config = chirp_file(pool, "ticket.sh")
    before = expressions(pool, job)
    (ad,) = access_point.jobs(job, ["Iwd"])
    folder = Path(ad["Iwd"])
    results = folder / "records.out"
    eventually(lambda: sum(1 for _ in read_results(results)) >= 3, "results are streamed")
    assert Chirp(config).ask("getfile records.jsonl") > 0  # what it is for
    other = folder.parents[1]
    outside = [*requests_outside(tmp_path), f"getfile {other}/../job_queue.log"]
    changes = [f"set_job_attr {name} true" for name in (*KEPT, "JobPrio")] + ["constrain false", "ulog words"]
    for request in (*outside, *changes, "set_job_attr_delayed TransferInput 1"):
        assert is_refused(config, request), request
    assert target.read_text() == "target" and sorted(each.name for each in tmp_path.glob("new*")) == []
    # A symbolic link in its own folder is not followed, neither now nor as an input of the next start.
    assert Chirp(config).ask(f"symlink {secret} link") == 0
    assert is_refused(config, "getfile link")

    outer = chirp_file(pool, "condor_startd")
    for request in (*outside, *changes, "getfile token", "set_job_attr_delayed TransferInput 1"):
        assert is_refused(outer, request), request
    assert Chirp(outer).ask("set_job_attr_delayed ChirpNote 1") == 0  # only this much

    # What it has of the pool is good for a day longer than it lives.
    (token, *_) = pool.home.glob(f"factory/*/*/{TEMPLATE.digest[:16]}/token")
    left = tokens.seconds_left(token, time.time())
    assert left is not None and LIFETIME < left <= LIFETIME + 86400

    # The job starts again, and is what it was: what had been streamed is not computed again.
    tickets = [each for each in pool.processes() if each.name == "ticket.sh"]
    assert tickets
    for ticket in tickets:
        ticket.send(9)
    held = f"{job} && JobStatus == {JobStatus.HELD}"
    (ad,) = eventually(lambda: access_point.jobs(held, ["HoldReason"]), "its next start is refused the link")
    assert "link: (errno 13) Permission denied" in ad["HoldReason"]
    (folder / "link").unlink()
    pool.tool("condor_release", "-constraint", job)
    after = finish(job)
    assert after["NumShadowStarts"] >= 2 and expressions(pool, job) == before
    access_point.retrieve(job)
    found = {result["custom_id"]: result["attempts"] for result in read_results(tmp_path / "records.out")}
    assert len(found) == 25 and found["r0"] == 1 and len(set(found.values())) == 2

    # The glidein has reported to its own job how it went: that is in the queue when it has ended.
    # Whichever it was: where other tests share the pool, their factory sees this demand, too.
    mine = f'{Job.ENTRY} =!= undefined && {Job.TEMPLATE} == "{TEMPLATE.digest}"'
    mine += f" && JobStatus == {JobStatus.COMPLETED} && {Job.SERVED} > 0"
    reported = [Job.STATE, Job.STATE_SINCE, Job.REPORTED_START]
    (ad, *_) = eventually(lambda: access_point.jobs(mine, reported), "a glidein has ended")
    assert ad[Job.STATE] == State.WARM and ad[Job.STATE_SINCE] > 0 and ad[Job.REPORTED_START] == 1


@pytest.mark.parametrize("text", ['a "b" \\', "two\nlines\x00", "é" * 2000, '"' * 2000, "\\" * 2000, "\ud800", ""])
def test_any_text_becomes_short_printable_classad_string(text):
    expression = classad_string(text)
    assert len(expression.encode(errors="replace")) <= 993 and expression.isprintable()
    found = bindings.classad2.ExprTree(expression).eval()
    shown = "".join(each if each.isprintable() else " " for each in text)
    assert isinstance(found, str) and shown.startswith(found) and len(found) >= min(len(text), 400)


ROGUE = """#!/bin/sh
for name in {names}; do
    {chirp} set_job_attr $name true >/dev/null 2>&1 && echo "$name is changed"
done
{chirp} set_job_attr Harmless true || echo "nothing can be changed"
{chirp} fetch {secret} stolen >/dev/null 2>&1 && echo "$(cat stolen) is read"
echo done
grep -q '^NumShadowStarts = 1$' "$_CONDOR_JOB_AD" && exit 75
exit 0
"""


def test_rogue_starter_cannot_change_protected_job_attributes(pool, access_point, tmp_path):
    """By its job's word this one may change all, as a node's own starter can with any job that streams."""
    chirp = pool.tool("condor_config_val", "LIBEXEC").strip() + "/condor_chirp"
    (tmp_path / "secret").write_text("secret")
    names = " ".join(name for each in PROTECTED.values() for name in each)
    (tmp_path / "rogue.sh").write_text(ROGUE.format(names=names, chirp=chirp, secret=tmp_path / "secret"))
    (tmp_path / "input").write_text("input")
    macros = {
        "executable": str(tmp_path / "rogue.sh"), "transfer_executable": "true", "arguments": "", "records": "input",
        "results": "seen", "output": "seen", "transfer_output_files": '""', "initialdir": str(tmp_path),
        "My.WantRemoteUpdates": "true", "requirements": f"TARGET.{Machine.ID} =?= undefined",
        "leave_in_queue": "JobStatus == 4",
    }  # fmt: skip
    job = f"ClusterId == {access_point.submit(DESCRIPTION, macros, spool=True)}"
    try:
        eventually(lambda: access_point.jobs(f"{job} && JobStatus != {JobStatus.HELD}", ["ProcId"]), "it is spooled")
        before = expressions(pool, job)
        ended = f"{job} && (JobStatus == {JobStatus.COMPLETED} || JobStatus == {JobStatus.HELD} && NumJobStarts > 0)"
        (after,) = eventually(lambda: access_point.jobs(ended, ("HoldReason", "NumShadowStarts")), "it ends")
        assert after["JobStatus"] == JobStatus.COMPLETED and after["NumShadowStarts"] == 2, after
        access_point.retrieve(job)
        assert (tmp_path / "seen").read_text() == "done\n"
        assert expressions(pool, job) == before
        # Its owner still may, on a pool of one's own.
        pool.tool("condor_qedit", *job.split(" == ")[1:], "Requirements", "false")
    finally:
        access_point.remove(job, "the test is over")
    assert set(VITAL) <= set(names.split())
    line = f"\nPROTECTED_JOB_ATTRS = {protected()}\n"
    assert line in (Path(__file__).parents[1] / "docs" / "admin.md").read_text("utf-8")


def test_lanes_refuse_jobs_that_run_foreign_programs(pool, submit, finish, access_point, collector, tmp_path):
    mark = tmp_path / "mark"
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {mark}\n")
    evil.chmod(0o755)
    fake = tmp_path / "fake"
    fake.write_text(
        f'MyType = "Machine"\nName = "slot1@fake"\nMyAddress = "<127.0.0.1:9>"\nState = "Unclaimed"\n'
        'Activity = "Idle"\n'
        f'Cpus = 1\nMemory = 100\nDisk = 100000\n{Machine.TEMPLATE} = "{TEMPLATE.digest}"\nRequirements = true\n'
        f'{Machine.STATE} = "{State.WARM}"\n{Machine.ENTRY} = "{ENTRY}"\nArch = "X86_64"\nOpSys = "LINUX"\n'
        'HasFileTransfer = true\nCondorVersion = "$CondorVersion: 25.14.1 2026-10-16 $"\n'
    )
    environment = "BASH_ENV=evil.sh"
    transferred = {"transfer_input_files": "$(records), evil.sh"}
    refused = {
        "program": submit("program", executable=str(evil)),
        "sent": submit("sent", executable=str(evil), transfer_executable="true"),
        "environment": submit("environment", environment=f'"{environment}"', **transferred),
        "elsewhere": submit("elsewhere", **{"My.ShouldTransferFiles": '"NO"'}),
        "error": submit("error", **{"My.TransferErr": "false", "My.Err": job_file_value(str(mark))}),
        **{name: submit(name, **{f"My.{name}": job_file_value(str(evil))}) for name in FORBIDDEN_ATTRIBUTES},
    }
    # These look right to START, and would not to the starter.
    dodging = f"ifThenElse(TARGET.{Machine.ID} =!= undefined, {{}}, {{}})"
    cunning = {
        "variable": submit(
            "variable", **{"My.Environment": dodging.format('""', job_file_value(environment))}, **transferred
        ),
        "remapped": submit(
            "remapped",
            **{"My.TransferInputRemaps": dodging.format("undefined", job_file_value(f"evil.sh={mark}"))},
            **transferred,
        ),
        "errors": submit(
            "errors", **{"My.TransferErr": dodging.format("true", "false"), "My.Err": job_file_value(str(mark))}
        ),
        "logged": submit("logged", **{"My.StarterUserLog": dodging.format("undefined", job_file_value(str(mark)))}),
        "outside": submit("outside", arguments=f"outside.jsonl {mark}"),
    }
    pool.tool("condor_advertise", "-tcp", "UPDATE_STARTD_AD", str(fake))
    good = submit("good", priority="-10")  # negotiated for after the others
    finish(good)
    for name, job in refused.items():
        (ad,) = access_point.jobs(job, ["NumJobStarts", "NumJobMatches", "JobStatus"])
        assert ad["JobStatus"] == JobStatus.IDLE and not ad.get("NumJobMatches") and not ad.get("NumJobStarts"), name
    for name, job in cunning.items():
        eventually(lambda job=job: access_point.jobs(f"{job} && NumJobStarts > 0", ["ProcId"]), f"{name} starts")
        eventually(lambda job=job: not access_point.jobs(f"{job} && JobStatus == 2", ["ProcId"]), f"{name} ends")
    assert not mark.exists()
    # A lane that no glidein's token has advertised gets no job.
    assert len(collector.lanes(["Name"], 'Name == "slot1@fake"')) == 1
    log = (pool.logs / "NegotiatorLog").read_text(errors="replace")
    assert "slot1@fake" not in log
