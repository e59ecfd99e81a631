"""glide doctor: each trouble is planted on a real pool, found with its fix, and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from glide.condor import EmbeddedPool, tokens
from glide.doctor import Level
from glide.vocabulary import Exit, Job, JobStatus, Machine
from tests.clinic import Clinic, findings
from tests.conftest import eventually
from tests.debian import fetched
from tests.factory_rig import command, entry

pytestmark = pytest.mark.pool


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """Healthy again after each test: what one leaves is found by the next, which expects nothing of it."""
    pool = EmbeddedPool(tmp_path_factory.mktemp("clinic") / "home")
    clinic = None
    try:
        pool.up(cores=4)
        clinic = Clinic(pool, tmp_path_factory.mktemp("folder"))
        clinic.factory.start()
        eventually(clinic.lanes, "a glidein is ready")
        yield clinic
        clinic.finds()
    finally:
        if clinic:
            clinic.factory.stop()
        pool.down()


def test_doctor_accepts_healthy_pool_and_leaves_nothing_behind(clinic):
    told = clinic.examine("--wait", "300")
    assert findings(told) == [] and told["level"] == "ok"
    assert "back in" in next(check["looked_at"] for check in told["checks"] if check["check"] == "trial")
    assert clinic.query(f"{Job.RUN} =!= undefined") == [] and list(clinic.temporary.iterdir()) == []
    done = command("doctor", "--quick", environment=clinic.environment)
    assert done.returncode == 0 and "no problems" in done.stdout


def test_doctor_reports_harmful_daemon_settings(clinic):
    hurting = {
        "NEGOTIATOR_INTERVAL": "60", "NEGOTIATOR_CYCLE_DELAY": "20", "NEGOTIATOR_MIN_INTERVAL": "5",
        "NEGOTIATOR_UPDATE_INTERVAL": "300", "SCHEDD_INTERVAL": "300", "SCHEDD_MIN_INTERVAL": "5",
        "JOB_START_COUNT": "1", "JOB_START_DELAY": "2", "MAX_JOBS_RUNNING": "4", "MAX_JOBS_PER_OWNER": "8",
        "MAX_CONCURRENT_UPLOADS_PER_USER": "2", "GUIDANCE_KEEP_CALM_AND": "False", "CONDOR_FSYNC": "True",
        "MAX_JOBS_SUBMITTED": "8", "MAX_JOBS_PER_SUBMISSION": "5", "MAX_PENDING_STARTD_CONTACTS": "3",
        "BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER": "0",
        "EVENT_LOG": "", "PROTECTED_JOB_ATTRS": "",
    }  # fmt: skip
    with clinic.configured(**hurting):
        clinic.finds(
            ("matching", "warning", "NEGOTIATOR_INTERVAL = 60: a job", "NEGOTIATOR_INTERVAL = 2"),
            ("matching", "warning", "NEGOTIATOR_CYCLE_DELAY = 20: the negotiator", "NEGOTIATOR_CYCLE_DELAY = 0"),
            ("matching", "warning", "NEGOTIATOR_MIN_INTERVAL = 5: a request", "NEGOTIATOR_MIN_INTERVAL = 1"),
            ("matching", "warning", "takes the negotiator for dead", "NEGOTIATOR_UPDATE_INTERVAL = 15"),
            ("queue", "warning", "SCHEDD_INTERVAL = 300: work", "SCHEDD_INTERVAL = 1"),
            ("queue", "warning", "SCHEDD_MIN_INTERVAL = 5: new", "SCHEDD_MIN_INTERVAL = 0"),
            ("queue", "warning", "0.5 jobs start per second", "JOB_START_DELAY = 0"),
            ("queue", "warning", "MAX_JOBS_RUNNING = 4: too low for 9 jobs", "MAX_JOBS_RUNNING = 18"),
            ("queue", "warning", "MAX_JOBS_PER_OWNER = 8: too low for 9 jobs", "MAX_JOBS_PER_OWNER = 18"),
            ("queue", "warning", "MAX_JOBS_SUBMITTED = 8: too low for 9 jobs", "MAX_JOBS_SUBMITTED = 18"),
            ("queue", "warning", "MAX_JOBS_PER_SUBMISSION = 5: too low for 6 jobs", "MAX_JOBS_PER_SUBMISSION = 12"),
            ("queue", "warning", "CONTACTS = 3: too low for 6 lanes", "MAX_PENDING_STARTD_CONTACTS = 0"),
            ("queue", "warning", "6 lanes get their first jobs within 3 cycles, in up to 180 s",
             "MAX_CONCURRENT_UPLOADS_PER_USER = 0"),
            ("queue", "warning", "FILE_TRANSFER_DISK_LOAD_THROTTLE = 2", "TO_QUEUE_FOR_TRANSFER = 104857600"),
            ("queue", "warning", "lose five seconds to a race", "GUIDANCE_KEEP_CALM_AND = True"),
            ("queue", "warning", "each job costs a disk flush", "CONDOR_FSYNC = False"),
            ("protection", "critical", "nodes can change LimitDirectoryAccess", "PROTECTED_JOB_ATTRS = Limit"),
            ("losses", "warning", "noticed 14 s later", "EVENT_LOG = $(LOG)/EventLog"),
        )  # fmt: skip


def test_doctor_reports_inefficient_invocation_jobs(clinic):
    with (
        clinic.configured(GUIDANCE_KEEP_CALM_AND="False"),
        clinic.job(without=("transfer_output_files",)) as silent,
        clinic.job("job_lease_duration = 0") as dropped,
        clinic.job(without=("job_lease_duration", "want_io_proxy")) as default,
        clinic.job("transfer_input_files = records-0.jsonl, more") as laden,
        clinic.job('My.JobLeaseDuration = "an hour"', without=("job_lease_duration",)),  # no time, so none is said
    ):
        one = "1 invocation job ({}.0) {}"
        undefined = "job_lease_duration = undefined"
        output, inputs = "transfer_output_files = $(results) in the job file", "one file in transfer_input_files"
        clinic.finds(
            ("jobs", "warning", one.format(silent, "do not name their output files: the starter"), output),
            ("jobs", "critical", one.format(dropped, "have job_lease_duration = 0: the lane drops"), undefined),
            ("jobs", "warning", one.format(default, "have a job lease: after a lost lane"), undefined),
            ("jobs", "warning", one.format(default, "cannot stream"), "want_io_proxy = true"),
            ("jobs", "warning", one.format(laden, "send more than one file"), inputs),
            ("queue", "warning", "lose five seconds to a race", "GUIDANCE_KEEP_CALM_AND = True"),
        )


def test_doctor_reports_held_jobs_and_glideins(clinic):
    (glidein, *_) = clinic.query(f"{Job.ENTRY} =!= undefined && JobStatus == {JobStatus.RUNNING}")
    with clinic.job() as cluster:
        clinic.pool.tool("condor_hold", "-reason", "[red]no[/red] quota", cluster, glidein)
        clinic.finds(
            ("held jobs", "warning", "are held: [red]no[/red] quota", f"condor_release {cluster}"),
            ("glideins", "warning", f"ward-{glidein}.0 is held: [red]no[/red] quota", f"condor_rm {glidein}.0"),
        )
        clinic.pool.tool("condor_rm", glidein)


def test_doctor_reports_secrets_readable_by_others(clinic):
    (token, *_) = clinic.pool.home.glob("factory/*/*/*/token")
    clinic.pool.home.chmod(0o755)
    token.chmod(0o644)
    clinic.finds(
        ("secrets", "critical", f"{clinic.pool.home} has mode 755", f"chmod 700 {clinic.pool.home}"),
        ("secrets", "critical", f"{token} has mode 644", f"chmod 600 {token}"),
    )
    clinic.pool.home.chmod(0o700)
    token.chmod(0o600)
    own = clinic.pool.folder / "tokens.d" / "owner"
    own.chmod(0o640)  # then HTCondor does not use it
    told = clinic.examine()
    own.chmod(0o600)
    assert told["level"] == "unknown" and f"chmod 600 {own}" in told["not_seen"]


def test_doctor_reports_token_about_to_expire(clinic):
    path = clinic.pool.folder / "tokens.d" / "zz-visitor"
    domain = (clinic.pool.folder / "trust_domain").read_text()
    tokens.mint(path, f"visitor@{domain}", lifetime=7200, environment=clinic.environment)
    try:
        clinic.finds(("tokens", "warning", f"{path}, expires in", "condor_token_fetch -token zz-visitor"))
    finally:
        path.unlink()


def test_doctor_reports_missing_advertise_permission(clinic):
    with clinic.configured(ALLOW_ADVERTISE_MASTER="$(OWNER)"):
        clinic.finds(
            (
                "rights",
                "critical",
                "does not let glidein-ward advertise",
                "add glidein-ward@$(TRUST_DOMAIN) to the central manager's ALLOW_ADVERTISE_MASTER",
            )
        )


def test_doctor_reports_site_file_entries_that_cannot_work(clinic, tmp_path):
    entries = (
        entry("ward"),
        entry("gpus", request={"gpus": 1, "memory": 600}),
        entry("large", request={"memory": 10_000_000}),
        entry("lacking", environment=str(tmp_path / "env.tar.gz")),
        entry("slow", knobs={"CLAIM_WORKLIFE": "60"}),
    )
    with clinic.site(*entries):
        clinic.finds(
            ("nodes", "critical", "gpus asks for gpus: 1", "feature:GPUs"),
            ("nodes", "critical", "large asks for memory: 10000000 MB", "memory: "),
            ("site files", "critical", f"{tmp_path}/env.tar.gz does not exist", "create it"),
            ("glidein knobs", "warning", "CLAIM_WORKLIFE = 60", "remove CLAIM_WORKLIFE"),
        )
    with clinic.site({**entry("ward"), "colour": "red"}):
        clinic.finds(("site files", "critical", "clinic.yaml:2: entries.0.colour: unknown key", "correct"))


def test_doctor_reports_problems_in_ads_of_other_machines(clinic):
    old = '"$CondorVersion: 23.10.1 2024-10-01 $"'
    with clinic.advertised(CondorVersion=old, MyCurrentTime=str(int(time.time()) + 90)):
        clinic.finds(
            ("versions", "critical", "Machine of the pool runs HTCondor 23.10.1", "upgrade HTCondor"),
            ("clocks", "critical", "slot1@stranger (Machine) is", "chronyc makestep"),
        )
    attributes = {Machine.ID: '"other-1.0"', Machine.ENTRY: '"other"', Machine.STATE: '"Warm"', Machine.TEMPLATE: '"T"'}
    with clinic.advertised(**attributes, MyCurrentTime='"noon"'):
        clinic.finds(("start", "critical", "START of other-1.0's lanes", "remove START"))


def test_doctor_reports_wrong_local_clock(clinic):
    library = next(fetched("libfaketime").root.glob("usr/lib/*/faketime/libfaketime.so.1"))
    wrong = {"LD_PRELOAD": str(library), "FAKETIME": "-20s", "PYTHONDONTWRITEBYTECODE": "1"}
    clinic.finds(("clocks", "warning", "the access point's clock is 2", "chronyc makestep"), environment=wrong)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which takes root")
def test_doctor_reports_full_disk(clinic, tmp_path):
    (tmp_path / "glide").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", tmp_path / "glide"], check=True)
    try:
        clinic.finds(
            ("disks", "critical", f"{tmp_path}/glide (the cache", "make room there"),
            environment={"XDG_CACHE_HOME": str(tmp_path)},
        )
    finally:
        subprocess.run(["umount", "-l", tmp_path / "glide"], check=True)


def test_doctor_reports_hanging_daemons_and_silent_lanes(clinic):
    with clinic.configured(CLASSAD_LIFETIME="600"):
        clinic.finds()
        clinic.factory.process.send_signal(signal.SIGSTOP)
        try:
            (name, *_) = clinic.lanes()
            for process in clinic.pool.processes():
                if (process.variable("CONDOR_CONFIG") or "").startswith(str(clinic.pool.folder / "execute")):
                    process.send(signal.SIGKILL)
            assert_a_schedd_that_hangs_is_found(clinic)  # meanwhile the others' silence grows
            clinic.finds(
                ("ghosts", "critical", "have been silent for", "glide factory run"),
                ("factories", "critical", "has not completed a cycle for", "`glide factory run` again"),
            )
            assert name in clinic.lanes()
        finally:
            clinic.factory.process.send_signal(signal.SIGCONT)
    eventually(lambda: name not in clinic.lanes(), "the ghost is gone")


def assert_a_schedd_that_hangs_is_found(clinic: Clinic) -> None:
    """Within the seconds that it has to answer, and what else there is to see is seen."""
    (schedd,) = clinic.pool.daemons("condor_schedd")
    schedd.send(signal.SIGSTOP)
    try:
        told = clinic.examine("--quick", "--timeout", "7")
    finally:
        schedd.send(signal.SIGCONT)
    (found,) = (each for each in findings(told) if "not checked" not in each["found"])
    assert told["level"] == found["level"] == "critical"
    assert "the schedd does not answer: no answer within 7 s" in found["found"]
    assert "condor_restart -schedd" in found["fix"]
    blind = {check["check"] for check in told["checks"] if check["not_seen"]}
    seen = {check["check"] for check in told["checks"]} - blind
    assert {"queue", "jobs", "rights", "factories"} <= blind and {"disks", "versions", "clocks", "site files"} <= seen


def test_doctor_reports_stopped_factory(clinic):
    clinic.factory.stop()
    try:
        fix = f"glide factory run -c {clinic.factory.file}"
        clinic.finds(("factories", "warning", "no factory runs for clinic", fix))
        with clinic.job():
            clinic.finds(("factories", "critical", "and 1 jobs wait", fix))
    finally:
        clinic.factory.start()
    clinic.finds()


def test_doctor_explains_stuck_test_job_and_removes_it(clinic):
    broken = {**entry("broken", python="/nowhere/python"), "breaker": {"failures": 1, "backoff_seconds": 600}}
    with clinic.site(entry("closed"), broken):
        command("factory", "drain", "closed", environment=clinic.environment)
        clinic.factory.process.send_signal(signal.SIGHUP)
        clinic.factory.says("read again")
        process = subprocess.Popen([sys.executable, "-m", "glide", "doctor"], env=clinic.environment)
        # Its job is one for which nobody's model is unloaded.
        eventually(lambda: clinic.query(f"{Job.RUN} =!= undefined && {Job.BEST_EFFORT}"), "its job waits")
        ended = f'{Job.ENTRY} == "broken" && JobStatus == {JobStatus.COMPLETED}'
        eventually(lambda: clinic.query(ended), "its glidein has failed")
        process.terminate()
        assert process.wait(60) == Exit.INTERRUPTED
        assert clinic.query(f"{Job.RUN} =!= undefined") == [] and list(clinic.temporary.iterdir()) == []
        told = clinic.examine("--wait", "2")
        assert told["level"] == "critical"
        (trial,) = [each for each in findings(told) if each["check"] == "trial"]
        assert "breaker open" in trial["found"] and "closed by `glide factory drain`" in trial["found"]
        clinic.finds(("breakers", "critical", "broken gets no glideins", "glide factory logs broken"))
        assert clinic.query(f"{Job.RUN} =!= undefined") == [] and list(clinic.temporary.iterdir()) == []
        command("factory", "drain", "closed", "--undo", environment=clinic.environment)
    clinic.factory.process.send_signal(signal.SIGHUP)


@pytest.mark.parametrize("config", [None, "COLLECTOR_HOST = 127.0.0.1:1\nLOG = /tmp\n"])
def test_doctor_without_pool_prints_one_line(tmp_path, config):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CONDOR", "_CONDOR"))}
    environment["GLIDE_HOME"] = str(tmp_path)
    if config:
        (tmp_path / "config").write_text(config)
        environment["CONDOR_CONFIG"] = str(tmp_path / "config")
    done = command("doctor", environment=environment)
    assert done.returncode == Level.UNKNOWN and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("glide: no pool")
    told = json.loads(command("doctor", "--json", environment=environment).stdout)
    assert told["level"] == "unknown" and told["not_seen"] in line
