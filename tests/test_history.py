"""A sweep's history, written and read: lanes, carriers, series, and where all the time went."""

from __future__ import annotations

from typing import Any

import pytest

from glide.invoke.jobs import InvocationJob
from glide.protocol.ads import LaneAd
from glide.protocol.json_lines import read_lines
from glide.report.sweep import history as histories
from glide.report.sweep import timeline
from glide.report.sweep.history import Interval
from glide.report.sweep.timeline import CPU, UNKNOWN
from glide.report.sweep.usage import usage
from glide.sweep import history as writing
from glide.vocabulary import JobStatus, State

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


def test_timelines_of_lanes_and_glideins_come_from_history():
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


def test_categories_of_lane_time_add_up_to_total():
    history = histories.read(TWO_LANES)
    goodput = timeline.goodput(history)
    assert goodput["GPU X"] == {"productive": 20, "loading": 8, "lost": 0, "idle": 20}
    assert goodput[CPU] == pytest.approx({"productive": 8, "loading": 10, "lost": 12, "idle": 8})
    connected = sum(each.ended - each.start for each in history.lanes)
    assert sum(sum(spent.values()) for spent in goodput.values()) == pytest.approx(connected)


def test_usage_has_device_hours_cost_and_energy():
    """Two lanes share a GPU with a price. A lane on CPU cores has neither price nor energy."""
    gpu = {"device": "GPU X", "devices": 0.5, "price": 3.0}
    told = [
        line(0, run="r"), lane(0, "a@x", State.LOADING, **gpu, joules=36_000), lane(0, "b@x", State.LOADING, **gpu),
        lane(0, "a@y", State.WARM, devices=2.0), lane(1800, "a@x", State.WARM), lane(1800, "b@x", State.WARM),
        line(1800, lane="b@x", joules=36_000), *carried("p", "a@x", 1800, 3600), line(3000, lane="a@x", joules=396_000),
        line(3600, lane="a@x", joules=756_000), line(3600, counts={}, end="finished"),
    ]  # fmt: skip
    found = usage(histories.read(told))
    assert found["GPU X"] == {
        "device_hours": {"productive": 0.25, "loading": 0.5, "lost": 0, "idle": 0.25}, "kwh": 0.2, "cost": 3.0,
    }  # fmt: skip
    assert found[CPU]["device_hours"]["idle"] == 2.0
    assert (found[CPU]["kwh"], found[CPU]["cost"]) == (None, None)


def test_energy_counts_from_zero_and_in_each_part_of_a_sweep():
    """The first report of a new glidein is 0. A resumed sweep sees the same lanes again."""
    told = [
        line(0, run="r"), lane(0, "a@x", State.WARM, devices=1.0), line(20, lane="a@x", joules=0),
        line(50, lane="a@x", joules=36_000), line(60, counts={}, end="stopped"), line(100, run="r"),
        lane(100, "a@x", State.WARM, devices=1.0, joules=72_000), line(150, lane="a@x", joules=144_000),
        line(160, counts={}, end="finished"),
    ]  # fmt: skip
    assert usage(histories.read(told))[CPU]["kwh"] == pytest.approx(0.03)


def test_history_of_an_older_version_has_no_usage():
    assert usage(histories.read(TWO_LANES))["GPU X"] == {
        "device_hours": {"productive": 0, "loading": 0, "lost": 0, "idle": 0}, "kwh": None, "cost": None,
    }  # fmt: skip


def test_model_load_during_job_counts_as_loading_time():
    told = [line(0, run="r"), lane(0, "a@x", State.WARM), line(1, lane="a@x", load=0.0), *carried("p", "a@x", 2, 12)]
    told += [line(15, lane="a@x", load=6.0), *carried("q", "a@x", 15, 20), line(20, counts={}, end="finished")]
    history = histories.read(told)
    assert timeline.goodput(history)[CPU] == {"productive": 9, "loading": 6, "lost": 0, "idle": 5}
    spent = timeline.spent_by_glideins(timeline.glideins(history), {"x": 7.0})
    assert (spent[State.LOADING], spent["engine"], spent[timeline.SERVING], spent[timeline.IDLE]) == (6, 7, 2, 5)


def test_timeline_merges_short_intervals_into_longer_neighbours():
    short = [Interval(10 + n, 10 + n + 0.75 * (n % 2 or 1 / 3), "ab"[n % 2]) for n in range(8)]
    (serving,) = timeline.coarsen([Interval(7, 10, "b"), *short, Interval(18, 19.5, "b")], 4.0)
    assert (serving.start, serving.end, serving.kind) == (7, 19.5, "b")
    distinct = [Interval(0, 10, "a"), Interval(10, 30, "b"), Interval(30, 31, "a")]
    assert timeline.coarsen(distinct, 0.5) == distinct


def test_time_of_jobs_and_glideins_is_fully_categorized():
    history = histories.read(TWO_LANES)
    jobs = timeline.spent_by_jobs(history, engine=15.0)
    assert jobs == pytest.approx({"waiting": 10, "starting": 0, "engine": 15, "sharing": 13, "lost": 12})
    found = timeline.glideins(history)
    spent = timeline.spent_by_glideins(found, {"x": 15.0})
    assert spent["engine"] == 15 and spent[timeline.SERVING] == 5 + 20
    assert sum(spent.values()) == pytest.approx(sum(each.ended - each.start for each in found))


def test_unobserved_load_phases_are_derived_from_reported_durations():
    told = [line(0, run="r"), lane(30, "a@x", State.WARM, 29, born=START + 3, fetch=4.0, load=10.0, warm=2.0)]
    (one,) = histories.read([*told, line(60, counts={}, end="stopped")]).lanes
    assert [(phase.kind, phase.start, phase.end) for phase in one.phases] == [
        (State.FETCHING, 13, 17), (State.LOADING, 17, 27), (State.WARMING, 27, 29), (State.WARM, 29, 60)
    ]  # fmt: skip
    late = [line(0, run="r"), lane(30, "a@x", State.WARM, -500, load=10.0), line(60, counts={}, end="stopped")]
    (glidein,) = timeline.glideins(histories.read(late))
    assert glidein.warm == 0 and timeline.goodput(histories.read(late))[CPU]["loading"] == 0  # before the sweep


def test_history_omits_time_when_no_driver_ran():
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
    (job,) = history.jobs
    assert [(each.started, each.ended, each.end) for each in job.executions] == [(5, 18, "gathered")]
    (glidein,) = timeline.glideins(history)
    assert glidein.end == "" and glidein.seconds(timeline.SERVING) == 13


def test_lane_that_disappeared_temporarily_is_not_counted_twice():
    told = [
        line(0, run="r"),
        lane(1, "a@x", State.WARM),
        line(10, lane="a@x", end="gone"),
        lane(12, "a@x", State.WARM, 1),
    ]
    history = histories.read([*told, line(20, counts={}, end="stopped")])
    assert timeline.goodput(history)[CPU]["idle"] == 19
    assert timeline.lanes_over_time(history)["warm"] == [(0, 0), (1, 1), (10, 1), (20, 0)]


def test_restarted_job_counts_as_eviction():
    told = [*TWO_LANES[:5], *carried("p", "a@x", 10, 20)[:1], line(15, carrier="p", status="idle", started=None)]
    told += [line(18, carrier="p", status="running", starts=2, on="b@y", started=START + 18, executing=START + 18)]
    told += [line(25, carrier="p", status="completed", completed=START + 24, end="gathered")]
    (job,) = histories.read(told).jobs
    assert [(each.lane, each.started, each.ended, each.end) for each in job.executions] == [
        ("a@x", 10, 15, "evicted"), ("b@y", 18, 24, "gathered")
    ]  # fmt: skip
    assert job.evictions == 1


def test_device_of_never_warm_glidein_is_unknown():
    told = [line(0, run="r"), lane(1, "a@x", State.LOADING), line(9, lane="a@x", end="gone"), line(10, counts={})]
    assert timeline.goodput(histories.read(told)) == {UNKNOWN: {"productive": 0, "loading": 8, "lost": 0, "idle": 0}}
    assert [each.end for each in timeline.glideins(histories.read(told))] == ["lost"]


@pytest.mark.parametrize("after, end", [
    # HTCondor puts back what it had started on another lane of it, or starts one more there before it knows.
    ([line(40.5, carrier="r", status="idle"), line(41, lane="b@y", end="gone")], "lost"),
    ([line(42, carrier="r", end="lost")], "lost"),
    (carried("s", "b@y", 41, 45), ""),
    ([*carried("s", "b@y", 41, 45), line(46, lane="b@y", end="gone")], "left"),
], ids=["put back beside it", "matched when dead", "goes on", "goes on and leaves"])  # fmt: skip
def test_glidein_whose_last_job_was_lost_is_lost(after, end):
    started = {"on": "b@y", "queued": START + 11, "started": START + 39, "executing": START + 39}
    told = [*TWO_LANES[:-2], line(39, carrier="r", job="r.0", records=10, status="running", starts=1, **started)]
    history = histories.read([*told, *after, line(50, counts={}, end="stopped")])
    assert {each.id: each.end for each in timeline.glideins(history)}["y"] == end


def test_vanished_glidein_with_requeued_job_is_considered_lost():
    told = [*TWO_LANES[:-3], line(40, carrier="q", status="idle"), *TWO_LANES[-2:]]
    assert [each.end for each in timeline.glideins(histories.read(told))] == ["", "lost"]


# ---- what the driver writes ----------------------------------------------------------------------


def carrier(part: str, status: int = JobStatus.RUNNING, on: str = "a@x", **times: int) -> InvocationJob:
    return InvocationJob(f"{part}.0", part, status, 10, int(status != JobStatus.IDLE), 0.0, on, times=times)


AD = LaneAd("a@x", "x", state=State.WARM, state_since=7, claim="Claimed")


def test_unchanged_jobs_and_lanes_add_no_history_lines(tmp_path):
    history = writing.HistoryWriter(tmp_path / "h.jsonl")
    history.begin(run="r", done=0)
    for done in range(100_000):  # far more often than a driver looks
        history.write_queue([carrier("p")])
        history.write_lanes([AD])
        history.write_counts(done=done)
    history.write_ended([carrier("p")], "lost", at=START, begun=3, saved=1)
    history.write_queue([])
    history.write_lanes([])
    history.close("finished")
    told = list(read_lines(tmp_path / "h.jsonl"))
    counts = [each["counts"]["done"] for each in told if "counts" in each]
    assert counts[-1] == 99_999
    assert len(counts) <= told[-1]["at"] - told[0]["at"] + 2  # once a second
    assert len(told) == 1 + len(counts) + 4
    assert [each.get("end") for each in told if "carrier" in each] == [None, "lost"]
    assert [each.get("end") for each in told if "lane" in each] == [None, "gone"]


def test_sweep_history_continues_after_incomplete_last_line(tmp_path):
    path = tmp_path / "h.jsonl"
    first = writing.HistoryWriter(path)
    first.begin(run="r", done=0)
    first.write_lanes([AD])
    first.write_counts(done=1)
    with path.open("a") as file:
        file.write('{"at": 1800000000.0, "carrier": "p", "sta')
    second = writing.HistoryWriter(path)
    second.begin(run="r", done=1)
    second.write_lanes([AD])
    second.write_queue([carrier("p", JobStatus.IDLE)])
    second.write_queue([])
    second.close("stopped")
    history = histories.read(read_lines(path))
    assert [run.end for run in history.runs] == ["", "stopped"]
    assert [each.glidein for each in history.lanes] == ["x", "x"]
    assert [each.end for each in history.jobs] == ["removed"]


def test_history_writer_without_file_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = writing.HistoryWriter()
    history.begin(run="r")
    history.write_queue([carrier("p")])
    history.write_lanes([AD])
    history.write_counts(done=1)
    history.write_ended([carrier("p")], "gathered")
    history.close("finished")
    assert list(tmp_path.iterdir()) == []
