"""Why jobs wait: the causes, each told in words that say what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from glide.config import SiteFile
from glide.factory.home import factory_lock, site_folder
from glide.factory.journal import Journal, refusals
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot
from glide.report.reasons import QueueView, why_idle
from glide.report.status import document, queue_view
from glide.template import Template
from glide.vocabulary import JobStatus, State

FILES = {"weights": ("0" * 64, 12_000_000_000)}
TEMPLATE = Template("tiny-verifier", "noop", "/models/tiny", FILES)
DIGEST = TEMPLATE.digest
ADA = "ada@here"
DEMAND = Demand(DIGEST, "tiny-verifier", "run-1", ADA, idle=4, running=0, wanted=2, spec=TEMPLATE, records=400)


def seen(demand: Demand = DEMAND, **parts: Any) -> Snapshot:
    return Snapshot(**{"demands": (demand,), "now": 1000.0, "user": ADA, **parts})


def site(**changes: Any) -> SiteFile:
    entry = {"name": "here", "max_glideins": 5, "request": {"memory": 16000}, **changes}
    return SiteFile.model_validate({"site": "lab", "entries": [entry]})


def lane(**changes: Any) -> Lane:
    return replace(Lane("here-1.0", "here", DIGEST, "tiny-verifier", State.WARM, False, name="slot1@x"), **changes)


def glidein(status: int, **changes: Any) -> Glidein:
    return replace(Glidein(1, 0, "here", DIGEST, status, 1), **changes)


RUNNING = glidein(JobStatus.RUNNING, state=State.WARM)
DOWN = {"start": "1970-01-01", "end": "2099-01-01 12:00", "reason": "new racks"}
FULL = seen(glideins=(RUNNING,), lanes=(lane(claimed=True),), demand=replace(DEMAND, running=1))

CAUSES = {
    "nothing is seen": (
        seen(unavailable_sources=("no access point answers",)), QueueView(site()),
        "the pool cannot be read completely: no access point",
    ),
    "nobody describes it": (
        seen(replace(DEMAND, spec=None)), QueueView(site()), "does not describe it (GlideTemplateSpec)",
    ),
    "no factory ever": (
        seen(), None, "no factory has run with this GLIDE_HOME: start one (glide factory run -c SITE.yaml)",
    ),
    "no factory now": (
        seen(), QueueView(site(), running=False), "no factory runs: start one for site lab (glide factory run)",
    ),
    "too large": (
        seen(), QueueView(site(request={"gpus": 1, "gpu_memory": 8000})),
        "no entry has room: here: tiny-verifier needs 12000 MB of memory, but the entry's glideins have 8000 MB for a"
        " model",
    ),
    "not for this user": (seen(), QueueView(site(owners=["eve@here"])), "no entry serves ada@here"),
    "downtime": (seen(), QueueView(site(downtimes=[DOWN])), "here: down until 2099-01-01 12:00: new racks"),
    "closed by hand": (seen(), QueueView(site(), frozenset({"here"})), "closed by `glide factory drain`"),
    "refused": (
        seen(), QueueView(site(), refused=("here: cannot submit: HTCondor refuses the job: no such attribute",)),
        "no glidein could be sent to here: HTCondor refuses the job: no such attribute",
    ),
    "limit": (seen(), QueueView(site(max_glideins=0)), "here: its limit of 0 glideins"),
    "breaker": (
        seen(ended=tuple(glidein(JobStatus.COMPLETED, proc=number, age=9.0, failure="no GPU") for number in range(3))),
        QueueView(site()),
        "open for 600 s after the last failure: 3 glideins in a row were never warm; the last one, here-1.2: no GPU",
    ),
    "other pool away": (
        seen(unavailable_entries={"here": "no access point answers in the pool of far.example"}), QueueView(site()),
        "cannot observe its queue: no access point answers in the pool of far.example",
    ),
    "about to come": (seen(), QueueView(site()), "the factory submits 2 to here"),
    "held": (
        seen(glideins=(glidein(JobStatus.HELD, hold_reason="disk full"),)), QueueView(site()),
        "its glidein 1.0 is held: disk full",
    ),
    "no node": (
        seen(glideins=(glidein(JobStatus.IDLE, starts=0, age=95.0),)), QueueView(site()),
        "its 1 glideins wait in the queue of here, the first for 95 s: no node is free, or none suits"
        " (condor_q -better-analyze 1.0)",
    ),
    "fetching": (
        seen(glideins=(glidein(JobStatus.RUNNING),), lanes=(lane(state=State.FETCHING, fetched=0.3),)),
        QueueView(site()),
        "no lane is warm yet; its glideins: 1 running, 1 Fetching (30%)",
    ),
    "does not load": (
        seen(lanes=(lane(state=State.FAILED, failure="OSError: no config.json"),)), QueueView(site()),
        "tiny-verifier could not be loaded on here-1.0: OSError: no config.json",
    ),
    "busy, and no more wanted": (
        replace(FULL, demands=(replace(DEMAND, running=1, wanted=1),)), QueueView(site()),
        "1 of 1 warm lanes are busy; the run wants at most 1 glidein",
    ),
    "busy, and no room": (
        FULL, QueueView(site(max_glideins=1)), "1 of 1 warm lanes are busy; no entry has room: here: its limit of 1",
    ),
    "next match": (
        seen(glideins=(RUNNING,), lanes=(lane(),)), QueueView(site()),
        "warm lanes are free; HTCondor has not matched the jobs yet",
    ),
    "lanes of others": (
        seen(glideins=(RUNNING,), lanes=(lane(),)), QueueView(site(owners=["eve@here"])),
        "here has tiny-verifier and does not serve ada@here (its `owners`); no entry serves ada@here",
    ),
    "old age": (
        seen(glideins=(RUNNING,), lanes=(lane(retires=900.0),)), QueueView(site()),
        "accept no more jobs, because their lifetime is over; the factory submits 2 to here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_status_explains_each_cause_of_idle_jobs(cause):
    snapshot, view, words = CAUSES[cause]
    (demand,) = snapshot.demands
    assert words in why_idle(demand, snapshot, [view] if view else [])


def test_running_jobs_get_no_idle_reason():
    snapshot = seen(replace(DEMAND, idle=0, running=1))
    assert why_idle(snapshot.demands[0], snapshot) == ""


def test_throughput_and_eta_are_computed_from_running_jobs():
    lanes = tuple(lane(glide_id=f"here-{n}.0", claimed=n < 4, record_seconds=0.5) for n in range(5))
    other = replace(DEMAND, run="run-2", running=3, records=900)
    told = document(seen(lanes=lanes, demands=(replace(DEMAND, running=1), other)))
    assert told["records_per_second"] == 8.0
    assert [(each["records_per_second"], each["seconds_left"]) for each in told["queue"]] == [
        (2.0, 200.0),
        (6.0, 150.0),
    ]
    waiting = document(seen())["queue"][0]
    assert (waiting["records_left"], waiting["records_per_second"], waiting["seconds_left"]) == (400, 0.0, None)


def test_status_shows_refused_submission_until_next_cycle(tmp_path, monkeypatch):
    """What HTCondor said to the factory in its last cycle, in the words of `glide status`."""
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path))
    with factory_lock(site()):
        Journal(site_folder(site())).write(
            seen(), [], ["here: cannot submit: HTCondor refuses the job: Invalid log file"]
        )
        (told,) = document(seen(), [queue_view(site())])["queue"]
        assert "no glidein could be sent to here: HTCondor refuses the job: Invalid log file" in told["why_idle"]
        assert refusals(tmp_path) == ["here: cannot submit: HTCondor refuses the job: Invalid log file"]
        Journal(site_folder(site())).write(seen(), [], [])
        (told,) = document(seen(), [queue_view(site())])["queue"]
        assert "the factory submits 2 to here" in told["why_idle"] and refusals(tmp_path) == []
