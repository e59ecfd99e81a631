"""A sweep that is run again, on a real pool: finished, grown, changed, killed or with errors, it loses nothing."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pytest

from glide.condor import AccessPoint
from glide.protocol.json_lines import read_results
from glide.sweep.opening import open_results
from glide.sweep.prepare import prepare
from glide.sweep.results import Results
from glide.sweep.run import drive
from glide.vocabulary import Exit, Job
from tests.conftest import SweepFolder, eventually
from tests.test_end_to_end import glide, noop_records, results_so_far

pytestmark = pytest.mark.pool


def files(sweep: SweepFolder) -> dict[str, bytes]:
    paths = [*sweep.out.glob("*/results.jsonl"), sweep.out / "summary.json"]
    return {str(path): path.read_bytes() for path in paths}


def status(sweep: SweepFolder) -> dict:
    return json.loads(glide("sweep", "status", str(sweep.file), "--json").stdout)


def test_finished_sweep_reruns_failed_records_only_on_request(factory, sweep: SweepFolder, monkeypatch):
    model = {"name": "again", "engine": "noop", "options": {"record_seconds": 2.0, "raise_on": "POISON"}}
    records = [{"custom_id": "bad", "text": "POISON"}, {"custom_id": "slow", "text": "slow"}]
    first = sweep.write(records, model=model, glideins=1, timeout=0.2).run()
    assert first.returncode == Exit.RECORD_ERRORS, first.stderr
    errors = {result["custom_id"]: result["error"]["type"] for result in sweep.results()}
    assert errors == {"bad": "RecordTimeout", "slow": "RecordTimeout"}
    assert first.stderr.rstrip().endswith(f"to run them again: glide sweep retry {sweep.file}")

    # A timeout is no part of a request. No pool is there for this command, and none can be made.
    sweep.write(records, model=model, glideins=1, timeout=30.0)
    before = files(sweep)
    with monkeypatch.context() as nowhere:
        for name in [name for name in os.environ if name.startswith(("CONDOR_", "_CONDOR_"))]:
            nowhere.delenv(name)
        nowhere.setenv("GLIDE_HOME", "/dev/null/home")
        for command, options in (("run", ()), ("resume", ()), ("retry", ("--only", "Other")), ("run", ("--json",))):
            done = sweep.run(command, *options)
            assert done.returncode == Exit.RECORD_ERRORS and "finished: all 2 records have a result" in done.stderr
        assert json.loads(done.stdout) == sweep.summary
        assert status(sweep)["state"] == "finished"
    assert files(sweep) == before

    more = [*records, {"custom_id": "new", "text": "new"}]
    done = sweep.write(more, model=model, glideins=1, timeout=30.0).run()
    assert done.returncode == Exit.RECORD_ERRORS and "resumed: 2 of 3 records" in done.stderr
    assert [result["error"] is None for result in sweep.results()] == [False, False, True]
    assert sweep.summary["resumed"] == 2

    done = sweep.run("retry", "--only", "RecordTimeout")
    assert done.returncode == Exit.RECORD_ERRORS and "resumed: 1 of 3 records" in done.stderr
    results = {result["custom_id"]: result for result in sweep.results()}
    assert [results[name]["text"] for name in ("slow", "new")] == ["slow", "new"]
    assert results["bad"]["error"]["type"] == "Poisoned" and list(results) == ["bad", "slow", "new"]

    done = sweep.run("run", "--again")
    aside = sweep.out.with_name("results.1")
    assert done.returncode == Exit.RECORD_ERRORS and str(aside) in done.stderr and "resumed" not in done.stderr
    old = list(read_results(aside / "plain" / "results.jsonl"))
    assert [result["custom_id"] for result in old] == ["bad", "slow", "new"]
    assert sweep.summary["resumed"] == 0 and not AccessPoint().jobs(f'{Job.RUN} =?= "{run_of(sweep)}"', ["ClusterId"])


def run_of(sweep: SweepFolder) -> str:
    return json.loads((sweep.out / ".glide" / "run.json").read_text())["run"]


def test_sweep_edited_during_run_recomputes_only_changed_records(
    factory, sweep: SweepFolder, access_point: AccessPoint
):
    model = {"name": "edited", "engine": "noop", "options": {"record_seconds": 0.02}}
    records = noop_records(400)
    process = sweep.write(records, model=model).start()
    eventually(lambda: results_so_far(sweep) > 60, "results come in")
    process.send_signal(signal.SIGSTOP)  # or it might finish before the others have looked
    second = sweep.run()
    assert second.returncode == Exit.INPUT and f"is in use by process {process.pid} on " in second.stderr
    assert status(sweep)["state"] == "running"
    process.kill()
    process.wait()
    found = results_so_far(sweep)
    came = {result["custom_id"] for result in read_results(sweep.out / "plain" / "results.jsonl")}
    run = run_of(sweep)
    mine = f'{Job.RUN} =?= "{run}"'
    assert access_point.jobs(mine, ["ClusterId"]), "jobs that ask what was asked are still there"

    changed = [record | {"text": record["text"] + "!"} if n % 2 else record for n, record in enumerate(records[1:])]
    assert glide("sweep", "retry", str(sweep.write(changed, model=model).file)).returncode == Exit.OK
    results = sweep.results()
    assert [(each["custom_id"], each["text"]) for each in results] == [(r["custom_id"], r["text"]) for r in changed]
    assert run_of(sweep) == run and not access_point.jobs(mine, ["ClusterId"])
    # Those of the even records that had come were not computed again; the others lie aside.
    assert sweep.summary["resumed"] >= found // 3 and sweep.summary["recomputed"] == 0
    aside = [json.loads(line)["result"] for line in (sweep.out / ".glide/superseded/plain.jsonl").open()]
    asked = {each["custom_id"]: each["text"] for each in changed}
    outdated = {record["custom_id"] for record in records if asked.get(record["custom_id"]) != record["text"]}
    assert came & outdated and came & outdated <= {each["custom_id"] for each in aside}
    assert sweep.summary["resumed"] + len(aside) >= found
    assert max(Counter(each["custom_id"] for each in aside).values()) == 1


def test_results_are_on_disk_before_jobs_are_removed(factory, sweep: SweepFolder, monkeypatch):
    events: list[str] = []
    fsync, remove = os.fsync, AccessPoint.remove

    def noted_fsync(number: int) -> None:
        fsync(number)
        events.append(os.readlink(f"/proc/self/fd/{number}"))

    def noted_remove(self: AccessPoint, constraint: str, reason: str) -> None:
        events.append(f"remove: {len(sweep.results())} results")
        remove(self, constraint, reason)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(AccessPoint, "remove", noted_remove)
    (prepared,) = prepare(sweep.write(noop_records(50), pack=25, batch=5).file)
    results = open_results(prepared, "fsync-order")
    drive([results], lambda progress: None)
    results.close()
    file = sweep.out / "plain" / "results.jsonl"
    first = next(number for number, event in enumerate(events) if event.startswith("remove: "))
    on_disk = events[:first]
    # The file was made before its folder was flushed, that before the folder's own folder, and so on.
    begun = [str(folder) for folder in (sweep.out.parent, sweep.out, sweep.out / "plain", sweep.out / ".glide")]
    assert set(begun) <= set(on_disk[: on_disk.index(str(file))])
    kept = last = 0
    for number, event in enumerate(events):
        if event.startswith("remove: "):
            now = int(event.split()[1])
            assert now == kept or str(file) in events[last:number], "results are flushed before their job is removed"
            kept, last = now, number
    assert kept == 50


def test_jobs_contain_whole_batches(factory, sweep: SweepFolder, monkeypatch):
    waves: list[tuple[list[int], str]] = []
    monkeypatch.setattr(Results, "note_wave", lambda self, sizes, reason: waves.append((list(sizes), reason)))
    model = {"name": "batches", "engine": "noop", "options": {"record_seconds": 0.01}}
    results = open_results(prepare(sweep.write(noop_records(600), model=model, batch=40).file)[0], "batches")
    drive([results], lambda progress: None)
    results.close()
    sizes = [size for wave, _ in waves for size in wave]
    assert len(sizes) > 2 and all(size % 40 == 0 for size in sizes[:-1]), waves  # the last job has what is left
