"""Carry out the actions that the factory's plan contains."""

from __future__ import annotations

from collections.abc import Iterable

from glide.condor.access_point import quoted
from glide.factory.actions import Action, Drain, Expunge, Remove, Retarget, Submit
from glide.factory.retarget import retarget
from glide.factory.site_client import SiteClient, collect_errors
from glide.factory.snapshot import Snapshot
from glide.factory.submit import submit
from glide.vocabulary import Machine


def apply(client: SiteClient, actions: Iterable[Action], snapshot: Snapshot) -> list[str]:
    """Carry out all actions, and return the errors. Do not wait for effects: the next cycle observes them."""
    refused: list[str] = []
    for action in actions:
        with collect_errors(f"{action.entry}: cannot {action.action}", refused):
            _apply(client, action, snapshot)
    return refused


def _apply(client: SiteClient, action: Action, snapshot: Snapshot) -> None:
    match action:
        case Submit():
            submit(client, action, snapshot)
        case Retarget():
            retarget(client, action, snapshot)
        case Drain():
            client.remove_jobs(action.entry, action.jobs, action.reason)
        case Remove():
            _remove(client, action, snapshot)
        case Expunge():
            for glide_id in action.glide_ids:
                client.collector.expunge(f"{Machine.ID} == {quoted(glide_id)}")


def _remove(client: SiteClient, action: Remove, snapshot: Snapshot) -> None:
    """Remove the glideins of an action. A glidein stays if one of its lanes is claimed.

    The collector is asked again, because a job may have claimed a lane since the snapshot.
    """
    names = {glidein.job: glidein.glide_id for glidein in snapshot.glideins_of(action.entry)[0]}
    claimed = f'State == "Claimed" && {Machine.ID}'
    ids = [job for job in action.jobs if not client.collector.lanes(["Name"], f"{claimed} == {quoted(names[job])}")]
    client.remove_jobs(action.entry, ids, action.reason)
