from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_client import Client, UnprocessableEntityError
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.settings import Settings
from sharpzo_core.stores.idempotency import RESERVED_SECONDS
from sharpzo_engine import load_backbone
from tests.service.conftest import (
    MakeClient,
    assert_problem,
    dataset_members,
    files_below,
    ready_dataset,
    settle,
    zip_of,
)
from tests.service.routes.test_prompts import artifact_of
from tests.service.servers import server_process, server_thread

CONFIG = {"shots": 1}
ARCHIVE = zip_of(dataset_members())
Send = Callable[..., Any]


@cache
def artifact() -> bytes:
    return artifact_of(load_backbone("tiny", device="cpu"))


def sender(client: TestClient, kind: str) -> tuple[Send, str]:
    """Sends one request of a kind, with a boundary of its own each time; and where it creates."""
    if kind == "job":
        dataset_id = ready_dataset(client)["id"]

        def send(key: str, name: str = "a") -> Any:
            body = {"config": CONFIG, "name": name, "dataset_id": dataset_id}
            return client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})

        return send, "/v1/jobs"
    url, file = f"/v1/{kind}s", ARCHIVE if kind == "dataset" else artifact()

    def send_form(key: str, name: str = "a") -> Any:
        headers = {"Idempotency-Key": key}
        return client.post(url, data={"name": name}, files={"file": ("f", file)}, headers=headers)

    return send_form, url


@pytest.mark.parametrize("kind", ["job", "dataset", "prompt"])
def test_the_same_request_is_answered_as_the_first_time(
    client: TestClient, data_dir: Path, kind: str
) -> None:
    send, url = sender(client, kind)
    first = send("k")
    assert first.status_code in (201, 202), first.text
    assert "idempotency-replayed" not in first.headers
    again = send("k")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == "application/json"
    assert_problem(send("k", name="b"), 422, "idempotency_mismatch")
    assert len(client.get(url).json()["data"]) == 1
    if kind == "dataset":
        settle(client, first.json()["id"])
        assert files_below(data_dir / "uploads") == []
    assert send("other").json()["id"] != first.json()["id"]


@pytest.mark.bad_input("P10")
def test_a_key_belongs_to_one_endpoint(client: TestClient) -> None:
    send_job, _ = sender(client, "job")
    send_prompt, _ = sender(client, "prompt")
    assert send_job("k").status_code == 201
    assert_problem(send_prompt("k"), 422, "idempotency_mismatch")


def test_an_import_is_fetched_once(
    make_client: MakeClient, settings: Settings, tmp_path: Path
) -> None:
    source = tmp_path / "pets.zip"
    source.write_bytes(ARCHIVE)
    client = make_client(settings.model_copy(update={"allowed_dataset_uris": str(tmp_path)}))
    body = {"name": "pets", "uri": str(source)}
    headers = {"Idempotency-Key": "k"}
    first = client.post("/v1/datasets", json=body, headers=headers)
    assert first.status_code == 202
    source.unlink()
    again = client.post("/v1/datasets", json=body, headers=headers)
    assert (again.status_code, again.content) == (202, first.content)


@pytest.mark.parametrize("kind", ["job", "dataset", "prompt"])
@pytest.mark.bad_input("P10")
def test_a_key_whose_request_is_under_way_is_busy(
    client: TestClient, services: Services, kind: str
) -> None:
    send, url = sender(client, kind)
    store = services.idempotency._store
    reservation = store.reserve("k")
    response = send("k")
    assert_problem(response, 409, "idempotency_in_progress")
    assert response.headers["retry-after"] == "1"
    assert not [item for item in client.get(url).json()["data"] if item["name"] == "a"]
    store.release(reservation)  # type: ignore[arg-type]
    assert send("k").is_success


def test_a_request_that_fails_leaves_its_key_free(client: TestClient) -> None:
    send, _ = sender(client, "dataset")
    assert_problem(send("k", name="\n"), 422, "validation_error")
    assert send("k").status_code == 202
    dataset_id = ready_dataset(client)["id"]
    for body, status in (
        ({"dataset_id": "ds_1"}, 404),
        ({"dataset_id": dataset_id, "config": {"shots": 99}}, 422),
        ({"dataset_id": dataset_id, "config": CONFIG}, 201),
    ):
        response = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "j"})
        assert response.status_code == status, response.text


@pytest.mark.parametrize("key", ["", "k" * 256, "schl\u00fcssel", "a\tb"])
def test_a_malformed_key_is_named(client: TestClient, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    for url, request in (
        ("/v1/jobs", {"json": {"dataset_id": "ds_1"}}),
        ("/v1/datasets", {"data": {"name": "a"}, "files": {"file": ("a", b"x")}}),
        ("/v1/prompts", {"files": {"file": ("a", b"x")}}),
    ):
        body = assert_problem(client.post(url, headers=headers, **request), 422, "validation_error")
        assert [fault["pointer"] for fault in body["errors"]] == ["/Idempotency-Key"]


def test_a_long_request_keeps_its_key(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, _ = sender(client, "job")
    working, go_on = threading.Event(), threading.Event()
    create = services.jobs.create

    def slow(*values: Any) -> Any:
        working.set()
        assert go_on.wait(20)
        return create(*values)

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(services.jobs, "create", slow)
        first = pool.submit(send, "k")
        assert working.wait(20)
        store, clock = services.idempotency._store, services.idempotency._store._clock
        patch.setattr(store, "_clock", _later(clock, RESERVED_SECONDS - 1))
        services.idempotency._renew()
        patch.setattr(store, "_clock", _later(clock, RESERVED_SECONDS + 1))
        assert_problem(send("k"), 409, "idempotency_in_progress")
        go_on.set()
        assert first.result(20).status_code == 201
    assert send("k").headers["idempotency-replayed"] == "true"


def _later(clock: Callable[[], Any], seconds: float) -> Callable[[], Any]:
    return lambda: clock() + timedelta(seconds=seconds)


def test_a_commit_whose_answer_was_lost_is_not_repeated(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database commits, and then the driver says that it is away."""
    send, _ = sender(client, "job")
    upload, _ = sender(client, "dataset")

    def lose_answer(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **values: Any) -> Any:
            method(*args, **values)
            raise StorageUnavailable

        return call

    with monkeypatch.context() as patch:
        for store in (services.jobs, services.datasets):
            patch.setattr(store, "create", lose_answer(store.create))
        assert_problem(send("k"), 503, "storage_unavailable")
        assert_problem(upload("d"), 503, "storage_unavailable")
    assert send("k").headers["idempotency-replayed"] == "true"
    assert len(client.get("/v1/jobs").json()["data"]) == 1
    assert upload("d").headers["idempotency-replayed"] == "true"


def test_a_process_that_dies_after_the_commit_has_answered(
    make_client: MakeClient, settings: Settings
) -> None:
    client = make_client(settings)
    send, _ = sender(client, "job")
    (dataset,) = client.get("/v1/datasets").json()["data"]
    body = {"config": CONFIG, "name": "a", "dataset_id": dataset["id"]}
    dies = """
import os, signal
from sharpzo_core.stores.job_store import JobStore
create = JobStore.create
def create_and_die(self, *values):
    create(self, *values)
    os.kill(os.getpid(), signal.SIGKILL)
JobStore.create = create_and_die
"""
    with server_process(settings, before=dies) as server:
        with pytest.raises(httpx2.TransportError):
            httpx2.post(f"{server.url()}/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
        server.process.wait(20)
    (job,) = client.get("/v1/jobs").json()["data"]
    again = send("k")
    assert (again.status_code, again.json()["id"]) == (201, job["id"])
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_fifty_clients_with_one_key_make_one_job(settings: Settings) -> None:
    with server_thread(settings) as url, Client(url, timeout=60) as client:
        dataset_id = ready_dataset_of(client)
        start = threading.Barrier(50)

        def submit(_: int) -> str:
            with Client(url, timeout=60) as own:
                start.wait(30)
                return own.jobs.create(dataset_id, config=CONFIG, idempotency_key="k").id

        with ThreadPoolExecutor(50) as pool:
            ids = set(pool.map(submit, range(50)))
        assert len(ids) == 1
        assert [job.id for job in client.jobs.list()] == list(ids)
        with pytest.raises(UnprocessableEntityError) as caught:
            client.jobs.create(dataset_id, config=CONFIG, name="b", idempotency_key="k")
        assert caught.value.code == "idempotency_mismatch"


def ready_dataset_of(client: Client) -> str:
    with NamedTemporaryFile(suffix=".zip") as file:
        file.write(ARCHIVE)
        file.flush()
        return client.datasets.upload(file.name, name="pets", poll=0.05).id


def test_openapi_tells_of_the_key(shared_client: TestClient) -> None:
    paths = shared_client.get("/openapi.json").json()["paths"]
    for path in ("/v1/jobs", "/v1/datasets", "/v1/prompts"):
        operation = paths[path]["post"]
        (header,) = [p for p in operation["parameters"] if p["name"] == "Idempotency-Key"]
        assert header["in"] == "header"
        assert not header["required"]
        assert {"408", "409", "422"} <= operation["responses"].keys()
        (schema,) = [
            answer["content"]["application/json"]["schema"]
            for status, answer in operation["responses"].items()
            if status in ("201", "202")
        ]
        assert schema["$ref"].endswith("Public")
