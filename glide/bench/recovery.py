"""How long until the records of a killed glidein run again: with the driver, and for a plain HTCondor job."""

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
from glide.condor.access_point import any_of, value
from glide.template import Template
from glide.vocabulary import SOCKET_VARIABLE, Job

KILLS = 20
ALONE_SECONDS = 20.0  # in which a lost glidein is replaced, if it is at all
OPTIONS = {"record_seconds": 0.02}


def recovery(repeat: int, kills: int = KILLS) -> dict[str, Any]:
    """Seconds from kill -9 of a glidein's master to its records' next start, over `kills` kills.

    Args:
        repeat: how often the same is measured for a plain HTCondor job.
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
    """Three glideins and as many long carriers, so that lanes are free; kill one at work, again and again.

    Until there are enough, or the free lanes have taken all so fast that the factory saw no job wait and so nothing to
    replace the glidein for: the next sweep brings it.
    """
    over = threading.Event()
    killer = threading.Thread(target=_kill, args=(bench, kills, seconds, over), daemon=True)

    def watch(progress: Any) -> None:
        if progress.done and killer.ident is None:
            killer.start()
        if over.is_set():
            raise Enough

    records = kills * 20 * 50  # twenty seconds a kill, more than it and its successor's start will take
    with suppress(Enough):
        bench.sweep(records * 3, OPTIONS, watch, glideins=3, pack=records)
    over.set()


def _kill(bench: Rig, kills: int, seconds: list[float], over: threading.Event) -> None:
    rng = random.Random(1)
    whole = time.monotonic()  # when all three were there
    while len(seconds) < kills and not over.is_set() and time.monotonic() - whole < ALONE_SECONDS:
        time.sleep(rng.uniform(2.0, 4.0))
        masters = bench.pool.glidein_masters()
        at_work = [master for master in masters if _has_client(bench, master)]
        if len(masters) < 3 or not at_work:
            continue
        events = EventLog()
        whole = killed = time.monotonic()
        rng.choice(at_work).send(signal.SIGKILL)
        if (again := started_again(events, over)) is not None:
            seconds.append(again - killed)
            print(f"bench: kill {len(seconds)}: {seconds[-1]:.3f} s", file=sys.stderr)
    over.set()


def _has_client(bench: Rig, master: processes.Process) -> bool:
    """Whether an invocation's client runs on this glidein."""
    folder = str(Path(master.variable("CONDOR_CONFIG") or "").parent)
    running = bench.pool.processes()
    return any((client.variable(SOCKET_VARIABLE) or "").startswith(folder) for client in running)


def started_again(events: EventLog, finished: threading.Event) -> float | None:
    """When a carrier has started that was submitted after the loss: all before it were sent out at once."""
    access_point = AccessPoint()
    replaced: set[str] = set()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not finished.is_set():
        for event in events.new():
            if event.kind == "SUBMIT" and _is_carrier(access_point, event.job):
                replaced.add(event.job)
            elif event.kind == "EXECUTE" and event.job in replaced:
                return time.monotonic()
        time.sleep(0.02)
    return None


def _is_carrier(access_point: AccessPoint, job: str) -> bool:
    """The glidein that the factory submits in place of the dead one is none."""
    return bool(access_point.jobs(f"{any_of([job])} && {Job.PART} =!= undefined", ["ProcId"]))


def _kill_under_a_plain_job(bench: Rig) -> dict[str, float]:
    """A job of submit_templates/invocation.sub without a driver: HTCondor alone brings it to another lane.

    There are two, for two glideins; the first one's is killed.
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
        f"My.{Job.SPEC}": value(template.to_json()), f"My.{Job.WANTED}": "2",  # lost glideins are replaced
    }  # fmt: skip
    text = resources.find("submit_templates", "invocation.sub").read_text("utf-8")
    cluster = access_point.submit(text.replace("\nqueue", "\nqueue 2"), macros, spool=True)
    _executed(events, cluster)
    while len(bench.pool.glidein_masters()) < 2:  # another lane has to be there
        time.sleep(0.2)
    time.sleep(5.0)
    (job,) = access_point.jobs(f"ClusterId == {cluster} && ProcId == 0", ["RemoteHost"])
    startd = job["RemoteHost"].split("@")[1]
    killed = time.monotonic()
    for master in bench.pool.glidein_masters():
        if startd in Path(master.variable("CONDOR_CONFIG") or "").read_text("utf-8"):
            master.send(signal.SIGKILL)
    _executed(events, cluster)
    seconds = time.monotonic() - killed
    (job,) = access_point.jobs(f"ClusterId == {cluster} && ProcId == 0", ["NumShadowStarts"])
    access_point.remove(f"ClusterId == {cluster}", "measured")
    return {"seconds": round(seconds, 3), "shadow_starts": job["NumShadowStarts"]}


def _executed(events: EventLog, cluster: int) -> None:
    while not any(event.kind == "EXECUTE" and event.job == f"{cluster}.0" for event in events.new()):
        time.sleep(0.05)
