"""The metrics of the service for Prometheus; one registry per application.

Workers open no port: their work is in the database, and each API process reports it from there.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.streams.job_events import open_streams
from sharpzo_core.database.tenants import DEFAULT_TENANT
from sharpzo_core.logging import dropped_records
from sharpzo_core.records.jobs import JobStatus
from sharpzo_core.stores.job_totals import DURATIONS, Figures
from sharpzo_engine import __version__

__all__ = ["CONTENT_TYPE_LATEST", "Fleet", "Metrics"]

_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds
_FINE_BUCKETS = (0.001, 0.0025, *_LATENCY_BUCKETS)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # images
#: Prompts with their own counters; further ones are counted together.
MAX_PROMPT_LABELS = 200
OTHER_PROMPTS = "other"
_STAGES = {
    "decode": "Seconds to decode and prepare one image.",
    "queue": "Seconds that a prepared image waited for its batch.",
    "encode": "Seconds of one pass through the image encoder.",
    "total": "Seconds of a classification, from admission to response.",
}


@dataclass(frozen=True)
class Fleet:
    """Metrics from the database: of all processes together, or of one tenant's jobs."""

    jobs: Mapping[JobStatus, int]
    workers: int
    figures: Figures

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("sharpzo_jobs", "Jobs by status.", labels=["status"])
        for status, count in self.jobs.items():
            jobs.add_metric([status], count)
        yield jobs
        for name, text, value in (
            ("workers_alive", "Workers with a recent heartbeat.", self.workers),
            (
                "queue_oldest_seconds",
                "Seconds that the oldest queued job has waited.",
                self.figures.queued_seconds,
            ),
        ):
            yield GaugeMetricFamily(f"sharpzo_{name}", text, value=value)
        yield CounterMetricFamily(
            "sharpzo_forward_passes",
            "Forward passes of tuning jobs; repeated ones are not counted twice.",
            value=self.figures.forward_passes,
        )
        yield self._durations()

    def _durations(self) -> Metric:
        family = HistogramMetricFamily(
            "sharpzo_job_seconds",
            "Seconds from a job's first start to its end.",
            labels=["kind", "outcome"],
        )
        bounds = [*map(str, DURATIONS), "+Inf"]
        for (kind, outcome), durations in self.figures.durations.items():
            buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
            family.add_metric([kind, outcome], buckets, durations.seconds)
        return family


class _Process(Collector):
    """Metrics of this process, read at each scrape."""

    def __init__(self) -> None:
        self._build = {
            "version": __version__,
            "python": platform.python_version(),
            "torch": version("torch"),
        }

    def collect(self) -> Iterator[Metric]:
        names, values = [*self._build], [*self._build.values()]
        build = GaugeMetricFamily(
            "sharpzo_build_info",
            "Versions of the service, Python and torch; always 1.",
            labels=names,
        )
        build.add_metric(values, 1)
        yield build
        yield CounterMetricFamily(
            "sharpzo_log_records_dropped",
            "Log records dropped because the log was not read.",
            value=dropped_records(),
        )
        yield GaugeMetricFamily(
            "sharpzo_event_streams", "Open event streams.", value=open_streams()
        )


class Metrics:
    """Counters and histograms; labels take few values (templates and statuses, never ids)."""

    def __init__(self) -> None:
        # The `_created` series are half of all and carry no information.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.registry.register(_Process())
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        ProcessCollector(registry=self.registry)
        self._requests = counter(
            "sharpzo_http_requests",
            "HTTP requests by method, route template and status.",
            ("method", "route", "status"),
        )
        self._latency = histogram(
            "sharpzo_http_request_seconds",
            "Seconds until a response was complete.",
            ("method", "route"),
            buckets=_LATENCY_BUCKETS,
        )
        self._problems = counter("sharpzo_http_problems", "Problem responses by code.", ("code",))
        self._images = counter(
            "sharpzo_classified_images",
            f"Classified images by prompt (name:version, up to {MAX_PROMPT_LABELS}) and outcome.",
            ("prompt", "outcome"),
        )
        self._prompt_labels: set[str] = set()
        self._dropped = counter(
            "sharpzo_dropped_images",
            "Images skipped because their request was cancelled or timed out.",
            ("reason",),
        )
        self._refused = counter(
            "sharpzo_refused_images", "Images rejected because the queue was full."
        )
        self._batch = histogram(
            "sharpzo_batch_images",
            "Images in one pass through the image encoder.",
            buckets=_BATCH_BUCKETS,
        )
        self._inference = {
            stage: histogram(f"sharpzo_inference_{stage}_seconds", text, buckets=_FINE_BUCKETS)
            for stage, text in _STAGES.items()
        }

    def observe_request(
        self, method: str, route: str, status: int, seconds: float, problem: str | None
    ) -> None:
        """Count one request; `problem` is the code of its problem response."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)
        if problem is not None:
            self._problems.labels(problem).inc()

    def observe_decode(self, seconds: float) -> None:
        """Record the seconds to decode and prepare one image."""
        self._inference["decode"].observe(seconds)

    def observe_batch(self, seconds: float, waits: Sequence[float]) -> None:
        """Record a pass through the image encoder, and how long each image had waited."""
        self._inference["encode"].observe(seconds)
        self._batch.observe(len(waits))
        for wait in waits:
            self._inference["queue"].observe(wait)

    def observe_inference(self, seconds: float) -> None:
        self._inference["total"].observe(seconds)

    def count_images(self, prompt: str, classified: int, failed: int) -> None:
        """Count images by the label from `prompt_series`; called on the event loop only."""
        if len(self._prompt_labels) < MAX_PROMPT_LABELS:
            self._prompt_labels.add(prompt)
        label = prompt if prompt in self._prompt_labels else OTHER_PROMPTS
        self._images.labels(label, "ok").inc(classified)
        self._images.labels(label, "error").inc(failed)

    def count_dropped(self, reason: str) -> None:
        self._dropped.labels(reason).inc()

    def count_refused(self, images: int) -> None:
        self._refused.inc(images)

    def render(self, fleet: Fleet | None, tenant: str | None = None) -> bytes:
        """Render the metrics; `fleet` is None while the database is down.

        With a `tenant`, `fleet` is that tenant's, and only its own prompts are named.
        """
        return generate_latest(_View(self.registry, fleet, tenant))


class _View(CollectorRegistry):
    """The metrics that one reader may see, with those from the database."""

    def __init__(
        self, registry: CollectorRegistry, fleet: Fleet | None, tenant: str | None
    ) -> None:
        super().__init__()
        self._all = registry
        self._fleet = fleet
        self._tenant = tenant

    def collect(self) -> Iterator[Metric]:
        # Without samples that name another tenant's prompt.
        for metric in self._all.collect():
            if self._tenant is not None:
                metric.samples = [sample for sample in metric.samples if self._may_see(sample)]
            yield metric
        yield GaugeMetricFamily(
            "sharpzo_database_up",
            "Whether the database answered this scrape.",
            value=self._fleet is not None,
        )
        if self._fleet is not None:
            yield from self._fleet.collect()

    def _may_see(self, sample: Sample) -> bool:
        prompt = sample.labels.get("prompt", OTHER_PROMPTS)
        return prompt == OTHER_PROMPTS or prompt.startswith(f"{self._tenant}/")


def prompt_series(tenant: str, label: str) -> str:
    return label if tenant == DEFAULT_TENANT else f"{tenant}/{label}"
