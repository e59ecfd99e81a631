"""The metrics, by the judgement of Prometheus's own programs, and what they count."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import time
import tracemalloc
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from glide.config import SiteFile
from glide.factory.health import mark_failing_glideins
from glide.factory.journal import Journal
from glide.factory.observe import build_snapshot
from glide.factory.snapshot import Demand, Snapshot
from glide.factory.totals import ENDED, ENDS, ERRORS, EVICTED, SERVED, MetricKey, Totals
from glide.factory.usage import Usage
from glide.protocol.ads import OuterAd, from_ad
from glide.report.reasons import QueueView as Site
from glide.report.status import document
from glide.vocabulary import Job, JobStatus, State
from glide.web.metrics import exposition
from tests.conftest import SweepFolder, eventually
from tests.debian import Fetched, fetched
from tests.factory_rig import ROOT
from tests.snapshots import GLIDEIN, LANE
from tests.web_rig import WebProcess, view_of

DASHBOARD = json.loads((ROOT / "site_configs" / "grafana-dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
SITE = SiteFile.model_validate({"site": "lab", "entries": [{"name": "here", "max_glideins": 2}]})


@pytest.fixture(scope="module")
def prometheus() -> Fetched:
    return fetched("prometheus")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GLIDE_HOME where a factory of that site has been."""
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path))
    (tmp_path / "factory" / "lab").mkdir(parents=True)
    return tmp_path


# ---- Prometheus ----------------------------------------------------------------------------------


@pytest.mark.pool
def test_prometheus_has_all_metrics_used_by_dashboard(factory, sweep: SweepFolder, prometheus: Fetched, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("a-secret-of-this-test")
    token.chmod(0o600)
    model = {"name": "metrics-model", "engine": "noop", "options": {"record_seconds": 0.001}}
    lines = [{"custom_id": str(number), "text": "text"} for number in range(500)]
    assert sweep.write(lines, model=model, glideins=1).run().returncode == 0
    with WebProcess(tmp_path / "log", "--token-file", str(token)) as web:
        server = Server(prometheus, tmp_path, scrape_of(web, token))
        try:
            eventually(lambda: server.value('up{job="glide"}') == 1, "it scrapes")
            eventually(lambda: server.value('sum(glide_glideins{entry="here",site="testing"})'), "glideins are there")
            served = 'sum(glide_records_served_total{model="metrics-model"})'
            eventually(lambda: server.value(served) == 500, "all records are counted")
            assert server.value('glide_factory_running{site="testing"}') == 1
            for query in QUERIES:
                server.ask(filled(query))  # fails where it is none
            known = set(server.names())
            for query in QUERIES:
                assert set(re.findall(r"glide_\w+", query)) - LATER <= known, query
        finally:
            server.stop()
        _, _, text = web.ask("/metrics", headers={"Authorization": f"Bearer {token.read_text()}"})
    assert checked(prometheus, text) == ""
    used = [line for line in text.splitlines() if "daemon@" in line]
    assert "metrics-model" in text and used
    assert {line.split("{")[0] for line in used} == USAGE  # only owners of entries can use devices


USAGE = {"glide_device_seconds_total", "glide_gpu_energy_joules_total", "glide_cost_total"}
# What only waiting glideins, unfinished jobs and lanes have, which may all be gone by now; the test below sees them.
LATER = {
    "glide_entry_token_expiry_seconds", "glide_jobs", "glide_lanes", "glide_records_left", "glide_records_per_second",
}  # fmt: skip


def test_dashboard_metrics_exist_and_reveal_no_secrets(prometheus: Fetched, own_home: Path):
    demand = Demand("T", "model", "secret-run", "ada@lab", 2, 1, 1, records=300)
    strangers = tuple(replace(demand, template=f"{number}", model=f"secret-{number}") for number in range(3))
    strangers += (replace(demand, model="secret-name-of-theirs"),)
    held = replace(GLIDEIN, proc=1, status=JobStatus.HELD, hold_reason="secret reason")
    ended = replace(GLIDEIN, proc=2, status=JobStatus.COMPLETED, failure="secret failure")
    odd = replace(LANE, template="U", model='no"name', state="Nonsense", entry="x y")
    snapshot = Snapshot((GLIDEIN, held), (LANE, odd), (demand, *strangers), ended=(ended,), now=1000.0, user="ada@lab")
    Journal(own_home / "factory" / "lab").write(snapshot, [])
    account = Usage(own_home / "factory" / "lab")
    for _ in range(2):
        account.add(replace(snapshot, now=time.time()), SITE)
    account.write()
    view = view_of(snapshot, SITE)
    view.status["sites"][0]["entries"][0]["token_hours"] = 2.0
    text = exposition(lambda: view).decode()
    assert checked(prometheus, text) == ""
    told = {line.split("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")}
    assert {name for query in QUERIES for name in re.findall(r"glide_\w+", query)} <= told
    assert 'glide_glideins{entry="here",site="lab",state="running"} 1.0' in text
    assert 'glide_lanes{claimed="true",entry="here",model="model",site="lab",state="Warm"} 1.0' in text
    assert 'glide_lanes{claimed="true",entry="other",model="other",site="",state="other"} 1.0' in text
    assert 'glide_jobs{model="model",status="idle"} 4.0' in text and 'glide_records_left{model="model"} 600.0' in text
    assert 'glide_jobs{model="other",status="idle"} 6.0' in text and 'glide_records_left{model="other"} 900.0' in text
    assert Journal(own_home / "factory" / "lab").latest()["jobs"] == {"model": 6, "other": 9}
    assert 'glide_entry_token_expiry_seconds{entry="here",site="lab"} 7200.0' in text
    assert 'glide_glideins_ended_total{entry="here",site="lab",state="never warm"} 1.0' in text
    assert "secret" not in text and "ada" not in text and "Nonsense" not in text


def test_metrics_keep_counters_while_pool_is_unavailable(prometheus: Fetched, own_home: Path):
    seen = view_of(Snapshot((GLIDEIN,), (replace(LANE, served=7),), now=1000.0), SITE)
    text = exposition(lambda: seen.updated("no access point answers")).decode()
    assert checked(prometheus, text) == ""
    assert "glide_pool_answers 0.0" in text and "glide_glideins{" not in text and "glide_lanes{" not in text
    assert 'glide_records_served_total{entry="here",model="model",site="lab"} 7.0' in text
    blind = Snapshot(unavailable_sources=("no access point answers",), now=1002.0)
    later = seen.updated((blind, document(blind, [Site(SITE, running=True)])))
    (site,) = later.status["sites"]
    assert later.trouble == "no access point answers" and later.at == 1000.0 and not later.answered
    assert site["entries"][0]["glideins"] == {"running": 1} and "no access point answers" in site["unseen"]
    assert later.updated((seen.snapshot, dict(seen.status))).answered


def checked(prometheus: Fetched, text: str) -> str:
    """What promtool complains about."""
    program = prometheus.program("usr/bin/promtool")
    done = subprocess.run(
        [program, "check", "metrics"], input=text, env=prometheus.environment, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def filled(query: str) -> str:
    """A dashboard's query as Grafana sends it."""
    return query.replace("$__rate_interval", "1m").replace("$site", ".*").replace("$entry", ".*")


def scrape_of(web: WebProcess, token: Path) -> dict[str, Any]:
    """The example's configuration, for this server."""
    example = yaml.safe_load((ROOT / "site_configs" / "prometheus.yml").read_text())
    (job,) = example["scrape_configs"]
    job["scrape_interval"] = "1s"
    job["authorization"]["credentials_file"] = str(token)
    job["static_configs"][0]["targets"] = [f"127.0.0.1:{web.port}"]
    return example


class Server:
    """A Prometheus on a free port."""

    def __init__(self, prometheus: Fetched, folder: Path, configuration: dict[str, Any]):
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [prometheus.program("usr/bin/prometheus"), f"--config.file={folder / 'prometheus.yml'}",
                 f"--storage.tsdb.path={folder / 'data'}", "--web.listen-address=127.0.0.1:0"],
                stdout=log, stderr=log, env=prometheus.environment,
            )  # fmt: skip
        self.url = f"http://{eventually(self._address, 'it listens')}"
        eventually(self._is_ready, "it answers")

    def _address(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r"address=(127\.0\.0\.1:[1-9]\d*)", self.log.read_text())
        return found[1] if found else ""

    def _is_ready(self) -> bool:
        with suppress(urllib.error.HTTPError):
            return urllib.request.urlopen(f"{self.url}/-/ready").status == 200
        return False

    def ask(self, query: str) -> list[dict[str, Any]]:
        """What a query finds now."""
        return self._get("query?" + urllib.parse.urlencode({"query": query}))["result"]

    def value(self, query: str) -> float | None:
        """Of a query that finds at most one number."""
        found = self.ask(query)
        return float(found[0]["value"][1]) if found else None

    def names(self) -> list[str]:
        """Of all metrics."""
        return self._get("label/__name__/values")

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}") as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


# ---- counters ------------------------------------------------------------------------------------


def test_counters_never_decrease_when_glideins_end():
    ended = replace(GLIDEIN, status=JobStatus.COMPLETED, served=80, errors=1, state=State.WARM)
    looks = [
        Snapshot((GLIDEIN,), (replace(LANE, served=50, errors=1),), now=1.0),
        Snapshot((GLIDEIN,), (replace(LANE, served=100, errors=2), replace(LANE, served=100, errors=2)), now=2.0),
        Snapshot((replace(GLIDEIN, served=80),), (), now=3.0),  # its job has been told less
        Snapshot(unavailable_sources=("timeout",), now=4.0),
        Snapshot((replace(GLIDEIN, starts=2),), (replace(LANE, glide_id="here-1.0r1", served=10),), now=5.0),
        Snapshot((), (), ended=(ended,), now=6.0),
        Snapshot(now=7.0),
        Snapshot((), (), ended=(ended,), now=8.0),
    ]
    totals = Totals()
    before: dict[MetricKey, int] = {}
    for look in looks:
        totals.add(look)
        assert all(totals.counts[count] >= number for count, number in before.items())
        before = dict(totals.counts)
    assert before == {
        MetricKey(SERVED, "here", "model"): 110,
        MetricKey(ERRORS, "here", "model"): 2,
        MetricKey(EVICTED, "here"): 1,
        MetricKey(ENDED, "here", ENDS[0]): 1,
    }


def test_ended_glideins_need_little_memory():
    """A factory remembers each ended glidein for a day. On a busy one, that is thousands."""
    ended = replace(GLIDEIN, status=JobStatus.COMPLETED, served=8000, state=State.WARM)
    count, template = 1000, "0123456789abcdef" * 4

    def look(number: int) -> Snapshot:
        return Snapshot((), (), ended=(replace(ended, cluster=number, template=template),), now=float(number))

    totals = Totals()
    totals.add(look(0))
    tracemalloc.start()
    for number in range(1, count):
        totals.add(look(number))
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert totals.total(ENDED) == count and used / count < 700, used / count


def test_no_record_counts_twice_when_model_name_changes():
    nameless = replace(LANE, model="", served=100, errors=7)
    stranger = Demand("T", "theirs", "run", "eve@lab", 1, 0, 1)
    totals = Totals()
    for model in ("", "", "model", "another"):
        totals.add(Snapshot((replace(GLIDEIN, model=model),), (nameless,), (stranger,), now=1.0))
    totals.add(Snapshot((replace(GLIDEIN, model="another"),), (replace(nameless, served=130, errors=7),), now=2.0))
    assert {count.label: number for count, number in totals.counts.items() if count.kind == SERVED} == {
        "": 100, "model": 30
    }  # fmt: skip
    assert totals.total(ERRORS) == 7


@pytest.mark.parametrize(
    ("starts", "reported", "state"), [(1, 1, "Warm"), (2, 2, "Warm"), (2, 1, ""), (1, None, "Warm")]
)
def test_report_counts_although_the_clock_of_the_node_is_late(starts, reported, state):
    ad = {
        "ClusterId": 1, "ProcId": 0, "JobStatus": JobStatus.COMPLETED, "ServerTime": 300, "NumShadowStarts": starts,
        "JobCurrentStartDate": 200, Job.ENTRY: "here", Job.TEMPLATE: "T", Job.STATE: State.WARM, Job.STATE_SINCE: 90,
    }  # fmt: skip
    ad |= {} if reported is None else {Job.REPORTED_START: reported}
    (glidein,) = build_snapshot([from_ad(OuterAd, ad)], [], [], {}).ended
    assert glidein.state == state


def test_record_is_counted_once_despite_later_eviction():
    job = {
        "ClusterId": 1, "ProcId": 0, "JobStatus": JobStatus.RUNNING, "ServerTime": 300, "NumShadowStarts": 1,
        "JobCurrentStartDate": 100, Job.ENTRY: "here", Job.TEMPLATE: "T", Job.MODEL: "model", Job.STATE: State.WARM,
        Job.STATE_SINCE: 110, Job.SERVED: 80, Job.ERRORS: 70,
    }  # fmt: skip
    well = job | {"ProcId": 1, Job.ERRORS: 0}
    evicted = job | {"NumShadowStarts": 2, "JobCurrentStartDate": 200}
    totals = Totals()
    for ads in ([job, well], [evicted, well], [evicted | {Job.STATE_SINCE: 210, Job.SERVED: 5, Job.ERRORS: 0}, well]):
        seen = build_snapshot([from_ad(OuterAd, ad) for ad in ads], [], [], {})
        totals.add(seen)
    assert totals.counts[MetricKey(SERVED, "here", "model")] == 80 + 80 + 5 and totals.total(ERRORS) == 70
    seen = build_snapshot([from_ad(OuterAd, ad) for ad in (job, well)], [], [], {})
    assert mark_failing_glideins(seen).glideins[0].state == State.FAILED
    seen = build_snapshot([from_ad(OuterAd, ad) for ad in (evicted, well)], [], [], {})
    assert mark_failing_glideins(seen).glideins[0].state == ""
