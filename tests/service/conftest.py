"""A real application over real stores in a temporary folder."""

from __future__ import annotations

import io
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.app import create_app
from service.services import Services
from sharpzo_core.settings import Settings

Members = Mapping[str, bytes]
MakeClient = Callable[..., TestClient]


def png(color: tuple[int, int, int] = (200, 30, 30), size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, "PNG")
    return file.getvalue()


def dataset_members(per_class: int = 3, classes: tuple[str, ...] = ("cat", "dog")) -> Members:
    """Every image differs."""
    return {
        f"{split}/{name}/{i}.png": png((label * 90, i * 20, len(split) * 10))
        for split in ("train", "val", "test")
        for label, name in enumerate(classes)
        for i in range(per_class)
    }


def zip_of(members: Members, **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def tar_of(members: Members, mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def settle(client: TestClient, dataset_id: str) -> dict[str, Any]:
    """Wait until a dataset is ready or failed, and its archive removed."""
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        dataset: dict[str, Any] = client.get(f"/v1/datasets/{dataset_id}").json()
        if dataset["status"] != "processing" and not services.uploads.path(dataset_id).exists():
            return dataset
        time.sleep(0.01)
    raise AssertionError("the dataset is still processing")


def upload(client: TestClient, archive: bytes, name: str = "pets") -> Any:
    return client.post("/v1/datasets", data={"name": name}, files={"file": ("a.zip", archive)})


def ready_dataset(client: TestClient, per_class: int = 3) -> dict[str, Any]:
    response = upload(client, zip_of(dataset_members(per_class)))
    assert response.status_code == 202, response.text
    dataset = settle(client, response.json()["id"])
    assert dataset["status"] == "ready", dataset
    return dataset


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def assert_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """Every error has the one form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "code", "request_id"} <= body.keys()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"].endswith(code)
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def open_client(settings: Settings) -> TestClient:
    """A client of a new application; entering it starts the application."""
    return TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False)


@pytest.fixture(autouse=True)
def _decoders(request: pytest.FixtureRequest) -> None:
    if not request.node.get_closest_marker("decoders"):
        request.getfixturevalue("decode_in_process")


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir, device="cpu")


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    """Opens applications, and closes them at the end."""
    opened: list[TestClient] = []

    def make(settings: Settings) -> TestClient:
        opened.append(open_client(settings).__enter__())
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def shared_client(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path
) -> Iterator[TestClient]:
    """One application for a module's requests that change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(migrated_sqlite, folder)
    with open_client(Settings(data_dir=folder, device="cpu")) as client:
        yield client


@pytest.fixture
def client(make_client: MakeClient, settings: Settings) -> TestClient:
    return make_client(settings)


@pytest.fixture
def services(client: TestClient) -> Services:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return services
