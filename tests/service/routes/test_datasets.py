from __future__ import annotations

import errno
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_core.errors import StorageFull, StorageUnavailable
from sharpzo_core.records.datasets import manifest_key, stored_key
from sharpzo_core.settings import Settings
from tests.helpers import eventually
from tests.service.conftest import (
    MakeClient,
    assert_problem,
    dataset_members,
    files_below,
    png,
    ready_dataset,
    settle,
    tar_of,
    upload,
    zip_of,
)


@pytest.mark.decoders
@pytest.mark.parametrize(
    "archive",
    [
        zip_of(dataset_members()),
        tar_of(dataset_members()),
        tar_of(dataset_members(), "w:gz"),
        zip_of({f"pets/{path}": data for path, data in dataset_members().items()}),
        tar_of({f"./{path}": data for path, data in dataset_members().items()}),
    ],
    ids=["zip", "tar", "tar.gz", "top folder", "dot folder"],
)
def test_an_archive_becomes_a_ready_dataset(
    client: TestClient, services: Services, data_dir: Path, archive: bytes
) -> None:
    response = upload(client, archive, "pets")
    assert response.status_code == 202
    assert response.json()["status"] == "processing"
    dataset = settle(client, response.json()["id"])

    assert dataset["status"] == "ready"
    assert dataset["classes"] == ["cat", "dog"]
    assert dataset["splits"] == {"train": 6, "val": 6, "test": 6}
    assert dataset["error"] is None
    assert dataset["report"]["ok"]
    assert dataset["report"]["classes"]["listed"][0] == {
        "name": "cat",
        "train": 3,
        "val": 3,
        "test": 3,
    }
    manifest = services.artifacts.get_bytes(manifest_key(dataset["id"]))
    assert dataset["sha256"] == hashlib.sha256(manifest).hexdigest()
    stored = json.loads(manifest)["splits"]["train"][0]["image"]
    record = services.datasets.get(dataset["id"])
    image = services.artifacts.get_bytes(stored_key(record, stored))
    assert stored == f"{hashlib.sha256(image).hexdigest()}.png"
    assert files_below(data_dir / "uploads") == []


def test_the_same_images_give_the_same_hash(client: TestClient) -> None:
    assert ready_dataset(client)["sha256"] == ready_dataset(client)["sha256"]


def test_classes_alone_are_split_and_display_names_used(client: TestClient) -> None:
    members = {f"c{c}/{i}.png": png((c * 50, i, 0)) for c in range(2) for i in range(10)}
    members |= {"classnames.json": b'{"c0": "tabby cat"}', "__MACOSX/x.png": b"", "notes.txt": b"-"}
    dataset = settle(client, upload(client, zip_of(members)).json()["id"])
    assert dataset["classes"] == ["tabby cat", "c1"]
    assert dataset["splits"] == {"train": 12, "val": 4, "test": 4}
    assert dataset["report"]["skipped"] == 2


def test_duplicates_across_splits_are_reported(client: TestClient) -> None:
    members = dict(dataset_members())
    members["test/cat/copy.png"] = members["train/cat/0.png"]
    dataset = settle(client, upload(client, zip_of(members)).json()["id"])
    findings = {finding["code"]: finding for finding in dataset["report"]["findings"]}
    assert findings["duplicates_across_splits"]["count"] == 1
    assert findings["duplicates_across_splits"]["examples"] == [
        "train/cat/0.png = test/cat/copy.png"
    ]


def test_list_get_and_delete(client: TestClient, data_dir: Path) -> None:
    ids = [ready_dataset(client)["id"] for _ in range(3)]
    first = client.get("/v1/datasets", params={"limit": 2}).json()
    assert [d["id"] for d in first["data"]] == ids[:0:-1]
    assert first["has_more"]
    second = client.get("/v1/datasets", params={"limit": 2, "after": first["next"]}).json()
    assert ([d["id"] for d in second["data"]], second["next"]) == (ids[:1], None)

    assert client.delete(f"/v1/datasets/{ids[0]}").status_code == 204
    assert_problem(client.get(f"/v1/datasets/{ids[0]}"), 404, "not_found")
    assert_problem(client.delete(f"/v1/datasets/{ids[0]}"), 404, "not_found")
    assert not any(ids[0] in path for path in files_below(data_dir))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"<html>hello</html>" * 100, 415, "unsupported_media_type"),
        (b"%PDF-1.7" + bytes(600), 415, "unsupported_media_type"),
        (b"", 422, "archive_corrupt"),
        (zip_of({}), 422, "archive_corrupt"),
        (tar_of({}), 422, "archive_corrupt"),
        (b"\x1f\x8b" + b"x" * 100, 422, "archive_corrupt"),
        (zip_of(dataset_members())[:-30], 422, "archive_corrupt"),
        (zip_of({"../../evil.png": png()}), 422, "archive_unsafe_path"),
    ],
    ids=["html", "pdf", "nothing", "empty zip", "empty tar", "bad gzip", "cut zip", "zip slip"],
)
def test_what_is_no_archive_is_refused_at_once(
    client: TestClient, data_dir: Path, body: bytes, status: int, code: str
) -> None:
    assert_problem(upload(client, body), status, code)
    assert client.get("/v1/datasets").json()["data"] == []
    assert files_below(data_dir / "uploads") == []
    assert files_below(data_dir / "artifacts") == []


@pytest.mark.parametrize(
    ("members", "code", "words"),
    [
        ({"a.png": png(), "b.png": png()}, "dataset_layout_invalid", "no training images"),
        ({"train/cat/1.png": png()}, "dataset_layout_invalid", "only one class"),
        ({"readme.txt": b"nothing here"}, "dataset_layout_invalid", "no training images"),
        (
            {**dataset_members(), "train/dog/bad.jpg": png(size=64)[:-40]},
            "image_undecodable",
            "train/dog/bad.jpg",
        ),
        (
            {**dataset_members(), "train/dog/bad.jpg": b"no image"},
            "image_format_not_allowed",
            "train/dog/bad.jpg",
        ),
        (
            {"train/cat/1.png": png(), "train/cat/2.png": b"no image"},
            "dataset_layout_invalid",
            "train/cat/2.png",
        ),
    ],
    ids=[
        "images at the root",
        "one class",
        "no images",
        "unreadable image",
        "no image",
        "all at once",
    ],
)
def test_a_dataset_that_cannot_be_used_fails_and_leaves_nothing(
    client: TestClient, data_dir: Path, members: dict[str, bytes], code: str, words: str
) -> None:
    response = upload(client, zip_of(members))
    assert response.status_code == 202
    dataset = settle(client, response.json()["id"])
    assert dataset["status"] == "failed"
    assert dataset["error"]["code"] == code
    assert words in dataset["error"]["message"]
    assert files_below(data_dir / "uploads") == []
    assert files_below(data_dir / "artifacts") == []


def test_the_report_of_a_failure_lists_unreadable_images(client: TestClient) -> None:
    members = dict(dataset_members()) | {f"train/cat/bad{i}.png": b"x" for i in range(7)}
    dataset = settle(client, upload(client, zip_of(members)).json()["id"])
    assert "and 2 more" in dataset["error"]["message"]
    assert dataset["report"]["unreadable"]["total"] == 7
    assert len(dataset["report"]["unreadable"]["listed"]) == 7
    assert not dataset["report"]["ok"]


@pytest.mark.bad_input("P8")
def test_names_of_files_are_never_paths(client: TestClient, tmp_path: Path) -> None:
    files = {"file": ("../../../../escape.zip", zip_of(dataset_members()))}
    response = client.post("/v1/datasets", data={"name": "a"}, files=files)
    assert response.status_code == 202
    settle(client, response.json()["id"])
    assert not list(tmp_path.rglob("*escape*"))


def test_an_upload_over_the_limit_is_refused_and_removed(
    make_client: MakeClient, data_dir: Path
) -> None:
    client = make_client(Settings(data_dir=data_dir, max_upload_bytes=1000))
    assert_problem(upload(client, b"PK\x03\x04" + bytes(5000)), 413, "payload_too_large")
    assert files_below(data_dir / "uploads") == []


def test_a_full_disk_is_507_and_the_upload_is_removed(
    client: TestClient, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("service.ingest.uploads.os.fsync", full)
        assert_problem(upload(client, zip_of(dataset_members())), 507, "storage_full")
    assert files_below(data_dir / "uploads") == []
    assert ready_dataset(client)["status"] == "ready"


def test_a_full_artifact_store_fails_the_dataset(
    client: TestClient, services: Services, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageFull("the artifact store is full")

    monkeypatch.setattr(services.artifacts, "put_bytes", full)
    dataset = settle(client, upload(client, zip_of(dataset_members())).json()["id"])
    assert dataset["error"]["code"] == "storage_full"
    assert files_below(data_dir / "uploads") == []


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"files": {"file": ("a", b"x")}}, 422, "validation_error"),
        ({"data": {"name": "a"}, "files": {"other": ("a", b"x")}}, 422, "validation_error"),
        ({"data": {"name": "a\nb"}, "files": {"file": ("a", b"x")}}, 422, "validation_error"),
        ({"data": {"name": ""}, "files": {"file": ("a", b"x")}}, 422, "validation_error"),
        ({"data": {"name": "x" * 5000}, "files": {"file": ("a", b"x")}}, 413, "payload_too_large"),
        ({"data": {"name": "a"}}, 415, "unsupported_media_type"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, None),
        ({"content": b"x"}, 415, None),
        ({"json": {"name": "a", "uri": "/etc/passwd"}}, 403, "path_not_allowed"),
        ({"json": {"name": "a"}}, 422, "validation_error"),
    ],
)
def test_bad_forms(
    client: TestClient, data_dir: Path, request_: dict[str, Any], status: int, code: str | None
) -> None:
    response = client.post("/v1/datasets", **request_)
    assert_problem(response, status, code or "unsupported_media_type")
    assert files_below(data_dir / "uploads") == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=" + "b" * 300, b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nno colon"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nPK\x03\x04',
        ),
    ],
    ids=["no boundary", "long boundary", "no header", "cut"],
)
def test_broken_multipart(
    client: TestClient, data_dir: Path, content_type: str, body: bytes
) -> None:
    headers = {"content-type": content_type}
    response = client.post("/v1/datasets", content=body, headers=headers)
    assert_problem(response, 400, "malformed_multipart")
    assert files_below(data_dir / "uploads") == []


def test_import_from_an_allowed_place(
    make_client: MakeClient, data_dir: Path, tmp_path: Path
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "pets.zip").write_bytes(zip_of(dataset_members()))
    (tmp_path / "secret.zip").write_bytes(zip_of(dataset_members()))
    (allowed / "link.zip").symlink_to(tmp_path / "secret.zip")
    client = make_client(Settings(data_dir=data_dir, allowed_dataset_uris=str(allowed)))

    def ask(uri: str) -> Any:
        return client.post("/v1/datasets", json={"name": "pets", "uri": uri})

    for uri in (f"{allowed}/pets.zip", f"file://{allowed}/pets.zip"):
        response = ask(uri)
        assert response.status_code == 202, response.text
        assert settle(client, response.json()["id"])["status"] == "ready"
    outside = [
        f"{allowed}/../secret.zip",
        f"{allowed}/link.zip",
        str(tmp_path / "secret.zip"),
        "/does/not/exist",
        "//proc/self/root/etc/passwd",
        "http://169.254.169.254/x.zip",
        "dbfs:/x",
        str(allowed),
    ]
    for uri in outside:
        assert_problem(ask(uri), 403, "path_not_allowed")
    assert_problem(ask(f"{allowed}/none.zip"), 422, "validation_error")
    assert files_below(data_dir / "uploads") == []


def test_unfinished_datasets_are_taken_up_or_failed(
    make_client: MakeClient, settings: Settings, data_dir: Path
) -> None:
    short = {"lease_seconds": 0.2, "heartbeat_seconds": 0.1, "sweep_seconds": 0.1}
    client = make_client(settings.model_copy(update=short))
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    kept, lost = services.datasets.create("kept"), services.datasets.create("lost")
    services.uploads.path(kept.id).write_bytes(zip_of(dataset_members()))
    services.uploads.path("stray").write_bytes(b"of a request that was cut off")

    assert settle(client, kept.id)["status"] == "ready"
    assert settle(client, lost.id)["error"]["code"] == "upload_lost"
    eventually(lambda: files_below(data_dir / "uploads") == [])


def test_a_store_that_is_away_for_a_while_loses_no_upload(
    make_client: MakeClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"lease_seconds": 0.3, "heartbeat_seconds": 0.1, "sweep_seconds": 0.1}
    client = make_client(settings.model_copy(update=short))
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    asked = threading.Event()

    def away(*_: object, **__: object) -> None:
        asked.set()
        raise StorageUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(services.ingest._datasets, "mark_ready", away)
        dataset_id = upload(client, zip_of(dataset_members())).json()["id"]
        assert asked.wait(20)
    assert settle(client, dataset_id)["status"] == "ready"
