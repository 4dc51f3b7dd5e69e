"""Images that several datasets hold, as the API and the worker see them."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import httpx2
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.records.datasets import TENANTS, image_key, manifest_key
from sharpzo_core.settings import Settings
from sharpzo_engine.data.images import decode_image
from tests.helpers import Workplace, eventually
from tests.service.conftest import (
    MakeClient,
    assert_problem,
    dataset_members,
    files_below,
    png,
    ready_dataset,
    settle,
    upload,
    zip_of,
)
from tests.service.servers import server_process
from worker.dataset_files import Materials


def bytes_on_disk(folder: Path) -> int:
    return sum((folder / path).stat().st_size for path in files_below(folder))


def test_the_same_images_take_their_room_once(client: TestClient, data_dir: Path) -> None:
    shared = data_dir / "artifacts" / TENANTS
    first = ready_dataset(client)
    size = bytes_on_disk(shared)
    assert size == first["report"]["bytes"]
    second = ready_dataset(client)
    assert bytes_on_disk(shared) == size
    assert second["sha256"] == first["sha256"]
    assert client.delete(f"/v1/datasets/{first['id']}").status_code == 204
    assert bytes_on_disk(shared) == size
    assert client.delete(f"/v1/datasets/{second['id']}").status_code == 204
    assert files_below(data_dir / "artifacts") == []


def test_a_failed_dataset_frees_what_it_stored_before(
    client: TestClient, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.ingest.image_writer.BATCH_FILES", 2)
    members = dict(dataset_members()) | {"zzz/last.png": b"x", "train/dog/zzz.png": png()[:-30]}
    dataset = settle(client, upload(client, zip_of(members)).json()["id"])
    assert dataset["status"] == "failed"
    assert files_below(data_dir / "artifacts") == []


def test_a_dataset_of_an_earlier_version_is_read_and_deleted(
    make_workplace: Callable[..., Workplace], make_client: MakeClient
) -> None:
    place = make_workplace()
    record = place.add_dataset()
    assert not record.shares_images
    materials = Materials(place.artifacts, place.settings.cache_dir)
    dataset = materials.dataset(record, shots=2, seed=1)
    sizes = {decode_image(example.path.read_bytes()).size for example in dataset.train}
    assert sizes == {(32, 32)}
    manifest = json.loads(place.artifacts.get_bytes(manifest_key(record.id)))
    image = manifest["splits"]["train"][0]["image"]
    assert place.artifacts.exists(image_key(record.id, image))
    client = make_client(place.settings)
    answer = client.get(f"/v1/datasets/{record.id}/contact-sheet")
    assert_problem(answer, 404, "contact_sheet_missing")
    assert client.delete(f"/v1/datasets/{record.id}").status_code == 204
    assert files_below(Path(place.settings.artifacts)) == []


@pytest.mark.parametrize("remote", [False, True])
def test_the_worker_finds_shared_images(
    make_client: MakeClient, settings: Settings, tmp_path: Path, remote: bool
) -> None:
    url = f"memory://{tmp_path.name}" if remote else ""
    client = make_client(settings.model_copy(update={"artifact_url": url}))
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    record = services.datasets.get(ready_dataset(client)["id"])
    assert record.shares_images
    materials = Materials(services.artifacts, tmp_path / "cache")
    dataset = materials.dataset(record, shots=2, seed=1)
    examples = (*dataset.train, *dataset.val, *dataset.test)
    assert {decode_image(example.path.read_bytes()).size for example in examples} == {(8, 8)}
    assert client.delete(f"/v1/datasets/{record.id}").status_code == 204
    eventually(lambda: fsspec.filesystem("memory").find(f"/{tmp_path.name}") == [])
    assert files_below(settings.cache_dir / "drafts") == []


@pytest.mark.decoders
def test_contact_sheets(client: TestClient, data_dir: Path) -> None:
    dataset = ready_dataset(client)
    answer = client.get(f"/v1/datasets/{dataset['id']}/contact-sheet")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["x-content-type-options"] == "nosniff"
    (sheet,) = data_dir.rglob("contact-sheet.jpg")
    assert answer.content == sheet.read_bytes()
    with Image.open(sheet) as picture:
        reds = sum(count for count, colour in picture.getcolors(1 << 20) or () if colour[0] < 60)
        assert picture.format == "JPEG"
    assert reds > 3 * 96 * 96 / 2  # the three cats have no red
    assert_problem(client.get("/v1/datasets/ds_none/contact-sheet"), 404, "not_found")
    failed = settle(client, upload(client, zip_of({"a/1.png": png()})).json()["id"])
    answer = client.get(f"/v1/datasets/{failed['id']}/contact-sheet")
    assert_problem(answer, 404, "contact_sheet_missing")


def test_contact_sheets_of_images_without_labels(client: TestClient) -> None:
    members = {f"x/{index}.png": png((index, 0, 0)) for index in range(9)} | {"y.png": b"no image"}
    data, files = {"name": "a", "unlabelled": "true"}, {"file": ("a.zip", zip_of(members))}
    response = client.post("/v1/datasets", data=data, files=files)
    dataset = settle(client, response.json()["id"])
    assert client.get(f"/v1/datasets/{dataset['id']}/contact-sheet").status_code == 200
    assert dataset["report"]["sizes"]["images"] == 9


@pytest.mark.slow
def test_a_process_killed_in_the_middle_leaves_its_work_to_the_next(
    settings: Settings, data_dir: Path, make_client: MakeClient
) -> None:
    """Every image of the archive is stored once in the end, and all go with the dataset."""
    quick = settings.model_copy(
        update={"lease_seconds": 1.0, "heartbeat_seconds": 0.2, "sweep_seconds": 0.2}
    )
    small_batches = (
        "import service.ingest.image_writer; service.ingest.image_writer.BATCH_FILES = 5"
    )
    images = {
        f"{name}/{i}.png": png((i, label, 0)) for label, name in enumerate("ab") for i in range(200)
    }
    archive = zip_of(images)
    shared = data_dir / "artifacts" / TENANTS
    with server_process(quick, before=small_batches) as server:
        answer = httpx2.post(
            f"{server.url()}/v1/datasets", data={"name": "a"}, files={"file": ("a.zip", archive)}
        )
        dataset_id = str(answer.json()["id"])
        eventually(lambda: len(files_below(shared)) > 20)
        os.kill(server.process.pid, signal.SIGKILL)
    client = make_client(quick)
    dataset = settle(client, dataset_id)
    assert dataset["status"] == "ready"
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    services.artifacts.remove_leftovers(TENANTS, older_than=0)
    assert bytes_on_disk(shared) == dataset["report"]["bytes"]
    client.delete(f"/v1/datasets/{dataset_id}")
    eventually(lambda: files_below(data_dir / "artifacts") == [])


@pytest.mark.decoders
def test_children_end_with_the_dataset(client: TestClient) -> None:
    def children() -> set[str]:
        paths = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        return {pid for path in paths for pid in path.read_text().split()}

    before = children()
    ready_dataset(client)
    eventually(lambda: children() <= before)


def test_a_store_that_is_away_in_the_middle_loses_nothing(
    make_client: MakeClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, data_dir: Path
) -> None:
    quick = {"lease_seconds": 0.5, "heartbeat_seconds": 0.1, "sweep_seconds": 0.1}
    client = make_client(settings.model_copy(update=quick))
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    hold, left = services.images.hold, [2]

    def away(*arguments: object) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise StorageUnavailable
        hold(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(services.images, "hold", away)
    dataset = settle(client, upload(client, zip_of(dataset_members())).json()["id"])
    assert dataset["status"] == "ready"
    assert left[0] < 0
    shared = data_dir / "artifacts" / TENANTS
    eventually(lambda: bytes_on_disk(shared) == dataset["report"]["bytes"])


def test_a_dataset_deleted_between_its_rows_and_its_files_leaves_none(
    client: TestClient, services: Services, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, held = services.images.hold, threading.Event()
    deleted = threading.Event()

    def slow(*arguments: object) -> None:
        hold(*arguments)  # type: ignore[arg-type]
        held.set()
        assert deleted.wait(20)

    monkeypatch.setattr(services.images, "hold", slow)
    dataset_id = upload(client, zip_of(dataset_members())).json()["id"]
    assert held.wait(20)
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    deleted.set()
    shared = data_dir / "artifacts" / TENANTS
    eventually(lambda: services.ingest._leased == set())
    while services.images.sweep():
        pass
    assert files_below(shared) == []
