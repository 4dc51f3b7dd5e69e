"""Imports reach what the operator allows, and nothing else."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from service.errors import ForbiddenLocation
from service.ingest.remote_fetch import open_allowed
from sharpzo_core.errors import ValidationFailed
from sharpzo_core.settings import Settings
from tests.service.conftest import (
    MakeClient,
    assert_problem,
    dataset_members,
    files_below,
    settle,
    zip_of,
)

ARCHIVE = zip_of(dataset_members())
SECRET = b"secret" * 1000
SWAPS = 10_000


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder that is allowed, and what is beside it."""
    allowed = tmp_path / "allowed"
    (allowed / "deep" / "er").mkdir(parents=True)
    (allowed / "pets.zip").write_bytes(ARCHIVE)
    (allowed / "deep" / "er" / "pets.zip").write_bytes(ARCHIVE)
    (tmp_path / "secret.zip").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.zip").write_bytes(SECRET)
    (tmp_path / "allowed-too").mkdir()
    (tmp_path / "allowed-too" / "secret.zip").write_bytes(SECRET)
    (allowed / "link.zip").symlink_to(tmp_path / "secret.zip")
    (allowed / "inner.zip").symlink_to(allowed / "pets.zip")
    (allowed / "folder").symlink_to(tmp_path / "outside")
    os.mkfifo(allowed / "pipe.zip")
    return tmp_path


def outside(root: Path) -> list[str]:
    allowed = root / "allowed"
    return [
        "/etc",
        "/etc/passwd",
        "/etc/no-such-file",
        "../x",
        "x.zip",
        "",
        str(allowed),
        f"{allowed}/",
        f"{allowed}/../secret.zip",
        f"{allowed}/deep/../../secret.zip",
        f"{allowed}/./pets.zip",
        f"{allowed}//pets.zip",
        f"{allowed}/deep/er",
        f"{allowed}/pets.zip/",
        f"{allowed}/pets.zip/x",
        f"{allowed}/link.zip",
        f"{allowed}/inner.zip",
        f"{allowed}/folder/secret.zip",
        f"{allowed}/pipe.zip",
        f"{allowed}-too/secret.zip",
        f"{root}/secret.zip",
        f"file://{root}/secret.zip",
        "file:///#/../etc/passwd",
        f"file://{allowed}/#/../../secret.zip",
        f"file:{allowed}/pets.zip",
        f"FILE://{allowed}/pets.zip",
        "//proc/self/root/etc/passwd",
        f"//proc/self/root{allowed}/pets.zip",
        "/proc/self/root/etc/passwd",
        "/dev/zero",
        "dbfs:/x",
        "http://169.254.169.254/latest/meta-data",
        "http://0x7f000001/",
        "https://example.com/x.zip",
        "github://owner:repo@main/x.zip",
        f"simplecache::file://{allowed}/pets.zip",
        f"zip://x::file://{allowed}/pets.zip",
        f"filecache::{allowed}/pets.zip",
        f"local://{root}/secret.zip",
        "memory://elsewhere/x.zip",
        "memory://bucket-too/x.zip",
        "memory://bucket/../x.zip",
        "memory://bucket/%2e%2e/x.zip",
        "memory://bucket//x.zip",
        "memory://bucket/a.zip::memory://elsewhere/x.zip",
        "s3://bucket/x.zip",
        "C:\\x.zip",
        "\\\\host\\share\\x.zip",
        "~/x.zip",
        "$HOME/x.zip",
    ]


@pytest.mark.bad_input("A17")
def test_nothing_outside_is_reached_or_known(
    make_client: MakeClient, data_dir: Path, places: Path
) -> None:
    roots = f"{places}/allowed,memory://bucket"
    client = make_client(Settings(data_dir=data_dir, allowed_dataset_uris=roots))
    answers = set()
    for uri in outside(places):
        answer = client.post("/v1/datasets", json={"name": "a", "uri": uri})
        if uri:
            body = assert_problem(answer, 403, "path_not_allowed")
            answers.add(body["detail"])
        else:
            assert_problem(answer, 422, "validation_error")
    assert len(answers) == 1  # whether something is there or not
    answer = client.post("/v1/datasets", json={"name": "a", "uri": f"{places}/allowed/no.zip"})
    assert_problem(answer, 422, "validation_error")
    assert client.get("/v1/datasets").json()["data"] == []
    assert files_below(data_dir / "uploads") == []


def test_what_is_inside_is_imported(make_client: MakeClient, data_dir: Path, places: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/pets.zip", ARCHIVE)
    roots = f"{places}/allowed/, file://{places}/outside, memory://bucket"
    client = make_client(Settings(data_dir=data_dir, allowed_dataset_uris=roots))
    for uri in (
        f"{places}/allowed/pets.zip",
        f"file://{places}/allowed/deep/er/pets.zip",
        "memory://bucket/pets.zip",
    ):
        answer = client.post("/v1/datasets", json={"name": "a", "uri": uri})
        assert answer.status_code == 202, answer.text
        assert settle(client, answer.json()["id"])["status"] == "ready"
    assert files_below(data_dir / "uploads") == []


def test_imports_have_the_size_limit_of_uploads(
    make_client: MakeClient, data_dir: Path, places: Path
) -> None:
    allowed = str(places / "allowed")
    settings = Settings(data_dir=data_dir, allowed_dataset_uris=allowed, max_upload_bytes=100)
    answer = make_client(settings).post(
        "/v1/datasets", json={"name": "a", "uri": f"{allowed}/pets.zip"}
    )
    assert_problem(answer, 413, "payload_too_large")
    assert files_below(data_dir / "uploads") == []


def test_without_a_list_nothing_is_allowed(make_client: MakeClient, data_dir: Path) -> None:
    client = make_client(Settings(data_dir=data_dir))
    for uri in ("/etc/passwd", "memory://bucket/x.zip", "file:///etc/passwd"):
        answer = client.post("/v1/datasets", json={"name": "a", "uri": uri})
        assert_problem(answer, 403, "path_not_allowed")


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Sends everybody on to what nobody asked for."""

    def do_GET(self) -> None:
        if self.path == "/secret.zip":
            self.send_response(200)
            self.send_header("Content-Length", str(len(ARCHIVE)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else ARCHIVE)
        else:
            self.send_response(302)
            self.send_header("Location", "/secret.zip")
            self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - the library asks for this name

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_redirects_are_not_followed(make_client: MakeClient, data_dir: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec's HTTP needs it")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever).start()
        place = f"http://127.0.0.1:{server.server_port}/datasets"
        client = make_client(Settings(data_dir=data_dir, allowed_dataset_uris=place))
        answer = client.post("/v1/datasets", json={"name": "a", "uri": f"{place}/pets.zip"})
        server.shutdown()
    assert_problem(answer, 422, "archive_corrupt")
    assert files_below(data_dir / "uploads") == []


@contextmanager
def swapping(place: Path, decoy: Path, link: Path) -> Iterator[None]:
    """Exchange a file or folder for a link to the outside and back, as fast as it goes."""
    stop = threading.Event()
    spare = place.with_name("spare")

    def swap() -> None:
        while not stop.is_set():
            os.rename(place, spare)  # noqa: PTH104 - as fast as it goes
            os.rename(link, place)  # noqa: PTH104
            os.rename(place, link)  # noqa: PTH104
            os.rename(spare, place)  # noqa: PTH104

    link.symlink_to(decoy)
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("what", ["the file", "a folder on the way"])
def test_a_link_that_comes_in_between_is_never_followed(places: Path, what: str) -> None:
    allowed = places / "allowed"
    wanted = allowed / "deep" / "er" / "pets.zip"
    place, decoy = {
        "the file": (wanted, places / "secret.zip"),
        "a folder on the way": (allowed / "deep" / "er", places / "outside"),
    }[what]
    (places / "outside" / "pets.zip").write_bytes(SECRET)
    seen: dict[Any, int] = {}
    with swapping(place, decoy, places / "a link"):
        for _ in range(SWAPS):
            try:
                with open_allowed(str(wanted), [str(allowed)]) as source:
                    found: Any = source.read(10)
            except (ForbiddenLocation, ValidationFailed) as error:
                found = type(error)
            seen[found] = seen.get(found, 0) + 1
    assert SECRET[:10] not in seen
    assert set(seen) <= {ARCHIVE[:10], ForbiddenLocation, ValidationFailed}
    assert seen[ARCHIVE[:10]] > 0
    assert seen[ForbiddenLocation] > 0  # so it was there
