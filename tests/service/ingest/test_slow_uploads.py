"""Clients that are slow, stop in the middle or vanish, on real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from sharpzo_core.settings import Settings
from tests.helpers import eventually
from tests.service.conftest import dataset_members, files_below, zip_of
from tests.service.servers import server_thread

IDLE_SECONDS = 0.5
TYPES = {
    "/v1/datasets": "multipart/form-data; boundary=b",
    "/v1/prompts": "multipart/form-data; boundary=b",
    "/v1/jobs": "application/json",
}
BEGINNING = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
END = b'\r\n--b\r\nContent-Disposition: form-data; name="name"\r\n\r\na\r\n--b--\r\n'


@pytest.fixture
def url(data_dir: Path) -> Iterator[httpx2.URL]:
    settings = Settings(data_dir=data_dir, device="cpu", upload_idle_seconds=IDLE_SECONDS)
    with server_thread(settings) as url:
        yield httpx2.URL(url)


def begin(url: httpx2.URL, path: str, length: int, body: bytes) -> socket.socket:
    """Send a request's head and the beginning of its body."""
    assert url.port is not None
    connection = socket.create_connection((url.host, url.port), timeout=20)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPES[path]}\r\n"
        f"Idempotency-Key: k\r\nContent-Length: {length}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def read_to_end(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """The status and the body of an answer after which the server closes the connection."""
    answer = bytearray()
    while chunk := connection.recv(65536):
        answer += chunk
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("path", TYPES)
def test_a_body_that_makes_no_progress_is_given_up(
    url: httpx2.URL, data_dir: Path, path: str
) -> None:
    started = time.monotonic()
    with begin(url, path, 100_000, BEGINNING) as connection:
        status, problem = read_to_end(connection)
    assert (status, problem["code"]) == (408, "request_timeout")
    assert IDLE_SECONDS <= time.monotonic() - started < 10
    assert files_below(data_dir / "uploads") == []
    with begin(url, path, 100_000, BEGINNING) as connection:  # its key is free again
        assert read_to_end(connection)[0] == 408


def test_a_slow_body_that_does_make_progress_is_taken(url: httpx2.URL) -> None:
    body = BEGINNING + zip_of(dataset_members()) + END
    size = len(body) // 6
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    with begin(url, "/v1/datasets", len(body), b"") as connection:
        for piece in pieces:
            time.sleep(IDLE_SECONDS / 3)  # this is what slow means
            connection.sendall(piece)
        assert connection.recv(65536).startswith(b"HTTP/1.1 202")


def test_a_client_that_vanishes_leaves_nothing(url: httpx2.URL, data_dir: Path) -> None:
    with begin(url, "/v1/datasets", 100_000, BEGINNING + b"PK"):
        eventually(lambda: files_below(data_dir / "uploads"))
    eventually(lambda: files_below(data_dir / "uploads") == [], seconds=IDLE_SECONDS * 0.9)
    assert httpx2.get(f"{url}/v1/datasets").json()["data"] == []
    with begin(url, "/v1/datasets", 10, b"x") as connection:  # its key is free again
        assert read_to_end(connection)[0] == 408
