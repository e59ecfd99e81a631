"""Send a test record of the noop engine, and wait for its result.

The record takes the same way as a user's record: its job waits in the queue, and the factory provides a warm lane.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from glide import resources
from glide.condor import AccessPoint
from glide.condor.access_point import job_file_value, quoted
from glide.condor.bounded import NoReply, ask
from glide.config import SiteFile
from glide.doctor.facts import TrialOutcome
from glide.errors import CondorError
from glide.factory.actions import Wait
from glide.factory.snapshot import Snapshot
from glide.protocol.json_lines import read_results
from glide.report.reasons import QueueView, phase, why_idle
from glide.report.status import observe_pool
from glide.template import Template
from glide.vocabulary import Job, JobStatus, State

TEMPLATE = Template("glide-doctor", "noop")
REMOVAL_SECONDS = 30.0  # time limit for removing the test job, in seconds
# Number of seconds after the end of the test's time limit. If glide has not removed the test job by then, HTCondor
# removes the job.
LATE_SECONDS = 600
PAUSE = 1.0  # seconds between two queries of the queue
RECORD = {"custom_id": "doctor", "prompt": "well?", "generate": {}, "timeout": 60}


def send_test_record(sites: Sequence[SiteFile], budget: float) -> TrialOutcome | NoReply:
    """Send the test record and wait for its result. At the end, remove the record's job and files in any case.

    Args:
        budget: time limit for the result, in seconds.
    """
    run = f"doctor-{secrets.token_hex(6)}"
    with tempfile.TemporaryDirectory(prefix="glide-doctor-") as folder:
        try:
            question = partial(_send_and_wait, run, Path(folder), sites, budget)
            return ask({"trial": question}, budget + REMOVAL_SECONDS)["trial"]
        finally:
            ask({"removal": partial(_remove_job, run)}, REMOVAL_SECONDS)


def _remove_job(run: str) -> int:
    return AccessPoint().remove(f"{Job.RUN} == {quoted(run)}", "glide doctor has ended")


def _send_and_wait(run: str, folder: Path, sites: Sequence[SiteFile], budget: float) -> TrialOutcome:
    access_point = AccessPoint()
    began = time.monotonic()
    cluster = _submit(run, folder, access_point, budget)
    job: dict = {}
    while (seconds := time.monotonic() - began) < budget:
        (job,) = access_point.jobs(f"ClusterId == {cluster}", ["HoldReason", "RemoteHost"])
        if job["JobStatus"] == JobStatus.COMPLETED:
            access_point.retrieve(f"ClusterId == {cluster}")
            returned = [result["custom_id"] for result in read_results(folder / "result-0.jsonl")]
            return TrialOutcome(seconds, "" if returned == ["doctor"] else "its job ended without its result")
        if job["JobStatus"] == JobStatus.HELD:
            return TrialOutcome(seconds, f"its job is held: {job.get('HoldReason')}")
        time.sleep(PAUSE)
    snapshot, views = observe_pool(sites)
    if job["JobStatus"] == JobStatus.RUNNING:
        return TrialOutcome(budget, why_running(str(job.get("RemoteHost")), snapshot), in_progress=True)
    return why_stuck(run, snapshot, views, budget)


def _submit(run: str, folder: Path, access_point: AccessPoint, budget: float) -> int:
    (folder / "records-0.jsonl").write_text(json.dumps(RECORD) + "\n", "utf-8")
    macros = {
        "digest": TEMPLATE.digest, "model": TEMPLATE.model, "initialdir": str(folder),
        f"My.{Job.RUN}": quoted(run), f"My.{Job.RECORDS}": "1", f"My.{Job.WANTED}": "1",
        f"My.{Job.BEST_EFFORT}": "true",
        f"My.{Job.SPEC}": job_file_value(TEMPLATE.to_json()), "leave_in_queue": f"JobStatus == {JobStatus.COMPLETED}",
        "periodic_remove": f"time() - QDate > {int(budget) + LATE_SECONDS}",
    }  # fmt: skip
    description = resources.find("submit_templates", "invocation.sub").read_text("utf-8")
    return access_point.submit(description, macros, spool=True)


def why_running(slot: str, snapshot: Snapshot) -> str:
    """Return why the test record's job still runs. A job may start on a lane before the model is warm there.

    Args:
        slot: name of the slot on which the job runs.
    """
    lanes = [lane for lane in snapshot.lanes if lane.template == TEMPLATE.digest]
    if lanes and all(lane.state in State.COMING_UP for lane in lanes):
        return f"its job waits on {slot} until the model is warm (lanes: {sorted(set(map(phase, lanes)))})"
    return f"its job runs on {slot} and does not end"


def why_stuck(run: str, snapshot: Snapshot, views: Sequence[QueueView], budget: float) -> TrialOutcome:
    """Find out why the test record's job is still idle. Return a TrialOutcome with the reason.

    Args:
        run: name of the run that has only the test record.
        budget: the expired time limit, in seconds.

    Raises:
        CondorError: the job is not in the queue, or the queue cannot be read.
    """
    demand = next((demand for demand in snapshot.demands if demand.run == run), None)
    if demand is None:
        raise CondorError(next(iter(snapshot.unavailable_sources), "the test record's job has left the queue"))
    lanes = sorted({phase(lane) for lane in snapshot.lanes if lane.template == demand.template})
    glideins = [glidein for glidein in snapshot.glideins if demand.template in snapshot.templates_of(glidein)]
    starting = any(glidein.status in (JobStatus.IDLE, JobStatus.RUNNING) for glidein in glideins)
    full = _is_full(demand.template, snapshot, views)
    reason = f"{'full just now: ' if full else ''}{why_idle(demand, snapshot, views)}"
    return TrialOutcome(budget, f"{reason}{f' (lanes: {lanes})' if lanes else ''}", starting or full)


def _is_full(template: str, snapshot: Snapshot, views: Sequence[QueueView]) -> bool:
    """Return whether the test record waits only because entries are full of healthy glideins with other templates."""
    actions = [action for view in views if view.running for action in view.plan(snapshot)]
    waits = any(isinstance(action, Wait) and action.full and action.template == template for action in actions)
    return waits and any(lane.state == State.WARM for lane in snapshot.lanes)
