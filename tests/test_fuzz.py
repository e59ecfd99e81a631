"""Kill anything at any time: every record still comes exactly once, with the text an undisturbed run gives.

`pytest tests/test_fuzz.py --kills 50 --records 5000 --seed 3` for the long form.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from glide.condor import AccessPoint, EmbeddedPool
from glide.condor.processes import Process
from glide.errors import CondorError
from glide.vocabulary import Exit, Job, JobStatus
from tests.conftest import SITE, SweepFolder, eventually

pytestmark = pytest.mark.pool

SECONDS_PER_KILL = 4.0  # the pause, the search for a victim, and some margin
GLIDEINS = 3


class Chaos:
    """A pool, its factory and a sweep's driver, all of which may be killed; the last two are started again."""

    def __init__(self, pool: EmbeddedPool, sweep: SweepFolder):
        self.pool = pool
        self.sweep = sweep
        self.site = pool.home / "chaos.yaml"
        entry = SITE["entries"][0] | {"name": "chaos", "max_glideins": 3}
        self.site.write_text(yaml.safe_dump(SITE | {"site": "chaos", "entries": [entry]}))
        self.factory = self._start_factory()
        self.driver = sweep.start()
        self.killed: Counter[str] = Counter()

    def _start_factory(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "glide", "factory", "run", "--drain", "-c", str(self.site)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def kill_something(self, rng: random.Random) -> None:
        kind = rng.choice(sorted(VICTIMS))
        if kind in ("driver", "driver that takes back"):
            self.driver.kill()
            self.driver.communicate()
            if kind == "driver that takes back":
                self._take_back(rng)
            self.driver = self.sweep.start("resume")
        elif kind == "factory":
            self.factory.kill()
            self.factory.wait()
            self.factory = self._start_factory()
        elif found := [process for process in self._processes() if VICTIMS[kind](process, self._outer(process))]:
            rng.choice(found).send(signal.SIGKILL)
        else:
            return
        self.killed[kind] += 1

    def _take_back(self, rng: random.Random) -> None:
        """Ask a running job to give records back, as a driver may do at the last moment before it is killed."""
        with suppress(CondorError):
            running = f"{Job.RECORDS} > 0 && JobStatus == {JobStatus.RUNNING}"
            if jobs := AccessPoint().jobs(running, ["ClusterId", "ProcId", Job.RECORDS]):
                job = rng.choice(jobs)
                kept = rng.randrange(job[Job.RECORDS] + 1)
                AccessPoint().edit({f"{job['ClusterId']}.{job['ProcId']}": str(kept)}, Job.KEEP, notify_shadow=True)

    def _processes(self) -> list[Process]:
        return sorted(self.pool.processes(), key=lambda process: process.pid)

    def _outer(self, process: Process) -> bool:
        return process.variable("CONDOR_CONFIG") == str(self.pool.config)

    def finished(self) -> bool:
        """Whether the driver has come to its end; one that gave up, for nothing answered it, goes on."""
        code = self.driver.poll()
        if code is not None and code not in (Exit.OK, Exit.INPUT):
            print(f"\nthe driver gave up: {self.driver.communicate()[1][-500:]}")
            self.driver = self.sweep.start("resume")
        return code in (Exit.OK, Exit.INPUT)

    def stop(self) -> None:
        for process in (self.driver, self.factory):
            process.terminate()
        self.driver.communicate()
        self.factory.wait(40)


def runs(module: str) -> Callable[[Process, bool], bool]:
    """Processes of one of glide's own modules."""

    def matches(process: Process, _: bool) -> bool:
        try:
            return module.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            return False

    return matches


VICTIMS: dict[str, Callable[[Process, bool], bool]] = {
    "glidein master": lambda process, outer: process.name == "condor_master" and not outer,
    "glidein startd": lambda process, outer: process.name == "condor_startd" and not outer,
    "starter": lambda process, outer: process.name == "condor_starter",
    "shadow": lambda process, outer: process.name == "condor_shadow",
    "schedd": lambda process, outer: process.name == "condor_schedd",
    "model server": runs("-m\0glide.server\0"),
    "engine": runs("glide.server.engine_process"),
    "ticket": runs("glide/invoke/ticket.sh"),
    "driver": lambda process, outer: False,
    "driver that takes back": lambda process, outer: False,
    "factory": lambda process, outer: False,
}


@pytest.fixture
def chaos(pool: EmbeddedPool, sweep: SweepFolder, request: pytest.FixtureRequest) -> Iterator[Chaos]:
    count = request.config.getoption("--records")
    records = [{"custom_id": f"r{number}", "text": f"text {number}"} for number in range(count)]
    kills = request.config.getoption("--kills")
    seconds = max(0.02, kills * SECONDS_PER_KILL * GLIDEINS / count)  # work for as long as the killing lasts
    model = {"name": "chaos", "engine": "noop", "options": {"record_seconds": seconds}}
    chaos = Chaos(pool, sweep.write(records, model=model, glideins=GLIDEINS))
    yield chaos
    chaos.stop()


@pytest.mark.timeout(1800)
def test_killing_random_processes_neither_loses_nor_repeats_results(chaos: Chaos, request: pytest.FixtureRequest):
    count, kills, seed = (request.config.getoption(name) for name in ("--records", "--kills", "--seed"))
    rng = random.Random(seed)
    results = chaos.sweep.out / "plain" / "results.jsonl"
    eventually(lambda: results.exists() and results.stat().st_size > 0, "the first results are in")
    while sum(chaos.killed.values()) < kills and not chaos.finished():
        chaos.kill_something(rng)
        time.sleep(rng.uniform(0.5, 3.0))
    while not chaos.finished():
        chaos.driver.wait()
    print(f"\nseed {seed}: killed {dict(chaos.killed)}; {chaos.sweep.summary}")
    written = chaos.sweep.results()
    assert [result["custom_id"] for result in written] == [f"r{number}" for number in range(count)]
    assert all(result["error"] is None for result in written)
    assert all(result["text"] == f"text {result['custom_id'][1:]}" for result in written)
