"""An outer pool whose machines may be taken away, an overlay pool that glideins join, and views that break."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glide.condor import EmbeddedPool
from glide.template import Template
from glide.vocabulary import Machine, State
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, command
from tests.two_pools import Pools, signalled

pytestmark = pytest.mark.pool

COUNT = itertools.count()


@pytest.fixture
def pools(both: tuple[EmbeddedPool, EmbeddedPool], tmp_path: Path) -> Iterator[Pools]:
    overlay, outer = both
    token = overlay.folder / "tokens.d" / "outer"
    token.write_bytes((outer.folder / "tokens.d" / "owner").read_bytes())
    token.chmod(0o600)
    pools = Pools(overlay, outer, tmp_path)
    yield pools
    pools.clear()


def test_pool_refuses_token_of_another_pool(both: tuple[EmbeddedPool, EmbeddedPool]):
    for mine, other in (both, both[::-1]):
        address = (other.folder / "address" / "collector").read_text().splitlines()[0]
        environment = {**os.environ, **mine.environment()}
        environment["_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS"] = "IDTOKENS"
        (mine.folder / "tokens.d" / "outer").unlink(missing_ok=True)
        for tool in (["condor_status", "-any", "-pool", address], ["condor_q", "-pool", address, "-global"]):
            refused = subprocess.run(tool, env=environment, capture_output=True, text=True)
            assert "Error" in refused.stdout + refused.stderr, (tool, refused.stdout)


def test_number_of_glideins_follows_demand_down_to_zero(pools: Pools):
    factory = pools.factory("filling", idle_seconds=4)
    pools.ask(Template("filling", "noop", options={"record_seconds": 0.2}), jobs=2, records=20, wanted=2)
    for _ in range(2):
        factory.start("--once")
        factory.process.wait(60)
    assert pools.submitted("filling") == 2
    factory.start()
    eventually(lambda: pools.jobs() == ["4", "4"], "both jobs ran")
    eventually(lambda: not pools.glideins() and not pools.lanes(), "without demand all are gone")
    assert any(line["lanes"].get("filling") for line in pools.journal(factory)), "its lanes were seen"
    before = len(pools.journal(factory))
    time.sleep(3)  # three cycles
    assert not pools.glideins()
    kinds = [action["action"] for line in pools.journal(factory) for action in line["actions"]]
    assert kinds.count("submit") == 1, pools.journal(factory)[before - 1 :]
    assert "Warm" in command("factory", "logs", "filling", environment=pools.environment).stdout


def test_job_of_evicted_glidein_finishes_after_glidein_restart(pools: Pools):
    factory = pools.factory("taken")
    factory.start()
    pools.ask(Template("taken", "noop", options={"record_seconds": 0.5}), records=60)
    eventually(lambda: pools.jobs() == ["2"], "the job runs")
    pools.important(seconds=8)
    eventually(lambda: pools.glideins() == ["1"], "its glidein is evicted and queued again")
    eventually(lambda: not pools.lanes(), "its ads are gone")
    eventually(lambda: pools.jobs() == ["1"], "its job waits for another lane")
    eventually(lambda: "taken" in (pools.lanes(Machine.ENTRY) or [""])[0], "the glidein is back")
    assert all(glide_id.endswith("r1") for glide_id in pools.lanes(Machine.ID))
    eventually(lambda: pools.jobs() == ["4"], "the job has finished there")
    journal = pools.journal(factory)
    assert sum(action["action"] == "submit" for line in journal for action in line["actions"]) == 1
    expunged = [action["reason"] for line in journal for action in line["actions"] if action["action"] == "expunge"]
    assert not [reason for reason in expunged if "r1" in reason], "its new life is not taken for a ghost"
    evicted = [line for line in journal if line["glideins"] == {"taken": {"idle": 1}} and line["lanes"]]
    assert len(evicted) <= 1, "within a cycle of the eviction its ads are gone"


@pytest.fixture
def working(pools: Pools) -> FactoryProcess:
    """A factory with a glidein that works, and whose journal says so."""
    factory = pools.factory("blinded", idle_seconds=15)
    factory.start()
    # Another template each time, for jobs are not to start where the last test's glideins are going down.
    pools.ask(Template("blinded", "noop", options={"record_seconds": 0.5 + next(COUNT) / 1000}), 4, 200, wanted=2)
    eventually(lambda: pools.jobs() == ["2"] * 4 and pools.glideins() == ["2", "2"], "the jobs run")
    eventually(lambda: pools.journal(factory)[-1]["lanes"].get("blinded", {}).get(State.WARM) == 4, "it is seen")
    # A job that is said to run may still wait for its access point, and its glidein for it.
    eventually(lambda: pools.lanes("Activity") == ["Busy"] * 4, "the lanes are busy")
    return factory


def nothing_done_since(pools: Pools, factory: FactoryProcess, lines: int) -> None:
    done = [action for line in pools.journal(factory)[lines:] for action in line["actions"]]
    assert {action["action"] for action in done} <= {"wait"}, done


@pytest.mark.parametrize("name", ["condor_collector", "condor_schedd"])
def test_factory_takes_no_action_while_daemon_is_unresponsive(pools: Pools, working, name: str):
    lines = len(pools.journal(working))
    signalled(pools.overlay, name, signal.SIGSTOP)
    try:
        unseen = eventually(pools.unseen, "status says what is not seen")
    finally:
        signalled(pools.overlay, name, signal.SIGCONT)
    assert ("collector" if name == "condor_collector" else "access point") in unseen
    eventually(lambda: not pools.unseen(), "it is seen again")
    nothing_done_since(pools, working, lines)
    eventually(lambda: len(pools.lanes()) == 4, "lanes whose ads expired meanwhile advertise again")
    assert pools.glideins() == ["2", "2"]


@pytest.mark.soak  # it takes the minute that the factory doubts; tests/test_plausibility.py has its decisions
def test_factory_believes_empty_queue_and_collector_after_delay(pools: Pools, working):
    """Started anew with nothing in them they answer, and what they say is: no glideins, while jobs wait for some."""
    lines = len(pools.journal(working))
    queue = pools.outer.folder / "spool" / "job_queue.log"
    (master,) = pools.outer.daemons("condor_master")
    master.send(signal.SIGSTOP)  # it would start another schedd before the queue is gone
    signalled(pools.outer, "condor_schedd", signal.SIGKILL)
    queue.unlink()
    signalled(pools.overlay, "condor_collector", signal.SIGKILL)
    master.send(signal.SIGCONT)
    eventually(lambda: "forgotten" in pools.unseen(), "what they say is not believed")
    assert pools.glideins() == []
    nothing_done_since(pools, working, lines)
    # The jobs of a lost queue end by themselves; who still says after a minute that there are none is right.
    eventually(lambda: pools.glideins(), "they are replaced")
    eventually(lambda: not pools.unseen(), "nothing is doubted any more")


def test_expired_and_revoked_tokens_are_refused(pools: Pools, tmp_path: Path):
    ad = tmp_path / "ad"
    ad.write_text('MyType = "Machine"\nName = "slot1@stolen"\nMachine = "stolen"\nMyAddress = "<127.0.0.1:1>"\n')

    def advertise(token: str) -> bool:
        tokens = tmp_path / token
        environment = {
            **pools.environment, "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
            "_CONDOR_SEC_TOKEN_DIRECTORY": str(tokens), "_CONDOR_SEC_TOKEN_SYSTEM_DIRECTORY": str(tokens),
        }  # fmt: skip
        done = subprocess.run(["condor_advertise", "-tcp", "UPDATE_STARTD_AD", str(ad)], env=environment)
        return done.returncode == 0

    def mint(name: str, *lifetime: str) -> None:
        (tmp_path / name).mkdir(mode=0o700, exist_ok=True)
        identity = f"glidein-{name}@{(pools.overlay.folder / 'trust_domain').read_text()}"
        allowed = ("-authz", "ADVERTISE_STARTD", "-authz", "ADVERTISE_MASTER")
        text = pools.overlay.tool("condor_token_create", "-identity", identity, *allowed, *lifetime)
        (tmp_path / name / "token").write_text(text)
        (tmp_path / name / "token").chmod(0o600)

    def works_when_fresh() -> bool:
        mint("short", "-lifetime", "2")
        return advertise("short")

    mint("good")
    eventually(works_when_fresh, "a token is used before it expires")
    eventually(lambda: not advertise("short"), "it has expired")
    assert advertise("good")
    with pools.overlay.config.open("a") as config:
        config.write('SEC_TOKEN_REVOCATION_EXPR = regexp("^glidein-good@", sub)\n')
    signalled(pools.overlay, "condor_collector", signal.SIGHUP)
    mint("other")
    eventually(lambda: not advertise("good"), "the revoked one is refused")
    assert advertise("other")
