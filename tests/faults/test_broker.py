"""A Redis that is away, empty, full, slow or silent, and an API that dies beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpzo_client.models import JobEvent
from tests.conftest import own_database
from tests.faults.cluster import FAST, LONG, Cluster, history_faults, open_cluster, open_redis
from tests.faults.proxy import FAIR, Proxy
from tests.faults.scenarios.broker import (
    Weather,
    emptied,
    empty,
    full,
    kill,
    kill_api_before_it_rings,
    once_only,
    restart,
    storm,
)

REQUEST_SECONDS = 1.0
HEAL_SECONDS = 15.0
SWEEP_SECONDS = 10.0  # until a job without a message is found

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.needs("redis-server"),
    pytest.mark.needs("postgres"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, small_backbone: Path) -> Iterator[Cluster]:
    """An API and two workers that reach Redis through a proxy."""
    folder = tmp_path_factory.mktemp("broker")
    with open_redis(folder / "redis") as redis, own_database() as database_url:
        proxy = Proxy(redis.port)
        broker_url = f"redis://127.0.0.1:{proxy.port}/0"
        servers = {"broker_url": broker_url, "database_url": database_url}
        with open_cluster(folder, small_backbone, **FAST, **servers) as cluster:
            cluster.redis, cluster.proxy = redis, proxy
            cluster.start_api()
            cluster.start_workers(2)
            cluster.wait_until_ready()
            cluster.wait_until_ended(cluster.submit().id)
            yield cluster
        proxy.close()


@pytest.fixture(autouse=True)
def _all_is_well(cluster: Cluster) -> Iterator[None]:
    yield
    assert cluster.proxy is not None
    cluster.proxy.set(FAIR)
    cluster.cancel_all()


def test_emptied_restarted_and_killed_mid_job(cluster: Cluster) -> None:
    result = emptied(cluster, [empty, kill, restart])

    assert (result.lost, result.disturbed) == (0, 0)
    assert result.slowest < 2 * HEAL_SECONDS


def test_a_job_that_ends_while_redis_is_dead_leaves_its_worker_listening(
    cluster: Cluster,
) -> None:
    """Its message cannot be acknowledged; the worker must not wait for that."""
    assert cluster.redis is not None
    jobs = [cluster.submit(**LONG) for _ in cluster.workers]  # so that no worker is idle
    for job in jobs:
        cluster.wait_until_running(job.id)
    cluster.redis.kill()
    for job in jobs:
        cluster.wait_until_ended(job.id)
    cluster.redis.start()

    back = time.monotonic()
    for _ in cluster.workers:
        ended = cluster.wait_until_ended(cluster.submit().id)
        assert (ended.status, once_only(cluster, ended.id)) == ("succeeded", [])
    assert time.monotonic() - back < 2 * HEAL_SECONDS


@pytest.mark.parametrize(
    ("weather", "not_ready"),
    [
        pytest.param(Weather(refuse=True), True, id="down"),
        pytest.param(Weather(reset=True), True, id="reset"),
        pytest.param(Weather(silent=True), True, id="silent"),
        pytest.param(Weather(delay=2.0), None, id="late"),
        pytest.param(Weather(rate=1000), None, id="slow"),
    ],
)
def test_bad_weather_costs_no_job_and_no_time(
    cluster: Cluster, weather: Weather, not_ready: bool | None
) -> None:
    assert cluster.proxy is not None

    noticed = storm(cluster, cluster.proxy, weather, requests=2)

    assert noticed.slowest < REQUEST_SECONDS
    assert noticed.healed < HEAL_SECONDS
    assert noticed.lost == 0
    if not_ready:
        assert "broker" in noticed.reason


def test_a_full_redis_costs_no_job(cluster: Cluster) -> None:
    assert cluster.redis is not None

    with full(cluster.redis):
        job = cluster.submit()
        reason = cluster.ready()

    ended = cluster.wait_until_ended(job.id)
    assert (ended.status, once_only(cluster, job.id)) == ("succeeded", [])
    assert "broker" in reason


def test_an_api_that_dies_before_it_rings(cluster: Cluster) -> None:
    assert cluster.proxy is not None

    job_id = kill_api_before_it_rings(cluster, cluster.proxy)
    came_back = time.monotonic()
    cluster.wait(job_id, lambda job: job.started_at is not None)
    found_after = time.monotonic() - came_back
    ended = cluster.wait_until_ended(job_id)

    assert found_after < SWEEP_SECONDS
    assert (ended.status, once_only(cluster, job_id)) == ("succeeded", [])


def test_a_stream_of_events_outlives_the_api(cluster: Cluster) -> None:
    assert cluster.api is not None
    job = cluster.submit(**LONG)
    streamed: list[JobEvent] = []
    watcher = threading.Thread(
        target=lambda: streamed.extend(cluster.client.jobs.stream_events(job.id))
    )

    watcher.start()
    cluster.wait_until_running(job.id)
    cluster.api.kill()
    cluster.start_api()
    watcher.join(60)

    assert not watcher.is_alive()
    assert streamed == cluster.events(job.id)
    assert history_faults(streamed) == []
    assert streamed[-1].type == "succeeded"
