"""Retarget idle glideins: submit sticky jobs, which make the lanes of these glideins load another template."""

from __future__ import annotations

from glide import resources
from glide.condor.access_point import quoted
from glide.factory.actions import Retarget
from glide.factory.site_client import SiteClient
from glide.factory.snapshot import Snapshot
from glide.invoke.requirements import GLIDEIN
from glide.system import publish
from glide.vocabulary import Job, JobStatus, Machine

CLAIM_SECONDS = 120  # time limit for a sticky job to claim its lane, in seconds; some pools negotiate once per minute
# Maximum time from the end of a sticky job until the lane's ad shows the new template, in seconds.
SETTLE_SECONDS = 30
RETRY_SECONDS = 300  # time after which a failed retarget is tried again, in seconds
# Requirements of a sticky job, as in submit_templates/sticky.sub: the slot belongs to a glidein, and the glidein has
# enough memory for the template.
CAN_RETARGET = f"(TARGET.{Machine.ROOM} >= MY.GlideMegabytes) =!= false && {GLIDEIN}"


def retarget(client: SiteClient, action: Retarget, snapshot: Snapshot) -> None:
    """Submit sticky jobs, so that running glideins load a template."""
    template = snapshot.description(action.template)
    if template is None:
        return
    folder = client.entry_folder(client.entry(action.entry), template.digest)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    template = client.template_for(client.entry(action.entry), template)
    publish(folder / "template.json", template.to_json())
    description = resources.find("submit_templates", "sticky.sub").read_text("utf-8").rsplit("\nqueue", 1)[0]
    macros = {
        "initialdir": str(folder), "template": "template.json", "model": template.model,
        "megabytes": str(int(template.megabytes)), "requirements": f'TARGET.Name == "$(lane)" && {CAN_RETARGET}',
        f"My.{Job.BRINGS}": quoted(template.digest), f"My.{Job.LANE}": '"$(lane)"',
        # HTCondor holds a sticky job in two cases: the job fails, or the job does not claim its lane in time. Some time
        # later, HTCondor removes the held job. Until then, the plan submits no further sticky job for this template.
        "periodic_hold": f"JobStatus == {JobStatus.IDLE} && time() - EnteredCurrentStatus > {CLAIM_SECONDS}",
        "periodic_hold_reason": quoted(f"slot not claimed within {CLAIM_SECONDS} s"),
        "periodic_remove": f"JobStatus == {JobStatus.HELD} && time() - EnteredCurrentStatus > {RETRY_SECONDS}",
        # A completed sticky job stays in the queue until the lane's ad shows the new template. Until then, the sticky
        # job shows the factory that the lane has this template.
        "leave_in_queue": f"JobStatus == {JobStatus.COMPLETED} && time() - CompletionDate < {SETTLE_SECONDS}",
    }  # fmt: skip
    client.access_point().submit(description, macros, [{"lane": name} for name in action.slots], spool=True)
