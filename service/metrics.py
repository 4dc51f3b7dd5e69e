"""What the service tells Prometheus; one registry per application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from sharpzo_core.logging import dropped_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds


class _DroppedRecords(Collector):
    """Read when asked for: logging counts by itself."""

    def collect(self) -> Iterator[Metric]:
        """The one counter."""
        yield CounterMetricFamily(
            "sharpzo_log_records_dropped",
            "Log records that were dropped because nobody read the log.",
            value=dropped_records(),
        )


class Metrics:
    """Counters and histograms; labels take few values (templates and statuses, never ids)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_DroppedRecords())
        self._requests = Counter(
            "sharpzo_http_requests",
            "Requests by route template.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "sharpzo_http_request_seconds",
            "Seconds until a request was answered in full.",
            ("method", "route"),
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._jobs = Gauge("sharpzo_jobs", "Jobs by status.", ("status",), registry=self.registry)
        self._workers = Gauge(
            "sharpzo_workers_alive", "Workers heard of lately.", registry=self.registry
        )
        self._images = Counter(
            "sharpzo_classified_images", "Images by outcome.", ("outcome",), registry=self.registry
        )
        self._encode = Histogram(
            "sharpzo_encode_seconds",
            "Seconds of one pass through the image encoder.",
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def observe_encode(self, seconds: float) -> None:
        """Record one pass through the image encoder."""
        self._encode.observe(seconds)

    def count_images(self, classified: int, refused: int) -> None:
        """Count the images of one classification."""
        self._images.labels("ok").inc(classified)
        self._images.labels("error").inc(refused)

    def render(self, jobs: Mapping[str, int], workers: int) -> bytes:
        """The exposition text, with gauges that are read when asked for."""
        for status, count in jobs.items():
            self._jobs.labels(status).set(count)
        self._workers.set(workers)
        return generate_latest(self.registry)
