"""HTCondor goes away in the middle of a sweep and of a session: both wait, say so, and lose nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from glide.condor import EmbeddedPool
from glide.vocabulary import Exit
from tests.conftest import SweepFolder, eventually, factory_of

pytestmark = pytest.mark.pool

SESSION = """
import time, sys
from pathlib import Path
import glide

def slow(number):
    time.sleep(0.1)
    return number * number

with glide.Session() as session:
    calls = [session.submit(slow, number) for number in range(200)]
    for number, call in enumerate(calls):
        assert call.result() == number * number, number
        Path(sys.argv[1]).write_text(str(number + 1))
print("all", flush=True)
"""


@contextmanager
def without_schedd(pool: EmbeddedPool) -> Iterator[None]:
    """The access point is dead; its master starts it again afterwards."""
    (master,), (schedd,) = pool.daemons("condor_master"), pool.daemons("condor_schedd")
    master.send(signal.SIGSTOP)
    schedd.send(signal.SIGKILL)
    try:
        yield
    finally:
        master.send(signal.SIGCONT)


@contextmanager
def restarted(pool: EmbeddedPool) -> Iterator[None]:
    """The whole pool is down, and comes back at another port."""
    pool.down()
    yield
    pool.up(cores=4)


OUTAGES = {"schedd": without_schedd, "pool": restarted}


def through(pool: EmbeddedPool, sweep: SweepFolder, outages: list[str], seconds: float) -> None:
    """Run a sweep and a session through outages, and check what comes of them."""
    count = 300 * len(outages)
    sweep.write(
        [{"custom_id": f"r{number}", "text": f"text {number}"} for number in range(count)],
        model={"name": "patient", "engine": "noop", "options": {"record_seconds": 0.05}},
    )
    (sweep.folder / "calls.py").write_text(SESSION)
    told = sweep.folder / "told"

    def records() -> int:
        path = sweep.out / "plain" / "results.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def calls() -> int:
        return int(told.read_text() or 0) if told.exists() else 0

    with factory_of(pool):
        session = subprocess.Popen(
            [sys.executable, sweep.folder / "calls.py", told], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running = sweep.start()
        try:
            for outage in outages:
                done, made = records(), calls()
                eventually(lambda done=done, made=made: records() > done + 50 and calls() > made + 20, "work is done")
                with OUTAGES[outage](pool):
                    gone = time.monotonic()
                    while time.monotonic() - gone < seconds:
                        time.sleep(0.5)
                        assert (running.poll(), session.poll()) == (None, None), "they wait"
            _, errors = running.communicate()
            printed, complaints = session.communicate()
        finally:
            session.kill()
    assert running.returncode == Exit.OK, errors
    assert [result["custom_id"] for result in sweep.results()] == [f"r{number}" for number in range(count)]
    assert all(result["error"] is None for result in sweep.results())
    assert (session.returncode, printed) == (0, "all\n"), complaints
    for said in (errors, complaints):
        waits, goes_on = said.count(" paused since "), said.count(" resumed after ")
        assert waits == goes_on and 1 <= waits <= len(outages), said
    summary = sweep.summary
    assert summary["rejected"] == 0 and summary["recomputed"] <= 40 * len(outages), summary
    print(
        json.dumps({"outages": outages, "seconds": seconds, **summary}), errors, complaints, sep="\n", file=sys.stderr
    )


def test_sweep_and_session_survive_schedd_and_pool_restart(own_pool: EmbeddedPool, sweep: SweepFolder):
    through(own_pool, sweep, ["schedd", "pool"], 3)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("outage", OUTAGES)
def test_ten_minute_outage_loses_no_results(own_pool: EmbeddedPool, sweep: SweepFolder, outage: str):
    through(own_pool, sweep, [outage], 600)
