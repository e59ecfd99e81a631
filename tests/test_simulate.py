"""Simulated clusters: what must hold whatever the trace, what is known exactly, and the paper's own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from glide.config import SiteFile
from glide.errors import InputError
from glide.simulate import Trace, read, simulate
from tests.test_end_to_end import glide

PAPER = Path(__file__).parents[1] / "workflows" / "simulation" / "paper.yaml"
FREE = dict.fromkeys(("start", "match", "turnover", "queue", "glidein", "loss", "stream", "gather", "look"), 0)
SITE = {"site": "sim", "interval": 1, "entries": [{"name": "all", "max_glideins": 100, "lanes": 1}]}


def trace(nodes: list[dict[str, Any]], workload: dict[str, Any], site: dict[str, Any] = SITE, **more: Any) -> Trace:
    """A trace of nodes whose records take 0.1 s (fast) or 0.3 s (slow), and nothing else takes time."""
    devices = {"fast": {"record_seconds": 0.1}, "slow": {"record_seconds": 0.3}}
    return Trace.model_validate(
        {"site": site, "devices": devices, "nodes": nodes, "workload": workload, "costs": FREE, **more}
    )


def ran(trace: Trace) -> Any:
    assert isinstance(trace.site, SiteFile)
    return simulate(trace, trace.site)


def test_makespan_of_one_lane_equals_sum_of_costs():
    costs = {**FREE, "start": 0.5, "match": 2, "turnover": 0.25, "queue": 3, "glidein": 4, "gather": 1}
    devices = {"fast": {"record_seconds": 0.1, "load_seconds": 7, "fetch_seconds": 11}}
    work = {"records": 1000, "glideins": 1, "pack": 100}
    seconds = {}
    for keep in ("state", "files", "nothing"):
        each = trace([{"device": "fast"}], {**work, "keep": keep}, costs=costs, devices=devices)
        seconds[keep] = ran(each).makespan
    jobs = 10 * (0.5 + 0.25 + 100 * 0.1)
    # With kept state, the first job is matched and started while the model is being loaded.
    early = 2 + 0.5 + 0.25
    parts = {"state": 11 + 7 + jobs - early, "files": 11 + 10 * 7 + jobs, "nothing": 10 * (11 + 7) + jobs}
    for keep, exact in parts.items():
        assert seconds[keep] == pytest.approx(3 + 4 + 2 + exact + 1, abs=0.3), keep


def test_simulated_lanes_of_glidein_share_one_engine():
    site = {**SITE, "entries": [{"name": "all", "max_glideins": 1, "lanes": 2}]}
    done = ran(trace([{"device": "fast"}], {"records": 2000, "glideins": 1, "pack": 100}, site))
    assert done.makespan == pytest.approx(200, abs=2) and done.by_device == {"fast": 2000}


def test_two_device_types_share_work_by_speed():
    done = ran(trace([{"device": "fast"}, {"device": "slow"}], {"records": 40_000, "glideins": 2}))
    assert done.by_device["fast"] / done.by_device["slow"] == pytest.approx(3, rel=0.05)
    assert done.makespan == pytest.approx(40_000 / (10 + 1 / 0.3), rel=0.02)


def test_simulation_respects_site_limits_and_downtimes():
    site = {"site": "sim", "entries": [{"name": "all", "max_glideins": 3, "lanes": 1, "downtimes": [
        {"start": "2027-01-01 00:00", "end": "2027-01-01 00:10", "reason": "maintenance"}
    ]}]}  # fmt: skip
    done = ran(trace([{"device": "fast", "count": 10}], {"records": 9000, "glideins": 10}, site))
    assert max(done.warm) == 3 and 600 <= done.first_warm < 660
    assert done.makespan == pytest.approx(600 + 9000 / 30, rel=0.1)


def test_lost_node_loses_only_unstreamed_results():
    nodes = [{"device": "fast", "leave": 55}, {"device": "fast", "arrive": 60}]
    work = {"records": 1000, "glideins": 1, "pack": 1000}
    streamed = ran(trace(nodes, work))
    brought = ran(trace(nodes, {**work, "results": "brought home"}))
    assert streamed.evictions == brought.evictions == 1
    assert streamed.makespan == pytest.approx(105, abs=3) and brought.makespan == pytest.approx(160, abs=3)
    assert streamed.lost_in_flight <= 1 and 540 <= brought.lost_in_flight <= 560
    assert streamed.by_device == brought.by_device == {"fast": 1000}


def test_simulation_ends_when_last_node_leaves():
    done = ran(trace([{"device": "fast", "count": 2, "leave": 50}], {"records": 10_000, "glideins": 2}))
    assert done.done == pytest.approx(1000, abs=50) and done.makespan == 50
    assert done.curve[-1] == pytest.approx(done.done) and done.warm[-1] == 0


def test_glideins_become_warm_sooner_if_peers_exchange_files():
    files = {"megabytes": 1000, "origin": 100, "node": 100}
    work = {"records": 100_000, "glideins": 32}
    alone, peers = (
        ran(trace([{"device": "fast", "count": 32}], work, files={**files, "peers": each})) for each in (False, True)
    )
    # One at a time, or twice as many in each round.
    assert [alone.warm[-1], peers.warm[-1]] == [32, 32]
    at = {
        name: next(t for t, n in zip(each.times, each.warm, strict=True) if n == 32)
        for name, each in (("alone", alone), ("peers", peers))
    }
    assert at["alone"] == pytest.approx(320, abs=5) and at["peers"] == pytest.approx(60, abs=5)


def test_simulation_reports_reason_if_no_model_becomes_warm():
    site = {"site": "sim", "entries": [{"name": "closed", "max_glideins": 0}]}
    done = ran(trace([{"device": "fast"}], {"records": 1, "glideins": 1}, site, until=3600))
    assert (done.done, done.makespan, done.first_warm) == (0, 3600, None)
    assert "no model was ever warm: no entry has room: closed: its limit of 0 glideins" in done.why


def test_streamed_results_of_unfinished_job_are_counted():
    work = {"records": 1000, "glideins": 1, "pack": 1000}
    streamed = ran(trace([{"device": "fast"}], work, until=60))
    brought = ran(trace([{"device": "fast"}], {**work, "results": "brought home"}, until=60))
    assert streamed.done == pytest.approx(600, abs=20) and brought.done == 0
    assert streamed.spent["serving"] == pytest.approx(60, abs=2) and brought.spent["idle"] == pytest.approx(60, abs=2)


def test_glideins_started_together_end_at_different_times():
    site = {**SITE, "entries": [{"name": "all", "max_glideins": 20, "lanes": 1, "lifetime": 600}]}
    done = ran(trace([{"device": "fast", "count": 20}], {"records": 400_000, "glideins": 20, "pack": 50}, site))
    assert done.glideins > 40 and min(done.warm[5:-5]) > 10


def test_entry_keys_ready_and_owners_change_no_simulation(file):
    entry = {"name": "all", "max_glideins": 20, "ready": 3, "owners": ["somebody@else"]}
    (file.parent / "site.yaml").write_text(yaml.safe_dump({**SITE, "entries": [entry]}))
    done = simulate(*read(file)["fast"])
    assert done.done == 1000 and done.glideins == 2


seconds = some.floats(0, 300)
nodes = some.fixed_dictionaries(
    {"device": some.sampled_from(["fast", "slow"]), "count": some.integers(1, 5), "arrive": seconds, "every": seconds},
    optional={"stay": some.floats(5, 300), "away": some.floats(1, 100)},
).filter(lambda each: "stay" in each or "away" not in each)
work = some.fixed_dictionaries(
    {"records": some.integers(1, 20_000), "glideins": some.integers(1, 8), "batch": some.sampled_from([1, 8, 32])},
    optional={
        "pack": some.integers(1, 50), "keep": some.sampled_from(["state", "files", "nothing"]),
        "results": some.sampled_from(["streamed", "brought home"]),
    },
)  # fmt: skip


@given(some.lists(nodes, min_size=1, max_size=4), work, some.integers(1, 3), some.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_simulation_computes_each_record_at_most_once(nodes, work, lanes, seed):
    site = {**SITE, "entries": [{"name": "all", "max_glideins": 6, "lanes": lanes, "idle_seconds": 60}]}
    costs = {"start": 0.06, "turnover": 0.1}
    each = trace(nodes, work, site, seed=seed, costs=costs, until=5000)
    done = ran(each)
    assert sum(done.by_device.values()) == done.done <= work["records"]
    assert done.done == work["records"] or done.makespan == 5000 or not any("away" in kind for kind in nodes)
    assert list(done.curve) == sorted(done.curve) and done.curve[-1] == pytest.approx(done.done, abs=0.01)
    assert all(seconds >= -0.001 for seconds in done.spent.values())
    assert done.spent["serving"] + done.spent["idle"] <= 6 * done.makespan
    assert min(done.warm) >= 0 and max(done.warm) <= 6 and done.lost_in_flight >= 0
    assert ran(each).document() | {"simulated_in_s": 0} == done.document() | {"simulated_in_s": 0}


# ---- files ---------------------------------------------------------------------------------------

FILE = """\
name: small
site: site.yaml
devices:
  A10: {record_seconds: 0.1}
nodes:
  - {device: A10, count: 2}
workload: {records: 1000, glideins: 2}
variants:
  fast: {}
  slow: {devices: {A10: {record_seconds: 0.2}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(SITE))
    (tmp_path / "trace.yaml").write_text(FILE)
    return tmp_path / "trace.yaml"


def test_simulate_command_prints_json_and_writes_plot(file, tmp_path):
    done = glide("simulate", str(file), "--json", "--plot", str(tmp_path / "plot.png"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [told[name]["done"] for name in ("fast", "slow")] == [1000, 1000]
    assert told["slow"]["makespan_s"] > 1.3 * told["fast"]["makespan_s"] and told["fast"]["curve"][-1][1] == 1000
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "fast: 1,000 records in" in done.stderr
    assert "records/s" in glide("simulate", str(file)).stdout


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("count: 2", "count: 0", "trace.yaml:6: nodes.0.count"),
        ("- {device: A10", "- {device: A11", "nodes have the unknown device 'A11'; use one of A10"),
        ("site: site.yaml", "site: other.yaml", "other.yaml"),
        ("device: A10, count", "device: A10, entry: gone, count", "sim has no entry"),
        ("slow: {devices", "slow: {device", "trace.yaml:10: variants.slow.device: unknown key"),
        ("A10: {record_seconds: 0.2}", "A10: {record_seconds: 0}", "variants.slow.devices.A10.record_seconds: Input"),
        ("workload:", "costs: {measured: [none.json]}\nworkload:", "none.json: No such file"),
        ("workload:", "costs: {measured: [trace.yaml]}\nworkload:", "trace.yaml: not JSON"),
        ("count: 2", "count: 2, leave: 5, stay: 5", "remove one of them"),
        ("count: 2", "count: 2, arrive: 9, leave: 5", "some nodes leave before they arrive"),
        ("record_seconds: 0.1", "record_seconds: .inf", "finite number"),
        ("record_seconds: 0.1", "record_seconds: 0.1, load_seconds: 90000", "the model needs 90004 s to become warm"),
    ],
)  # fmt: skip
def test_invalid_trace_file_is_reported_in_one_line(file, old, new, told):
    file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read(file)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("names", ["overhead.json, recovery.json", "recovery.json, overhead.json"])
def test_simulated_delays_are_derived_from_benchmark_results(file, tmp_path, names):
    (tmp_path / "overhead.json").write_text('{"job_each_per_s": 16.0, "runs": {}}')
    (tmp_path / "recovery.json").write_text('{"median_s": 0.8, "kills": 20}')
    file.write_text(FILE + f"costs: {{measured: [{names}], start: 1}}\n")
    (each, _) = read(file)["fast"]
    assert each.costs.start == each.costs.turnover == 1 / 16
    assert each.costs.loss == pytest.approx(0.8 - 0.5 - 2 / 16)  # matching and starting are costs of their own


def test_simulation_reproduces_measured_job_rate():
    """As many jobs of a record each on two lanes in a second as `glide bench overhead` had measured."""
    site = {**SITE, "entries": [{"name": "all", "max_glideins": 1, "lanes": 2}]}
    costs, devices = {**FREE, "start": 1 / 16, "turnover": 1 / 16}, {"fast": {"record_seconds": 1e-6}}
    work = {"records": 1600, "glideins": 1, "pack": 1}
    done = ran(trace([{"device": "fast"}], work, site, costs=costs, devices=devices))
    assert 1600 / (done.makespan - done.first_warm) == pytest.approx(16, rel=0.05)


# ---- the paper -----------------------------------------------------------------------------------

SECONDS = {
    "rq1-create-destroy": 10_400, "rq1-sticky-io": 5_300, "rq1-sticky-invoc": 2_900, "rq3-sticky-io-1000": 3_200,
    "rq5-low": 4_959, "rq5-medium": 1_536, "rq5-high": 783,
}  # fmt: skip


@pytest.mark.parametrize(("variant", "told"), SECONDS.items())
def test_simulation_reproduces_makespans_of_paper(variant, told):
    assert simulate(*read(PAPER)[variant]).makespan == pytest.approx(told, rel=0.1)


def test_simulation_reproduces_makespan_if_every_job_loads_model():
    each, site = read(PAPER)["rq3-sticky-io-1"]
    workload = each.workload.model_copy(update={"records": each.workload.records // 10})
    done = simulate(each.model_copy(update={"workload": workload}), site)
    assert done.makespan == pytest.approx(14_110, rel=0.1)


@pytest.mark.parametrize("variant, told, late", [("rq4-sticky-io", 46_000, 200.0), ("rq4-sticky-invoc", 62_900, 0.0)])
def test_simulation_reproduces_paper_results_with_departing_gpus(variant, told, late):
    """The paper does not say when the GPUs of a run arrived; 200 s later explain the result of StickyI/O."""
    trace, site = read(PAPER)[variant]
    nodes = [each.model_copy(update={"arrive": each.arrive + late}) for each in trace.nodes]
    assert simulate(trace.model_copy(update={"nodes": nodes}), site).done == pytest.approx(told, rel=0.1)


def test_slow_lane_gives_records_back_in_simulation():
    """Four lanes of 0.1 s a record and one of 10 s: all finish within a tenth of the shortest possible time."""
    devices = {"fast": {"record_seconds": 0.1}, "slow": {"record_seconds": 10.0}}
    nodes = [{"device": "fast", "count": 4}, {"device": "slow"}]
    done = ran(trace(nodes, {"records": 2000, "glideins": 5}, devices=devices))
    assert done.done == 2000 and done.makespan <= 1.1 * 2000 / (4 / 0.1 + 1 / 10)
