"""Sites, demands, glideins and lanes in few words, for tests of what the factory decides from a snapshot."""

from __future__ import annotations

from glide.config import SiteFile
from glide.factory.actions import Action, Retarget
from glide.factory.plan import START_GRACE_SECONDS
from glide.factory.snapshot import Demand, Glidein, Lane, StickyJob
from glide.template import Template
from glide.vocabulary import JobStatus, State

IDLE, RUNNING, REMOVED, HELD = JobStatus.IDLE, JobStatus.RUNNING, JobStatus.REMOVED, JobStatus.HELD
OLD = 10 * START_GRACE_SECONDS


def site(*entries: dict) -> SiteFile:
    """A site with these entries, by default one called `here` for four glideins."""
    entries = entries or ({"name": "here", "max_glideins": 4},)
    trusting = {"breaker": {"failures": 10}}  # a test of something else is not to wait for a first success
    return SiteFile.model_validate({"site": "s", "entries": [trusting | entry for entry in entries]})


def demand(template: str = "T", wanted: int = 2, idle: int = 10, running: int = 0, **fields) -> Demand:
    fields = {"model": "model", "run": "run", "user": "", "spec": Template("model", "noop"), **fields}
    return Demand(template, idle=idle, running=running, wanted=wanted, **fields)


def glidein(proc: int, template: str = "T", status: int = RUNNING, age: float = OLD, **fields) -> Glidein:
    fields = {"entry": "here", "starts": int(status != IDLE), **fields}
    return Glidein(7, proc, template=template, status=status, age=age, **fields)


def lane(of: Glidein, state: str = State.WARM, claimed: bool = False, **fields) -> Lane:
    return Lane(of.glide_id, of.entry, of.template, "model", state, claimed, **fields)


IN_VAIN = StickyJob("T", "slot1@here", "it does not load")  # so idle glideins are not asked again


def brief(actions: list[Action]) -> list[tuple[str, str, int]]:
    return [(action.action, action.template or action.entry, action.count) for action in actions]


IDS = {"remove": "jobs", "drain": "jobs", "expunge": "glide_ids"}


def retargets(actions: list[Action]) -> list[Retarget]:
    return [action for action in actions if isinstance(action, Retarget)]


def ids(actions: list[Action], kind: str) -> list[str]:
    return [each for action in actions if action.action == kind for each in getattr(action, IDS.get(kind, "slots"), ())]


# A glidein that runs, and its claimed lane.
GLIDEIN = Glidein(1, 0, "here", "T", JobStatus.RUNNING, 1)
LANE = Lane("here-1.0", "here", "T", "model", State.WARM, True)
