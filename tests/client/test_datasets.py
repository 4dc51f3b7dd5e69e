from __future__ import annotations

import json
import os
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sharpzo_client import DatasetFailed, InputError, NotFoundError, WaitTimeoutError

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path

PIXELS = b"\x89PNG-not-really" * 100


def _multipart(request: httpx.Request) -> dict[str, Message]:
    """Parts of a body by field, read by the standard library."""
    from email import message_from_bytes

    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + request.read()).get_payload()
    return {part.get_param("name", header="content-disposition"): part for part in parts}  # type: ignore[misc,union-attr]


class Service:
    """Takes an upload and answers looks with the given statuses, then the last for ever."""

    def __init__(self, *statuses: str, refuse_first: bool = False) -> None:
        self.statuses = list(statuses)
        self.uploads: list[dict[str, Message]] = []
        self.refuse_first = refuse_first

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            self.uploads.append(_multipart(request))
            if self.refuse_first and len(self.uploads) == 1:
                return httpx.Response(503)
            return httpx.Response(202, json={"id": "ds_1", "status": "processing"})
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        error = {"code": "dataset_layout_invalid", "message": "no classes"}
        return httpx.Response(
            200,
            json={"id": "ds_1", "status": status, "error": error if status == "failed" else None},
        )

    def archive(self, index: int = -1) -> zipfile.ZipFile:
        content = self.uploads[index]["file"].get_payload(decode=True)
        return zipfile.ZipFile(BytesIO(content))  # type: ignore[arg-type]


def _photos(root: Path) -> Path:
    folder = root / "photos"
    for name in (
        "train/cat/1.JPG",
        "train/dog/2.png",
        "train/dog/.hidden.png",
        "train/dog/notes.txt",
        ".git/3.png",
        "__MACOSX/4.png",
        ".DS_Store",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PIXELS)
    (folder / "classnames.json").write_text(json.dumps({"cat": "a cat"}))
    (folder / "split_zhou_Photos.json").write_text("{}")
    return folder


def test_a_folder_is_packed_without_what_does_not_belong(harness: Any, tmp_path: Path) -> None:
    service = Service("processing", "ready")
    client = harness.client(service)
    dataset = harness.run(lambda: client.datasets.upload(_photos(tmp_path)))
    assert (dataset.id, dataset.status) == ("ds_1", "ready")
    archive = service.archive()
    assert archive.namelist() == [
        "classnames.json",
        "split_zhou_Photos.json",
        "train/cat/1.JPG",
        "train/dog/2.png",
    ]
    assert archive.read("train/dog/2.png") == PIXELS
    part = service.uploads[0]
    assert part["name"].get_payload() == "photos"
    assert part["file"].get_filename() == "photos.zip"


def test_a_repeated_upload_starts_from_the_beginning(harness: Any, tmp_path: Path) -> None:
    service = Service("ready", refuse_first=True)
    client = harness.client(service)
    harness.run(lambda: client.datasets.upload(_photos(tmp_path), name="mine"))
    assert service.archive(0).namelist() == service.archive(1).namelist()


def test_an_archive_is_sent_as_it_is(harness: Any, tmp_path: Path) -> None:
    path = tmp_path / "birds.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/wren/1.png", PIXELS)
    service = Service("ready")
    client = harness.client(service)
    harness.run(lambda: client.datasets.upload(str(path), wait=False))
    assert service.archive().namelist() == ["train/wren/1.png"]
    assert service.uploads[0]["file"].get_filename() == "birds.zip"


def test_linked_folders_are_followed_but_not_for_ever(harness: Any, tmp_path: Path) -> None:
    folder = _photos(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "5.webp").write_bytes(PIXELS)
    (folder / "train" / "fox").symlink_to(tmp_path / "elsewhere")
    (folder / "train" / "loop").symlink_to(folder)
    service = Service("ready")
    client = harness.client(service)
    harness.run(lambda: client.datasets.upload(folder))
    names = service.archive().namelist()
    assert "train/fox/5.webp" in names
    assert not [name for name in names if "loop" in name]


@pytest.mark.parametrize("kind", ["missing", "empty", "text"])
def test_what_cannot_be_a_dataset_is_refused_here(harness: Any, tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    service = Service("ready")
    client = harness.client(service)
    with pytest.raises(InputError, match=kind):
        harness.run(lambda: client.datasets.upload(tmp_path / kind))
    assert service.uploads == []


def test_a_failed_dataset_is_an_error(harness: Any, tmp_path: Path) -> None:
    client = harness.client(Service("processing", "failed"))
    with pytest.raises(DatasetFailed, match="no classes") as caught:
        harness.run(lambda: client.datasets.upload(_photos(tmp_path)))
    assert caught.value.dataset.error.code == "dataset_layout_invalid"


def test_waiting_can_be_bounded(harness: Any) -> None:
    client = harness.client(Service("processing"))
    with pytest.raises(WaitTimeoutError, match="still processing"):
        harness.run(lambda: client.datasets.wait("ds_1", timeout=0))


def _sheet(request: httpx.Request) -> httpx.Response:
    assert request.url.path == "/v1/datasets/ds_1/contact-sheet"
    return httpx.Response(200, content=b"\xff\xd8\xff a JPEG")


def test_a_contact_sheet_is_written_whole(harness: Any, tmp_path: Path) -> None:
    client = harness.client(_sheet)
    path = harness.run(lambda: client.datasets.contact_sheet("ds_1", tmp_path / "sheet.jpg"))
    assert path.read_bytes() == b"\xff\xd8\xff a JPEG"


def test_a_contact_sheet_that_is_not_there_leaves_the_old_file(
    harness: Any, tmp_path: Path
) -> None:
    (tmp_path / "sheet.jpg").write_bytes(b"old")
    client = harness.client(lambda _: httpx.Response(404))
    with pytest.raises(NotFoundError):
        harness.run(lambda: client.datasets.contact_sheet("ds_1", tmp_path / "sheet.jpg"))
    assert (tmp_path / "sheet.jpg").read_bytes() == b"old"


def test_dates_before_1980_do_not_stop_a_zip(harness: Any, tmp_path: Path) -> None:
    folder = _photos(tmp_path)
    os.utime(folder / "train/dog/2.png", (0, 0))
    client = harness.client(Service("ready"))
    assert harness.run(lambda: client.datasets.upload(folder)).status == "ready"
