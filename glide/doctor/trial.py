"""One record of the noop engine through the real path: queue, factory, glidein, warm lane, and back."""

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
from glide.condor.access_point import quoted, value
from glide.condor.bounded import Unseen, ask
from glide.config import SiteFile
from glide.doctor.facts import Trial
from glide.errors import CondorError
from glide.factory.snapshot import Snapshot
from glide.invoke.carriers import read_results
from glide.report.reasons import View, phase, why_idle
from glide.report.status import look
from glide.template import Template
from glide.vocabulary import Job, JobStatus, State

TEMPLATE = Template("glide-doctor", "noop")
REMOVAL_SECONDS = 30.0  # that a removal may take
LATE_SECONDS = 600  # after the budget a job that could not be removed removes itself
PAUSE = 1.0  # seconds between looks
RECORD = {"custom_id": "doctor", "prompt": "well?", "generate": {}, "timeout": 60}


def attempt(sites: Sequence[SiteFile], budget: float) -> Trial | Unseen:
    """Send the record and wait for it; afterwards its job is out of the queue and its files are gone, whatever happens.

    Args:
        budget: seconds to wait.
    """
    run = f"doctor-{secrets.token_hex(6)}"
    with tempfile.TemporaryDirectory(prefix="glide-doctor-") as folder:
        try:
            question = partial(_through, run, Path(folder), sites, budget)
            return ask({"trial": question}, budget + REMOVAL_SECONDS)["trial"]
        finally:
            ask({"removal": partial(_removed, run)}, REMOVAL_SECONDS)


def _removed(run: str) -> int:
    return AccessPoint().remove(f"{Job.RUN} == {quoted(run)}", "glide doctor has seen enough")


def _through(run: str, folder: Path, sites: Sequence[SiteFile], budget: float) -> Trial:
    access_point = AccessPoint()
    began = time.monotonic()
    cluster = _submit(run, folder, access_point, budget)
    job: dict = {}
    while (seconds := time.monotonic() - began) < budget:
        (job,) = access_point.jobs(f"ClusterId == {cluster}", ["HoldReason", "RemoteHost"])
        if job["JobStatus"] == JobStatus.COMPLETED:
            access_point.retrieve(f"ClusterId == {cluster}")
            back = [result["custom_id"] for result in read_results(folder / "result-0.jsonl")]
            return Trial(seconds, "" if back == ["doctor"] else "its job ended without its result")
        if job["JobStatus"] == JobStatus.HELD:
            return Trial(seconds, f"its job is held: {job.get('HoldReason')}")
        time.sleep(PAUSE)
    if job["JobStatus"] == JobStatus.RUNNING:
        return Trial(budget, f"its job runs on {job.get('RemoteHost')} and does not end", coming=True)
    return stuck(run, *look(sites), budget)


def _submit(run: str, folder: Path, access_point: AccessPoint, budget: float) -> int:
    (folder / "records-0.jsonl").write_text(json.dumps(RECORD) + "\n", "utf-8")
    macros = {
        "digest": TEMPLATE.digest, "model": TEMPLATE.model, "initialdir": str(folder),
        f"My.{Job.RUN}": quoted(run), f"My.{Job.RECORDS}": "1", f"My.{Job.WANTED}": "1",
        f"My.{Job.MODEST}": "true",
        f"My.{Job.SPEC}": value(TEMPLATE.to_json()), "leave_in_queue": f"JobStatus == {JobStatus.COMPLETED}",
        "periodic_remove": f"time() - QDate > {int(budget) + LATE_SECONDS}",
    }  # fmt: skip
    description = resources.find("submit_templates", "invocation.sub").read_text("utf-8")
    return access_point.submit(description, macros, spool=True)


def stuck(run: str, snapshot: Snapshot, views: Sequence[View], budget: float) -> Trial:
    """Where an idle job's glidein is."""
    demand = next((demand for demand in snapshot.demands if demand.run == run), None)
    if demand is None:
        raise CondorError(snapshot.failed[0] if snapshot.failed else "its job has left the queue")
    lanes = sorted({phase(lane) for lane in snapshot.lanes if lane.template == demand.template})
    glideins = [glidein for glidein in snapshot.glideins if demand.template in snapshot.offers(glidein)]
    coming = any(glidein.status in (JobStatus.IDLE, JobStatus.RUNNING) for glidein in glideins)
    full = _is_full(demand.template, snapshot, views)
    reason = f"{'full just now: ' if full else ''}{why_idle(demand, snapshot, views)}"
    return Trial(budget, f"{reason}{f' (lanes: {lanes})' if lanes else ''}", coming or full)


def _is_full(template: str, snapshot: Snapshot, views: Sequence[View]) -> bool:
    """Whether all that is wrong is that others have all glideins, which are well."""
    actions = [action for view in views if view.running for action in view.plan(snapshot)]
    waits = any(action.template == template and action.full for action in actions)
    return waits and any(lane.state == State.WARM for lane in snapshot.lanes)
