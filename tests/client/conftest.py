"""A service of one function behind both clients: no network, and no time passes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from sharpzo_client import AsyncClient, Client

Handler = Callable[[httpx.Request], httpx.Response]


@dataclass
class Harness:
    """Drives the sync or the async client through the same test."""

    asynchronous: bool
    slept: list[float] = field(default_factory=list)

    def client(self, handler: Handler, **options: Any) -> Any:
        transport = httpx.MockTransport(handler)
        kind: Any = AsyncClient if self.asynchronous else Client
        sleep = self._async_sleep if self.asynchronous else self.slept.append
        return kind("http://service", transport=transport, sleep=sleep, **options)

    def run(self, call: Callable[[], Any]) -> Any:
        """The result of a call; of an iterator, the list of its items."""
        if not self.asynchronous:
            result = call()
            return list(result) if isinstance(result, Iterator) else result
        return asyncio.run(_gather(call))

    async def _async_sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def _gather(call: Callable[[], Any]) -> Any:
    result = call()
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    return await result if inspect.isawaitable(result) else result


@pytest.fixture(params=["sync", "async"])
def harness(request: pytest.FixtureRequest) -> Harness:
    return Harness(asynchronous=request.param == "async")
