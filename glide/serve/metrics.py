"""The metrics of `glide serve`, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from glide.live.service import LiveService

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # limits of the histogram's buckets


class ServeMetrics:
    """Counts requests, and shows the present state of the models."""

    def __init__(self, service: LiveService):
        self.service = service
        self.registry = CollectorRegistry()
        names = ("user", "model")
        self.requests = Counter(
            "glide_serve_requests", "Requests that were answered", (*names, "status"), registry=self.registry
        )
        self.tokens = Counter("glide_serve_completion_tokens", "Generated tokens", names, registry=self.registry)
        self.seconds = Histogram(
            "glide_serve_request_seconds", "Time from a request to its answer", ("model",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(self)

    def observe(self, user: str, model: str, status: int, seconds: float, tokens: int) -> None:
        """Count a request that was answered."""
        self.requests.labels(user, model, str(status)).inc()
        self.seconds.labels(model).observe(seconds)
        self.tokens.labels(user, model).inc(tokens)

    def collect(self) -> Iterator[Metric]:
        """Yield the numbers that are read when the metrics are asked for."""
        lanes = GaugeMetricFamily("glide_serve_lanes", "Lanes that can compute calls", labels=("model",))
        in_flight = GaugeMetricFamily("glide_serve_in_flight", "Calls on lanes", labels=("model",))
        queued = GaugeMetricFamily("glide_serve_queued", "Calls that wait for a lane", labels=("model",))
        again = GaugeMetricFamily("glide_serve_begun_again", "Calls begun again after a lost lane", labels=("model",))
        for name, model in self.service.models.items():
            lanes.add_metric((name,), model.ready_lanes)
            in_flight.add_metric((name,), model.router.in_flight)
            queued.add_metric((name,), model.router.queued)
            again.add_metric((name,), model.router.lost)
        yield from (lanes, in_flight, queued, again)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
