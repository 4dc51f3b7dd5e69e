"""What a stranger can do to a connection: malformed, endless, slow and too many requests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from service.http import body_limits
from service.http.connection import BoundedProtocol
from sharpzo_core.settings import Settings
from tests.helpers import eventually
from tests.security.raw import Answer, connect, exchange, read
from tests.service.servers import server_thread

HEAD_SECONDS = 0.5


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data_dir = tmp_path_factory.mktemp("connections")
    with server_thread(Settings(data_dir=data_dir, device="cpu")) as url:
        yield url


def send_until_closed(connection: socket.socket, piece: bytes, seconds: float = 20) -> None:
    """Send piece after piece; returns when the server has closed the connection."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            connection.sendall(piece)
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("the connection is still open")


def post(headers: bytes, body: bytes = b"", path: bytes = b"/v1/jobs") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n" + body


JSON = b"Content-Type: application/json\r\n"
MALFORMED = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /livez\r\n\r\n",
    "negative length": post(JSON + b"Content-Length: -5\r\n", b"{}"),
    "length in words": post(JSON + b"Content-Length: five\r\n", b"{}"),
    "two lengths that differ": post(JSON + b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{}"),
    "length and chunks": post(
        JSON + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n",
        b"2\r\n{}\r\n0\r\n\r\n",
    ),
    "bad size of a chunk": post(JSON + b"Transfer-Encoding: chunked\r\n", b"zz\r\n{}\r\n"),
    "bad end of a chunk": post(
        JSON + b"Transfer-Encoding: chunked\r\n", b"2\r\n{}XX0\r\n\r\n" + b"y" * 30
    ),
    "space before the colon": b"GET /livez HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "NUL in a field": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
}


@pytest.mark.bad_input("P5")
@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests(url: str, request_bytes: bytes) -> None:
    answer = exchange(url, request_bytes)
    assert answer.status == 400
    assert answer.problem["code"] == "malformed_request"
    assert httpx2.get(f"{url}/livez").is_success


def test_an_encoding_that_nobody_speaks(url: str) -> None:
    answer = exchange(url, post(JSON + b"Transfer-Encoding: gzip, chunked\r\n"))
    assert answer.status == 501
    assert answer.problem["code"] == "malformed_request"


@pytest.mark.bad_input("P5")
def test_a_head_that_is_too_long(url: str) -> None:
    answer = exchange(url, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (70 << 10))
    assert answer.status == 431
    assert answer.problem["code"] == "malformed_request"


def test_a_head_that_never_ends_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_seconds", HEAD_SECONDS)
    started = time.monotonic()
    with connect(url) as silent, connect(url) as trickling:
        trickling.sendall(b"GET /livez HTTP/1.1\r\n")
        send_until_closed(trickling, b"X: y\r\n")  # a byte more gives no time more
        assert silent.recv(1) == b""
    assert HEAD_SECONDS <= time.monotonic() - started < 10


def test_the_next_head_has_its_own_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_seconds", HEAD_SECONDS)
    with connect(url) as connection:
        for _ in range(5):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)


def test_what_comes_after_an_early_answer_is_not_read_for_ever(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "linger_seconds", 0.5)
    started = time.monotonic()
    with connect(url) as connection:
        connection.sendall(post(JSON + b"Content-Length: 10000000000\r\n"))
        head = connection.recv(1 << 16)
        assert head.startswith(b"HTTP/1.1 413")
        assert b"payload_too_large" in head
        send_until_closed(connection, b"x")
    assert time.monotonic() - started < 10


DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n"


def test_answers_that_nobody_reads_are_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "read_seconds", 0.5)
    with connect(url) as connection:
        connection.sendall((DOCUMENT + b"\r\n") * 400)  # tens of megabytes
        time.sleep(2.5)
        received = 0
        with suppress(ConnectionError):
            while piece := connection.recv(1 << 20):
                received += len(piece)
    assert received < 20 << 20


def test_an_answer_that_is_read_slowly_comes_in_full(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "read_seconds", 0.3)
    with connect(url) as connection:
        head = DOCUMENT + b"Connection: keep-alive\r\n\r\n"
        connection.sendall(head * 60 + DOCUMENT + b"Connection: close\r\n\r\n")
        received = bytearray()
        while piece := connection.recv(1 << 18):
            received += piece
            time.sleep(0.02)
    assert received.count(b"HTTP/1.1 200") == 61


@pytest.mark.bad_input("P4")
def test_chunks_past_the_limit_are_answered_within_one_of_them(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(post(JSON + b"Transfer-Encoding: chunked\r\n"))
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(17):  # 1 MiB is allowed; the last chunk never comes
            connection.sendall(chunk)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_more_connections_than_allowed_are_told_to_come_again(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu", max_connections=10)
    with server_thread(settings) as url:
        held = [connect(url) for _ in range(10)]
        try:
            with connect(url) as refused:
                answer = read(refused)
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.problem["code"] == "unavailable"
        finally:
            for connection in held:
                connection.close()
        eventually(lambda: _is_alive(url))


def _is_alive(url: str) -> bool:
    with connect(url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return read(connection).status == 200


def test_a_body_that_trickles_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "MIN_BYTES_PER_SECOND", 1000)
    settings = Settings(data_dir=tmp_path, device="cpu", upload_idle_seconds=0.5)
    with server_thread(settings) as url, connect(url) as connection:
        connection.sendall(post(JSON + b"Content-Length: 100000\r\n"))
        answers: list[Answer] = []
        reader = threading.Thread(target=lambda: answers.append(read(connection)))
        reader.start()
        send_until_closed(connection, b" ")
        reader.join()
    assert answers[0].status == 408
    assert answers[0].problem["code"] == "request_timeout"


def test_bodies_together_fill_no_more_than_their_memory(tmp_path: Path) -> None:
    """Images of requests that are never finished, 64 MiB each."""
    settings = Settings(data_dir=tmp_path, device="cpu", request_memory_mb=320)
    megabyte = b"x" * (1 << 20)
    head = post(JSON + b"Content-Length: %d\r\n" % (60 << 20), path=b"/v1/classify")
    with server_thread(settings) as url:
        before = resident_mib()
        held = [connect(url) for _ in range(8)]
        answers: list[Answer] = []
        for connection in held:
            try:
                connection.sendall(head)
                for _ in range(59):
                    connection.sendall(megabyte)
            except OSError:
                answers.append(read(connection))
        grown = resident_mib() - before
        assert httpx2.get(f"{url}/livez").is_success
        for connection in held:
            connection.close()
    assert grown < 320 * 1.5
    assert answers


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
