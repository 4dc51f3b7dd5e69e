"""What the resources share."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sharpzo_client._operations._build import next_page
from sharpzo_client.models import Model, Page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sharpzo_client._operation import Operation
    from sharpzo_client._transport import AsyncTransport, SyncTransport

M = TypeVar("M", bound=Model)


class Resource:
    """A group of blocking calls."""

    def __init__(self, transport: SyncTransport) -> None:
        self._transport = transport

    def _items(self, first: Operation[Page[M]]) -> Iterator[M]:
        operation: Operation[Page[M]] | None = first
        while operation is not None:
            page = self._transport.send(operation)
            yield from page.data
            operation = next_page(operation, page)


class AsyncResource:
    """A group of asynchronous calls."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def _items(self, first: Operation[Page[M]]) -> AsyncIterator[M]:
        operation: Operation[Page[M]] | None = first
        while operation is not None:
            page = await self._transport.send(operation)
            for item in page.data:
                yield item
            operation = next_page(operation, page)
