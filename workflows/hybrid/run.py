"""Run a DAGMan workflow whose simulation jobs ask a model between their steps: `python workflows/hybrid/run.py`.

Each mountain has a chain of jobs. A job simulates, and asks the model through `glide serve`. The answer decides what
the next job does. Two glideins are killed in the middle. The command starts a pool of its own, and stops it at the end.
It writes hybrid.json, hybrid.md and hybrid.png to the folder of --out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from glide.bench.api_server import ApiServer
from glide.condor import EmbeddedPool, install
from glide.condor.pool import as_unprivileged

HERE = Path(__file__).resolve().parent
CORES = 6  # slots of the pool: two glideins, and four simulation jobs at the same time
# DAGMan's default is to look at its jobs every 5 s, and to refuse to keep its log in /tmp.
DAGMAN = {"DAGMAN_USER_LOG_SCAN_INTERVAL": "1", "DAGMAN_USE_STRICT": "0"}
JOB = """universe = vanilla
executable = {python}
transfer_executable = false
arguments = "'{step}' {mountain} $(step) '{folder}'"
environment = "OPENAI_BASE_URL={url} API_KEY_FILE='{token}'"
should_transfer_files = no
requirements = TARGET.GlideId =?= undefined
request_memory = 64
request_disk = 16
error = {folder}/{mountain}-$(step).err
log = {folder}/jobs.log
queue
"""


def write_workflow(folder: Path, mountains: int, steps: int, url: str, token: Path) -> Path:
    """Write the files of a workflow with a chain of `steps` jobs for each mountain. Return the path of its DAG."""
    lines = []
    for mountain in range(mountains):
        job = folder / f"mountain-{mountain}.sub"
        text = JOB.format(
            python=sys.executable, step=HERE / "step.py", mountain=mountain, folder=folder, url=url, token=token
        )  # fmt: skip
        job.write_text(text, "utf-8")
        for step in range(steps):
            lines += [f"JOB m{mountain}s{step} {job.name}", f'VARS m{mountain}s{step} step="{step}"']
        lines += [f"PARENT m{mountain}s{step} CHILD m{mountain}s{step + 1}" for step in range(steps - 1)]
    dag = folder / "hybrid.dag"
    dag.write_text("\n".join(lines) + "\n", "utf-8")
    return dag


def conduct(pool: EmbeddedPool, dag: Path, evictions: int, jobs: int) -> list[float]:
    """Run a DAG. Kill a glidein when a third of the jobs have ended, and another after two thirds. Return the times."""
    folder, killed, done = dag.parent, list[float](), 0
    # HTCondor refuses root's jobs, so the embedded pool of root runs as another account (glide.condor.pool).
    command = [*as_unprivileged(), install.find().program("condor_submit_dag"), "-f", dag.name]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    log = folder / "hybrid.dag.dagman.out"
    while not (log.exists() and "EXITING WITH STATUS" in log.read_text("utf-8")):
        time.sleep(0.5)
        before, done = done, len(list(folder.glob("*-*.json")))
        if done != before:
            print(f"{done} of {jobs} jobs have ended, {len(killed)} glideins were killed", file=sys.stderr)
        if len(killed) < evictions and done >= jobs * (len(killed) + 1) / (evictions + 1):
            for master in pool.glidein_masters()[:1]:
                master.send(signal.SIGKILL)
                killed.append(time.time())
    return killed


def report(folder: Path, out: Path, killed: list[float], mountains: int, steps: int) -> dict[str, Any]:
    """Write the table and the figure. Return the numbers."""
    found = {
        (mountain, step): json.loads((folder / f"{mountain}-{step}.json").read_text("utf-8"))
        for mountain in range(mountains) for step in range(steps)
    }  # fmt: skip
    start = min(each["simulated"][0] for each in found.values() if each["simulated"])
    calls = [each["asked"] for each in found.values() if each["asked"]]
    figure, axes = plt.subplots(figsize=(9, 0.4 * mountains + 1.5))
    colours = {"SUPPORTED": "tab:green", "REFUTED": "tab:orange"}
    for (mountain, _), each in found.items():
        if each["simulated"]:
            begin, end = each["simulated"]
            axes.barh(mountain, end - begin, left=begin - start, color="lightgrey", height=0.6)
        if each["asked"]:
            begin, end = each["asked"]
            width = max(end - begin, 0.1)
            axes.barh(mountain, width, left=begin - start, color=colours.get(each["verdict"], "tab:red"), height=0.6)
    for number, at in enumerate(killed):
        axes.axvline(at - start, color="black", linestyle=":", label="" if number else "a glidein is killed")
    for label, colour in (
        ("simulation", "lightgrey"),
        ("call: supported", "tab:green"),
        ("call: refuted", "tab:orange"),
    ):
        axes.barh(0, 0, color=colour, label=label)
    axes.set(xlabel="seconds", ylabel="mountain", yticks=range(mountains))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=4, frameon=False)
    figure.savefig(out / "hybrid.png", dpi=120, bbox_inches="tight")
    seconds = sorted(end - begin for begin, end in calls)
    last = [found[mountain, steps - 1] for mountain in range(mountains)]
    numbers = {
        "jobs": len(found), "calls": len(calls), "evictions": len(killed),
        "converged": sum(each["verdict"] == "SUPPORTED" for each in last), "mountains": mountains,
        "median_call_s": round(seconds[len(seconds) // 2], 3), "slowest_call_s": round(seconds[-1], 3),
        "makespan_s": round(max(end for _, end in calls) - start, 1),
        "heights": [each["height"] for each in last],
    }  # fmt: skip
    (out / "hybrid.json").write_text(json.dumps(numbers, indent=1), "utf-8")
    rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in numbers.items()]
    (out / "hybrid.md").write_text("\n".join(["| what | value |", "|---|---|", *rows, ""]), "utf-8")
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mountains", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--evictions", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/hybrid"))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the pool is stopped
    folder = (asked.out / "files").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="glide-hybrid-") as name:
        os.environ["GLIDE_HOME"] = f"{name}/home"
        pool = EmbeddedPool(Path(name, "home"))
        try:
            pool.up(CORES, settings=DAGMAN)
            os.environ.update(pool.environment())
            with ApiServer("--model", HERE / "model.yaml", "--site", HERE / "site.yaml") as server:
                dag = write_workflow(folder, asked.mountains, asked.steps, server.url, server.token_file)
                killed = conduct(pool, dag, asked.evictions, asked.mountains * asked.steps)
        finally:
            pool.down()
    if len(list(folder.glob("*-*.json"))) < asked.mountains * asked.steps:
        sys.exit(f"the workflow has failed; its files are in {folder}; hybrid.dag.dagman.out names the job")
    print(json.dumps(report(folder, asked.out, killed, asked.mountains, asked.steps)))


if __name__ == "__main__":
    main()
