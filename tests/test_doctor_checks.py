"""The doctor's checks at their limits, and questions that nobody answers."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

import pytest

from glide.condor.bounded import NoReply, ask
from glide.condor.configuration import Configuration
from glide.condor.knobs import protected
from glide.condor.rights import Authorization
from glide.config import SiteFile
from glide.doctor.checks import CHECKS, judge
from glide.doctor.checks.machines import clocks
from glide.doctor.checks.sites import served
from glide.doctor.facts import Disk, EventLogState, Facts, PrivatePath, Programs, Site, SlotOffer, Token, TrialOutcome
from glide.doctor.finding import Level, worst
from glide.doctor.trial import TEMPLATE, why_running, why_stuck
from glide.errors import CondorError
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot
from glide.live.status import ModelStatus
from glide.report.reasons import QueueView
from glide.report.times import duration
from glide.vocabulary import JobStatus, Machine, State

NOW = 1_800_000_000.0
VERSION = "$CondorVersion: {} 2026-01-01 $"
QUICK = {
    "NEGOTIATOR_INTERVAL": 5, "NEGOTIATOR_CYCLE_DELAY": 2, "NEGOTIATOR_MIN_INTERVAL": 2,
    "NEGOTIATOR_UPDATE_INTERVAL": 15, "CLASSAD_LIFETIME": 60,
}  # fmt: skip
STARTING = {
    "SCHEDD_INTERVAL": 30, "SCHEDD_MIN_INTERVAL": 2, "GUIDANCE_KEEP_CALM_AND": True, "MAX_JOBS_RUNNING": 10,
    "MAX_JOBS_PER_OWNER": 10, "MAX_CONCURRENT_UPLOADS_PER_USER": 4, "JOB_START_COUNT": 15, "JOB_START_DELAY": 1,
    "MAX_JOBS_SUBMITTED": 6, "MAX_JOBS_PER_SUBMISSION": 4, "MAX_PENDING_STARTD_CONTACTS": 4,
    "BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER": 10_000_000, "FILE_TRANSFER_DISK_LOAD_THROTTLE": 2.0,
    "PROTECTED_JOB_ATTRS": protected(),
}  # fmt: skip
JOB = {
    "ClusterId": 1, "ProcId": 0, "JobStatus": JobStatus.IDLE, "TransferInput": "in", "TransferExecutable": False,
    "TransferOutput": "out", "WantIOProxy": True, "LimitDirectoryAccess": "/dev/null", "WantRemoteUpdates": False,
}  # fmt: skip
LANE = {
    "MyType": "Machine", "Name": "slot1@a", "CondorVersion": VERSION.format("25.14.1"), "LastHeardFrom": NOW,
    "MyCurrentTime": NOW - 5, Machine.ID: "here-1.0", Machine.ENTRY: "here",
    "Start": f"{Machine.TEMPLATE} {Machine.STATE}",
}  # fmt: skip
RUNNING = Glidein(1, 0, "here", "T", JobStatus.RUNNING, 1)


def site(**entry: Any) -> SiteFile:
    return SiteFile.model_validate({"site": "s", "entries": [{"name": "here", "max_glideins": 2, **entry}]})


POOL = {"collector": "<10.0.0.1:9618?a=b>", "schedd": "ap"}
LOGIN = {"host": "there", "user": "me", "schedd": "ap"}


def away(**place: Any) -> tuple[Site, ...]:
    """The site, with its glideins in another pool's queue."""
    return (Site("s.yaml", QueueView(site(**place))),)


def waiting(template: str) -> Glidein:
    return Glidein(2, 0, "here", template, JobStatus.IDLE)


def healthy(**changes: Any) -> Facts:
    """Everything just within its limits."""
    facts = Facts(
        now=NOW, programs=Programs(VERSION.format("25.8.2")),
        sites=(Site("s.yaml", QueueView(site()), cycle_age=29.0),),
        folders=(PrivatePath("/home", 0o700), PrivatePath("/token", 0o400)),
        tokens=(Token("/t", 7 * 86400.0), Token("/u")),
        disks=(Disk("/home", "GLIDE_HOME", 10**9, 10**12),), ads=(LANE,), negotiator=Configuration(QUICK),
        schedd=Configuration(STARTING), event_log=EventLogState("/log", True),
        rights=(Authorization("we", "Schedd", "WRITE", True),),
        clock=-5.0, jobs=(JOB,), nodes={"here": (SlotOffer(1, 2048),)}, snapshot=Snapshot((RUNNING,), now=NOW),
        trial=TrialOutcome(3.0),
    )  # fmt: skip
    return replace(facts, **changes)


def found(facts: Facts) -> list[str]:
    """Check, level, and what was found, of everything that was."""
    return [
        f"{verdict.check} {finding.level.name.lower()} {finding.problem} -> {finding.fix}"
        for verdict in judge(facts)
        for finding in verdict.findings
    ]


def test_late_ad_is_not_reported_as_slow_clock():
    def found(ahead: float) -> list[str]:
        ad = {"MyType": "Machine", "Name": "slot1@node", "LastHeardFrom": 1000, "MyCurrentTime": 1000 + ahead}
        return [finding.problem for finding in clocks(Facts(ads=(ad,)))]

    assert found(-10) == found(4) == []
    assert "25 s behind the collector's" in found(-25)[0] and "10 s ahead of" in found(10)[0]


def test_doctor_accepts_immutable_instead_of_protected_job_attributes():
    kept = {"PROTECTED_JOB_ATTRS": "", "IMMUTABLE_JOB_ATTRS": protected().upper().replace(", ", " ")}
    assert found(healthy(schedd=Configuration(STARTING | kept))) == []


def test_doctor_reports_nothing_if_values_are_within_limits():
    assert found(healthy()) == [] and worst(judge(healthy())) == Level.OK


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"negotiator": Configuration(QUICK | {name: QUICK[name] + 1})}, f"matching warning {name} = ")
          for name in ("NEGOTIATOR_INTERVAL", "NEGOTIATOR_CYCLE_DELAY", "NEGOTIATOR_MIN_INTERVAL")),
        ({"negotiator": Configuration(QUICK | {"NEGOTIATOR_UPDATE_INTERVAL": 60})}, "takes the negotiator for dead"),
        ({"negotiator": Configuration(QUICK | {"NEGOTIATOR_CONSIDER_PREEMPTION": False})}, "live calls wait until"),
        ({"negotiator": Configuration(QUICK | {"NEGOTIATOR_INTERVAL": 60}, from_daemon=False)},
         "does not report its own"),
        *(({"schedd": Configuration(STARTING | {name: STARTING[name] + 1})}, f"queue warning {name} = ")
          for name in ("SCHEDD_INTERVAL", "SCHEDD_MIN_INTERVAL")),
        ({"schedd": Configuration(STARTING | {"JOB_START_COUNT": 14})}, "14 jobs start per second"),
        ({"schedd": Configuration(STARTING | {"MAX_JOBS_RUNNING": 5})},
         "queue warning MAX_JOBS_RUNNING = 5: too low for 6"),
        ({"schedd": Configuration(STARTING | {"MAX_JOBS_RUNNING": 0})}, "queue critical MAX_JOBS_RUNNING = 0"),
        ({"schedd": Configuration(STARTING | {"MAX_JOBS_SUBMITTED": 5})}, "MAX_JOBS_SUBMITTED = 5: too low for 6"),
        ({"schedd": Configuration(STARTING | {"MAX_JOBS_PER_SUBMISSION": 3})}, "refuses the whole submission"),
        ({"schedd": Configuration(STARTING | {"MAX_PENDING_STARTD_CONTACTS": 3})}, "CONTACTS = 3: too low for 4 lanes"),
        ({"schedd": Configuration(STARTING | {"MAX_CONCURRENT_UPLOADS_PER_USER": 3})},
         "queue warning MAX_CONCURRENT_UPLOADS_PER_USER = 3: a user gets at most 3 matches in each negotiation cycle,"
         " so 4 lanes get their first jobs within 2 cycles, in up to 10 s"),
        ({"schedd": Configuration(STARTING | {"BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER": 0})},
         "few at a time, and one more each minute (FILE_TRANSFER_DISK_LOAD_THROTTLE = 2.0)"),
        ({"schedd": Configuration(STARTING | {
            "BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER": 9_999_999, "FILE_TRANSFER_DISK_LOAD_THROTTLE": "",
            "MAX_CONCURRENT_UPLOADS": 0, "MAX_CONCURRENT_DOWNLOADS": 50})}, "at most 50 at a time in each direction"),
        ({"schedd": Configuration(STARTING | {"USE_PROCD": False})}, "half as many jobs start per second"),
        ({"schedd": Configuration({**STARTING, "GUIDANCE_KEEP_CALM_AND": ""})}, "lose five seconds to a race"),
        ({"schedd": Configuration({**STARTING, "PROTECTED_JOB_ATTRS": ""})},
         "protection critical nodes can change LimitDirectoryAccess, Iwd"),
        ({"schedd": Configuration({**STARTING, "PROTECTED_JOB_ATTRS": protected().replace(" Cmd,", "")})},
         "protection critical nodes can change Cmd of"),
        ({"schedd": Configuration({**STARTING, "PROTECTED_JOB_ATTRS": "", "LIMIT_DIRECTORY_ACCESS": "/scratch"})},
         "protection critical nodes can change UserLog, Cmd"),
        ({"jobs": ({**JOB, "LimitDirectoryAccess": ""},)}, "jobs critical 1 invocation job (1.0) let their node read"),
        ({"jobs": ({**JOB, "WantRemoteUpdates": True},)}, "jobs critical 1 invocation job (1.0) let any program"),
        ({"sites": (Site("s.yaml", QueueView(site(knobs={"GLIDE_RUNS": "True"}))),)}, "not only glide's own client"),
        ({"embedded": True}, "CONDOR_FSYNC = True"),
        ({"event_log": EventLogState("/log", False)}, "losses warning EVENT_LOG /log cannot be read"),
        ({"programs": Programs(VERSION.format("25.8.1"))}, "versions critical the bindings are 25.8.1"),
        ({"programs": Programs(VERSION.format("25.8.2"), "0.5")}, "pip uninstall classad"),
        ({"programs": Programs(VERSION.format("27.0.0")),
          "ads": ({"MyType": "Scheduler", "CondorVersion": VERSION.format("25.0.0")},)}, "several series older"),
        ({"ads": ({"MyType": "Negotiator", "CondorVersion": VERSION.format("26.0.0")},)}, "series warning"),
        ({"ads": ({"MyType": "Scheduler", "CondorVersion": VERSION.format("24.5.1")},)}, "waits for a match"),
        ({"ads": ({**LANE, "CondorVersion": VERSION.format("23.99.9")},)}, "versions critical Machine"),
        ({"ads": ({**LANE, "MyCurrentTime": NOW + 6},)}, "clocks warning the clock of slot1@a (Machine) is 6 s ahead"),
        ({"ads": ({**LANE, "MyCurrentTime": NOW - 61},)}, "clocks critical"),
        ({"ads": ({**LANE, "Start": "true"},)}, "start critical"),
        ({"ads": ({**LANE, "LastHeardFrom": NOW - 70, "MyCurrentTime": NOW - 70},)}, "ghosts critical"),
        ({"ads": ({**LANE, "LastHeardFrom": NOW - 36, "MyCurrentTime": NOW - 36},), "snapshot": Snapshot(now=NOW)},
         "ghosts critical the lanes of here-1.0 have been silent for 31 s"),
        ({"clock": 5.5}, "the access point's clock is 6 s ahead of this machine's"),
        ({"folders": (PrivatePath("/home", 0o710),)}, "secrets critical /home has mode 710"),
        ({"folders": (PrivatePath("/home", 0o700, mine=False),)}, "belongs to another account -> chown"),
        ({"tokens": (Token("/t/mine", 7 * 86400.0 - 1),)}, "tokens warning this account's token, /t/mine, expires"),
        ({"tokens": (Token("/t/mine", 0.0),)}, "tokens critical"),
        *(({"tokens": (Token("/t", 86399.0, "here", name),), "snapshot": Snapshot((RUNNING, waiting(template)))},
           "the token of here's waiting glideins") for name, template in (("blank", ""), ("D" * 16, "D" * 40))),
        ({"rights": (Authorization("we", "Schedd", "WRITE", False),)},
         "rights critical the access point does not grant"),
        ({"disks": (Disk("/home", "GLIDE_HOME", 10**9 - 1, 10**12),)}, "disks warning"),
        ({"disks": (Disk("/home", "GLIDE_HOME", 10**8 - 1, 10**12),)}, "disks critical"),
        ({"jobs": ({**JOB, "JobLeaseDuration": 2400},)}, "jobs warning 1 invocation job (1.0) have a job lease"),
        ({"jobs": ({**JOB, "JobStatus": JobStatus.HELD, "HoldReason": "no\x1b[2J"},)}, "held jobs warning"),
        ({"nodes": {"here": (SlotOffer(1, 2047),)}}, "nodes critical here asks for memory: 2048 MB"),
        ({"nodes": {"here": ()}}, "nodes critical the pool of here has no machine"),
        ({"nodes": {"here": (SlotOffer(0, 4096), SlotOffer(1, 100))}}, "on one machine"),
        ({"sites": (Site("s.yaml", QueueView(site()), cycle_age=31.0),)}, "has not completed a cycle for 31 s"),
        ({"sites": (Site("s.yaml", QueueView(site(), running=False)),)}, "factories warning no factory runs for s"),
        ({"sites": (Site("s.yaml", QueueView(site()), troubles=("refused",)),)}, "did not act: refused"),
        ({"sites": (Site("s.yaml", QueueView(site(knobs={"CLAIM_WORKLIFE": "599"}))),)}, "glidein knobs warning"),
        ({"snapshot": Snapshot((replace(RUNNING, status=JobStatus.HELD, hold_reason="why"),))}, "is held: why"),
        ({"snapshot": Snapshot((RUNNING,), (Lane("here-1.0", "here", "T", "m", State.FAILED, False, "why"),))},
         "glideins warning m could not be loaded on here-1.0: why"),
        *(({"sites": elsewhere, "snapshot": Snapshot((replace(RUNNING, status=JobStatus.HELD, hold_reason="why"),))},
           f"then {command}, or ") for elsewhere, command in (
            (away(pool=POOL), "condor_release -pool '<10.0.0.1:9618?a=b>' -name ap 1.0"),
            (away(pool={"collector": "b"}),
             "condor_release -pool b -name $(condor_status -pool b -schedd -af Name) 1.0"),
            (away(ssh=LOGIN), "on me@there (ap): condor_release -name ap 1.0"))),
        *(({"sites": elsewhere, "snapshot": Snapshot((RUNNING,), unavailable_entries={"here": "no"})},
           f"correct the `{key}` of here")
          for elsewhere, key in ((away(pool=POOL), "pool"), (away(ssh=LOGIN), "ssh"))),
        ({"sites": away(ssh=LOGIN), "nodes": {"here": ()}}, "or correct the `ssh` of here"),
        ({"trial": TrialOutcome(120.0, "queued", in_progress=True)}, "trial warning"),
        ({"trial": TrialOutcome(120.0, "nobody")}, "trial critical a test record did not come back in 120 s: nobody"),
    ],
)  # fmt: skip
def test_doctor_reports_each_exceeded_limit_exactly_once(changes, words):
    (told,) = found(healthy(**changes))
    assert words in told and "\x1b" not in told


def test_default_match_limit_is_reported_for_large_sites():
    """HTCondor 25.11's default of 20, and a negotiator that starts a cycle each minute."""
    large = (Site("s.yaml", QueueView(site(max_glideins=200))),)
    unlimited = {name: 10**6 for name in STARTING if name.startswith("MAX_")}
    schedd = Configuration(STARTING | unlimited | {"MAX_CONCURRENT_UPLOADS_PER_USER": 20})
    (told,) = found(healthy(sites=large, schedd=schedd))
    assert "400 lanes get their first jobs within 20 cycles, in up to 100 s" in told


@pytest.mark.parametrize(
    "changes",
    [
        {"schedd": {"MAX_CONCURRENT_UPLOADS_PER_USER": 0}},
        {"schedd": {"MAX_CONCURRENT_UPLOADS_PER_USER": 3, "SCHEDD_ENABLE_PER_USER_MATCH_LIMITS": False}},
        {"schedd": {"MAX_CONCURRENT_UPLOADS_PER_USER": 3}, "version": "25.10.1"},
        {"schedd": {"MAX_CONCURRENT_UPLOADS_PER_USER": 3}, "interval": 0.2},
    ],
)
def test_match_limit_that_costs_nothing_is_not_reported(changes):
    ads = ({"MyType": "Scheduler", "CondorVersion": VERSION.format(changes.get("version", "25.11.0"))},)
    negotiator = Configuration(QUICK | {"NEGOTIATOR_INTERVAL": changes.get("interval", 5)})
    assert found(healthy(schedd=Configuration(STARTING | changes["schedd"]), ads=ads, negotiator=negotiator)) == []


@pytest.mark.parametrize("place", [{"pool": POOL}, {"ssh": LOGIN}])
def test_doctor_ignores_remote_glideins_for_local_job_limit(place):
    assert found(healthy(sites=away(**place), schedd=Configuration(STARTING | {"MAX_JOBS_RUNNING": 4}))) == []


def test_expired_token_is_ignored_if_no_glidein_is_queued():
    assert found(healthy(tokens=(Token("/t", 1.0, "here", "T"), Token("/t", 1.0, "here", "blank")))) == []


def test_stuck_test_job_is_critical_unless_pool_full():
    """The trial's job waits, and the entry has its two glideins."""
    demand = Demand(TEMPLATE.digest, TEMPLATE.model, "r", "", 1, 0, 1, TEMPLATE, 1, best_effort=True)
    others = replace(demand, template="T", run="other", best_effort=False)
    busy = tuple(replace(RUNNING, proc=proc) for proc in range(2))
    lanes = tuple(Lane(each.glide_id, "here", "T", "m", State.WARM, True) for each in busy)
    for claimed in (True, False):  # idle models are not unloaded for it
        there = tuple(replace(lane, claimed=claimed) for lane in lanes)
        demands = (others, demand) if claimed else (demand,)
        told = why_stuck("r", Snapshot(busy, there, demands), [QueueView(site())], 9.0)
        assert told.in_progress
        assert told.stuck.startswith("full just now: no glidein for glide-doctor: no entry has room")
        assert " warning " in found(healthy(trial=told))[0]
    moved = tuple(replace(lane, template=TEMPLATE.digest, state=State.LOADING) for lane in lanes)
    assert why_stuck("r", Snapshot(busy, moved, (demand,)), [QueueView(site())], 9.0).in_progress
    for snapshot, view in (
        (Snapshot((), (), (demand,)), QueueView(site(), frozenset({"here"}))),
        (Snapshot((), (), (demand,)), QueueView(site(max_glideins=0))),
        (Snapshot(busy, lanes, (demand,)), QueueView(site(), running=False)),
        (Snapshot(busy, tuple(replace(lane, state=State.FAILED) for lane in lanes), (demand,)), QueueView(site())),
    ):
        told = why_stuck("r", snapshot, [view], 9.0)
        assert not told.in_progress and " critical " in found(healthy(trial=told))[0], told


def test_running_test_job_waits_until_its_lane_is_warm():
    coming = Lane("here-1.0", "here", TEMPLATE.digest, "m", State.LOADING, True)
    told = why_running("slot1@n1", Snapshot((RUNNING,), (coming,)))
    assert told == "its job waits on slot1@n1 until the model is warm (lanes: ['Loading'])"
    for lanes in ((), (coming, replace(coming, state=State.WARM)), (replace(coming, template="other"),)):
        assert why_running("slot1@n1", Snapshot((RUNNING,), lanes)) == "its job runs on slot1@n1 and does not end"


def test_exception_in_one_doctor_check_affects_no_other():
    odd = healthy(jobs=({**JOB, "JobLeaseDuration": "x"},), clock=6.0)
    unseen = {verdict.check: verdict.unavailable for verdict in judge(odd) if verdict.unavailable}
    assert list(unseen) == ["jobs"] and unseen["jobs"].startswith("an error in glide: TypeError: ")
    assert [line.split()[0] for line in found(odd)] == ["clocks"] and worst(judge(odd)) == Level.WARNING


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (90, "1 min 30 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_formatted_duration_has_at_most_two_units(seconds, told):
    assert duration(seconds) == told


def test_model_on_cpu_despite_gpu_request_is_reported():
    asking = (Site("s.yaml", QueueView(site(request={"gpus": 1}))),)
    lane = {**LANE, Machine.BATCHING: "static"}
    nodes = {"here": (SlotOffer(1, 2048, 1),)}
    (told,) = found(healthy(sites=asking, ads=(lane,), nodes=nodes))
    assert "GPUs critical here-1.0 asked for a GPU" in told
    assert found(healthy(sites=asking, ads=({**lane, Machine.GPU_NAME: "H200"},), nodes=nodes)) == []
    assert "gpus: 1, and no machine" in found(healthy(sites=asking))[0]


def test_doctor_check_says_why_it_lacks_information():
    for name in ("jobs", "snapshot", "rights", "trial"):
        verdicts = judge(healthy(unavailable={name: "it hides"}))
        assert [verdict.unavailable for verdict in verdicts] == ["it hides" * (name in check.needs) for check in CHECKS]
        assert worst(verdicts) == Level.WARNING


def test_failed_query_does_not_affect_other_queries():
    def hang() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(3600)

    def refuse() -> None:
        raise CondorError("no")

    questions = {"answer": lambda: 42, "hang": hang, "die": lambda: os.kill(os.getpid(), 9), "refuse": refuse}
    answers = ask(questions, 2.0)
    assert answers["answer"] == 42 and answers["hang"] == NoReply("no answer within 2 s")
    assert answers["refuse"] == NoReply("no") and isinstance(answers["die"], NoReply)
    assert isinstance(ask({"mistake": lambda: 1 // 0}, 2.0)["mistake"], NoReply)


def test_model_of_glide_serve_that_is_never_ready_is_a_warning():
    def found(**changes: Any) -> list[str]:
        model = ModelStatus("m", "lanes are Loading", False, NOW - 400, 0, 0, 3)
        return [finding.problem for finding in served(Facts(now=NOW, serve=(replace(model, **changes),)))]

    assert found() == ["glide serve: m has not been ready for 6 min 40 s: lanes are Loading"]
    assert found(not_ready_since=NOW - 10) == [] and found(is_ready=True, not_ready_since=0.0) == []
    assert found(state="not loaded; the next call loads it", not_ready_since=0.0) == []
