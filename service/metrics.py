"""What the service tells Prometheus; one registry per application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from sharpzo_core.logging import dropped_records
from sharpzo_core.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client import Metric
    from prometheus_client.samples import Sample

    from service.inference.resident import ResidentPrompts

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds
_FINE_BUCKETS = (0.001, 0.0025, *_LATENCY_BUCKETS)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # images
#: Prompts with counters of their own; further ones are counted together.
MAX_PROMPT_LABELS = 200
OTHER_PROMPTS = "other"
_STAGES = {
    "decode": "Seconds in which one image was decoded and prepared.",
    "queue": "Seconds that one prepared image waited for its batch.",
    "encode": "Seconds of one pass through the image encoder.",
    "total": "Seconds of a classification, from its admission to its answer.",
}


class _DroppedRecords(Collector):
    """Read when asked for: logging counts by itself."""

    def collect(self) -> Iterator[Metric]:
        """The one counter."""
        yield CounterMetricFamily(
            "sharpzo_log_records_dropped",
            "Log records that were dropped because nobody read the log.",
            value=dropped_records(),
        )


class _ResidentPrompts(Collector):
    """What the inference host holds, read when asked for."""

    def __init__(self, resident: ResidentPrompts, waiting: Callable[[], int]) -> None:
        self._resident = resident
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        """Gauges and counters."""
        now = self._resident.residency()
        for name, text, value in (
            ("prompts_resident", "Prompts that are ready to classify.", now.prompts),
            ("prompts_pinned", "Of these, prompts that are kept there.", now.pinned),
            ("prompt_bytes_resident", "Memory of their matrices.", now.bytes),
            ("images_waiting", "Images admitted and not answered yet.", self._waiting()),
        ):
            yield GaugeMetricFamily(f"sharpzo_{name}", text, value=value)
        lookups = CounterMetricFamily(
            "sharpzo_prompt_lookups",
            "Prompts asked for, by whether they were ready.",
            labels=["found"],
        )
        lookups.add_metric(["yes"], self._resident.hits)
        lookups.add_metric(["no"], self._resident.misses)
        yield lookups
        yield CounterMetricFamily(
            "sharpzo_prompt_evictions",
            "Prompts that had to make room for others.",
            value=self._resident.evictions,
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
        self._workers = Gauge(
            "sharpzo_workers_alive", "Workers heard of lately.", registry=self.registry
        )
        self._images = Counter(
            "sharpzo_classified_images",
            f"Answers by prompt (name:version, {MAX_PROMPT_LABELS} of them) and outcome.",
            ("prompt", "outcome"),
            registry=self.registry,
        )
        self._prompt_labels: set[str] = set()
        self._dropped = Counter(
            "sharpzo_dropped_images",
            "Images that were skipped because nobody waited for them any more.",
            ("reason",),
            registry=self.registry,
        )
        self._refused = Counter(
            "sharpzo_refused_images",
            "Images that were refused because too many were waiting.",
            registry=self.registry,
        )
        self._batch = Histogram(
            "sharpzo_batch_images",
            "Images in one pass through the image encoder.",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        self._inference = {
            stage: Histogram(
                f"sharpzo_inference_{stage}_seconds",
                text,
                buckets=_FINE_BUCKETS,
                registry=self.registry,
            )
            for stage, text in _STAGES.items()
        }

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def watch(self, resident: ResidentPrompts, waiting: Callable[[], int]) -> None:
        """Report what the inference host holds."""
        self.registry.register(_ResidentPrompts(resident, waiting))

    def observe_decode(self, seconds: float) -> None:
        """Record how long it took to decode and prepare one image."""
        self._inference["decode"].observe(seconds)

    def observe_batch(self, seconds: float, waits: Sequence[float]) -> None:
        """Record a pass through the image encoder, and how long each of its images had waited."""
        self._inference["encode"].observe(seconds)
        self._batch.observe(len(waits))
        for wait in waits:
            self._inference["queue"].observe(wait)

    def observe_inference(self, seconds: float) -> None:
        """Record a whole classification, admission to answer."""
        self._inference["total"].observe(seconds)

    def count_images(self, prompt: str, classified: int, failed: int) -> None:
        """Count a prompt's answers, by what `prompt_series` calls it; on the event loop."""
        if len(self._prompt_labels) < MAX_PROMPT_LABELS:
            self._prompt_labels.add(prompt)
        label = prompt if prompt in self._prompt_labels else OTHER_PROMPTS
        self._images.labels(label, "ok").inc(classified)
        self._images.labels(label, "error").inc(failed)

    def count_dropped(self, reason: str) -> None:
        """Count an image that nobody waits for."""
        self._dropped.labels(reason).inc()

    def count_refused(self, images: int) -> None:
        """Count images that found the queue full."""
        self._refused.inc(images)

    def render(self, jobs: Mapping[str, int], workers: int, tenant: str | None = None) -> bytes:
        """The exposition text, with gauges that are read when asked for.

        `jobs` are those of the `tenant`, if one is given: of the prompts, too, only its own are
        named then.
        """
        self._workers.set(workers)
        return generate_latest(_View(self.registry, jobs, tenant))


class _View(CollectorRegistry):
    """What one reader may see of a registry, and the jobs that are counted for it."""

    def __init__(
        self, registry: CollectorRegistry, jobs: Mapping[str, int], tenant: str | None
    ) -> None:
        super().__init__()
        self._all = registry
        self._jobs = jobs
        self._tenant = tenant

    def collect(self) -> Iterator[Metric]:
        """Every series but those that name another tenant's prompt."""
        for metric in self._all.collect():
            if self._tenant is not None:
                metric.samples = [sample for sample in metric.samples if self._may_see(sample)]
            yield metric
        jobs = GaugeMetricFamily("sharpzo_jobs", "Jobs by status.", labels=["status"])
        for status, count in self._jobs.items():
            jobs.add_metric([status], count)
        yield jobs

    def _may_see(self, sample: Sample) -> bool:
        prompt = sample.labels.get("prompt", OTHER_PROMPTS)
        return prompt == OTHER_PROMPTS or prompt.startswith(f"{self._tenant}/")


def prompt_series(tenant: str, label: str) -> str:
    """What the series of a prompt is called: `name:version`, after its tenant if it has another."""
    return label if tenant == DEFAULT_TENANT else f"{tenant}/{label}"
