"""Measure how long it takes until the records of a killed glidein run again, with and without a driver."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from glide import resources
from glide.bench.rig import Enough, Rig, rig
from glide.condor import AccessPoint, EventLog, processes
from glide.condor.access_point import any_of, job_file_value
from glide.template import Template
from glide.vocabulary import SOCKET_VARIABLE, Job

KILLS = 20
REPLACE_SECONDS = 20.0  # a sweep ends if a killed glidein is not replaced within this number of seconds
OPTIONS = {"record_seconds": 0.02}


def recovery(repeat: int, kills: int = KILLS) -> dict[str, Any]:
    """Measure the seconds from the kill -9 of a glidein's master until the glidein's records start again.

    Args:
        repeat: number of measurements with a plain HTCondor job, which has no driver.
        kills: number of measurements with a driver.
    """
    with rig(cores=3) as bench:
        seconds: list[float] = []
        recomputed = 0
        while len(seconds) < kills:
            _kill_under_a_sweep(bench, kills, seconds)
            recomputed += bench.results.recomputed
        plain = [_kill_under_a_plain_job(bench) for _ in range(repeat)]
    return {
        "kills": len(seconds),
        "median_s": round(median(seconds), 3),
        "worst_s": round(max(seconds), 3),
        "seconds": [round(each, 3) for each in sorted(seconds)],
        "recomputed": recomputed,
        "plain_jobs": plain,
    }


def _kill_under_a_sweep(bench: Rig, kills: int, seconds: list[float]) -> None:
    """Run a sweep on three glideins. Kill busy glideins one by one, and measure when the lost records start again.

    The sweep has three long jobs and six lanes, so three lanes are free. Free lanes may take the lost records
    immediately. Then no job waits, so the factory does not replace the killed glidein. Without a new glidein, the sweep
    ends, even if there are fewer than `kills` measurements. So the caller must call this function again until there are
    `kills` measurements.

    Args:
        kills: number of measurements that are needed in total. A measurement is the time from the kill of a glidein
            until the glidein's records start again.
        seconds: the measurements so far, in seconds; new measurements are appended.
    """
    finished = threading.Event()
    killer = threading.Thread(target=_kill, args=(bench, kills, seconds, finished), daemon=True)

    def watch(progress: Any) -> None:
        if progress.done and killer.ident is None:
            killer.start()
        if finished.is_set():
            raise Enough

    # Each job takes `kills` × 20 s. This is long enough for all kills: one kill and the start of the new glidein take
    # less than 20 s together.
    records = kills * 20 * 50
    with suppress(Enough):
        bench.sweep(records * 3, OPTIONS, watch, glideins=3, pack=records)
    finished.set()


def _kill(bench: Rig, kills: int, seconds: list[float], finished: threading.Event) -> None:
    rng = random.Random(1)
    complete_at = time.monotonic()  # last time at which three glideins were running (monotonic seconds)
    while len(seconds) < kills and not finished.is_set() and time.monotonic() - complete_at < REPLACE_SECONDS:
        time.sleep(rng.uniform(2.0, 4.0))
        masters = bench.pool.glidein_masters()
        at_work = [master for master in masters if _has_client(bench, master)]
        if len(masters) < 3 or not at_work:
            continue
        events = EventLog()
        complete_at = killed = time.monotonic()
        rng.choice(at_work).send(signal.SIGKILL)
        if (restarted := wait_for_restart(events, finished)) is not None:
            seconds.append(restarted - killed)
            print(f"bench: kill {len(seconds)}: {seconds[-1]:.3f} s", file=sys.stderr)
    finished.set()


def _has_client(bench: Rig, master: processes.Process) -> bool:
    """Return whether an invocation job runs on the glidein of this condor_master process."""
    folder = str(Path(master.variable("CONDOR_CONFIG") or "").parent)
    running = bench.pool.processes()
    return any((client.variable(SOCKET_VARIABLE) or "").startswith(folder) for client in running)


def wait_for_restart(events: EventLog, finished: threading.Event) -> float | None:
    """Wait for the start of an invocation job that the driver submits after the loss of a glidein.

    Such a job contains lost records, because the driver submitted the sweep's other jobs before the loss.

    Args:
        events: the event log, read up to the moment of the loss.
        finished: an event that is set when the sweep has finished.

    Returns:
        Time when the job started (monotonic seconds); None if no such job starts within 120 s or before `finished`.
    """
    access_point = AccessPoint()
    replaced: set[str] = set()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not finished.is_set():
        for event in events.new_events():
            if event.kind == "SUBMIT" and _is_invocation_job(access_point, event.job):
                replaced.add(event.job)
            elif event.kind == "EXECUTE" and event.job in replaced:
                return time.monotonic()
        time.sleep(0.02)
    return None


def _is_invocation_job(access_point: AccessPoint, job: str) -> bool:
    """Return whether a job is an invocation job. If not, it is an outer job that replaces the killed glidein."""
    return bool(access_point.jobs(f"{any_of([job])} && {Job.PART} =!= undefined", ["ProcId"]))


def _kill_under_a_plain_job(bench: Rig) -> dict[str, float]:
    """Submit submit_templates/invocation.sub without a driver, so that HTCondor alone finds a new lane for a lost job.

    Two jobs run on two glideins, and the glidein of the first job is killed.
    """
    folder = bench.folder / f"plain-{time.monotonic_ns()}"
    folder.mkdir()
    records = [{"custom_id": str(number), "prompt": "text"} for number in range(1500)]
    for number in range(2):
        (folder / f"records-{number}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records), "utf-8"
        )
    access_point, events = AccessPoint(), EventLog()
    template = Template("noop", "noop", options=OPTIONS)
    macros = {
        "digest": template.digest, "model": "noop", "initialdir": str(folder),
        f"My.{Job.SPEC}": job_file_value(template.to_json()), f"My.{Job.WANTED}": "2",  # the run wants two glideins
    }  # fmt: skip
    text = resources.find("submit_templates", "invocation.sub").read_text("utf-8")
    cluster = access_point.submit(text.replace("\nqueue", "\nqueue 2"), macros, spool=True)
    _wait_for_start(events, cluster)
    while len(bench.pool.glidein_masters()) < 2:  # wait for the second glidein, to which the lost job can move
        time.sleep(0.2)
    time.sleep(5.0)
    (job,) = access_point.jobs(f"ClusterId == {cluster} && ProcId == 0", ["RemoteHost"])
    startd = job["RemoteHost"].split("@")[1]
    killed = time.monotonic()
    for master in bench.pool.glidein_masters():
        if startd in Path(master.variable("CONDOR_CONFIG") or "").read_text("utf-8"):
            master.send(signal.SIGKILL)
    _wait_for_start(events, cluster)
    seconds = time.monotonic() - killed
    (job,) = access_point.jobs(f"ClusterId == {cluster} && ProcId == 0", ["NumShadowStarts"])
    access_point.remove(f"ClusterId == {cluster}", "measured")
    return {"seconds": round(seconds, 3), "shadow_starts": job["NumShadowStarts"]}


def _wait_for_start(events: EventLog, cluster: int) -> None:
    while not any(event.kind == "EXECUTE" and event.job == f"{cluster}.0" for event in events.new_events()):
        time.sleep(0.05)
