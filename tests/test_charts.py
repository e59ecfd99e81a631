"""The factory's journal, and the charts that are drawn from it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from glide.factory.activity import Activity
from glide.factory.journal import SILENCE_SECONDS, Journal
from glide.factory.snapshot import Snapshot
from glide.vocabulary import State
from glide.web.chart import Chart, Series, round_up
from glide.web.history import GAP_SECONDS, STEPS, build_charts
from tests.snapshots import GLIDEIN, LANE


def test_unchanged_state_adds_one_journal_line_per_minute(tmp_path):
    journal = Journal(tmp_path)
    for second in range(0, 200, 2):
        busy = replace(LANE, served=second * 5, claimed=second < 60)
        journal.write(Snapshot((GLIDEIN,), (busy,), now=1000.0 + second), [])
    first, *rest = journal.lines()
    assert first["records"] == 0 and [line["records"] for line in rest] == [300, 600, 900]
    assert [line["glidein_seconds"] for line in rest] == [
        {Activity.SERVING: 58.0, Activity.IDLE: 2.0}, {Activity.IDLE: 60.0}, {Activity.IDLE: 60.0},
    ]  # fmt: skip
    journal.write(Snapshot((replace(GLIDEIN, starts=2),), (), now=1202.0), [])
    assert journal.latest()["evictions"] == 1
    written = journal.latest()["time"]
    assert list(journal.lines(since=written))[-1] == journal.latest() and not list(journal.lines(since=written + 5))


def test_last_journal_line_is_read_from_file_end(tmp_path):
    journal = Journal(tmp_path)
    long = json.dumps({"time": 1.0, "actions": ["ä" * 100_000]})
    for torn in ("", '{"time": 2.0, "act', "\n\n"):
        journal.path.write_text(f"{long}\n" * 50 + torn)
        before = _bytes_read()
        assert journal.latest() == json.loads(long)
        assert _bytes_read() - before < journal.path.stat().st_size / 3
    for content, last in (("", {}), ("torn", {}), ('{"time": 1}\n{"time": 2}\n', {"time": 2})):
        journal.path.write_text(content)
        assert journal.latest() == last


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def line(at: float, **changes: Any) -> dict[str, Any]:
    whole = {"glideins": {"here": {"running": 2}}, "lanes": {"m": {State.WARM: 4}}, "unseen": [], "evictions": 0}
    return {"time": at, "records": 0, "glidein_seconds": {}, **whole, **changes}


def test_charts_show_recorded_values_and_otherwise_a_gap():
    step = 15.0
    lines = [
        line(60.0),
        line(120.0, records=600, glidein_seconds={Activity.SERVING: 90.0, Activity.IDLE: 30.0}),
        line(130.0, records=600, evictions=2, glideins={"here": {"running": 1, "idle": 1}, "other": {"idle": 9}}),
        line(1500.0, records=5),
    ]
    glideins, lanes, pace, shares, evictions = build_charts(lines, ["here"], 0.0, step)
    running, idle, held = (each.values for each in glideins.series)
    assert running[:9] == [None, None, None, None, 2, 2, 2, 2, 1] and idle[8:10] == [1, 1] and set(held) == {0, None}
    assert lanes.series[0].values[4] == 4 and lanes.series[1].values[4] == 0
    lasts = int((130 + GAP_SECONDS) // step)
    assert running[lasts] == 1 and running[lasts + 1] is None and running[100] == 2  # there was no factory meanwhile
    assert pace.series[0].values[:9] == [None] * 4 + [10.0] * 4 + [0.0]
    assert shares.series[0].values[4:8] == [75.0] * 4 and shares.series[1].values[4] == 25.0
    assert evictions.series[0].values[8] == 2 and sum(filter(None, evictions.series[0].values)) == 2
    assert all(len(series.values) == STEPS for chart in (glideins, lanes, pace) for series in chart.series)
    unseen = build_charts([line(0.0, glideins={}, lanes={}, unseen=["no access point answers"])], ["here"], 0.0, step)
    assert set(unseen[0].series[0].values) == {None}


def test_charts_accept_journal_lines_in_old_format():
    old = {"time": 0.0, "glideins": {"here": {"running": 1}}, "lanes": {}, "unseen": []}
    glideins, _, pace, shares, evictions = build_charts(
        [old, {**old, "time": 50.0}, line(90.0, records=7)], ["here"], 0.0, 15.0
    )
    assert glideins.series[0].values[0] == 1 and set(pace.series[0].values) == {0.0, None}
    assert set(shares.series[0].values) == {None} and set(evictions.series[0].values) == {0.0}


@pytest.mark.parametrize("kind", ["stack", "line", "bars"])
def test_chart_is_valid_svg_for_any_values(kind):
    hostile = "<&\"'>"
    for values in ([], [None], [0.0], [None, 0.3, 2e9, None, 1.0], [5.0] * 3):
        chart = Chart(hostile, kind, [Series(hostile, "green", values), Series("b", "sky", values)], 0.0, 60.0, hostile)
        root = ElementTree.fromstring(str(chart.svg))
        assert root.get("aria-label", "").startswith(hostile)
        width, height = map(float, root.get("viewBox", "").split()[2:])
        for path in root.iter("path"):
            assert path.find("title") is not None
            numbers = [float(each) for each in re.findall(r"-?[\d.]+", path.get("d", ""))]
            assert all(0 <= each <= max(width, height) for each in numbers)


@pytest.mark.parametrize("highest, top", [(0, 2), (0.3, 0.4), (1, 1), (7, 8), (9, 10), (41, 60), (1234, 2000)])
def test_chart_axis_ends_at_round_number(highest, top):
    assert round_up(highest) == pytest.approx(top)


def test_chart_gap_is_longer_than_two_journal_intervals():
    assert 2 * SILENCE_SECONDS < GAP_SECONDS
