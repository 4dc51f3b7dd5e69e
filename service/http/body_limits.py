"""Limits on arriving request bodies: their speed, and the memory of all of them together."""

import asyncio
import time

from starlette.types import Message, Receive, Scope

from service.errors import RequestTimeout, TooManyBytesAtOnce

#: Set in the scope by a route that writes its body to a file as it arrives.
SPOOLED = "sharpzo.spooled"
#: A client that is slower than this, on average after `idle_seconds`, is cut off.
MIN_BYTES_PER_SECOND = 256


class BodyMemory:
    """Counts the bytes of request bodies in memory, of all requests together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def reserve(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            TooManyBytesAtOnce: the limit is exceeded.
        """
        if self._held + size > self._limit:
            raise TooManyBytesAtOnce
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size


class Body:
    """Passes a request's body on as long as it keeps arriving and fits into memory."""

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
            RequestTimeout: the body stopped for too long, or arrives too slowly.
            TooManyBytesAtOnce: the bodies of all requests together exceed their memory.
        """
        try:
            async with asyncio.timeout(self._idle_seconds):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout from None
        size = len(message.get("body", b""))
        if not message.get("more_body", False):
            self._idle_seconds = None  # only the disconnect follows, at any time
        else:
            self._check_speed(size)
        if not self._scope.get(SPOOLED, False):
            self._memory.reserve(size)
            self._held += size
        return message

    def _check_speed(self, size: int) -> None:
        self._received += size
        slow = time.monotonic() - self._full_speed_from
        if slow > 0 and self._received < slow * MIN_BYTES_PER_SECOND:
            raise RequestTimeout("the request's body arrives too slowly (send it again)")

    def close(self) -> None:
        self._memory.release(self._held)
        self._held = 0
