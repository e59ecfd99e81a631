"""The ports of glide.condor.ports. The contract tests run on the fake pool and on HTCondor, without any difference."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from glide.condor import AccessPoint, EmbeddedPool, bindings, configured_pool
from glide.condor.event_log import ENDED, LOST, Event
from glide.condor.fake import FakePool
from glide.errors import CondorError, CondorRefused
from glide.invoke import answers
from glide.invoke.jobs import InvocationJob, RunJobs, RunSpec
from glide.invoke.part import Part
from glide.protocol import keep
from glide.protocol.ads import LaneAd, attributes, from_ad
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine, State

ROOT = Path(__file__).resolve().parents[1]
INVOCATION = (ROOT / "submit_templates" / "invocation.sub").read_text()
RECORD_SECONDS = 0.05
TEMPLATE = Template("ports", "noop", options={"record_seconds": RECORD_SECONDS})
NUMBERS = count(1)


def requests(number: int) -> list[dict[str, Any]]:
    return [
        {"custom_id": f"r{each}", "prompt": f"text {each}", "generate": {}, "timeout": 60.0} for each in range(number)
    ]


class FakeRig:
    """The fake pool, on which a test starts the glideins itself."""

    def __init__(self, job_folders: Path | None) -> None:
        self.pool = FakePool(job_folders=job_folders)
        self.handle = self.pool.handle()

    def need_glidein(self) -> None:
        """Make sure that a glidein with two lanes will be warm."""
        if not any(glidein.alive for glidein in self.pool.glideins.values()):
            name = f"fake-{next(NUMBERS)}.0"
            for _ in range(2):
                self.pool.add_lane(name, TEMPLATE.digest, state=State.LOADING, warm_after=1.0)

    def kill(self, glide_id: str) -> None:
        self.pool.kill(glide_id)

    def hold(self, job: str, reason: str) -> None:
        self.pool.hold(job, reason)


class HTCondorRig:
    """HTCondor, with a factory that starts glideins when jobs wait for them."""

    def __init__(self, pool: EmbeddedPool, spool: bool):
        self.pool = pool
        handle = configured_pool(AccessPoint())
        assert handle.job_folders == pool.folder / "jobs" / str(os.getuid())
        self.handle = replace(handle, job_folders=None) if spool else handle

    def need_glidein(self) -> None: ...

    def kill(self, glide_id: str) -> None:
        for process in self.pool.processes():
            config = process.variable("CONDOR_CONFIG") or ""
            if process.name in ("condor_master", "condor_startd", "condor_starter") and config != str(self.pool.config):
                with suppress(OSError):
                    if f'"{glide_id}"' in Path(config).read_text():
                        process.send(signal.SIGKILL)

    def hold(self, job: str, reason: str) -> None:
        AccessPoint().schedd.act(bindings.htcondor2.JobAction.Hold, [job], reason=(reason, 0))


Rig = FakeRig | HTCondorRig


KINDS = ["fake", "fake-spool", *(pytest.param(kind, marks=pytest.mark.pool) for kind in ("htcondor", "htcondor-spool"))]


@pytest.fixture(scope="module", params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    spool = request.param.endswith("-spool")
    if request.param.startswith("fake"):
        return FakeRig(None if spool else tmp_path_factory.mktemp("jobs"))
    request.getfixturevalue("factory")
    return HTCondorRig(request.getfixturevalue("pool"), spool)


class Run:
    """The jobs of a run on a rig, and what happens to them."""

    def __init__(self, rig: Rig, folder: Path):
        self.rig = rig
        self.pool = rig.handle
        self.name = f"ports-{next(NUMBERS)}"
        spec = RunSpec(self.name, TEMPLATE, folder, max_glideins=1)
        self.jobs = RunJobs(spec, self.pool.queue, self.pool.job_folders)
        self.events: list[Event] = []
        self.parts: set[str] = set()

    def submit(self, records: int, **options: Any) -> Part:
        part = self.jobs.write(requests(records))
        self.parts.add(part.name)
        self.jobs.submit([part], **options)
        return part

    def job(self, part: Part) -> InvocationJob:
        (job,) = [job for job in self.jobs.queue() if job.part == part.name]
        return job

    def files(self) -> list[Path]:
        """The files of the run's jobs, and the jobs' own folders."""
        own = list(self.pool.job_folders.iterdir()) if self.pool.job_folders else []
        return [*self.jobs.run.folder.iterdir(), *(path for path in own if path.name in self.parts)]

    def peek(self, part: Part) -> dict[str, dict[str, Any]]:
        return self.jobs.peek(self.job(part), part.ids).results

    def gather(self, job: InvocationJob, part: Part) -> dict[str, dict[str, Any]]:
        """Gather a completed job, and return its results."""
        found: list[answers.OutputContent] = []
        self.jobs.gather([job], {part.name: part.ids}, lambda pairs: found.extend(each for _, each in pairs))
        return found[0].results

    def submit_directly(self, records: int, **macros: str) -> str:
        """Submit a job with the methods of the port only, and return its number."""
        name = f"direct-{next(NUMBERS)}"
        lines = [json.dumps(request) + "\n" for request in requests(records)]
        (self.jobs.run.folder / f"{name}.in").write_text("".join(lines))
        macros = {
            "digest": TEMPLATE.digest, "model": "ports", "initialdir": str(self.jobs.run.folder),
            "records": f"{name}.in", "results": f"{name}.out", f"My.{Job.RUN}": f'"{self.name}"',
            f"My.{Job.PART}": f'"{next(NUMBERS):012x}"', **macros,
        }  # fmt: skip
        return f"{self.pool.queue.submit(INVOCATION, macros, spool=True)}.0"

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Wait until the condition returns something true, and return it. The time is that of the pool's clock."""
        clock = self.pool.clock
        until = clock.monotonic() + seconds
        while not (found := condition()):
            assert clock.monotonic() < until, f"this did not happen: {what}"
            clock.sleep(0.1)
        return found

    def wait_for(self, status: int, part: Part) -> InvocationJob:
        self.wait(lambda: self.job(part).status == status, f"the status is {status}")
        return self.job(part)

    def start(self, records: int) -> tuple[Part, InvocationJob]:
        """Submit a job and wait until it runs."""
        self.rig.need_glidein()
        part = self.submit(records)
        return part, self.wait_for(JobStatus.RUNNING, part)

    def warm_glideins(self) -> list[str]:
        """Return the GlideIds of the warm glideins. If no glidein is warm, wait for one."""
        warm = f'{Machine.TEMPLATE} == "{TEMPLATE.digest}" && {Machine.STATE} == "{State.WARM}"'
        if not self.pool.directory.lanes([], warm):
            self.start(20)
        lanes = self.wait(lambda: self.pool.directory.lanes([Machine.ID], warm), "a glidein is warm")
        return sorted({lane[Machine.ID] for lane in lanes})

    def glidein_of(self, job: InvocationJob) -> str:
        (lane,) = self.pool.directory.lanes([Machine.ID], f'Name == "{job.lane}"')
        return lane[Machine.ID]

    def kinds(self, job: InvocationJob) -> set[str]:
        """The kinds of events that the event log has had for a job so far."""
        self.events += self.pool.events.new_events()
        return {event.kind for event in self.events if event.job == job.id}


@pytest.fixture
def run(rig: Rig, tmp_path: Path) -> Iterator[Run]:
    run = Run(rig, tmp_path)
    yield run
    run.jobs.remove(run.jobs.queue(), "the test has ended")


# ---- contract: jobs ----------------------------------------------------------------------------------


def test_job_streams_results_and_is_gathered(run: Run):
    run.rig.need_glidein()
    part = run.submit(80)
    job = run.job(part)
    assert (job.status, job.records, job.starts, job.lane) == (JobStatus.IDLE, 80, 0, "")
    job = run.wait_for(JobStatus.RUNNING, part)
    glidein = run.glidein_of(job)
    assert job.times.keys() >= {"queued", "started"}
    some = run.wait(lambda: run.peek(part), "results arrive while the job runs")
    assert len(some) < 80 and run.jobs.peek(job, part.ids).begun in range(81)
    last = run.wait_for(JobStatus.COMPLETED, part)
    assert (last.lane, last.last_lane, last.starts, last.hold_reason) == ("", job.lane, 1, "")
    assert last.times.keys() == {"queued", "started", "executing", "completed"}
    received = run.gather(last, part)
    assert {name: result["text"] for name, result in received.items()} == {f"r{n}": f"text {n}" for n in range(80)}
    assert {(result["glidein"], result["attempts"]) for result in received.values()} == {(glidein, 1)}
    assert run.jobs.queue() == [] and run.files() == []
    run.wait(lambda: "JOB_TERMINATED" in run.kinds(job), "the event log reports the end")
    assert "JOB_TERMINATED" in ENDED


def test_removed_job_leaves_queue(run: Run):
    _, job = run.start(1000)
    run.jobs.remove([job], "because of a test")
    run.wait(lambda: not run.pool.queue.jobs(f'{Job.RUN} == "{run.name}"', []), "the queue has no job", 5)
    run.wait(lambda: "JOB_ABORTED" in run.kinds(job), "the event log reports the removal")
    assert run.pool.queue.remove(f"ClusterId == {job.id.split('.')[0]}", "again") == 0
    assert run.files() == []


def test_unsuitable_jobs_stay_idle_and_can_be_edited(run: Run):
    """One job avoids all glideins. The other job wants a template that no lane has."""
    queue = run.pool.queue
    part = run.submit(1, avoid=run.warm_glideins())
    other = run.submit_directly(1, digest="no-such-template")
    run.pool.clock.sleep(1.6)  # HTCondor matches a job within a second
    mine = f'{Job.RUN} == "{run.name}" && JobStatus == {JobStatus.IDLE}'
    assert {(ad["ClusterId"], ad["ProcId"]) for ad in queue.jobs(mine, ["ClusterId", "ProcId"])} == {
        tuple(map(int, each.split("."))) for each in (run.job(part).id, other)
    }
    assert len(queue.jobs(mine, ["ClusterId"], limit=1)) == 1
    queue.edit({other: "3 + 4"}, "Added")
    queue.edit({mine: '"text"'}, "AddedToAll", notify_shadow=True)
    queue.reconsider(mine, 7)
    ads = queue.jobs(mine, ["Added", "AddedToAll", "JobPrio", "NoSuchAttribute"])
    assert sorted(ad.get("Added", 0) for ad in ads) == [0, 7]
    assert {(ad["AddedToAll"], ad["JobPrio"]) for ad in ads} == {("text", 7)}
    assert all("NoSuchAttribute" not in ad for ad in ads)
    assert run.peek(part) == {}
    queue.reconsider("false", 7)
    with pytest.raises(CondorError):
        queue.retrieve(mine)  # the jobs have no output yet
    queue.retrieve("false")


def test_running_job_gives_back_records(run: Run):
    """A driver takes records back: it edits GlideKeep, and HTCondor's flag SetDirty informs the job's shadow."""
    queue, glideins = run.pool.queue, run.warm_glideins()
    job = run.submit_directly(200, **{"My.FileRemaps": keep.FILE_REMAPS})
    one = f"ClusterId == {job.partition('.')[0]}"
    run.wait(lambda: queue.jobs(one, [])[0]["JobStatus"] == JobStatus.RUNNING, "the job runs")
    queue.edit({job: "40"}, Job.KEEP, notify_shadow=True)
    run.wait(lambda: queue.jobs(one, [])[0]["JobStatus"] == JobStatus.COMPLETED, "the job completes", 9)
    queue.retrieve(one)
    (path,) = run.jobs.run.folder.glob("direct-*.out")
    found = answers.read(path, [request["custom_id"] for request in requests(200)], 1 << 20)
    assert found.kept and 40 <= found.kept < 200 and not found.rejected
    assert found.results.keys() == {f"r{number}" for number in range(found.kept)}
    assert {result["glidein"] for result in found.results.values()} <= set(glideins)


def test_invalid_calls_raise_condor_error(run: Run):
    queue = run.pool.queue
    for call in (
        lambda: queue.jobs("((", []), lambda: queue.edit({"99999.0": "1"}, "A"),
        lambda: queue.edit({"false": "1"}, "A"), lambda: run.pool.directory.lanes([], "(("),
    ):  # fmt: skip
        with pytest.raises(CondorError):
            call()
    with pytest.raises(CondorRefused):
        queue.submit("executable = /bin/true\nrequirements = ((\nqueue", spool=True)
    assert "@" in queue.user and abs(queue.time() - run.pool.clock.time()) < 5


def test_held_job_shows_reason_and_keeps_results(run: Run):
    part, job = run.start(1000)
    run.wait(lambda: run.peek(part), "results arrive while the job runs")
    run.rig.hold(job.id, "because of a test")
    held = run.wait_for(JobStatus.HELD, part)
    run.wait(lambda: "because of a test" in run.job(part).hold_reason, "the queue has the reason")
    assert run.peek(part) and held.id == job.id
    run.wait(lambda: "JOB_HELD" in run.kinds(job), "the event log reports the hold")
    run.jobs.remove([held], "because of a test")
    run.wait(lambda: not run.jobs.queue(), "the queue has no job", 5)


# ---- contract: lanes ---------------------------------------------------------------------------------


def test_directory_lists_lanes_with_their_states(run: Run):
    _, job = run.start(100)
    directory, glidein = run.pool.directory, run.glidein_of(job)
    mine = f'{Machine.ID} == "{glidein}"'
    claimed = f'Name == "{job.lane}" && State == "Claimed"'
    run.wait(lambda: directory.lanes([], claimed), "the lane's ad shows the claim")
    measured = f"{mine} && {Machine.RECORD_SECONDS} > 0.04 && {Machine.RECORD_SECONDS} < 0.2"
    run.wait(lambda: directory.lanes(["Name"], measured), "the lanes advertise the measured speed")
    lanes = [from_ad(LaneAd, ad, strict=True) for ad in directory.lanes(attributes(LaneAd), mine)]
    assert len(lanes) == 2 and all(lane and lane.is_warm and lane.template == TEMPLATE.digest for lane in lanes)
    assert {lane.name: lane.claim for lane in lanes if lane}[job.lane] == "Claimed"
    assert all(abs(run.pool.clock.time() - lane.heard) < 20 and lane.batch == 1 for lane in lanes if lane)
    assert directory.lanes(["Name", "NoSuchAttribute"], f'Name == "{job.lane}"') == [{"Name": job.lane}]
    assert {ad[Machine.ID] for ad in directory.lanes([Machine.ID])} >= {glidein}
    assert directory.lanes([], "false") == []
    age = directory.age()
    assert 0 <= age <= directory.age()  # HTCondor's collector updates its own ad only every few minutes


def test_lost_glidein_gives_event_and_keeps_results(run: Run):
    """Both lanes lose their jobs. A driver removes the first job, and HTCondor runs the second one again."""
    first, removed = run.start(60)
    second, rerun = run.start(20)
    glidein = run.glidein_of(removed)
    assert run.glidein_of(rerun) == glidein and removed.lane != rerun.lane
    saved = run.wait(lambda: run.peek(first), "results arrive while the job runs")
    run.wait(lambda: "EXECUTE" in run.kinds(rerun), "both jobs execute")  # a running job may still get its input
    run.rig.kill(glidein)
    run.wait(lambda: all(run.kinds(job) & set(LOST) for job in (removed, rerun)), "the event log reports the loss", 5)
    assert run.peek(first).keys() >= saved.keys()
    run.jobs.remove([run.job(first)], "because of a test")
    assert [job.id for job in run.jobs.queue()] == [rerun.id]
    # Without this, HTCondor starts the second job on the dead lane of the first job.
    mine = f"TARGET.{Machine.TEMPLATE} =?= MY.{Job.TEMPLATE}"
    run.pool.queue.edit({rerun.id: f'{mine} && TARGET.{Machine.ID} =!= "{glidein}"'}, "Requirements")
    run.pool.directory.expunge(f'{Machine.ID} == "{glidein}"')
    run.wait(lambda: not run.pool.directory.lanes([], f'{Machine.ID} == "{glidein}"'), "the ads are removed", 5)
    early = run.peek(second)
    run.rig.need_glidein()
    idle = run.wait_for(JobStatus.IDLE, second)
    assert (idle.starts, idle.lane, idle.last_lane) == (1, "", rerun.lane)
    run.wait(lambda: "JOB_EVICTED" in run.kinds(rerun), "the event log reports the end of the first start", 5)
    # Until the eviction, the queue shows the job as running. The event log has reported the loss 10 s before. Both
    # times are HTCondor's own, so they do not depend on the moment when this test asks.
    times = {event.kind: event.at for event in run.events if event.job == rerun.id}
    (lost,) = times.keys() & set(LOST)
    assert times["JOB_EVICTED"] - times[lost] >= 8
    done = run.wait_for(JobStatus.COMPLETED, second)
    results = run.gather(done, second)
    assert done.starts == 2 and len(results) == 20
    assert {name for name, result in results.items() if result["attempts"] == 1} == early.keys()
    assert all(result["attempts"] in (1, 2) for result in results.values())
    assert all((result["glidein"] == glidein) == (result["attempts"] == 1) for result in results.values())
