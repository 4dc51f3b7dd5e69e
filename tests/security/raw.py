"""Requests as bytes, for what no HTTP client would send."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What came back before the server closed the connection."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document."""
        assert self.headers["content-type"] == "application/problem+json", self
        content: dict[str, Any] = json.loads(self.body)
        assert content["status"] == self.status
        assert content["request_id"] == self.headers["x-request-id"]
        return content


def connect(url: str, timeout: float = 20) -> socket.socket:
    """A connection to a server."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout)


def exchange(url: str, request: bytes) -> Answer:
    """Send bytes and read until the server closes the connection."""
    with connect(url) as connection:
        connection.sendall(request)
        return read(connection)


def read(connection: socket.socket) -> Answer:
    """Everything up to the end, as one answer."""
    received = bytearray()
    while chunk := connection.recv(1 << 16):
        received += chunk
    return parse(bytes(received))


def parse(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.split(":", 1) for line in lines)
    return Answer(
        int(first.split()[1]), {name.lower(): text.strip() for name, text in fields}, body
    )
