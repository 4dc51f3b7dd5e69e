"""HTTP/1.1 for untrusted clients: uvicorn's protocol with the missing limits.

Uvicorn itself waits without a limit for the rest of a request and for a client that does not read
its response, accepts connections until the process is out of descriptors, and answers a malformed
request in plain text.
"""

from __future__ import annotations

import array
import asyncio
import json
import socket
import struct
import sys
import uuid
from contextlib import suppress
from http import HTTPStatus
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.problems import MEDIA_TYPE, REQUEST_ID_HEADER, problem_content
from sharpzo_core.settings import Settings

if sys.platform == "linux":
    import fcntl
    import termios


#: Seconds within which a connection must send the complete head of its first request, or of its
#: next one once that has started.
HEAD_SECONDS = 20.0
#: Seconds for which the rest of a body is read and discarded after its request was answered.
LINGER_SECONDS = 2.0
#: How often the unsent part of a response is checked, and the bytes per second that a client must
#: read to keep its connection.
READ_SECONDS = 20.0
MIN_READ_PER_SECOND = 256
_MALFORMED = "the request is not well-formed HTTP/1.1 (check the client)"
_FULL = "too many connections are open (try again in a second)"


def bounded_protocol(settings: Settings) -> type[BoundedProtocol]:
    class Protocol(BoundedProtocol):
        max_connections = settings.max_connections

    return Protocol


class BoundedProtocol(H11Protocol):
    """Limits connections, the time for a request's head and the time to read a response."""

    max_connections: ClassVar[int] = 1000
    head_seconds: ClassVar[float] = HEAD_SECONDS
    linger_seconds: ClassVar[float] = LINGER_SECONDS
    read_seconds: ClassVar[float] = READ_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Reject the connection if there are too many; otherwise wait for its first request."""
        super().connection_made(transport)
        self._awaited: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: int | None = None  # bytes of responses at the last check
        self._check: asyncio.TimerHandle | None = None
        self._schedule_check()
        if len(self.connections) > self.max_connections:
            self._answer(503, _FULL, retry_after=1)
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(None, 0)
        if self._check is not None:
            self._check.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        theirs = self.conn.their_state
        answered = getattr(self.cycle, "response_complete", False)
        if self.transport.is_closing():
            self._await(None, 0)
        elif theirs is h11.IDLE:
            self._await("head", self.head_seconds)
        elif theirs is h11.SEND_BODY and answered:
            # Closing at once would lose the response of a client that is still sending.
            self._await("rest of an unread body", self.linger_seconds)
        else:
            self._await(None, 0)

    def _await(self, what: str | None, seconds: float) -> None:
        if what == self._awaited:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._awaited = what
        self._deadline = self.loop.call_later(seconds, self.transport.close) if what else None

    def resume_writing(self) -> None:
        """The client has read most of the buffered response."""
        self._unread = None
        super().resume_writing()

    def _schedule_check(self) -> None:
        self._check = self.loop.call_later(self.read_seconds, self._check_reading)

    def _check_reading(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        left = waiting + _unsent(self.transport) if waiting else 0
        least = self.read_seconds * MIN_READ_PER_SECOND
        if left and self._unread is not None and left > self._unread - least:
            _reset(self.transport)
            return
        self._unread = left or None
        self._schedule_check()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - every fault gets the same text
        # Called while the exception is handled, whose hint is 431 for heads that are too long.
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        self._answer(status, _MALFORMED, code="malformed_request")

    def _answer(
        self, status: int, detail: str, *, code: str | None = None, retry_after: int | None = None
    ) -> None:
        request_id = f"req_{uuid.uuid4().hex}"
        body = json.dumps(problem_content(status, request_id, code=code, detail=detail)).encode()
        headers = [
            ("Content-Type", MEDIA_TYPE),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            ("X-Content-Type-Options", "nosniff"),
            (REQUEST_ID_HEADER, request_id),
        ]
        if retry_after is not None:
            headers.append(("Retry-After", str(retry_after)))
        reason = HTTPStatus(status).phrase
        try:
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason.encode()),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # the application has started its response
            pass
        self.transport.close()


def _reset(transport: asyncio.Transport) -> None:
    """Close the connection at once and drop the data that was not sent."""
    if sys.platform != "win32":
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
    transport.abort()


def _unsent(transport: asyncio.Transport) -> int:
    """Bytes in the system's send buffer.

    The system accepts more only when a third of that buffer is free, so our own buffer alone
    cannot distinguish a slow client from one that does not read.
    """
    if sys.platform != "linux":
        return 0
    count = array.array("i", [0])
    with suppress(OSError, ValueError):  # it is closed
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
    return count[0]
