"""The blocking and the asynchronous client, which have the same methods."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

import httpx

from sharpzo_client._constants import (
    API_KEY_VARIABLE,
    CONNECT_TIMEOUT,
    DEFAULT_BASE_URL,
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT,
    DEFAULT_TOP_K,
)
from sharpzo_client._files import ImageInput
from sharpzo_client._operations.classify import ClassifyOptions, classify_with_prompts
from sharpzo_client._operations.service import get_usage
from sharpzo_client._transport import AsyncTransport, SyncTransport, translate_errors
from sharpzo_client.errors import InputError
from sharpzo_client.models import PromptAnswer, Usage
from sharpzo_client.resources.aliases import Aliases, AsyncAliases
from sharpzo_client.resources.datasets import AsyncDatasets, Datasets
from sharpzo_client.resources.jobs import AsyncJobs, Jobs
from sharpzo_client.resources.keys import AsyncKeys, Keys
from sharpzo_client.resources.prompts import AsyncPrompts, Prompts
from sharpzo_client.resources.service import (
    AsyncBackbones,
    AsyncHealthChecks,
    Backbones,
    HealthChecks,
)


class Client:
    """A connection to a SharpZO service. Use it as a context manager, or close it.

    Args:
        base_url: Address of the service.
        api_key: API key; default: the environment variable SHARPZO_API_KEY. Empty: no key.
        timeout: Seconds of inactivity before giving up.
        max_retries: How often a failed request is sent again.
        transport: Replaces the network, for tests and proxies.
        sleep: Replaces `time.sleep`, for tests.

    Raises:
        InputError: `base_url` is not an address, or `api_key` has characters no key can have.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_MAX_RETRIES,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        with translate_errors():
            http = httpx.Client(
                base_url=base_url,
                headers=_headers(api_key),
                timeout=_timeouts(timeout),
                transport=transport,
            )
        self._base_url = base_url
        self._transport = SyncTransport(http, max_retries, sleep)
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.prompts = Prompts(self._transport)
        self.aliases = Aliases(self._transport)
        self.keys = Keys(self._transport)
        self.backbones = Backbones(self._transport)
        self.health = HealthChecks(self._transport)

    @property
    def base_url(self) -> str:
        """The address of the service."""
        return self._base_url

    def classify(
        self,
        images: Sequence[ImageInput],
        prompts: Sequence[str],
        *,
        top_k: int = DEFAULT_TOP_K,
        calibrated: bool = False,
        zero_shot: bool = False,
        deadline: float | None = None,
    ) -> tuple[PromptAnswer, ...]:
        """Label images with several prompts at once; each image is encoded once for all of them.

        Answers are in the order of `prompts`; a prompt that cannot be used has an `error`. For the
        other arguments see `client.prompts.classify`.

        Raises:
            InputError: A file cannot be read.
            DeadlineExceededError: The deadline has passed.
        """
        options = ClassifyOptions(top_k, calibrated, zero_shot, deadline)
        return self._transport.run(classify_with_prompts(prompts, images, options))

    def usage(self) -> Usage:
        """Return the usage and quotas of your tenant."""
        return self._transport.send(get_usage())

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient:
    """A connection to a SharpZO service, for asyncio. See `Client`."""

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_MAX_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        with translate_errors():
            http = httpx.AsyncClient(
                base_url=base_url,
                headers=_headers(api_key),
                timeout=_timeouts(timeout),
                transport=transport,
            )
        self._base_url = base_url
        self._transport = AsyncTransport(http, max_retries, sleep)
        self.datasets = AsyncDatasets(self._transport)
        self.jobs = AsyncJobs(self._transport)
        self.prompts = AsyncPrompts(self._transport)
        self.aliases = AsyncAliases(self._transport)
        self.keys = AsyncKeys(self._transport)
        self.backbones = AsyncBackbones(self._transport)
        self.health = AsyncHealthChecks(self._transport)

    @property
    def base_url(self) -> str:
        """The address of the service."""
        return self._base_url

    async def classify(
        self,
        images: Sequence[ImageInput],
        prompts: Sequence[str],
        *,
        top_k: int = DEFAULT_TOP_K,
        calibrated: bool = False,
        zero_shot: bool = False,
        deadline: float | None = None,
    ) -> tuple[PromptAnswer, ...]:
        """Label images with several prompts at once; see `Client.classify`."""
        options = ClassifyOptions(top_k, calibrated, zero_shot, deadline)
        return await self._transport.run(classify_with_prompts(prompts, images, options))

    async def usage(self) -> Usage:
        """Return the usage and quotas of your tenant."""
        return await self._transport.send(get_usage())

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _headers(api_key: str | None) -> dict[str, str]:
    key = (os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
    if not (key.isascii() and key.isprintable()):  # httpx's own error would show the key
        raise InputError("the API key has characters that no key can have (check SHARPZO_API_KEY)")
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    return {"User-Agent": "sharpzo-client", "Accept": "application/json", **bearer}


def _timeouts(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))
