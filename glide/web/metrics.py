"""The status of the pool as Prometheus metrics.

Prometheus keeps each label value forever. Therefore the names of runs are not used as labels, and the names of users
only for the usage of devices, because only the owners in a site file can use devices. The name of a model is used as a
label only if a glidein has this model. All other models count as `other`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from glide.factory.activity import Activity, activities
from glide.factory.snapshot import OTHER, Snapshot
from glide.factory.totals import ENDED, ENDS, ERRORS, EVICTED, SERVED
from glide.protocol.names import MODEL, printable
from glide.report.status import records_per_second
from glide.vocabulary import JobStatus, State
from glide.web.snapshot_cache import PoolView

STATES = {*State.COMING_UP, State.WARM, State.ASLEEP, State.DRAINING, State.FAILED}
LONGEST_USER = 255  # maximum length of the name of a user in a label, in characters
ALWAYS = (JobStatus.IDLE, JobStatus.RUNNING, JobStatus.HELD)  # states that are exported even if no glidein has them
# A dict from the name of a metric to four values:
# - the kind of events that the metric counts
# - the name of the metric's third label; the first two labels are site and entry
# - values of the third label that are exported even before the first event
# - a description
COUNTERS = {
    "glide_records_served": (SERVED, "model", (), "Records that glideins have served, including those with an error."),
    "glide_record_errors": (ERRORS, "model", (), "Records that glideins have served with an error."),
    "glide_glidein_evictions": (EVICTED, "", ("",), "Glideins that lost their node and were queued again."),
    "glide_glideins_ended": (ENDED, "state", ENDS, "Glideins that have ended, by their last state."),
}


class MetricsCollector:
    """Collect the metrics of the current view whenever Prometheus scrapes them."""

    def __init__(self, get_view: Callable[[], PoolView]):
        self.get_view = get_view

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics. prometheus_client calls this method.

        If the pool does not answer, there are no metrics of entries, glideins, lanes and jobs.
        """
        view = self.get_view()
        sites = view.status["sites"]
        yield _gauge("glide_pool_answers", "Whether queue and collector answered the last query.", {(): view.answered})
        if view.at:
            age = {(): time.time() - view.at}
            yield _gauge("glide_view_age_seconds", "Time since queue and collector answered.", age)
        yield from _factories(sites)
        yield from _usage(sites)
        site_of = {entry["entry"]: site["site"] for site in sites for entry in site["entries"]}
        if view.answered:
            yield from _entries(sites)
            yield from _glideins(view.snapshot, site_of)
            yield from _lanes(view.snapshot, site_of)
            yield from _work(view.snapshot)
        yield from _counters(view, site_of)


def exposition(get_view: Callable[[], PoolView]) -> bytes:
    """Return the metrics in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(get_view))
    return generate_latest(registry)


def _factories(sites: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    running = {(site["site"],): site["running"] for site in sites}
    ages = {(site["site"],): site["last_cycle_s"] for site in sites if site["last_cycle_s"] is not None}
    yield _gauge("glide_factory_running", "Whether the site's factory runs.", running, "site")
    yield _gauge("glide_factory_last_cycle_age_seconds", "Time since the factory's last cycle.", ages, "site")


def _usage(sites: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield what devices have used this month. Prometheus takes the new month for a restart of the counters."""
    names = ("site", "entry", "user", "model")
    seconds = CounterMetricFamily(
        "glide_device_seconds", "Time of GPUs, or of CPU cores without GPUs, in this month.", labels=(*names, "kind")
    )
    joules = CounterMetricFamily("glide_gpu_energy_joules", "Energy of GPUs in this month.", labels=names)
    cost = CounterMetricFamily("glide_cost", "Device time in this month, at the site file's prices.", labels=names)
    for site in sites:
        for row in site["usage"]["rows"]:
            labels = (site["site"], row["entry"], printable(row["user"], LONGEST_USER), _name(row["model"]))
            for kind, hours in row["device_hours"].items():
                seconds.add_metric((*labels, kind), 3600 * hours)
            joules.add_metric(labels, 3.6e6 * row["kwh"])
            cost.add_metric(labels, row["cost"])
    yield from (seconds, joules, cost)


def _entries(sites: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    entries = {(site["site"], entry["entry"]): entry for site in sites for entry in site["entries"]}
    seen = {key: not entry["blind"] for key, entry in entries.items()}
    room = {key: entry["room"] for key, entry in entries.items() if entry["room"] is not None}
    useful = {key: entry["usefulness"] for key, entry in entries.items()}
    hours = {key: entry["token_hours"] for key, entry in entries.items()}
    left = {key: 3600 * each for key, each in hours.items() if each is not None}
    names = "site", "entry"
    yield _gauge("glide_entry_answers", "Whether the queue of the entry's glideins answered.", seen, *names)
    yield _gauge("glide_entry_room", "Glideins that may be submitted now.", room, *names)
    yield _gauge("glide_entry_usefulness_ratio", "Average usefulness of recent glideins, 0 to 1.", useful, *names)
    description = "Time until the token of waiting glideins expires."
    yield _gauge("glide_entry_token_expiry_seconds", description, left, *names)


def _glideins(snapshot: Snapshot, site_of: Mapping[str, str]) -> Iterator[Metric]:
    found = Counter({(site, entry, JobStatus.NAMES[each]): 0 for entry, site in site_of.items() for each in ALWAYS})
    found.update((site_of.get(each.entry, ""), each.entry, JobStatus.NAMES[each.status]) for each in snapshot.glideins)
    doing = {(site, entry, did): 0 for entry, site in site_of.items() for did in Activity.ALL}
    for entry, counts in activities(snapshot).items():
        doing |= {(site_of.get(entry, ""), entry, did): count for did, count in counts.items()}
    yield _gauge("glide_glideins", "Glideins in the queue.", found, "site", "entry", "state")
    yield _gauge("glide_glideins_running", "Running glideins by activity.", doing, "site", "entry", "activity")


def _lanes(snapshot: Snapshot, site_of: Mapping[str, str]) -> Iterator[Metric]:
    found = Counter(
        (site_of.get(lane.entry, ""), _name(lane.entry), _name(lane.model),
         lane.state if lane.state in STATES else OTHER, str(lane.claimed).lower())
        for lane in snapshot.lanes
    )  # fmt: skip
    yield _gauge("glide_lanes", "Lanes that advertise.", found, "site", "entry", "model", "state", "claimed")


def _work(snapshot: Snapshot) -> Iterator[Metric]:
    jobs: Counter[tuple[str, ...]] = Counter()
    left: Counter[tuple[str, ...]] = Counter()
    for each in snapshot.demands:
        model = _name(snapshot.models.get(each.template, OTHER))
        jobs.update({(model, "idle"): each.idle, (model, "running"): each.running})
        left.update({(model,): each.records})
    models = {lane.model for lane in snapshot.lanes if lane.model}
    throughput = {
        (_name(model),): records_per_second(lane for lane in snapshot.lanes if lane.model == model) for model in models
    }
    yield _gauge("glide_jobs", "Invocation jobs in the queue.", jobs, "model", "status")
    yield _gauge("glide_records_left", "Records in unfinished jobs, and in none yet.", left, "model")
    yield _gauge("glide_records_per_second", "Throughput of the engines that have a job.", throughput, "model")


def _counters(view: PoolView, site_of: Mapping[str, str]) -> Iterator[Metric]:
    """Yield the counters. If COUNTERS lists a label value, yield its counter even while the counter is 0.

    Prometheus sees the first increase of a counter only if the counter existed before the increase.
    """
    for name, (kind, label, always, description) in COUNTERS.items():
        found = Counter({(site, entry, each): 0 for entry, site in site_of.items() for each in always})
        for count, number in view.counts.items():
            if count.kind == kind:
                found[site_of.get(count.entry, ""), _name(count.entry), _name(count.label)] += number
        names = ("site", "entry", label)[: 2 + bool(label)]
        family = CounterMetricFamily(name, description, labels=names)
        for labels, number in found.items():
            family.add_metric(labels[: len(names)], number)
        yield family


def _gauge(name: str, description: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, description, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _name(text: str) -> str:
    """Return the value of a label: the text if the text is valid, otherwise `other`.

    The text can come from an ad, and any user or node can write an ad. So the text is checked.
    """
    return text if not text or text in ENDS or MODEL.fullmatch(text) else OTHER
