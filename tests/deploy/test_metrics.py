"""`/metrics` of a real application: what it tells, and what the documentation says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_core.database.tables import job_totals
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.records.jobs import Job, JobProgress, JobStatus, NewJob, Phase
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.job_totals import DURATIONS, FigureStore
from tests.deploy.pages import table
from tests.helpers import Workplace
from tests.service.conftest import open_client, png
from tests.service.toys import COLORS, artifact_of, files, import_, make_backbone, with_backbones

pytestmark = pytest.mark.fast

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An application in which everything that is counted has happened."""
    backbone = make_backbone(tmp_path_factory.mktemp("toys") / "clip", 1)
    settings = with_backbones(tmp_path_factory.mktemp("service"), backbone)
    with open_client(settings) as client:
        assert import_(client, artifact_of(backbone)).is_success
        client.post("/v1/prompts/colors/classify", files=files(png(COLORS["red"]), b"no image"))
        assert client.get("/v1/jobs/job_1").status_code == 404
        services: Services = client.app.state.services  # type: ignore[attr-defined]
        # What takes a race to happen by itself.
        services.metrics.count_dropped("gone")
        services.metrics.count_refused(1)
        yield client


def families(client: TestClient) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text_of(client))}


def text_of(client: TestClient) -> str:
    response = client.get("/metrics")
    assert response.status_code == 200
    return response.text


def sample_names(text: str) -> set[str]:
    """Names that a query may use."""
    found = text_string_to_metric_families(text)
    return {sample.name for family in found for sample in family.samples}


def value(client: TestClient, name: str, **labels: str) -> float:
    (found,) = (
        sample.value
        for family in families(client).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
    return float(found)


def test_the_table_of_metrics_is_what_is_told(client: TestClient) -> None:
    documented = {
        name.strip("`"): (kind, {label.strip("` ") for label in labels.split(",")} - {""})
        for name, kind, labels, *_ in table("metric")
    }
    told = {}
    for family in families(client).values():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        told[name] = (family.type, labels)
    assert documented == told


def test_without_its_database_the_process_still_tells_of_itself(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    everything = sample_names(text_of(client))
    assert value(client, "sharpzo_database_up") == 1

    def away(*_: object) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(services.workers, "active", away)
    assert value(client, "sharpzo_database_up") == 0
    missing = everything - sample_names(text_of(client))
    assert missing == {
        *("sharpzo_jobs", "sharpzo_workers_alive", "sharpzo_queue_oldest_seconds"),
        *("sharpzo_forward_passes_total", "sharpzo_job_seconds_bucket"),
        *("sharpzo_job_seconds_count", "sharpzo_job_seconds_sum"),
    }


def test_errors_are_counted_by_their_code(client: TestClient) -> None:
    before = value(client, "sharpzo_http_problems_total", code="not_found")
    client.get("/v1/jobs/job_2")
    client.get("/nowhere")
    assert value(client, "sharpzo_http_problems_total", code="not_found") == before + 2


# What the database tells


class Floor:
    """Jobs whose clock the test turns."""

    def __init__(self, place: Workplace) -> None:
        self.now = START
        self.dataset = place.add_dataset()
        self.engine = place.engine
        self.figures = FigureStore(place.engine, self.clock)
        self.jobs = JobStore(place.engine, self.clock)
        self.leases = JobLeases(place.engine, lease_seconds=1e6, max_attempts=1, clock=self.clock)

    def clock(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def submit(self, **options: Any) -> Job:
        new = NewJob(dataset_id=self.dataset.id, backbone="tiny", config={}, **options)
        return self.jobs.create(new)

    def start(self) -> Job:
        job = self.leases.claim(self.submit().id, "wrk_1")
        assert job is not None
        return job

    def counts(self, outcome: JobStatus, tenant: str | None = None) -> tuple[list[int], float]:
        found = self.figures.for_tenant(tenant).read().durations
        (durations,) = (d for (kind, end), d in found.items() if (kind, end) == ("tuning", outcome))
        return list(durations.counts), durations.seconds


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def floor(request: pytest.FixtureRequest, make_workplace: Callable[..., Workplace]) -> Floor:
    if request.param == "sqlite":
        return Floor(make_workplace())
    return Floor(make_workplace(database_url=request.getfixturevalue("postgres_url")))


def test_a_job_waits_from_when_it_was_queued_last(floor: Floor) -> None:
    assert floor.figures.read().queued_seconds == 0
    first = floor.submit()
    floor.wait(100)
    second = floor.submit()
    floor.wait(50)
    assert floor.figures.read().queued_seconds == 150
    floor.jobs.request_pause(first.id)
    assert floor.figures.read().queued_seconds == 50
    floor.jobs.mark_notified(second.id)  # that its message is sent again changes nothing
    floor.jobs.request_resume(first.id)
    floor.wait(7)
    assert floor.figures.read().queued_seconds == 57
    floor.jobs.request_cancel(second.id)
    assert floor.figures.read().queued_seconds == 7
    assert floor.figures.for_tenant("other").read().queued_seconds == 0


def test_what_jobs_took_is_counted_by_outcome_and_outlives_them(floor: Floor) -> None:
    for seconds in (10, 10.5, 1_000_000):
        job = floor.start()
        floor.wait(seconds)
        floor.leases.fail(lease_of(job), "internal_error", "no")
        floor.jobs.delete(job.id)
    places = [0] * (len(DURATIONS) + 1)
    places[0] = places[1] = places[-1] = 1
    assert floor.counts(JobStatus.FAILED) == (places, 1_000_020.5)
    assert floor.counts(JobStatus.FAILED, "other") == ([0] * len(places), 0)
    assert floor.counts(JobStatus.SUCCEEDED) == ([0] * len(places), 0)


def test_jobs_that_end_at_the_same_time_are_all_counted(floor: Floor) -> None:
    leases = [lease_of(floor.start()) for _ in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda lease: floor.leases.fail(lease, "internal_error", "no"), leases))
    assert floor.counts(JobStatus.FAILED)[0][0] == len(leases)


def test_jobs_that_never_ran_have_no_duration(floor: Floor) -> None:
    floor.jobs.request_cancel(floor.submit().id)
    job = floor.start()
    floor.jobs.request_cancel(job.id)
    floor.wait(20)
    floor.leases.release(lease_of(job))
    counts, seconds = floor.counts(JobStatus.CANCELLED)
    assert (sum(counts), seconds) == (1, 20)


def test_a_paused_job_is_counted_once_it_ends(floor: Floor) -> None:
    job = floor.start()
    floor.jobs.request_pause(job.id)
    floor.leases.release(lease_of(job))
    assert sum(floor.counts(JobStatus.CANCELLED)[0]) == 0


def test_passes_are_those_that_tenants_were_charged(floor: Floor) -> None:
    job = floor.start()
    for passes in (40, 100, 70):  # after a loss it begins again at an earlier step
        progress = JobProgress(Phase.STAGE1, 1, 10, passes)
        floor.leases.save_progress(lease_of(job), progress, {})
    assert floor.figures.read().forward_passes == 100
    assert floor.figures.for_tenant("other").read().forward_passes == 0


def test_the_histogram_is_cumulative_and_ends_with_everything(client: TestClient) -> None:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    row = {"tenant": "default", "kind": "tuning", "outcome": "succeeded"}
    with services.database.begin() as connection:
        for bucket, jobs in ((0, 2), (3, 5), (len(DURATIONS), 1)):
            values = row | {"bucket": bucket, "jobs": jobs, "seconds": 10.0 * jobs}
            connection.execute(sa.insert(job_totals).values(values))
    labels = {"kind": "tuning", "outcome": "succeeded"}
    told = [value(client, "sharpzo_job_seconds_bucket", le=str(b), **labels) for b in DURATIONS]
    assert told == [2, 2, 2, *[7] * (len(DURATIONS) - 3)]
    assert value(client, "sharpzo_job_seconds_bucket", le="+Inf", **labels) == 8
    assert value(client, "sharpzo_job_seconds_count", **labels) == 8
    assert value(client, "sharpzo_job_seconds_sum", **labels) == 80
