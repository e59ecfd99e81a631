"""glide against its neighbours: the same prompts in the same run, through two workers of one core each.

    .venv/bin/python workflows/peers/run.py [--out DIR] [--repeat N]

A neighbour that is not there, or fails, is left out and named. The first run makes each an environment of its own.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from infer import BATCH, HERE, TASK, WORKERS
from matplotlib.figure import Figure

from glide.condor.install import cache_dir
from glide.report.experiment import Experiment, Measured, arguments, number, positive
from glide.report.sweep.figures import BLUE, GREY, INK, WIDTH, style

PROMPTVERIFY = Path(HERE).parent / "promptverify"
CONSTRAINTS = Path(HERE).parent.parent / "constraints.txt"
RECORDS = [4000, 12000]  # the second is the whole sweep: to see what of a difference grows with the work
LIMIT_SECONDS = 300  # of one run


@dataclass(frozen=True)
class System:
    """One that is measured.

    Attributes:
        script: beside this file; takes MODEL RECORDS OUT.
        needs: what pip installs for it, in an environment of its own.
        module: what its interpreter has to import, where pip cannot install it.
    """

    name: str
    script: str
    needs: str = ""
    module: str = ""


GLIDE, PROCESSES = System("glide", "glide_sweep.py"), System("two plain processes", "processes.py")
SYSTEMS = (
    GLIDE,
    PROCESSES,
    System("Parsl HTEX", "parsl_htex.py", needs="parsl==2026.10.26"),
    System("Ray actors", "ray_actors.py", needs="ray==2.60.0"),
    System("Dask", "dask_workers.py", needs="distributed==2026.8.0"),
    System("TaskVine functions", "taskvine_functions.py", module="ndcctools.taskvine"),
)


@dataclass(frozen=True)
class Case:
    """A system with a number of prompts."""

    system: System
    records: int


class Missing(Exception):
    """A system cannot be measured here; says which, why, and what to do, in one sentence."""


def interpreter(system: System, given: str) -> str:
    """The interpreter that runs a system's script.

    Args:
        given: the one for what pip cannot install.

    Raises:
        Missing: there is none.
    """
    if system.module:
        found = subprocess.run([given, "-c", f"import {system.module}, torch, transformers"], capture_output=True)
        if found.returncode:
            raise Missing(
                f"{system.name} was left out: {Path(given).name} cannot import {system.module} with torch and"
                " transformers, and pip has no package of it (--taskvine names another interpreter)."
            )
        return given
    return str(environment(system)) if system.needs else sys.executable


def environment(system: System) -> Path:
    """The interpreter of a system's own environment, which is made once; Missing when it cannot be.

    It sees our environment's packages behind its own, so that all systems compute with the same torch and transformers.
    """
    ours = sysconfig.get_path("purelib")
    key = hashlib.sha256(f"{system.needs}\n{ours}\n{CONSTRAINTS.read_text('utf-8')}".encode()).hexdigest()[:8]
    folder = cache_dir() / "peers" / f"{system.needs.replace('==', '-')}-{key}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"peers: making an environment for {system.needs}", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, stdout=sys.stderr)
            own = sysconfig.get_path("purelib", vars={"base": str(folder)})
            (Path(own) / "ours.pth").write_text(f"{ours}\n", "utf-8")
            install = ["-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), system.needs]
            subprocess.run([python, *install], check=True, stdout=sys.stderr)
        except subprocess.CalledProcessError:
            raise Missing(f"{system.name} was left out: pip could not install {system.needs} (see above).") from None
        ready.touch()
    return python


def measure(system: System, python: str, records: Path) -> dict[str, Any]:
    """One run of a system: what its script writes; Missing when it fails."""
    out = records.with_name(f"{system.script}.json")
    out.unlink(missing_ok=True)
    log = records.with_name(f"{system.script}.log")
    with log.open("wb") as output:
        command = [python, str(Path(HERE) / system.script), str(PROMPTVERIFY / "model"), str(records), str(out)]
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=records.parent)
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:  # it has daemons to stop
                process.send_signal(signal.SIGINT)
                process.wait(60)
    if process.returncode:
        sys.stderr.write(log.read_text("utf-8", "replace")[-4000:])
        raise Missing(f"{system.name} was left out: its script failed with {process.returncode} (see above).")
    return json.loads(out.read_text("utf-8"))


def write_records(path: Path, count: int) -> None:
    """The first prompts of the sweep promptverify, in its order."""
    sweep = yaml.safe_load((PROMPTVERIFY / "sweep.yaml").read_text("utf-8"))
    claims = [json.loads(line) for line in (PROMPTVERIFY / sweep["records"]).read_text("utf-8").splitlines()]
    prompts = (prompt.format(**claim) for prompt in sweep["prompts"].values() for claim in claims)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in islice(prompts, count)), "utf-8")


def measure_all(
    cases: Sequence[Case], taskvine: str, repeat: int
) -> tuple[dict[Case, list[dict[str, Any]]], list[str]]:
    """What each run of each case told, and why some systems were left out."""
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    there: dict[System, str] = {}
    missing: list[str] = []
    for system in dict.fromkeys(case.system for case in cases):
        try:
            there[system] = interpreter(system, taskvine)
        except Missing as why:
            missing.append(str(why))
    with tempfile.TemporaryDirectory(prefix="glide-peers-") as folder:
        for turn in range(repeat):
            for case in cases[:: -1 if turn % 2 else 1]:  # in turn, so that a slow minute is everyone's
                if case.system not in there:
                    continue
                records = Path(folder) / f"{case.records}.jsonl"
                write_records(records, case.records)
                try:
                    runs[case].append(measure(case.system, there[case.system], records))
                except Missing as why:
                    missing.append(str(why))
                    del there[case.system]
                    continue
                told = f"{case.system.name}, {case.records:,} prompts: {runs[case][-1]['makespan_s']:.2f} s"
                print(f"peers: {turn + 1}/{repeat} {told}", file=sys.stderr)
    runs = {case: told for case, told in runs.items() if case.system in there}
    texts = {(case.records, each["digest"]) for case, told in runs.items() for each in told}
    assert len(texts) == len({records for records, _ in texts}), f"the systems' texts differ: {runs}"
    return runs, missing


def account(runs: dict[Case, list[dict[str, Any]]], missing: list[str], began: float) -> Experiment:
    """The experiment's table and notes; `began` is when its command did (Unix time)."""
    experiment = Experiment(
        "peers", "The same prompts through two workers of one core each",
        "Does warm inference cost more through HTCondor than through systems that own their workers?",
        ("system", "prompts", "first worker ready to last result", "over glide's", "from nothing"), began=began,
    )  # fmt: skip
    for case, told in runs.items():
        makespan, total = seconds(told, "makespan_s"), seconds(told, "total_s")
        glide = seconds(runs.get(Case(GLIDE, case.records), []), "makespan_s")
        ratio = tuple(other / own for other, own in zip(makespan, glide, strict=False))
        cells = Measured(makespan, "s"), Measured(ratio, "×") if ratio else "", Measured(total, "s")
        experiment.rows.append((case.system.name, case.records, *cells))
        if ratio and median(ratio) < 1:
            less = median(own - other for other, own in zip(makespan, glide, strict=False))
            experiment.notes.append(
                f"{case.system.name} took {number(median(ratio))} of glide's time for {case.records:,} prompts, and"
                f" {number(less, 's')} less (each the median over the rounds)."
            )
    experiment.notes += [
        *missing,
        *(where_glide_was(case, told) for case, told in runs.items() if case.system == GLIDE),
    ]
    experiment.notes += [
        "All texts are equal, over all systems and runs.",
        f"All but glide compute tasks of {TASK} prompts in padded batches of {BATCH}, shortest prompts first, with"
        " plain transformers in float32; glide's engine and jobs have the sizes that it chooses by itself.",
        "From the first ready worker: by the worker's own clock, until the last result is in the caller's hands. From"
        " nothing: since the caller's script began, so with the start of the system, of glide's HTCondor pool as well.",
    ]
    versions = {case.system.name: told[0]["versions"] for case, told in runs.items()}
    experiment.notes += [f"{name} ran on {', '.join(map(' '.join, each.items()))}." for name, each in versions.items()]
    listed = [{"system": case.system.name, "records": case.records, "runs": told} for case, told in runs.items()]
    experiment.data = {"task": TASK, "batch": BATCH, "workers": WORKERS, "cases": listed}
    return experiment


def seconds(told: Sequence[dict[str, Any]], what: str) -> tuple[float, ...]:
    return tuple(each[what] for each in told)


def where_glide_was(case: Case, told: Sequence[dict[str, Any]]) -> str:
    """How much of its makespan glide's engines computed, and its driver knew of a warm lane."""
    whole = median(seconds(told, "makespan_s"))
    busy = median(max(each["engines"].values()) for each in told)
    known = median(each["summary"]["warm_makespan_s"] for each in told)
    jobs = median(each["summary"]["jobs"] for each in told)
    return (
        f"Of glide's {number(whole, 's')} for {case.records:,} prompts the busier engine computed {number(busy, 's')},"
        f" for {jobs:.0f} jobs in all; the driver knew of a warm lane for {number(known, 's')} (warm_makespan_s)."
        " The others push tasks to workers that wait for them; here a lane that is warm says so to the collector, is"
        " matched in the next negotiation, and each job is a process that HTCondor's daemons start on the same cores."
    )


def drawn(runs: dict[Case, list[dict[str, Any]]]) -> Figure:
    """Each case's makespans, their median as a bar, behind it the time from nothing."""
    figure = Figure(figsize=(WIDTH, 1.1 + 0.42 * len(runs)))
    axes = figure.subplots()
    for row, told in enumerate(runs.values()):
        makespan, total = seconds(told, "makespan_s"), seconds(told, "total_s")
        names = ("from nothing", "from the first ready worker") if row == 0 else ("", "")
        bars = ((median(total), 0.66, GREY), (median(makespan), 0.42, BLUE))
        for name, (width, height, colour) in zip(names, bars, strict=True):
            axes.barh(row, width, height=height, color=colour, edgecolor=INK, linewidth=0.5, label=name)
        axes.plot(makespan, [row] * len(makespan), "|", color=INK, markersize=9)
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{number(median(makespan))} of {number(median(total), 's')}", (median(total), row), **place)
    axes.set_yticks(range(len(runs)), [f"{case.system.name}\n{case.records:,} prompts" for case in runs])
    axes.set(xlabel="seconds", ylim=(len(runs) - 0.5, -0.5))
    axes.margins(x=0.25)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    parser = arguments(
        "glide against its neighbours on the same work.", "peers",
        "About 10 minutes on two cores, with what each system starts; the first time also 400 MB from the network.", 3,
    )  # fmt: skip
    parser.add_argument(
        "--records",
        nargs="+",
        type=positive,
        default=RECORDS,
        help="prompts; all but the first for glide and the floor alone",
    )
    parser.add_argument("--only", nargs="+", choices=[each.name for each in SYSTEMS], help="these alone")
    parser.add_argument("--taskvine", default="python3", metavar="PYTHON", help="an interpreter that imports ndcctools")
    given, began = parser.parse_args(), time.time()
    first, *more = given.records
    cases = [
        *(Case(system, first) for system in SYSTEMS),
        *(Case(each, n) for n in more for each in (GLIDE, PROCESSES)),
    ]
    cases = [case for case in cases if not given.only or case.system.name in given.only]
    runs, missing = measure_all(cases, given.taskvine, given.repeat)
    with style():
        account(runs, missing, began).leave(given.out, drawn(runs))


if __name__ == "__main__":
    main()
