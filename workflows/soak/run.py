"""Run glide for an hour under faults, and check that nothing is lost and that nothing grows: `make soak`.

A factory, `glide serve`, `glide web`, sweeps of two users and live calls run at the same time, on a pool of their own.
Meanwhile glideins and the schedd are killed, the site file changes, the clock steps, and the disk is full. The command
writes soak.json, soak.md and soak.png to the folder of --out. It exits 1 if something was lost or grows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

import yaml
from faults import Fault, Faults, own_disk, schedule
from load import LiveLoop, SweepLoop
from matplotlib.figure import Figure
from samples import KINDS, LIMIT, MOST, WARM_UP_SECONDS, Sample, growth, of_folder, of_processes, problem_of

from glide.bench.api_server import ApiServer
from glide.condor import EmbeddedPool, bindings
from glide.condor.processes import children
from glide.report.experiment import Experiment, arguments, number
from glide.report.sweep.figures import style
from glide.system import ending_with_us

HERE = Path(__file__).resolve().parent
VERIFIER = {
    "name": "verifier", "engine": "transformers", "path": str(HERE.parent / "promptverify" / "model"),
    "options": {"dtype": "float32"},
}  # fmt: skip
NOOP = {"name": "noop", "engine": "noop", "options": {"record_seconds": 0.05}}
RECORDS = {"noop": 2000, "verifier": 2000}  # records of a sweep
SAMPLE_SECONDS = 10.0
END_SECONDS = 600.0  # seconds that unfinished sweeps get after the end
DAEMONS = ("condor_schedd", "condor_collector", "condor_negotiator", "condor_startd")


def main() -> None:
    takes = "It starts a pool of its own. As root, it mounts a disk of 3 GB in memory, to fill it."
    parser = arguments(__doc__.splitlines()[0], "soak", takes)
    parser.add_argument("--minutes", type=float, default=60.0, help="duration")
    parser.add_argument("--faketime", type=Path, help="libfaketime.so.1, to step the daemons' clock, too")
    asked = parser.parse_args()
    experiment = Experiment("soak", "An hour under faults", "Does glide lose something, or does it need more and more?")
    soak = Soak(60 * asked.minutes, asked.faketime)
    soak.run()
    problems = soak.report(experiment)
    experiment.write(asked.out, soak.figure())
    for problem in problems:
        print(f"soak: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


class Soak:
    """A soak.

    Args:
        seconds: its duration.
        faketime: libfaketime; None to step only the clock of glide's own processes.

    Attributes:
        samples: the samples so far.
        happened: the faults so far, each with the second when it has happened.
        sweeps, calls: the loops of work.
        counts: number of faults of each kind.
    """

    def __init__(self, seconds: float, faketime: Path | None):
        self.seconds = seconds
        self.faketime = faketime
        self.samples: list[Sample] = []
        self.happened: list[Fault] = []
        self.sweeps: list[SweepLoop] = []
        self.calls: list[LiveLoop] = []
        self.counts: Mapping[str, int] = {}
        self.problems: list[str] = []

    def run(self) -> None:
        """Start everything, let the faults happen, and stop everything."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="glide-soak-")))
            disk = stack.enter_context(own_disk(folder))
            os.environ["GLIDE_HOME"] = str(folder / "home")
            (folder / "home" / "pool").mkdir(mode=0o700, parents=True)
            # HTCondor's daemons end when they cannot write their logs, so they get a disk that is never full.
            stack.enter_context(own_disk(folder / "home" / "pool"))
            clock = folder / "clock"
            clock.write_text("+0s\n", "utf-8")
            pool = EmbeddedPool(folder / "home")
            stack.callback(pool.down)
            os.environ |= self._faked(clock)
            pool.up(cores=4)
            for name in self._faked(clock):
                del os.environ[name]
            os.environ |= pool.environment() | {"PYTHONPATH": str(HERE / "clock"), "SOAK_CLOCK": str(clock)}
            bindings.reload()
            site = folder / "site.yaml"
            entry = {
                "name": "soak", "max_glideins": 4, "lanes": 2, "request": {"memory": 900, "disk": 100},
                "cache": {"folder": str(folder / "cache")},
            }  # fmt: skip
            site.write_text(yaml.safe_dump({"site": "soak", "entries": [entry]}), "utf-8")
            factory = stack.enter_context(_command(folder / "factory.log", "factory", "run", "-c", str(site)))
            models = []
            for model in (NOOP, VERIFIER):
                models.append(folder / f"{model['name']}.yaml")
                models[-1].write_text(yaml.safe_dump({"name": model["name"], "model": model, "glideins": 2}), "utf-8")
            server = stack.enter_context(ApiServer(*(each for file in models for each in ("--model", file))))
            web = stack.enter_context(_command(folder / "web.log", "web", "--port", "0"))
            pids = {
                "factory": factory.pid, "serve": server.process.pid, "web": web.pid,
                "serve, for HTCondor": _child(server.process.pid, "glide.live.worker"),
            }  # fmt: skip
            self._work(folder, server)
            for loop in self.sweeps:
                stack.callback(loop.stop)  # if the soak is interrupted, no sweep may use the disk when it is unmounted
            faults = Faults(pool, site, disk, clock)
            sampling = threading.Event()
            thread = threading.Thread(target=self._sample, args=(pool, folder, pids, sampling))
            thread.start()
            try:
                self._let_happen(faults)
                self._end()
            finally:
                sampling.set()
                thread.join()
            for name, process in {"factory": factory, "serve": server.process, "web": web}.items():
                if process.poll() is not None:
                    self.problems.append(f"{name} has ended with exit code {process.returncode}")
            self.counts = faults.counts

    def _faked(self, clock: Path) -> dict[str, str]:
        """Return an environment in which HTCondor's daemons read the step of their clock from a file."""
        if self.faketime is None:
            return {}
        return {
            "LD_PRELOAD": str(self.faketime), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip

    def _work(self, folder: Path, server: ApiServer) -> None:
        """Start the sweeps and the calls."""
        environment = dict(os.environ)
        for user, model in (("ada", NOOP), ("bob", VERIFIER)):
            name = str(model["name"])
            self.sweeps.append(SweepLoop(user, folder / "sweeps", model, RECORDS[name], environment))
            self.calls += [LiveLoop(server, name) for _ in range(2)]
        for loop in (*self.sweeps, *self.calls):
            loop.start()

    def _sample(self, pool: EmbeddedPool, folder: Path, pids: Mapping[str, int], ended: threading.Event) -> None:
        began = time.monotonic()
        home = pool.home
        while not ended.wait(SAMPLE_SECONDS):
            second = time.monotonic() - began
            found = {name: process.pid for name in DAEMONS for process in pool.daemons(name)[:1]}
            self.samples += of_processes(second, {**pids, **found})
            self.samples += of_folder(second, "GLIDE_HOME", home, [home / "pool"])
            self.samples += of_folder(second, "pool", home / "pool", [home / "pool" / "execute"])

    def _let_happen(self, faults: Faults) -> None:
        began = time.monotonic()
        for fault in schedule(self.seconds):
            time.sleep(max(0.0, began + fault.second - time.monotonic()))
            if fault.name != "glidein":
                print(f"soak: {fault.second:.0f} s: {fault.name}; {self._progress()}", file=sys.stderr, flush=True)
            faults.happen(fault)
            self.happened.append(Fault(time.monotonic() - began, fault.name))
        time.sleep(max(0.0, began + self.seconds - time.monotonic()))

    def _progress(self) -> str:
        records = sum(loop.counts["records"] for loop in self.sweeps)
        problems = sum(len(loop.problems) for loop in (*self.sweeps, *self.calls))
        return f"{records} records, {sum(len(loop.seconds) for loop in self.calls)} calls, {problems} problems"

    def _end(self) -> None:
        """Let the work end, and note what was lost."""
        deadline = time.monotonic() + END_SECONDS
        for loop in (*self.sweeps, *self.calls):
            loop.ended.set()
        for loop in (*self.sweeps, *self.calls):
            loop.join(max(0.0, deadline - time.monotonic()))
            if loop.is_alive():
                self.problems.append(f"{loop.name} has not ended")
            self.problems += loop.problems

    # ---- evaluation ------------------------------------------------------------------------------

    def report(self, experiment: Experiment) -> list[str]:
        """Fill the table, the data and the notes. Return what is wrong."""
        experiment.columns = ("what", "of", "at the beginning", "median", "at the end", "growth per hour")
        problems = list(self.problems)
        for (subject, kind), samples in self._series().items():
            values, unit = [sample.value for sample in samples], KINDS[kind]
            grows = growth(samples)
            experiment.rows.append((
                kind, subject, number(values[0], unit), number(median(values), unit), number(values[-1], unit),
                "" if grows is None else f"{grows:+.2f} %",
            ))  # fmt: skip
            if problem := problem_of(subject, kind, samples):
                problems.append(problem)
        sweeps = sum((loop.counts for loop in self.sweeps), Counter[str]())
        seconds: dict[str, list[float]] = {}
        for loop in self.calls:
            seconds.setdefault(loop.model, []).extend(loop.seconds)
        experiment.data |= {
            "sweeps": dict(sweeps), "calls": sum(map(len, seconds.values())),
            "faults": dict(self.counts), "problems": problems,
            "samples": [(round(each.second), each.subject, each.kind, each.value) for each in self.samples],
            "happened": [(round(each.second), each.name) for each in self.happened],
        }  # fmt: skip
        experiment.notes += [
            *(f"**{problem}.**" for problem in problems),
            f"{sweeps['sweeps']} sweeps had {sweeps['records']:,} records. Each has exactly one result."
            f" {sweeps['begun again']:,} records were begun again. After an error, the command was continued"
            f" {sweeps['continued runs']} times.",
            "Live calls: "
            + "; ".join(
                f"{len(each):,} of {model}, median {median(each):.2f} s, slowest {max(each):.1f} s"
                for model, each in seconds.items()
            )
            + f". In {sum(loop.retries for loop in self.calls)} answers, the server asked the client to try again.",
            "Faults: " + ", ".join(f"{count} × {name}" for name, count in self.counts.items()) + ".",
            f"Growth is the median slope after the first {WARM_UP_SECONDS / 60:g} minutes, in percent of the mean per"
            f" hour. The limit is {LIMIT:g} % for glide's own processes. Old logs and files are deleted, so they have"
            f" other limits: {MOST['files']:,.0f} files and {MOST['logs']:g} MB of logs.",
        ]
        return problems

    def _series(self) -> dict[tuple[str, str], list[Sample]]:
        found: dict[tuple[str, str], list[Sample]] = {}
        for sample in sorted(self.samples, key=lambda each: list(KINDS).index(each.kind)):
            found.setdefault((sample.subject, sample.kind), []).append(sample)
        return found

    def figure(self) -> Figure:
        """Draw each kind of value over time, relative to its median. Vertical lines are faults other than kills."""
        series = self._series()
        with style():
            drawn = Figure(figsize=(9.0, 9.0))
            panels = drawn.subplots(len(KINDS), 1, sharex=True)
            for axes, kind in zip(panels, KINDS, strict=True):
                for (subject, each), samples in series.items():
                    if each == kind:
                        middle = median(sample.value for sample in samples) or 1.0
                        minutes = [sample.second / 60 for sample in samples]
                        axes.plot(minutes, [sample.value / middle for sample in samples], label=subject, linewidth=1)
                for fault in self.happened:
                    if fault.name != "glidein":
                        axes.axvline(fault.second / 60, color="grey", linewidth=0.5, linestyle=":")
                axes.set(ylabel=f"{kind} / median")
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="x-small")
            panels[-1].set(xlabel="minutes")
        return drawn


def _child(pid: int, word: str) -> int:
    """Return the process ID of a process's child. Its command line contains the word."""
    while True:  # it may start only now
        for child in children(pid):
            with suppress(OSError):
                if word.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
        time.sleep(0.2)


@contextmanager
def _command(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of glide, and end it at the end of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "glide", *words], stdout=output, stderr=output, preexec_fn=ending_with_us()
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
