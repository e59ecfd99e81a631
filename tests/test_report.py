"""The sweep report: what it says is what the event log and the results say, and its page is harmless."""

from __future__ import annotations

import json
import random
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from glide.condor import EmbeddedPool, bindings
from glide.condor.event_log import LOST
from glide.invoke.carriers import Carrier, read_lines
from glide.report import history as histories
from glide.report import timeline
from glide.report.account import NO_HISTORY, document, look
from glide.report.history import History, Interval
from glide.report.scores import folded, wilson
from glide.report.sweep_report import MOST_GLIDEINS, PAGE, most_telling, write
from glide.report.timeline import CPU, UNKNOWN, Glidein
from glide.sweep import history as writing
from glide.sweep.prepare import prepare
from glide.vocabulary import Exit, JobStatus, Machine, State
from tests.conftest import SweepFolder, eventually
from tests.debian import fetched
from tests.test_end_to_end import glide, masters, noop_records, results_so_far

START = 1_800_000_000.0


def line(after: float, **facts: Any) -> dict[str, Any]:
    return {"at": START + after, **facts}


def lane(after: float, name: str, state: str, since: float | None = None, **facts: Any) -> dict[str, Any]:
    return line(after, lane=name, glidein=name.split("@")[1], state=state, since=START + (since or after), **facts)


def carried(part: str, on: str, started: float, completed: float, records: int = 10) -> list[dict[str, Any]]:
    """A job that ran on a lane and came home."""
    times = {"queued": START + started - 1, "started": START + started, "executing": START + started}
    return [
        line(started, carrier=part, job=f"{part}.0", records=records, status="running", starts=1, on=on, **times),
        line(completed, carrier=part, status="completed", completed=START + completed),
        line(completed, carrier=part, end="gathered"),
    ]


TWO_LANES = [
    line(0, run="r", total=40, done=0),
    lane(2, "a@x", State.LOADING, device="GPU X"),
    lane(2, "b@y", State.LOADING),
    lane(10, "a@x", State.WARM),
    lane(12, "b@y", State.WARM),
    *carried("p", "a@x", 10, 30),
    line(20, carrier="q", job="q.0", records=10, status="running", starts=1, on="b@y", queued=START + 11,
         started=START + 20, executing=START + 20),
    line(30, counts={"done": 20}),
    line(40, carrier="q", end="lost", begun=10, saved=4),
    line(41, lane="b@y", end="gone"),
    line(50, counts={"done": 40, "recomputed": 1, "lost_in_flight": 6}, end="finished"),
]  # fmt: skip


def test_a_history_becomes_lanes_carriers_and_series():
    history = histories.read(TWO_LANES)
    assert history.seconds == 50
    assert timeline.records_done(history) == [(0, 0), (30, 20), (50, 40)]
    levels = timeline.lanes_over_time(history)
    assert levels["connected"] == [(0, 0), (2, 2), (40, 1), (50, 0)]  # lost before its ad was gone
    assert levels["warm"] == [(0, 0), (10, 1), (12, 2), (40, 1), (50, 0)]
    assert timeline.losses(history) == [40]
    assert timeline.task_seconds(history) == [20]
    assert timeline.busy_seconds(history) == 40
    x, y = timeline.glideins(history)
    assert (x.end, x.device, x.warm) == ("", "GPU X", 8)
    assert (y.end, y.device, y.warm) == ("lost", CPU, 10)
    assert [(each.kind, each.seconds) for each in x.intervals] == [
        (State.LOADING, 8), (timeline.SERVING, 20), (timeline.IDLE, 20)
    ]  # fmt: skip


def test_goodput_is_all_the_time_that_lanes_were_there():
    history = histories.read(TWO_LANES)
    goodput = timeline.goodput(history)
    assert goodput["GPU X"] == {"productive": 20, "loading": 8, "lost": 0, "idle": 20}
    assert goodput[CPU] == pytest.approx({"productive": 8, "loading": 10, "lost": 12, "idle": 8})
    connected = sum(each.ended - each.start for each in history.lanes)
    assert sum(sum(spent.values()) for spent in goodput.values()) == pytest.approx(connected)


def test_a_model_that_is_loaded_for_each_job_is_loading_then():
    told = [line(0, run="r"), lane(0, "a@x", State.WARM), line(1, lane="a@x", load=0.0), *carried("p", "a@x", 2, 12)]
    told += [line(15, lane="a@x", load=6.0), *carried("q", "a@x", 15, 20), line(20, counts={}, end="finished")]
    history = histories.read(told)
    assert timeline.goodput(history)[CPU] == {"productive": 9, "loading": 6, "lost": 0, "idle": 5}
    spent = timeline.spent_by_glideins(timeline.glideins(history), {"x": 7.0})
    assert (spent[State.LOADING], spent["engine"], spent[timeline.SERVING], spent[timeline.IDLE]) == (6, 7, 2, 5)


def test_what_is_too_short_to_be_seen_is_what_most_around_it_is():
    short = [Interval(10 + n, 10 + n + 0.75 * (n % 2 or 1 / 3), "ab"[n % 2]) for n in range(8)]
    (serving,) = timeline.coarse([Interval(7, 10, "b"), *short, Interval(18, 19.5, "b")], 4.0)
    assert (serving.start, serving.end, serving.kind) == (7, 19.5, "b")
    distinct = [Interval(0, 10, "a"), Interval(10, 30, "b"), Interval(30, 31, "a")]
    assert timeline.coarse(distinct, 0.5) == distinct


def test_what_time_was_spent_on_adds_up():
    history = histories.read(TWO_LANES)
    jobs = timeline.spent_by_carriers(history, engine=15.0)
    assert jobs == pytest.approx({"waiting": 10, "starting": 0, "engine": 15, "sharing": 13, "lost": 12})
    found = timeline.glideins(history)
    spent = timeline.spent_by_glideins(found, {"x": 15.0})
    assert spent["engine"] == 15 and spent[timeline.SERVING] == 5 + 20
    assert sum(spent.values()) == pytest.approx(sum(each.ended - each.start for each in found))


def test_phases_that_nobody_saw_are_known_by_their_seconds():
    told = [line(0, run="r"), lane(30, "a@x", State.WARM, 29, born=START + 3, fetch=4.0, load=10.0, warm=2.0)]
    (one,) = histories.read([*told, line(60, counts={}, end="stopped")]).lanes
    assert [(phase.kind, phase.start, phase.end) for phase in one.phases] == [
        (State.FETCHING, 13, 17), (State.LOADING, 17, 27), (State.WARMING, 27, 29), (State.WARM, 29, 60)
    ]  # fmt: skip
    late = [line(0, run="r"), lane(30, "a@x", State.WARM, -500, load=10.0), line(60, counts={}, end="stopped")]
    (glidein,) = timeline.glideins(histories.read(late))
    assert glidein.warm == 0 and timeline.goodput(histories.read(late))[CPU]["loading"] == 0  # before the sweep


def test_the_clock_stands_still_while_no_driver_runs():
    told = [
        line(0, run="r", done=0), lane(1, "a@x", State.WARM),
        line(5, carrier="p", job="1.0", records=9, status="running", starts=1, on="a@x", queued=START + 4,
             started=START + 5, executing=START + 5),
        line(10, counts={"done": 3, "recomputed": 1}),
        line(1010, run="r", done=5), lane(1011, "a@x", State.WARM, 1),
        line(1011, carrier="p", job="1.0", records=9, status="running", starts=1, on="a@x", queued=START + 4,
             started=START + 5, executing=START + 5),
        line(1020, carrier="p", status="completed", completed=START + 1018, end="gathered"),
        line(1030, counts={"done": 9, "recomputed": 2}, end="finished"),
    ]  # fmt: skip
    history = histories.read(told)
    assert history.seconds == 30 and history.resumed == (10,)
    assert timeline.records_done(history) == [(0, 0), (10, 3), (10, 5), (30, 9)]
    assert history.counts[-1][1]["recomputed"] == 3  # each driver counts its own
    (carrier,) = history.carriers
    assert [(stay.started, stay.ended, stay.end) for stay in carrier.stays] == [(5, 18, "gathered")]
    (glidein,) = timeline.glideins(history)
    assert glidein.end == "" and glidein.seconds(timeline.SERVING) == 13


def test_a_lane_that_comes_back_is_not_counted_twice():
    told = [
        line(0, run="r"),
        lane(1, "a@x", State.WARM),
        line(10, lane="a@x", end="gone"),
        lane(12, "a@x", State.WARM, 1),
    ]
    history = histories.read([*told, line(20, counts={}, end="stopped")])
    assert timeline.goodput(history)[CPU]["idle"] == 19
    assert timeline.lanes_over_time(history)["warm"] == [(0, 0), (1, 1), (10, 1), (20, 0)]


def test_a_job_that_starts_again_is_an_eviction():
    told = [*TWO_LANES[:5], *carried("p", "a@x", 10, 20)[:1], line(15, carrier="p", status="idle", started=None)]
    told += [line(18, carrier="p", status="running", starts=2, on="b@y", started=START + 18, executing=START + 18)]
    told += [line(25, carrier="p", status="completed", completed=START + 24, end="gathered")]
    (carrier,) = histories.read(told).carriers
    assert [(stay.lane, stay.started, stay.ended, stay.end) for stay in carrier.stays] == [
        ("a@x", 10, 15, "evicted"), ("b@y", 18, 24, "gathered")
    ]  # fmt: skip
    assert carrier.evictions == 1


def test_a_glidein_that_never_was_warm_has_no_device():
    told = [line(0, run="r"), lane(1, "a@x", State.LOADING), line(9, lane="a@x", end="gone"), line(10, counts={})]
    assert timeline.goodput(histories.read(told)) == {UNKNOWN: {"productive": 0, "loading": 8, "lost": 0, "idle": 0}}
    assert [each.end for each in timeline.glideins(histories.read(told))] == ["lost"]


def test_wilsons_interval():
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
def test_messages_of_one_cause_are_one(message, other):
    assert folded(message, "claim-a") == folded(other, "claim-b")
    assert folded("out of memory") != folded("out of time")


def test_most_telling_are_the_lost_and_the_slow():
    def glidein(number: int, end: str = "", warm: float = 5.0) -> Glidein:
        return Glidein(f"g{number:03}", CPU, 2, (Interval(number, number + 9, State.WARM),), warm, end)

    every = [glidein(n, "lost" if n % 50 == 7 else "", 90.0 if n == 123 else 5.0) for n in range(300)]
    chosen = most_telling(every)
    assert len(chosen) == MOST_GLIDEINS and chosen == [each for each in every if each in chosen]
    assert {7, 57, 107, 123, 157, 207, 257} <= {int(each.id[1:]) for each in chosen}


# ---- what the driver writes ----------------------------------------------------------------------


def carrier(part: str, status: int = JobStatus.RUNNING, on: str = "a@x", **times: int) -> Carrier:
    return Carrier(f"{part}.0", part, status, 10, int(status != JobStatus.IDLE), 0.0, on, times=times)


AD = {"Name": "a@x", "State": "Claimed", Machine.ID: "x", Machine.STATE: State.WARM, Machine.STATE_SINCE: 7}


def test_only_what_is_new_is_written(tmp_path):
    history = writing.History(tmp_path / "h.jsonl")
    history.begin(run="r", done=0)
    for done in range(100_000):  # far more often than a driver looks
        history.saw_queue([carrier("p")])
        history.saw_lanes([AD])
        history.saw_counts(done=done)
    history.ended([carrier("p")], "lost", at=START, begun=3, saved=1)
    history.saw_queue([])
    history.saw_lanes([])
    history.close("finished")
    told = list(read_lines(tmp_path / "h.jsonl"))
    counts = [each["counts"]["done"] for each in told if "counts" in each]
    assert counts[-1] == 99_999
    assert len(counts) <= told[-1]["at"] - told[0]["at"] + 2  # once a second
    assert len(told) == 1 + len(counts) + 4
    assert [each.get("end") for each in told if "carrier" in each] == [None, "lost"]
    assert [each.get("end") for each in told if "lane" in each] == [None, "gone"]


def test_a_driver_that_was_killed_in_the_middle_of_a_line_is_gone_on_with(tmp_path):
    path = tmp_path / "h.jsonl"
    first = writing.History(path)
    first.begin(run="r", done=0)
    first.saw_lanes([AD])
    first.saw_counts(done=1)
    with path.open("a") as file:
        file.write('{"at": 1800000000.0, "carrier": "p", "sta')
    second = writing.History(path)
    second.begin(run="r", done=1)
    second.saw_lanes([AD])
    second.saw_queue([carrier("p", JobStatus.IDLE)])
    second.saw_queue([])
    second.close("stopped")
    history = histories.read(read_lines(path))
    assert [run.end for run in history.runs] == ["", "stopped"]
    assert [each.glidein for each in history.lanes] == ["x", "x"]
    assert [each.end for each in history.carriers] == ["removed"]


def test_who_needs_no_history_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = writing.History()
    history.begin(run="r")
    history.saw_queue([carrier("p")])
    history.saw_lanes([AD])
    history.saw_counts(done=1)
    history.ended([carrier("p")], "gathered")
    history.close("finished")
    assert list(tmp_path.iterdir()) == []


# ---- the page ------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script><img src=http://evil.invalid/x.png onerror=alert(2)> $\\frac{1}{0}$ ${{7*7}} \u202e"


def lay(sweep: SweepFolder, told: list[dict[str, Any]], done: int, **changes: Any) -> SweepFolder:
    """A sweep's folder as a driver leaves it, with every tenth record failed."""
    records = [{"custom_id": f"{HOSTILE}{n}", "text": f"t{n}", "label": "yes"} for n in range(20)]
    sweep.write(records, **changes)
    for prompt in prepare(sweep.file).file.prompts:
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


def test_the_page_is_harmless_needs_nothing_and_fits(browser, sweep: SweepFolder):
    told = [{**each, "device": HOSTILE} if each.get("lane") == "a@x" else each for each in TWO_LANES]
    lay(sweep, told, 20, prompts={"plain": "{text}", "other": "{text}!"}, expect="label")
    write(look(prepare(sweep.file)), sweep.out / "report")
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


def test_the_same_folder_gives_the_same_page(sweep: SweepFolder):
    lay(sweep, TWO_LANES, 20)
    pages = []
    for folder in (sweep.folder / "one", sweep.folder / "two"):
        write(look(prepare(sweep.file)), folder)
        pages.append((folder / PAGE).read_bytes())
        for png in ("progress", "tasks", "breakdown", "goodput", "glideins"):
            assert (folder / f"{png}.png").read_bytes().startswith(b"\x89PNG")
        assert not (folder / "accuracy.png").exists()  # nothing is expected
    assert pages[0] == pages[1]
    assert b"64," not in pages[0]


def test_errors_are_told_by_cause(sweep: SweepFolder):
    lay(sweep, TWO_LANES, 20, prompts={"plain": "{text}", "other": "{text}!"})
    (cause,) = document(look(prepare(sweep.file)))["errors"]
    assert (cause["count"], cause["prompts"], cause["type"]) == (4, {"plain": 2, "other": 2}, HOSTILE)
    assert cause["example"] == f"{HOSTILE}0" and "\n" not in cause["message"] and len(cause["message"]) <= 300


@pytest.mark.parametrize("told, done, says", [
    ([], 0, "0 of 20 records have a result"),
    ([line(0, run="r", total=20, done=0)], 0, "0 of 20 records have a result"),
    (TWO_LANES[:7], 4, "4 of 20 records have a result"),
    ([], 20, NO_HISTORY),
], ids=["nothing", "just begun", "interrupted", "without a history"])  # fmt: skip
def test_what_is_missing_is_said(sweep: SweepFolder, told, done, says):
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
        ended = pool.tool("condor_history", "-constraint", f'GlideRun == "{run}"', "-af", "ClusterId", "LastRemoteHost")
        self.clusters = {int(told.split()[0]) for told in ended.splitlines()}
        self.executed: dict[str, list[int]] = {}
        self.ended: dict[str, list[int]] = {}
        self.kinds: dict[str, set[str]] = {}
        for event in bindings.htcondor2.JobEventLog(str(pool.logs / "EventLog")).events(stop_after=0):
            if event.cluster not in self.clusters:
                continue
            job, kind = f"{event.cluster}.{event.proc}", event.type.name
            self.kinds.setdefault(job, set()).add(kind)
            if kind == "EXECUTE":
                self.executed.setdefault(job, []).append(event.timestamp)
            elif kind in ("JOB_TERMINATED", *LOST):
                self.ended.setdefault(job, []).append(event.timestamp)
        self.submitted = {job for job, kinds in self.kinds.items() if "SUBMIT" in kinds}
        self.lost = {job for job, kinds in self.kinds.items() if kinds & set(LOST) and "JOB_ABORTED" in kinds}

    @property
    def evictions(self) -> int:
        return len(self.lost) + sum(len(times) - 1 for times in self.executed.values())

    @property
    def busy(self) -> int:
        return sum(self.ended[job][0] - times[-1] for job, times in self.executed.items() if job in self.ended)


def written(sweep: SweepFolder) -> History:
    return histories.read(read_lines(sweep.out / ".glide" / "history.jsonl"))


@pytest.mark.pool
def test_a_report_says_what_the_event_log_and_the_results_say(factory, pool: EmbeddedPool, sweep: SweepFolder):
    count = 1200
    model = {"name": "reported", "engine": "noop", "options": {"record_seconds": 0.03, "raise_on": "text 77"}}
    process = sweep.write(noop_records(count), model=model, glideins=3, expect="text").start()
    rng = random.Random(5)
    for enough in (100, 500):
        eventually(lambda: results_so_far(sweep) > enough or process.poll() is not None, "results come in")  # noqa: B023
        rng.choice(masters()).send(signal.SIGKILL)
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
    assert counts["evictions"] == told["evictions"] == events.evictions > 0
    lost = {each.job for each in history.carriers if each.end == "lost"}
    assert lost == events.lost
    assert timeline.records_done(history)[-1] == (pytest.approx(history.seconds, abs=0.01), count)
    done = [records for _, records in timeline.records_done(history)]
    assert done == sorted(done) and len(set(done)) > 5
    of_glideins = {each["id"]: each["records"] for each in told["report"]["glideins"] if each["records"]}
    assert of_glideins == Counter(result["glidein"] for result in results)
    hosts = {stay.lane for each in history.carriers for stay in each.stays if stay.end == "lost"}
    of_lost = {re.sub(r".*@glide-(.*)-(\d+)-(\d+)-[0-9a-f]+@.*", r"\1-\2.\3", host) for host in hosts}
    assert {each["id"] for each in told["report"]["glideins"] if each["end"] == "lost"} == of_lost
    # Times in ads and in the log are whole seconds, of moments that need not be the same to the second.
    began = history.runs[0].began
    for job, stay in ((each.job, each.stays[-1]) for each in history.carriers if each.job in events.ended):
        assert began + stay.executing == pytest.approx(events.executed[job][-1], abs=2)
        assert began + stay.ended == pytest.approx(events.ended[job][0], abs=2)
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
def test_a_sweep_whose_driver_was_killed_has_one_history_of_all_its_runs(factory, pool, sweep: SweepFolder):
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
    assert told["counts"]["evictions"] == events.evictions == 0
    assert sweep.run().returncode == Exit.OK  # anew
    assert [run.found for run in written(sweep).runs] == [0]
