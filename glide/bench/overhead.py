"""Measure the overhead that glide adds to HTCondor and to an engine.

The benchmark measures four numbers. The first is the rate of jobs with one record each, compared with plain HTCondor
jobs. The second is the rate of records that take no time, compared with the engine alone. The third is the share of
time in which an engine is busy. The fourth is the time from a warm lane to its first record.
"""

from __future__ import annotations

import json
import time
from statistics import median
from typing import Any

from glide import resources
from glide.bench.rig import Rig, rig
from glide.condor import AccessPoint, Collector
from glide.condor.access_point import quoted
from glide.server.engines import EngineRecord
from glide.server.engines.noop import Noop
from glide.template import Template
from glide.vocabulary import JobStatus, Machine

# Lanes run only invocation jobs. So the pool also has two slots for plain jobs. A glidein does not fit into them.
SLOTS = {
    "SLOT_TYPE_1": "cpus=1, mem=75%, disk=75%", "SLOT_TYPE_2": "cpus=1, mem=64, disk=5%", "NUM_SLOTS_TYPE_2": "2",
}  # fmt: skip


def overhead(repeat: int, jobs: int = 200, records: int = 100_000) -> dict[str, Any]:
    """Measure the overhead with one glidein that has two lanes.

    Each measurement is repeated. Rates and ratios are medians over the repetitions. A ratio divides two rates of the
    same repetition.
    """
    with rig(cores=3, settings=SLOTS) as bench:
        bench.sweep(64, {}, glideins=1)
        # Measure plain jobs before and after each sweep, so that the ratio stays the same if the machine gets slower.
        runs = [(_raw_jobs(bench, jobs), _single_jobs(bench, jobs), _raw_jobs(bench, jobs)) for _ in range(repeat)]
        pairs = [((before + after) / 2, each) for before, each, after in runs]
        free = [_free_records(bench, records) for _ in range(repeat)]
        new = [_new_glidein(bench, number) for number in range(repeat)]
    return {
        "raw_jobs_per_s": round(median(raw for raw, _ in pairs), 2),
        "job_each_per_s": round(median(each for _, each in pairs), 2),
        "job_each_over_raw": round(median(each / raw for raw, each in pairs), 3),
        "free_records_per_s": round(median(free)),
        "bare_engine_records_per_s": round(_bare_engine(records)),
        "engine_busy_share": round(median(share for share, _ in new), 4),
        "warm_to_first_record_s": round(median(wait for _, wait in new), 3),
        "runs": {"raw_each_raw": runs, "free": free, "busy_share_and_first_record_s": new},
    }


def _raw_jobs(bench: Rig, count: int) -> float:
    """Return how many plain jobs HTCondor runs per second, without glide.

    The measured time begins with the submission, and ends when all jobs have completed. Plain jobs are similar to
    invocation jobs:

    - Each plain job has one input file and one output file, like an invocation job. It is not spooled, either.
    - Plain jobs run in two slots. Invocation jobs run on two lanes.
    - Each plain job only copies the input file to the output file with /bin/cp.
    """
    folder = bench.folder / f"raw-{time.monotonic_ns()}"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.in").write_text(json.dumps({"custom_id": str(number), "prompt": "text"}) + "\n", "utf-8")
    description = resources.find("submit_templates", "invocation.sub").read_text("utf-8").rsplit("\nqueue", 1)[0]
    digest = Template("noop", "noop").digest
    macros = {
        "executable": "/bin/cp", "digest": digest, "model": "noop", "initialdir": str(folder),
        "requirements": "TARGET.SlotTypeID == 2", "My.LimitDirectoryAccess": quoted(str(folder)),
        "records": "$(part).in", "results": "$(part).out", "leave_in_queue": f"JobStatus == {JobStatus.COMPLETED}",
    }  # fmt: skip
    access_point = AccessPoint()
    started = time.monotonic()
    cluster = access_point.submit(description, macros, [{"part": str(number)} for number in range(count)])
    done = f"ClusterId == {cluster} && JobStatus == {JobStatus.COMPLETED}"
    while len(access_point.jobs(done, ["ProcId"])) < count:
        time.sleep(0.25)
    seconds = time.monotonic() - started
    access_point.remove(f"ClusterId == {cluster}", "measured")
    assert len(list(folder.glob("*.out"))) == count
    return count / seconds


def _single_jobs(bench: Rig, count: int) -> float:
    """Return the jobs per second of a sweep whose jobs have one record each."""
    return count / float(bench.sweep(count, {}, glideins=1, pack=1, batch=1)["makespan_s"])


def _free_records(bench: Rig, count: int) -> float:
    """Return the records per second of one glidein when a record takes no time in the engine."""
    return count / float(bench.sweep(count, {}, glideins=1, pack=count // 4)["warm_makespan_s"])


def _bare_engine(count: int) -> float:
    engine = Noop(Template("noop", "noop"), Noop.Options())
    records = [EngineRecord(number, f"text {number}") for number in range(count)]
    started = time.monotonic()
    for call in engine.plan(records):
        engine.call(call)
    return count / (time.monotonic() - started)


def _new_glidein(bench: Rig, number: int, count: int = 1000) -> tuple[float, float]:
    """Run a sweep on a new glidein, which needs some seconds to load the model.

    Returns:
        - The engine's busy time, divided by the time from first to last record.
        - The seconds from the moment when the lanes are warm until the first record begins.
    """
    # New options mean a new template, and so a new glidein.
    options = {"record_seconds": 0.02 + number * 1e-6, "load_seconds": 3.0}
    bench.sweep(count, options, glideins=1)
    collector = Collector()
    mine = f'{Machine.TEMPLATE} == "{Template("noop", "noop", options=options).digest}" && {Machine.SERVED} == {count}'
    wanted = (Machine.BUSY_SECONDS, Machine.SERVED_SINCE, Machine.SERVED_UNTIL, Machine.STATE_SINCE)
    while not (lanes := collector.lanes(wanted, mine)):
        time.sleep(0.25)  # the lane's ad may be up to two seconds old
    lane = lanes[0]
    share = lane[Machine.BUSY_SECONDS] / (lane[Machine.SERVED_UNTIL] - lane[Machine.SERVED_SINCE])
    return float(share), float(lane[Machine.SERVED_SINCE] - lane[Machine.STATE_SINCE])
