from __future__ import annotations

import threading

import pytest
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_core.errors import StorageUnavailable
from tests.service.conftest import assert_problem


def test_livez(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "ok"}


def test_readyz_names_what_is_missing(client: TestClient, services: Services) -> None:
    body = assert_problem(client.get("/readyz"), 503, "not_ready")
    assert body["detail"].startswith("worker: none was heard of")
    services.workers.beat("w1", "host", 1)
    assert client.get("/readyz").json() == {"status": "ok"}


def test_readyz_without_database_broker_and_thread(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise StorageUnavailable("the database does not answer")

    services.workers.beat("w1", "host", 1)
    services.inference.close()
    monkeypatch.setattr(services.queue, "depth", lambda: None)
    monkeypatch.setattr("service.routes.health.ping", unavailable)
    detail = assert_problem(client.get("/readyz"), 503, "not_ready")["detail"]
    for part in ("database: the database", "broker: does not", "inference: its thread"):
        assert part in detail
    assert "worker" not in detail
    assert client.get("/livez").status_code == 200


def test_readyz_waits_for_the_warm_up(client: TestClient, services: Services) -> None:
    services.workers.beat("w1", "host", 1)
    release = threading.Event()
    services.inference._models.submit(lambda: release.wait(10))
    services.inference._backbones.load = lambda _: None  # type: ignore[method-assign,assignment]
    services.inference.warm_up()
    detail = assert_problem(client.get("/readyz"), 503, "not_ready")["detail"]
    assert detail == "inference: is loading its backbone"
    release.set()
    services.inference._models.submit(lambda: None).result(10)
    assert client.get("/readyz").status_code == 200


def test_metrics_count_by_template(client: TestClient, services: Services) -> None:
    services.workers.beat("w1", "host", 1)
    client.get("/v1/jobs/job_1")
    client.get("/v1/jobs/job_2")
    client.get("/nonesuch/1")
    text = client.get("/metrics").text
    label = 'method="GET",route="/v1/jobs/{job_id}",status="404"'
    assert f"sharpzo_http_requests_total{{{label}}} 2.0" in text
    assert 'route="unmatched",status="404"} 1.0' in text
    assert 'sharpzo_jobs{status="queued"} 0.0' in text
    assert "sharpzo_workers_alive 1.0" in text
    assert "job_1" not in text


def test_metrics_survive_the_database(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> None:
        raise StorageUnavailable

    monkeypatch.setattr(services.jobs, "count_by_status", unavailable)
    response = client.get("/metrics")
    assert response.status_code == 200
    assert "sharpzo_http_requests_total" in response.text


def test_backbones(client: TestClient) -> None:
    page = client.get("/v1/backbones").json()
    assert page["data"][0] == {"name": "tiny", "default": True, "loaded": False}
