"""API keys, looked up in the database and cached for a moment.

A cached key is at most `FRESH_SECONDS` old, so every process soon rejects a revoked one. While the
database is down nothing can be revoked, and cached keys stay valid for `STALE_SECONDS`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from service.auth.principal import Caller
from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.errors import AuthInvalid, AuthRequired, CoreError, StorageUnavailable
from sharpzo_core.periodic import Periodic
from sharpzo_core.records.keys import MAX_KEY, ApiKey, digest_of, is_key, prefix_of
from sharpzo_core.stores.key_store import KeyStore

T = TypeVar("T")

FRESH_SECONDS = 2.0
STALE_SECONDS = 60.0
USED_SECONDS = 60.0  # between two writes of when keys were last used
MAX_KNOWN = 10_000  # keys, valid and invalid ones
_SCHEME = "bearer"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Cached(Generic[T]):
    value: T
    at: float


class _Cache(Generic[T]):
    """Cached lookups; concurrent lookups of one key share one query."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._seen: dict[str, _Cached[T]] = {}
        self._running: dict[str, asyncio.Task[T]] = {}

    async def get(self, key: str, query: Callable[[], Awaitable[T]]) -> T:
        """The cached result of `query`, or a new one.

        Raises:
            StorageUnavailable: the query failed, and no recent result is cached.
        """
        seen = self._seen.get(key)
        if seen is not None and self._ticks() - seen.at < FRESH_SECONDS:
            return seen.value
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._run(key, query))
            self._running[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        try:
            return await asyncio.shield(task)
        except StorageUnavailable:
            if seen is not None and self._ticks() - seen.at < STALE_SECONDS:
                return seen.value
            raise

    async def _run(self, key: str, query: Callable[[], Awaitable[T]]) -> T:
        started = self._ticks()  # the result's age counts from the start of the query
        value = await query()
        if len(self._seen) >= MAX_KNOWN:
            self._seen.clear()
        self._seen[key] = _Cached(value, started)
        return value

    def _finished(self, key: str, task: asyncio.Task[T]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # marks it as seen: all who waited may have been cancelled


class KeyCache:
    """Identifies callers by their key; used on the event loop only."""

    def __init__(
        self,
        store: KeyStore,
        clock: Clock = utc_now,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store.for_all_tenants()
        self._clock = clock
        self._keys: _Cache[ApiKey | None] = _Cache(ticks)
        self._any: _Cache[bool] = _Cache(ticks)
        self._required = False
        self._used: dict[str, datetime] = {}
        self._recording = Periodic("key usage", USED_SECONDS, self._record_used, self._record_used)

    def start(self) -> None:
        """Check whether keys exist, and start recording their use.

        Raises:
            StorageUnavailable: the database does not answer.
        """
        self._required = self._store.any()
        self._recording.start()

    def close(self) -> None:
        self._recording.stop()

    @property
    def was_required(self) -> bool:
        """The last known answer of `required`."""
        return self._required

    async def required(self) -> bool:
        """Whether a key is needed: from the first one that is ever created, permanently.

        Raises:
            StorageUnavailable: the database does not answer.
        """
        if not self._required:
            self._required = await self._any.get("", self._query_any)
        return self._required

    async def identify(self, authorization: list[str]) -> Caller:
        """The caller whose key is in the `Authorization` headers.

        Raises:
            AuthRequired: there is no such header.
            AuthInvalid: it does not hold a valid key.
            StorageUnavailable: the database does not answer.
        """
        if not authorization:
            raise AuthRequired
        scheme, _, text = authorization[0].partition(" ")
        text = text.strip() if len(text) <= 2 * MAX_KEY else ""
        if len(authorization) > 1 or scheme.lower() != _SCHEME or not is_key(text):
            raise AuthInvalid
        key = await self._find(prefix_of(text), digest_of(text))
        if key is None:
            raise AuthInvalid
        self._used[key.id] = self._clock()
        return Caller.from_record(key)

    async def still_admits(self, caller: Caller) -> bool:
        """Whether an earlier authenticated caller would still be accepted.

        Raises:
            StorageUnavailable: the database does not answer.
        """
        if caller.key is None:
            return not await self.required()
        return await self._find(caller.key.prefix, caller.key.sha256) is not None

    async def _find(self, prefix: str, digest: str) -> ApiKey | None:
        async def query() -> ApiKey | None:
            return await run_in_threadpool(self._store.find, prefix, digest)

        key = await self._keys.get(digest, query)
        return key if key is not None and key.is_valid(self._clock()) else None

    async def _query_any(self) -> bool:
        return await run_in_threadpool(self._store.any)

    def _record_used(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            self._store.mark_used(used)
        except CoreError as error:
            self._used = used | self._used
            logger.info("key usage is not recorded yet: %s", error, extra={"action": "key_usage"})
