from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path

import pytest
import redis
from starlette.testclient import TestClient

from service.broker_probe import TIMEOUT_SECONDS, _client
from service.services import Services
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.settings import Settings
from sharpzo_engine import Level
from sharpzo_engine.clip.onnx.manifest import Manifest
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from tests.helpers import eventually
from tests.service.conftest import MakeClient, assert_problem, ready_dataset


def test_livez(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "ok"}


def test_readyz_names_what_is_missing(client: TestClient, services: Services) -> None:
    body = assert_problem(client.get("/readyz"), 503, "not_ready")
    assert body["detail"].startswith("worker: no heartbeat for")
    services.workers.beat("w1", "host", 1)
    assert client.get("/readyz").json() == {"status": "ok", "backbones": []}


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


def test_readyz_sees_a_disk_that_is_nearly_full(
    make_client: MakeClient, settings: Settings
) -> None:
    client = make_client(settings.model_copy(update={"min_free_bytes": 10**15}))
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    services.workers.beat("w1", "host", 1)
    detail = assert_problem(client.get("/readyz"), 503, "not_ready")["detail"]
    assert re.fullmatch(
        r"storage: \d+ bytes are free, below the minimum of 1000000000000000", detail
    )


def test_readyz_sees_a_data_folder_that_cannot_be_written(
    client: TestClient, services: Services, data_dir: Path
) -> None:
    services.workers.beat("w1", "host", 1)
    away = data_dir.rename(data_dir.with_name("away"))
    detail = assert_problem(client.get("/readyz"), 503, "not_ready")["detail"]
    assert "storage: the data folder is not writable: No such file" in detail
    away.rename(data_dir)
    assert client.get("/readyz").status_code == 200


@pytest.mark.needs("redis")
def test_a_full_broker_is_told_and_refuses_no_job(
    make_client: MakeClient, settings: Settings, redis_url: str
) -> None:
    client = make_client(settings.model_copy(update={"broker_url": redis_url}))
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    services.workers.beat("w1", "host", 1)
    body = {"dataset_id": ready_dataset(client)["id"], "config": {"shots": 1}}
    assert client.get("/readyz").status_code == 200
    with redis.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("maxmemory", 1)
        detail = assert_problem(client.get("/readyz"), 503, "not_ready")["detail"]
        assert detail.startswith("broker: rejects writes: ")
        assert client.post("/v1/jobs", json=body).status_code == 201
        server.config_set("maxmemory", 0)
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/jobs", json=body).status_code == 201
    eventually(services.queue.depth)  # the thread that rings has survived
    assert len(client.get("/v1/jobs").json()["data"]) == 2


def test_a_broker_that_is_frozen_or_gone_is_told(
    make_client: MakeClient, settings: Settings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # takes connections, and that is all
        url = f"redis://127.0.0.1:{frozen.getsockname()[1]}/0"
        client = make_client(settings.model_copy(update={"broker_url": url}))
        services: Services = client.app.state.services  # type: ignore[attr-defined]
        services.workers.beat("w1", "host", 1)
        started = time.monotonic()
        body = assert_problem(client.get("/readyz"), 503, "not_ready")
        assert time.monotonic() - started < 2 * TIMEOUT_SECONDS
        assert body["detail"] == "broker: does not answer"
    body = assert_problem(client.get("/readyz"), 503, "not_ready")
    assert body["detail"] == "broker: does not answer"


def test_the_probe_understands_the_address_of_a_socket(tmp_path: Path) -> None:
    client = _client(f"redis+socket://{tmp_path}/redis.sock?virtual_host=3")
    assert client.connection_pool.connection_kwargs["path"] == f"{tmp_path}/redis.sock"
    assert client.connection_pool.connection_kwargs["db"] == 3


def test_readyz_waits_for_the_warm_up_and_tells_what_is_loaded(
    client: TestClient, services: Services
) -> None:
    services.workers.beat("w1", "host", 1)
    release = threading.Event()
    services.inference._encoder.submit(lambda: release.wait(10))
    services.inference.warm_up()
    detail = assert_problem(client.get("/readyz"), 503, "not_ready")["detail"]
    assert detail == "inference: the default backbone is loading"
    release.set()
    services.inference._encoder.submit(lambda: None).result(60)
    assert client.get("/readyz").json() == {"status": "ok", "backbones": ["tiny"]}


def test_readyz_tells_of_a_backbone_that_cannot_be_loaded(
    make_client: MakeClient, data_dir: Path, tmp_path: Path
) -> None:
    settings = Settings(
        data_dir=data_dir,
        device="cpu",
        backbones=f"gone=local-dir:{tmp_path / 'gone'}",
        default_backbone="gone",
    )
    client = make_client(settings)
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    services.workers.beat("w1", "host", 1)
    services.inference.warm_up()
    services.inference._encoder.submit(lambda: None).result(60)
    detail = assert_problem(client.get("/readyz"), 503, "not_ready")["detail"]
    assert detail == "inference: backbone gone cannot be loaded"


def test_metrics_count_by_template(client: TestClient, services: Services) -> None:
    services.workers.beat("w1", "host", 1)
    client.get("/v1/jobs/job_1")
    client.get("/v1/jobs/job_2")
    client.get("/nonesuch/1")
    client.request("MINE", "/v1/jobs/job_1")  # labels that anybody can make up would never end
    text = client.get("/metrics").text
    label = 'method="GET",route="/v1/jobs/{job_id}",status="404"'
    assert f"sharpzo_http_requests_total{{{label}}} 2.0" in text
    assert 'route="unmatched",status="404"} 1.0' in text
    assert 'sharpzo_jobs{status="queued"} 0.0' in text
    assert "sharpzo_workers_alive 1.0" in text
    assert "job_1" not in text
    assert "MINE" not in text


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
    assert page["data"][0] == {
        "name": "tiny",
        "default": True,
        "loaded": False,
        "level": "tangents",
        "runtime": "torch",
        "precision": "float32",
        "agreement": None,
    }


def test_a_remote_backbone_says_what_it_gives(make_client: MakeClient, settings: Settings) -> None:
    listed = "tiny,far=remote:http://127.0.0.1:1/x,texts=openai-embeddings:http://127.0.0.1:1/v1#m"
    client = make_client(Settings(data_dir=settings.data_dir, device="cpu", backbones=listed))
    found = {item["name"]: item for item in client.get("/v1/backbones").json()["data"]}
    kinds = {name: (item["runtime"], item["level"]) for name, item in found.items()}
    assert kinds["far"] == ("remote", "contexts")
    assert kinds["texts"] == ("remote", "texts")
    assert found["far"]["precision"] is None
    config = {"shots": 1, "method": "first-order"}
    body = {"dataset_id": ready_dataset(client)["id"], "backbone": "far", "config": config}
    problem = assert_problem(client.post("/v1/jobs", json=body), 409, "level_missing")
    assert "far gives contexts" in problem["detail"]
    body["backbone"] = "texts"  # residuals of embeddings have exact derivatives
    assert client.post("/v1/jobs", json=body).status_code == 201
    body["backbone"] = "remote:http://127.0.0.1:1/x"
    assert_problem(client.post("/v1/jobs", json=body), 422, "validation_error")


def test_an_exported_backbone_says_what_it_is(
    make_client: MakeClient, settings: Settings, tmp_path: Path
) -> None:
    manifest = Manifest(
        "tiny", None, "0" * 64, "int8", Level.CONTEXTS, 30.0, 128, 128, 77,
        Preprocessing(64, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)), {}, {"top1": 0.99},
    )  # fmt: skip
    (tmp_path / "encoder.json").write_text(manifest.to_json())
    backbones = f"tiny,small=onnx-dir:{tmp_path},gone=onnx-dir:{tmp_path}/gone"
    client = make_client(Settings(data_dir=settings.data_dir, device="cpu", backbones=backbones))
    found = {item["name"]: item for item in client.get("/v1/backbones").json()["data"]}
    assert found["small"] == {
        "name": "small",
        "default": False,
        "loaded": False,
        "level": "contexts",
        "runtime": "onnxruntime",
        "precision": "int8",
        "agreement": 0.99,
    }
    assert (found["gone"]["precision"], found["gone"]["agreement"]) == (None, None)
    dataset = ready_dataset(client)
    for config in ({"method": "first-order"}, {"zo": {"estimator": "jvp"}}):
        body = {"dataset_id": dataset["id"], "backbone": "small", "config": config | {"shots": 1}}
        problem = assert_problem(client.post("/v1/jobs", json=body), 409, "level_missing")
        assert "small gives contexts" in problem["detail"]
