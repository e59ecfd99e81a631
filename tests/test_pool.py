"""The embedded pool: up, down, side by side, and clean after any kill."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from glide.condor import AccessPoint, EmbeddedPool
from glide.errors import CondorError, CondorRefused
from glide.vocabulary import POOL_VARIABLE
from tests.conftest import eventually

pytestmark = pytest.mark.pool


@pytest.fixture
def pools(tmp_path: Path):
    """Two pools that are down, and are down afterwards."""
    pools = [EmbeddedPool(tmp_path / name) for name in ("one", "two")]
    yield pools
    for pool in pools:
        pool.down()


def test_two_pools_coexist_and_repeated_start_changes_nothing(pools):
    one, two = pools
    for pool in pools:
        pool.up(cores=1)
    first = daemons(one)
    one.up(cores=1)
    assert daemons(one) == first
    two.down()
    assert one.is_up() and not two.is_up()
    assert two.processes() == []


FORKS = """
import os, time
from pathlib import Path
Path("/proc/self/comm").write_text("condor_negotiator"[:15])
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


def test_forked_child_of_daemon_is_not_listed_separately(pools):
    pool = pools[0]
    own = {POOL_VARIABLE: str(pool.home), "CONDOR_CONFIG": str(pool.config)}
    with subprocess.Popen([sys.executable, "-c", FORKS], env=own, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout
        worker = int(daemon.stdout.readline())
        try:
            assert {each.pid for each in pool.processes()} == {daemon.pid, worker}
            assert [each.pid for each in pool.daemons("condor_negotiator")] == [daemon.pid]
        finally:
            pool.down()  # ends what is the pool's


def test_daemons_update_ads_well_before_they_expire(pools):
    pool = pools[0]
    pool.up(cores=1)
    names = ("UPDATE_INTERVAL", "MASTER_UPDATE_INTERVAL", "NEGOTIATOR_UPDATE_INTERVAL", "SCHEDD_INTERVAL")
    told = [int(pool.tool("condor_config_val", name)) for name in names]
    assert max(told) * 3 < int(pool.tool("condor_config_val", "CLASSAD_LIFETIME"))


def test_repeated_startup_keeps_daemons_despite_suspended_schedd(pools):
    pool = pools[0]
    pool.up(cores=1)
    before = daemons(pool)
    (schedd,) = pool.daemons("condor_schedd")
    schedd.send(signal.SIGSTOP)
    pool.tool("condor_advertise", "INVALIDATE_SCHEDD_ADS", str(_all_ads(pool)))
    assert not pool.is_up()
    with ThreadPoolExecutor() as threads:
        up = threads.submit(pool.up, cores=1)
        time.sleep(2)
        schedd.send(signal.SIGCONT)
        up.result(60)
    assert daemons(pool) == before


def daemons(pool: EmbeddedPool) -> set[int]:
    """Those that stay; others of its processes come and go."""
    names = ("condor_master", "condor_collector", "condor_negotiator", "condor_schedd", "condor_startd")
    return {process.pid for name in names for process in pool.daemons(name)}


def _all_ads(pool: EmbeddedPool) -> Path:
    ad = pool.home / "all"
    ad.write_text('MyType = "Query"\nTargetType = "Scheduler"\nRequirements = true\n')
    return ad


def test_pool_restarts_cleanly_after_master_was_killed(pools):
    pool = pools[0]
    pool.up(cores=1)
    pool.tool("condor_status", "-any")
    (master,) = pool.daemons("condor_master")
    master.send(signal.SIGKILL)
    pool.down()
    assert pool.processes() == []
    pool.up(cores=1)
    assert pool.is_up()


def test_pool_files_are_accessible_only_to_owner(pools):
    pool = pools[0]
    pool.up(cores=1)
    folders = (pool.home, *(pool.folder / name for name in (".", "passwords.d", "tokens.d", "spool", "log")))
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, folder
    secrets = [pool.folder / "passwords.d" / "POOL", pool.folder / "tokens.d" / "owner"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)


def test_hanging_condor_tool_raises_error_with_its_name(pools, monkeypatch):
    pool = pools[0]
    pool.up(cores=1)
    (schedd,) = pool.daemons("condor_schedd")
    monkeypatch.setattr("glide.condor.pool.TOOL_SECONDS", 0.5)
    schedd.send(signal.SIGSTOP)
    try:
        with pytest.raises(CondorError, match="condor_q has not ended"):
            pool.tool("condor_q")
    finally:
        schedd.send(signal.SIGCONT)


def test_hanging_access_point_raises_error_after_timeout(own_pool, monkeypatch):
    access_point = AccessPoint()
    cluster = access_point.submit("executable = /bin/true\nhold = true\nqueue")
    (schedd,) = own_pool.daemons("condor_schedd")
    monkeypatch.setattr("glide.condor.access_point.CALL_SECONDS", 1.0)
    schedd.send(signal.SIGSTOP)
    try:
        with pytest.raises(CondorError, match="no answer within 1 s"):
            access_point.submit("executable = /bin/true\nhold = true\nqueue", seconds=1.0)
        with pytest.raises(CondorError, match="no answer within"):
            access_point.edit({f"{cluster}.0": "7"}, "JobPrio")
    finally:
        schedd.send(signal.SIGCONT)
    (job,) = eventually(lambda: access_point.jobs("true", ["ClusterId", "JobPrio"]), "it answers again")
    assert job["ClusterId"] == cluster
    with pytest.raises(CondorRefused, match="HTCondor refuses the job"):
        access_point.submit("executable = /bin/true\nrequirements = ((\nqueue")


def test_restarted_access_point_is_found_at_new_address(own_pool):
    access_point = AccessPoint()
    cluster = access_point.submit("executable = /bin/true\nhold = true\nqueue")
    before = access_point.location["MyAddress"]
    own_pool.down()
    own_pool.up(cores=1)
    with pytest.raises(CondorError):
        access_point.edit({f"{cluster}.0": "7"}, "JobPrio")

    def edited() -> bool:
        with suppress(CondorError):
            access_point.edit({f"{cluster}.0": "7"}, "JobPrio")
            return True
        return False

    eventually(edited, "it is located again")
    assert access_point.location["MyAddress"] != before
    (job,) = access_point.jobs(f"ClusterId == {cluster}", ["JobPrio"])
    assert job["JobPrio"] == 7


def test_pool_env_command_prints_variables_for_htcondor_tools(pools):
    pool = pools[0]
    pool.up(cores=1)
    script = f'eval "$({sys.executable} -m glide pool env)" && condor_q -totals && condor_status -af Name'
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CONDOR", "_CONDOR"))}
    environment = {**clean, "GLIDE_HOME": str(pool.home)}

    def tools_answer() -> bool:
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
        return done.returncode == 0 and "slot1@" in done.stdout

    eventually(tools_answer, "condor_q and condor_status answer in that shell")
