"""The sweep report: what it says is what the event log and the results say, and its page is harmless."""

from __future__ import annotations

import json
import random
import re
import signal
import tracemalloc
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from glide.condor import EmbeddedPool, bindings
from glide.condor.event_log import LOST
from glide.protocol.json_lines import read_lines
from glide.report.sweep import figures, timeline
from glide.report.sweep import history as histories
from glide.report.sweep.history import Interval, SweepHistory
from glide.report.sweep.page import MOST_GLIDEINS, PAGE, select_glideins, write
from glide.report.sweep.report import NO_HISTORY, document, load_report
from glide.report.sweep.scores import normalize, wilson
from glide.report.sweep.timeline import CPU, GlideinTimeline
from glide.sweep.prepare import prepare
from glide.sweep.view import RECUT
from glide.vocabulary import Exit, State
from tests.conftest import SweepFolder, eventually
from tests.debian import fetched
from tests.test_end_to_end import glide, noop_records, results_so_far
from tests.test_history import TWO_LANES, line


def test_wilson_interval_matches_published_values():
    # Newcombe (1998), table I.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(29, 29)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("message, other", [
    ("no result within 600 s", "no result within 0.5 s"),
    ("at 0x7f3a1c: refused by 10.0.0.7:8000", "at 0x55aa: refused by 192.168.1.20:81"),
    ("request 123e4567-e89b-12d3-a456-426614174000 failed", "request 00000000-aaaa-bbbb-cccc-0123456789ab  failed"),
    ("commit 3f2a9bc81d is gone", "commit 77e0aa12bc3\nis gone"),
    ("claim-a: too long", "claim-b: too long"),
])  # fmt: skip
def test_normalized_error_messages_of_same_cause_are_equal(message, other):
    assert normalize(message, "claim-a") == normalize(other, "claim-b")
    assert normalize("out of memory") != normalize("out of time")


def test_lost_and_slowest_glideins_are_selected_for_report():
    def glidein(number: int, end: str = "", warm: float = 5.0) -> GlideinTimeline:
        return GlideinTimeline(f"g{number:03}", CPU, 2, (Interval(number, number + 9, State.WARM),), warm, end)

    every = [glidein(n, "lost" if n % 50 == 7 else "", 90.0 if n == 123 else 5.0) for n in range(300)]
    chosen = select_glideins(every)
    assert len(chosen) == MOST_GLIDEINS and chosen == [each for each in every if each in chosen]
    assert {7, 57, 107, 123, 157, 207, 257} <= {int(each.id[1:]) for each in chosen}


# ---- the page ------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script><img src=http://evil.invalid/x.png onerror=alert(2)> $\\frac{1}{0}$ ${{7*7}} \u202e"


def lay(sweep: SweepFolder, told: list[dict[str, Any]], done: int, **changes: Any) -> SweepFolder:
    """A sweep's folder as a driver leaves it, with every tenth record failed."""
    records = [{"custom_id": f"{HOSTILE}{n}", "text": f"t{n}", "label": "yes"} for n in range(20)]
    sweep.write(records, **changes)
    for prompt in prepare(sweep.file)[0].file.prompts:
        (sweep.out / prompt).mkdir(parents=True)
        with (sweep.out / prompt / "results.jsonl").open("w") as file:
            for number in range(done):
                error = {"type": HOSTILE, "message": f"{HOSTILE} {number}\nsecond line " + "long" * 200}
                result = {
                    "custom_id": records[number]["custom_id"], "text": "yes" if number % 3 else "no", "tokens": 2,
                    "error": None if number % 10 else error, "glidein": "x", "attempts": 1, "seconds": 0.25,
                }  # fmt: skip
                file.write(json.dumps(result) + "\n")
    if told:
        (sweep.out / ".glide").mkdir()
        (sweep.out / ".glide" / "history.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    return sweep


@pytest.fixture(scope="module")
def browser():
    chromium = fetched("chromium", "chromium-common", "fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.program("usr/lib/chromium/chromium"),
            env=chromium.environment,
            args=["--no-sandbox"],
        )
        yield browser
        browser.close()


def test_report_page_escapes_text_and_needs_no_network(browser, sweep: SweepFolder):
    told = [{**each, "device": HOSTILE} if each.get("lane") == "a@x" else each for each in TWO_LANES]
    lay(sweep, told, 20, prompts={"plain": "{text}", "other": "{text}!"}, expect="label")
    write(load_report(prepare(sweep.file)[0]), sweep.out / "report")
    context = browser.new_context(viewport={"width": 400, "height": 800}, offline=True)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    address = (sweep.out / "report" / PAGE).as_uri()
    page.goto(address)
    assert (said, asked) == ([], [address])
    assert page.locator("script, img, link, iframe, object").count() == 0
    assert page.locator("figure svg").count() == 6 and page.locator("[role=img]").count() == 6
    assert page.get_by_text("<img src=http://evil.invalid/x.png onerror=alert(‹n›)>").count() >= 1
    assert page.get_by_text(f"{HOSTILE}0", exact=True).count() == 1
    identifiers = page.evaluate("Array.from(document.querySelectorAll('[id]'), element => element.id)")
    assert len(identifiers) == len(set(identifiers))
    lost = page.evaluate(
        "Array.from(document.querySelectorAll('use'), use => use.getAttribute('xlink:href'))"
        ".filter(name => !document.getElementById(name.slice(1)))"
    )
    assert lost == []
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    figure = page.locator("figure svg").first.bounding_box()
    assert figure["x"] >= 0 and figure["width"] > 300 and figure["x"] + figure["width"] <= 400
    assert page.pdf().startswith(b"%PDF")
    assert (said, asked) == ([], [address])
    context.close()


def test_report_page_is_reproducible(sweep: SweepFolder):
    lay(sweep, TWO_LANES, 20)
    pages = []
    for folder in (sweep.folder / "one", sweep.folder / "two"):
        write(load_report(prepare(sweep.file)[0]), folder)
        pages.append((folder / PAGE).read_bytes())
        for png in ("progress", "tasks", "breakdown", "goodput", "glideins"):
            assert (folder / f"{png}.png").read_bytes().startswith(b"\x89PNG")
        assert not (folder / "accuracy.png").exists()  # nothing is expected
    assert pages[0] == pages[1]
    assert b"64," not in pages[0]


def test_report_groups_errors_by_cause(sweep: SweepFolder):
    lay(sweep, TWO_LANES, 20, prompts={"plain": "{text}", "other": "{text}!"})
    (cause,) = document(load_report(prepare(sweep.file)[0]))["errors"]
    assert (cause["count"], cause["prompts"], cause["type"]) == (4, {"plain": 2, "other": 2}, HOSTILE)
    assert cause["example"] == f"{HOSTILE}0" and "\n" not in cause["message"] and len(cause["message"]) <= 300


@pytest.mark.parametrize("told, done, says", [
    ([], 0, "0 of 20 records have a result"),
    ([line(0, run="r", total=20, done=0)], 0, "0 of 20 records have a result"),
    (TWO_LANES[:7], 4, "4 of 20 records have a result"),
    ([], 20, NO_HISTORY),
], ids=["nothing", "just begun", "interrupted", "without a history"])  # fmt: skip
def test_report_mentions_if_results_or_history_are_missing(sweep: SweepFolder, told, done, says):
    lay(sweep, told, done, expect="label")
    shown = glide("sweep", "report", str(sweep.file), "--to", str(sweep.folder / "there"))
    assert shown.returncode == Exit.OK, shown.stderr
    assert says in shown.stdout and str(sweep.folder / "there" / PAGE) in shown.stdout
    assert says in (sweep.folder / "there" / PAGE).read_text()
    as_json = json.loads(glide("sweep", "report", str(sweep.file), "--json").stdout)["report"]
    assert as_json["finished"] is False and as_json["counts"]["done"] == done
    assert Path(as_json["page"]) == sweep.out / "report" / PAGE


# ---- the real thing ------------------------------------------------------------------------------


class Events:
    """What HTCondor's own log says of a run's jobs, which the schedd's job history names."""

    def __init__(self, pool: EmbeddedPool, run: str):
        # A lost job that was removed has its last word when its shadow has asked the dead node three times.
        mine = ("condor_q", "-allusers", "-constraint", f'GlideRun == "{run}"', "-af", "ClusterId")
        eventually(lambda: not pool.tool(*mine).strip(), "the run's jobs have left the queue")
        wanted = ("ClusterId", "ProcId", "NumJobStarts", "NumShadowStarts")
        ended = pool.tool("condor_history", "-constraint", f'GlideRun == "{run}"', "-af", *wanted)
        ads = [told.split() for told in ended.splitlines()]
        self.clusters = {int(cluster) for cluster, *_ in ads}
        self.starts = {
            f"{cluster}.{proc}": [0 if number == "undefined" else int(number) for number in numbers]
            for cluster, proc, *numbers in ads
        }
        self.executed: dict[str, list[int]] = {}
        self.ended: dict[str, list[int]] = {}
        self.kinds: dict[str, set[str]] = {}
        for event in bindings.htcondor2.JobEventLog(str(pool.logs / "EventLog")).events(stop_after=0):
            if event.cluster not in self.clusters:
                continue
            job, kind = f"{event.cluster}.{event.proc}", event.type.name
            # The driver has divided the job's records differently before the job started. So nothing was lost.
            kind = "RECUT" if kind == "JOB_ABORTED" and RECUT in str(event.get("Reason")) else kind
            self.kinds.setdefault(job, set()).add(kind)
            if kind == "EXECUTE":
                self.executed.setdefault(job, []).append(event.timestamp)
                self.ended.pop(job, None)  # a job that has started again: only its last start counts
            elif kind in ("JOB_TERMINATED", *LOST):
                self.ended.setdefault(job, []).append(event.timestamp)
        self.submitted = {job for job, kinds in self.kinds.items() if "SUBMIT" in kinds}
        # Also one that was matched to a lane that was dead already, of which HTCondor's log tells no loss.
        self.lost = {
            job for job, kinds in self.kinds.items() if "JOB_ABORTED" in kinds and "JOB_TERMINATED" not in kinds
        }

    def evictions(self) -> range:
        """How many there were; not whether a lost job had started again, nor which start came to no execution."""
        sure = len(self.lost) + sum(max(0, jobs - 1) for job, (jobs, _) in self.starts.items() if job not in self.lost)
        most = len(self.lost) + sum(max(0, shadows - 1) for _, shadows in self.starts.values())
        return range(sure, max(sure, most) + 1)

    @property
    def busy(self) -> int:
        return sum(self.ended[job][0] - times[-1] for job, times in self.executed.items() if job in self.ended)


def written(sweep: SweepFolder) -> SweepHistory:
    return histories.read(read_lines(sweep.out / ".glide" / "history.jsonl"))


@pytest.mark.pool
def test_report_agrees_with_event_log_and_results(factory, pool: EmbeddedPool, sweep: SweepFolder):
    count = 1200
    model = {"name": "reported", "engine": "noop", "options": {"record_seconds": 0.03, "raise_on": "text 77"}}
    process = sweep.write(noop_records(count), model=model, glideins=3, expect="text").start()
    rng = random.Random(5)
    for enough in (100, 500):
        eventually(lambda: results_so_far(sweep) > enough or process.poll() is not None, "results come in")  # noqa: B023
        rng.choice(pool.glidein_masters()).send(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == Exit.RECORD_ERRORS, errors
    shown = glide("sweep", "report", str(sweep.file), "--json")
    assert shown.returncode == Exit.OK, shown.stderr
    told = json.loads(shown.stdout)
    counts, history = told["report"]["counts"], written(sweep)
    events = Events(pool, history.runs[0].name)
    results = sweep.results()
    print(f"\n{counts}; lost {sorted(events.lost)}; busy {events.busy} s; {told['report']['tasks']}")

    assert counts["jobs"] == told["jobs"] == len(events.submitted)
    assert counts["evictions"] == told["evictions"] > 0 and told["evictions"] in events.evictions()
    lost = {each.job for each in history.jobs if each.end == "lost"}
    assert lost == events.lost
    assert timeline.records_done(history)[-1] == (pytest.approx(history.seconds, abs=0.01), count)
    done = [records for _, records in timeline.records_done(history)]
    assert done == sorted(done) and len(set(done)) > 5
    of_glideins = {each["id"]: each["records"] for each in told["report"]["glideins"] if each["records"]}
    assert of_glideins == Counter(result["glidein"] for result in results)
    hosts = {run.lane for each in history.jobs for run in each.executions if run.end in timeline.LOST}
    of_lost = {re.sub(r".*@glide-(.*)-(\d+)-(\d+)-[0-9a-f]+@.*", r"\1-\2.\3", host) for host in hosts}
    assert {each["id"] for each in told["report"]["glideins"] if each["end"] == "lost"} == of_lost
    # Times in ads and in the log are whole seconds, of moments that need not be the same to the second.
    began = history.runs[0].began
    executions = {each.job: each.executions[-1] for each in history.jobs if each.executions}
    assert events.ended.keys() - executions.keys() <= events.lost  # a driver need not have seen those run
    unseen = {job for job, run in executions.items() if run.executing is None}
    assert unseen <= events.lost  # of a lost one, it need not have heard that it ran
    for job in (events.ended.keys() & executions.keys()) - unseen:
        assert began + executions[job].executing == pytest.approx(events.executed[job][-1], abs=2)
        assert began + executions[job].ended == pytest.approx(events.ended[job][0], abs=2)
    assert told["report"]["tasks"]["busy_s"] == pytest.approx(events.busy, abs=len(events.submitted))
    engine = sum(result["seconds"] for result in results)
    assert sum(each["engine_s"] for each in told["report"]["glideins"]) == pytest.approx(engine, abs=0.01)
    (cause,) = told["report"]["errors"]
    assert cause["count"] == counts["errors"] == sum(result["error"] is not None for result in results)
    connected = sum(each.ended - each.start for each in history.lanes)
    spent = told["report"]["goodput"][CPU]
    assert sum(sum(each.values()) for each in told["report"]["goodput"].values()) == pytest.approx(connected)
    assert all(seconds >= 0 for seconds in spent.values()) and spent["productive"] > 0


@pytest.mark.pool
def test_report_of_resumed_sweep_includes_jobs_before_interruption(factory, pool, sweep: SweepFolder):
    model = {"name": "twice", "engine": "noop", "options": {"record_seconds": 0.03}}
    process = sweep.write(noop_records(400), model=model).start()
    eventually(lambda: results_so_far(sweep) > 50, "results come in")
    process.kill()
    process.wait()
    unfinished = json.loads(glide("sweep", "report", str(sweep.file), "--json").stdout)["report"]
    assert not unfinished["finished"] and 50 < unfinished["counts"]["done"] < 400
    assert sweep.run("resume").returncode == Exit.OK
    told = json.loads(glide("sweep", "report", str(sweep.file), "--json").stdout)["report"]
    history = written(sweep)
    assert told["finished"] and told["counts"]["runs"] == 2 and told["counts"]["done"] == 400
    assert told["counts"]["resumed"] == history.runs[1].found >= unfinished["counts"]["done"]
    events = Events(pool, history.runs[0].name)
    assert told["counts"]["jobs"] == len(events.submitted)
    assert told["counts"]["evictions"] == 0 and 0 in events.evictions()
    assert sweep.run("run", "--again").returncode == Exit.OK
    assert [run.found for run in written(sweep).runs] == [0]


def test_histogram_of_many_values_needs_little_memory():
    values = array("d", (number % 977 / 1000 for number in range(500_000)))
    with figures.style():
        figures.tasks([1.0], array("d", [1.0]))  # imports what is imported once
        tracemalloc.start()
        try:
            figures.tasks([1.0], values)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak / len(values) < 60
