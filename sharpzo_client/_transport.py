"""Performing operations and flows, blocking or not.

This is the only module that uses the network; it turns httpx's errors into the SDK's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast

import httpx
from tenacity import AsyncRetrying, Retrying

from sharpzo_client._constants import CONNECT_TIMEOUT, STREAM_TIMEOUT
from sharpzo_client._operation import Blocking, Effect, Flow, Operation, Part
from sharpzo_client._response import raise_for_status
from sharpzo_client._retry import retry_options
from sharpzo_client.errors import (
    APIConnectionError,
    APIResponseError,
    APITimeoutError,
    InputError,
    SharpzoError,
)

T = TypeVar("T")

#: Errors that occur before the first byte of the request is sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_STREAMING = httpx.Timeout(STREAM_TIMEOUT, connect=CONNECT_TIMEOUT)


class SyncTransport:
    """Performs flows by blocking."""

    def __init__(
        self, http: httpx.Client, max_retries: int, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._http = http
        self._max_retries = max_retries
        self.sleep = sleep

    def run(self, flow: Flow[T]) -> T:
        """Perform a flow's effects in turn and return its result."""
        try:
            effect = next(flow)
            while True:
                try:
                    value = self._perform(effect)
                except SharpzoError as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(value)
        except StopIteration as end:
            return cast("T", end.value)
        finally:
            flow.close()

    def send(self, operation: Operation[T]) -> T:
        """Send a request, retry it if that is allowed, and read the answer."""
        options = retry_options(operation, self._max_retries)
        answer: T = Retrying(sleep=self.sleep, **options)(self._send_once, operation)
        return answer

    @contextmanager
    def stream(self, operation: Operation[Any]) -> Iterator[Iterator[bytes]]:
        """Send a request once and yield its answer as it arrives."""
        request = build_request(self._http, operation)
        request.extensions["timeout"] = _STREAMING.as_dict()
        with translate_errors():
            response = self._http.send(request, stream=True)
            try:
                if response.status_code >= 300:
                    response.read()
                    raise_for_status(response)
                yield response.iter_bytes()
            finally:
                response.close()

    def close(self) -> None:
        self._http.close()

    def _perform(self, effect: Effect) -> object:
        if isinstance(effect, Operation):
            return self.send(effect)
        if isinstance(effect, Blocking):
            return effect.run()
        self.sleep(effect.seconds)
        return None

    def _send_once(self, operation: Operation[T]) -> T:
        with translate_errors():
            response = self._http.send(build_request(self._http, operation))
        raise_for_status(response)
        return operation.read(response)


class AsyncTransport:
    """Performs flows on an event loop; see `SyncTransport`."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        max_retries: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = http
        self._max_retries = max_retries
        self.sleep = sleep

    async def run(self, flow: Flow[T]) -> T:
        try:
            effect = next(flow)
            while True:
                try:
                    value = await self._perform(effect)
                except SharpzoError as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(value)
        except StopIteration as end:
            return cast("T", end.value)
        finally:
            flow.close()

    async def send(self, operation: Operation[T]) -> T:
        options = retry_options(operation, self._max_retries)
        retrying = AsyncRetrying(sleep=self.sleep, **options)
        return await retrying(self._send_once, operation)

    @asynccontextmanager
    async def stream(self, operation: Operation[Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        request = build_request(self._http, operation)
        request.extensions["timeout"] = _STREAMING.as_dict()
        with translate_errors():
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code >= 300:
                    await response.aread()
                    raise_for_status(response)
                yield response.aiter_bytes()
            finally:
                await response.aclose()

    async def close(self) -> None:
        await self._http.aclose()

    async def _perform(self, effect: Effect) -> object:
        if isinstance(effect, Operation):
            return await self.send(effect)
        if isinstance(effect, Blocking):
            return await asyncio.to_thread(effect.run)
        await self.sleep(effect.seconds)
        return None

    async def _send_once(self, operation: Operation[T]) -> T:
        with translate_errors():
            response = await self._http.send(build_request(self._http, operation))
        raise_for_status(response)
        return operation.read(response)


def build_request(
    http: httpx.Client | httpx.AsyncClient, operation: Operation[Any]
) -> httpx.Request:
    files = [(part.field, _file(part)) for part in operation.parts]
    return http.build_request(
        operation.method,
        operation.path,
        params=dict(operation.params) or None,
        json=operation.json,
        data=dict(operation.fields) or None,
        files=files or None,
        headers=dict(operation.headers),
    )


def _file(part: Part) -> tuple[str, Any, str]:
    if not isinstance(part.content, bytes):
        part.content.seek(0)
    return part.filename, part.content, part.content_type


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn httpx's errors into the SDK's.

    Raises:
        APIConnectionError: there is no connection, or it broke.
        APITimeoutError: nothing arrived in time.
        APIResponseError: the answer cannot be decoded, or redirects in a loop.
        InputError: the address is not valid.
    """
    try:
        yield
    except httpx.TimeoutException as error:
        raise APITimeoutError(_describe(error), sent=not isinstance(error, _NOT_SENT)) from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InputError(f"the address of the service is not valid: {error}") from error
    except (httpx.DecodingError, httpx.TooManyRedirects, httpx.HTTPStatusError) as error:
        raise APIResponseError(f"the answer cannot be read: {error}") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        sent = not isinstance(error, _NOT_SENT)
        raise APIConnectionError(_describe(error), sent=sent) from error


def _describe(error: Exception) -> str:
    place = _place(error)
    what = str(error) or type(error).__name__
    return f"{place}: {what}" if place else what


def _place(error: Exception) -> str | None:
    try:
        url = error.request.url if isinstance(error, httpx.RequestError) else None
    except RuntimeError:  # httpx: the error was raised without a request
        return None
    return f"{url.scheme}://{url.netloc.decode()}" if url else None
