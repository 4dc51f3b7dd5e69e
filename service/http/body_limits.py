"""Request bodies as they arrive: how slowly they may come, and how much of them memory holds."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from service.errors import RequestTimeout, TooManyBytesAtOnce

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

#: Set in the scope by a route that writes its body to a file as it comes.
SPOOLED = "sharpzo.spooled"
#: A client that is slower than this, on average since `idle_seconds` ago, only holds a connection.
MIN_BYTES_PER_SECOND = 256


class BodyMemory:
    """Bytes of request bodies that the process holds, of all requests together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def hold(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            TooManyBytesAtOnce: there is no room for them.
        """
        if self._held + size > self._limit:
            raise TooManyBytesAtOnce
        self._held += size

    def release(self, size: int) -> None:
        """Count bytes whose request has been answered."""
        self._held -= size


class Body:
    """Passes a request's body on as long as it keeps coming and memory holds it."""

    def __init__(
        self, scope: Scope, receive: Receive, memory: BodyMemory, idle_seconds: float
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._memory = memory
        self._idle_seconds: float | None = idle_seconds
        self._full_speed_from = time.monotonic() + idle_seconds
        self._received = 0
        self._held = 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            RequestTimeout: no part of the body came for too long, or it trickles.
            TooManyBytesAtOnce: the bodies of all requests together fill the memory meant for them.
        """
        try:
            async with asyncio.timeout(self._idle_seconds):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout from None
        size = len(message.get("body", b""))
        if not message.get("more_body", False):
            self._idle_seconds = None  # what follows is the end of the connection, some time
        else:
            self._check_speed(size)
        if not self._scope.get(SPOOLED, False):
            self._memory.hold(size)
            self._held += size
        return message

    def _check_speed(self, size: int) -> None:
        self._received += size
        slow = time.monotonic() - self._full_speed_from
        if slow > 0 and self._received < slow * MIN_BYTES_PER_SECOND:
            raise RequestTimeout("the request's body comes too slowly (send it again)")

    def close(self) -> None:
        """The request has been answered."""
        self._memory.release(self._held)
        self._held = 0
