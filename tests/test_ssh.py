"""A pool that only its login host reaches: a real sshd, real pools, and what becomes of it when the link breaks."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from glide.condor import EmbeddedPool, install, tokens
from glide.config import Login
from glide.errors import CondorError
from glide.ssh import SshError, access_point_at
from glide.ssh.access_point import RemoteAccessPoint
from glide.ssh.link import SshLink
from glide.system import files_below
from glide.template import Template
from glide.vocabulary import Exit
from tests.conftest import eventually
from tests.factory_rig import command, entry
from tests.login_host import LoginHost
from tests.two_pools import Pools

pytestmark = pytest.mark.pool

# Says when it begins, and takes its time.
SLOW_SUBMIT = '#!/bin/sh\ntouch "{marker}"\nsleep 4\nexec {program} "$@"\n'
# A shell that takes long to start when it is to submit something for the first time.
LATE = """
case "$BASH_EXECUTION_STRING" in
    *condor_submit*) [ -e ~/once ] || { touch ~/once; sleep 25; touch ~/woken; } ;;
esac
"""
SESSIONS = 2  # processes of the one connection that is still open


@pytest.fixture
def pools(both: tuple[EmbeddedPool, EmbeddedPool], tmp_path: Path) -> Iterator[Pools]:
    pools = Pools(*both, tmp_path)
    yield pools
    pools.clear()


@pytest.fixture
def host(both: tuple[EmbeddedPool, EmbeddedPool], tmp_path: Path) -> Iterator[LoginHost]:
    host = LoginHost(tmp_path / "host", both[1])
    yield host.start()
    host.stop()


def site_file(folder: Path, **login: Any) -> str:
    path = folder / "ssh.yaml"
    path.write_text(yaml.safe_dump({"site": "ssh", "entries": [entry("far", ssh=login)]}))
    return str(path)


def site(pools: Pools, verb: str, file: str) -> tuple[int, Any]:
    """`glide site`: its exit code and what it says as JSON."""
    done = command("site", verb, file, "--json", environment=pools.environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def test_site_check_command_reports_missing_gpus(pools: Pools, host: LoginHost):
    code, told = site(pools, "check", site_file(pools.folder, **host.login()))
    (answers,) = told.values()
    found = {answer["question"]: answer["found"] for answer in answers}
    assert code == Exit.OK and not [answer for answer in answers if answer["fix"]], answers
    assert found["nodes"] == "1 nodes, no GPUs" and "0 glideins" in found["queue"] and "HTCondor 2" in found["version"]
    assert "open" in found["our collector"] and found["bundles"].startswith("none")
    wanting = entry("far", ssh=host.login(), request={"gpus": 1})
    (pools.folder / "gpus.yaml").write_text(yaml.safe_dump({"site": "ssh", "entries": [wanting]}))
    code, told = site(pools, "check", str(pools.folder / "gpus.yaml"))
    (bad,) = [answer for answers in told.values() for answer in answers if answer["fix"]]
    assert code == Exit.FAILED and bad["question"] == "nodes" and "far asks for GPUs" in bad["fix"]
    table = command("site", "check", str(pools.folder / "gpus.yaml"), environment=pools.environment).stdout
    assert "our collector" in table and "no GPUs" in table


def test_doctor_reports_problems_at_site_reached_over_ssh(pools: Pools, host: LoginHost):
    factory = pools.factory("far", ssh=host.login(), ready=1)
    pools.important(seconds=3600)
    occupied = ("-constraint", "Important && JobStatus == 2", "-af", "ClusterId")
    eventually(lambda: len(pools.outer.tool("condor_q", "-allusers", *occupied).split()) == 2, "the nodes are busy")
    factory.start()
    eventually(lambda: pools.glideins() == ["1"], "a glidein waits there")
    factory.stop()
    (token,) = pools.overlay.home.glob("factory/far/far/blank/token")
    domain = (pools.overlay.folder / "trust_domain").read_text()
    tokens.mint(token, f"glidein-far@{domain}", lifetime=3600, environment=pools.environment)

    def findings() -> dict[str, str]:
        told = json.loads(command("doctor", "--quick", "--json", environment=pools.environment).stdout)
        return {each["check"]: f"{found['found']} -> {found['fix']}" for each in told["checks"] if each["findings"]
                for found in each["findings"]}  # fmt: skip

    expiring = findings()
    assert set(expiring) == {"tokens", "factories"} and "of far's waiting glideins" in expiring["tokens"], expiring
    (job,) = pools.outer.tool(
        "condor_q", "-allusers", "-constraint", "isString(GlideEntry)", "-af", "ClusterId"
    ).split()
    pools.outer.tool("condor_hold", job)
    factory.write(entry("far", ssh=host.login(), request={"cpus": 64, "gpus": 2}))
    held = findings()
    assert f"on {host.user}@127.0.0.1:{host.port}: condor_release {job}.0, or on " in held["glideins"], held
    assert "far asks for cpus: 64, and no machine of its pool advertises that" in held["nodes"]
    ad = {"MyType": '"Machine"', "Machine": '"large"', "Name": '"slot1@large"', "MyAddress": '"<127.0.0.1:1>"',
          "TotalSlotCpus": "64", "TotalSlotMemory": "4096", "TotalGPUs": "2", "TotalSlotGPUs": "2"}  # fmt: skip
    gone = {"MyType": '"Query"', "TargetType": '"Machine"', "Requirements": 'Machine == "large"'}
    for name, attributes in (("ad", ad), ("gone", gone)):
        (pools.folder / name).write_text("".join(f"{key} = {value}\n" for key, value in attributes.items()))
    pools.outer.tool("condor_advertise", "-tcp", "UPDATE_STARTD_AD", str(pools.folder / "ad"))
    assert set(findings()) == {"factories", "glideins"}
    ((*_, nodes, _, _, _),) = site(pools, "check", str(factory.file))[1].values()
    assert nodes == {"question": "nodes", "found": "2 nodes, 2 GPU", "fix": ""}
    pools.outer.tool("condor_advertise", "-tcp", "INVALIDATE_STARTD_ADS", str(pools.folder / "gone"))


def test_deploy_command_repairs_damaged_and_removes_unused_bundles(pools: Pools, host: LoginHost):
    file = site_file(pools.folder, **host.login())
    code, told = site(pools, "deploy", file)
    (version,) = told.values()
    bundles = host.home / ".glide" / "bundles"
    assert code == Exit.OK and sorted(path.name for path in bundles.iterdir()) == [version]
    assert stat.S_IMODE((host.home / ".glide").stat().st_mode) == 0o700
    whole = (bundles / version / "glide.zip").read_bytes()
    (bundles / version / "glide.zip").write_bytes(whole[:-1])
    named = bundles / "0.0.1-named"
    for old in (named, bundles / "0.0.1-old"):
        old.mkdir()
        (old / "start.sh").write_text("#!/bin/sh\n")
        (old / "start.sh").chmod(0o700)
    job = pools.folder / "named.sub"
    job.write_text(f'executable = {named}/start.sh\nMy.GlideEntry = "far"\nhold = true\nqueue\n')
    pools.outer.tool("condor_submit", str(job))
    assert site(pools, "deploy", file) == (Exit.OK, told)
    assert (bundles / version / "glide.zip").read_bytes() == whole
    assert sorted(path.name for path in bundles.iterdir()) == sorted([version, named.name])


def test_evicted_glidein_submitted_over_ssh_starts_again(pools: Pools, host: LoginHost):
    factory = pools.factory("away", ssh=host.login(), idle_seconds=4)
    factory.start()
    pools.ask(Template("away", "noop", options={"record_seconds": 0.2}), records=120)
    eventually(lambda: pools.jobs() == ["2"], "the job runs")
    eventually(lambda: pools.glideins() == ["2"], "on a glidein there")
    logs = command("factory", "logs", "away", environment=pools.environment)
    assert "glidein away-" in logs.stdout, logs
    pools.important(seconds=4)
    eventually(lambda: "2" in pools.starts("away"), "its glidein is evicted, and starts again")
    eventually(lambda: pools.jobs() == ["4"], "the job has finished in its second life")
    eventually(lambda: not pools.glideins() and not pools.lanes(), "without demand all are gone")
    kinds = [action["action"] for line in pools.journal(factory) for action in line["actions"]]
    assert kinds.count("submit") == 1
    (token,) = host.home.glob(".glide/away/away/*/token")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    (there,) = host.home.glob(".glide/away/away/*/*.out")
    (here,) = pools.overlay.home.glob("factory/away/away/*/*.out")
    eventually(lambda: here.read_text() == there.read_text() != "", "its last words are here")
    assert host.accepted() == 2, "one connection of the factory's, and one for the look at the logs"
    assert token.read_text().strip() not in factory.log.read_text()


def test_submission_is_not_repeated_after_ssh_connection_breaks(pools: Pools, host: LoginHost, tmp_path: Path):
    """The link breaks while condor_submit runs there, which goes on without it."""
    marker, slow = tmp_path / "submitting", tmp_path / "slow"
    slow.mkdir()
    installation = install.find()
    assert installation
    (slow / "condor_submit").write_text(
        SLOW_SUBMIT.format(marker=marker, program=installation.program("condor_submit"))
    )
    (slow / "condor_submit").chmod(0o700)
    host.stop()
    host.settings["SetEnv"] = host.settings["SetEnv"].replace("PATH=", f"PATH={slow}:")
    host.start()
    factory = pools.factory("cut", ssh=host.login(), idle_seconds=60)
    factory.start()
    pools.ask(Template("cut", "noop"))
    eventually(marker.exists, "it submits")
    for pid in host.sessions():
        os.kill(pid, signal.SIGKILL)
    factory.says("the connection broke")
    eventually(lambda: pools.jobs() == ["4"], "the job ran on the glidein that came of it")
    eventually(lambda: pools.journal(factory)[-1]["glideins"] == {"cut": {"running": 1}}, "it is seen")
    assert pools.outer.tool("condor_q", "-allusers", "-af", "ClusterId", "GlideEntry").count("cut") == 1
    drained = command("factory", "drain", "cut", environment=pools.environment)
    assert "1 glideins are being removed" in drained.stdout, drained.stderr
    eventually(lambda: not pools.glideins(), "it is removed there")
    command("factory", "drain", "cut", "--undo", environment=pools.environment)


def test_delayed_submission_creates_no_second_glidein(pools: Pools, host: LoginHost):
    """Its shell takes long to start; when it has, the factory has looked again and submitted anew."""
    (host.home / ".bashrc").write_text(LATE)
    factory = pools.factory("late", ssh=host.login(seconds=4), idle_seconds=60)
    factory.start()
    pools.ask(Template("late", "noop"))
    factory.says("no answer within 4 s")
    eventually(lambda: pools.jobs() == ["4"], "the job ran on a glidein that was submitted later")
    eventually((host.home / "woken").exists, "the first submission gets on")
    eventually(lambda: "condor_submit" not in _commands_of(host), "and ends")
    assert pools.outer.tool("condor_q", "-allusers", "-af", "ClusterId", "GlideEntry").count("late") == 1


def _commands_of(host: LoginHost) -> str:
    return subprocess.run(["pgrep", "-a", "-f", str(host.home)], capture_output=True, text=True).stdout


def test_login_host_with_changed_access_point_is_refused(pools: Pools, host: LoginHost):
    access_point = RemoteAccessPoint(Login(**host.login()))
    access_point.fence("here")
    (host.home / ".glide" / "access_point").write_text("login7.cluster\n")
    with pytest.raises(CondorError, match=r"glideins were submitted at login7\.cluster; set `schedd`"):
        RemoteAccessPoint(Login(**host.login())).fence("here")
    RemoteAccessPoint(Login(**host.login(schedd="ap2"))).fence("here")


def test_outputs_from_folder_outside_glide_home_are_ignored(pools: Pools, host: LoginHost, tmp_path: Path):
    access_point = RemoteAccessPoint(Login(**host.login()))
    access_point.versions()
    (tmp_path / "stray").mkdir()
    job = tmp_path / "stray.sub"
    job.write_text('executable = /bin/true\nMy.GlideEntry = "far"\nhold = true\nqueue\n')
    pools.outer.tool("condor_submit", str(job))
    (number,) = pools.outer.tool("condor_q", "-constraint", 'GlideEntry == "far"', "-af", "ClusterId").split()
    (tmp_path / "stray" / f"{number}.0.out").write_text("not ours")
    folder = host.home / ".glide" / ".." / ".." / ".." / "stray"
    pools.outer.tool("condor_qedit", number, "Iwd", f'"{folder}"')
    access_point.retrieve('GlideEntry == "far"')
    assert not list(files_below(pools.overlay.home / "factory", f"{number}.0.out"))
    assert not list(pools.overlay.home.parent.parent.glob(f"*/{number}.0.out"))


def test_frozen_login_host_causes_timeout_error(host: LoginHost):
    link = SshLink(Login(**host.login(seconds=2)))
    assert link.run("cat", b"here").output == "here"
    host.signal(signal.SIGSTOP)
    try:
        with pytest.raises(SshError, match="no answer within 2 s"):
            link.run("cat >/dev/null", bytes(20_000_000))
    finally:
        host.signal(signal.SIGCONT)


def test_timeout_while_opening_connection_or_channel_is_explained(host: LoginHost):
    link = SshLink(Login(**host.login(seconds=2)))
    assert link.run("echo here").output == "here\n"
    host.signal(signal.SIGSTOP)
    try:
        # paramiko's own limit ends before the timer of the link.
        link._connection.transport.channel_timeout = 1
        link.login = link.login.model_copy(update={"seconds": 1.0})
        with (
            mock.patch("glide.ssh.link.threading.Timer"),
            pytest.raises(SshError, match="no answer within 1 s"),
        ):
            link.run("true")
        with pytest.raises(SshError, match="no answer within 2 s"):
            SshLink(Login(**host.login(seconds=2))).run("true")
    finally:
        host.signal(signal.SIGCONT)


def test_unresponsive_login_host_blocks_only_its_own_entries(pools: Pools, host: LoginHost):
    near = entry("near", pool={"collector": pools.address}, owners=[])
    token = pools.overlay.folder / "tokens.d" / "outer"
    token.write_bytes((pools.outer.folder / "tokens.d" / "owner").read_bytes())
    token.chmod(0o600)
    factory = pools.factory("silent", near, ssh=host.login(seconds=3))
    host.signal(signal.SIGSTOP)
    try:
        factory.start()
        pools.ask(Template("silent", "noop"))
        eventually(lambda: pools.jobs() == ["4"], "the job ran on the other entry's glidein")
        assert "cannot observe its queue" in factory.log.read_text()
        submitted = {a["entry"] for line in pools.journal(factory) for a in line["actions"] if a["action"] == "submit"}
        assert submitted == {"near"}
    finally:
        host.signal(signal.SIGCONT)
        token.unlink()
    eventually(lambda: not pools.unseen(), "it is seen again")


def test_changed_or_unknown_host_key_is_refused(pools: Pools, host: LoginHost):
    login = Login(**host.login())
    assert SshLink(login).run("echo here").output == "here\n"
    host.stop()
    host.change_key()
    host.start()
    file = site_file(pools.folder, **host.login())
    code, told = site(pools, "check", file)
    ((answer,),) = told.values()
    assert code == Exit.FAILED and "is not the one in" in answer["fix"]
    assert "is not the one in" in command("site", "deploy", file, environment=pools.environment).stderr
    host.known_hosts.write_text("")
    with pytest.raises(SshError, match="its host key is unknown"):
        SshLink(login).run("echo here")
    assert not (host.home / ".glide").exists(), "nothing was done there"


def test_jump_host_is_used_and_its_key_checked(host: LoginHost, tmp_path: Path):
    inner = LoginHost(tmp_path / "inner", AuthorizedKeysFile=str(host.folder / "id_ed25519.pub")).start()
    try:
        known = tmp_path / "known"
        known.write_text(host.known_hosts.read_text() + inner.known_hosts.read_text())
        jump = f"{host.user}@127.0.0.1:{host.port}"
        through = Login(**{**host.login(jump=jump, known_hosts=str(known)), "port": inner.port})
        assert SshLink(through).run("pwd").output.strip() == str(inner.home)
        assert host.accepted() == inner.accepted() == 1
        inner.stop()
        with pytest.raises(SshError):
            SshLink(through).run("pwd")
        eventually(lambda: len(host.sessions()) <= SESSIONS, "what was opened on the way is closed again")
        known.write_text(inner.known_hosts.read_text())
        with pytest.raises(SshError, match="host key is unknown"):
            SshLink(through).run("pwd")
        assert host.accepted() == 2
    finally:
        inner.stop()


def test_ssh_login_failure_is_reported_and_reconnection_delayed(host: LoginHost, tmp_path: Path):
    stranger = LoginHost(tmp_path / "stranger")
    with pytest.raises(SshError, match="the host refuses the login"):
        SshLink(Login(**host.login(key=str(stranger.key)))).run("true")
    link = SshLink(Login(**host.login()))
    host.stop()
    with pytest.raises(SshError) as first:
        link.run("true")
    host.start()
    with pytest.raises(SshError) as second:
        link.run("true")
    assert str(first.value) == str(second.value) and host.accepted() == 0


def test_error_output_of_remote_command_becomes_exception(host: LoginHost):
    with pytest.raises(CondorError, match="no such folder"):
        access_point_at(Login(**host.login())).shell("echo no such folder >&2; exit 1")
