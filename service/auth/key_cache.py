"""Keys as this process knows them: looked up in the database, and remembered for a moment.

Whatever is remembered is at most `FRESH_SECONDS` old, so a key that is revoked is refused soon in
every process. While the database does not answer nothing can be revoked in it, and what was seen
last goes on being true for `STALE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from service.auth.principal import Caller
from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.errors import AuthInvalid, AuthRequired, CoreError, StorageUnavailable
from sharpzo_core.periodic import Periodic
from sharpzo_core.records.keys import MAX_KEY, ApiKey, digest_of, is_key, prefix_of

if TYPE_CHECKING:
    from datetime import datetime

    from sharpzo_core.stores.key_store import KeyStore

T = TypeVar("T")

FRESH_SECONDS = 2.0
STALE_SECONDS = 60.0
USED_SECONDS = 60.0  # between two notes of when keys were last used
MAX_KNOWN = 10_000  # keys, right and wrong ones
_SCHEME = "bearer"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seen(Generic[T]):
    value: T
    at: float


class _Memory(Generic[T]):
    """Answers to questions, each asked once at a time and kept for a moment."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._seen: dict[str, _Seen[T]] = {}
        self._asking: dict[str, asyncio.Task[T]] = {}

    async def get(self, question: str, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` answers, or answered a moment ago.

        Raises:
            StorageUnavailable: it has no answer, and no recent one is known.
        """
        seen = self._seen.get(question)
        if seen is not None and self._ticks() - seen.at < FRESH_SECONDS:
            return seen.value
        task = self._asking.get(question)
        if task is None:
            task = asyncio.create_task(self._ask(question, ask))
            self._asking[question] = task
            task.add_done_callback(lambda done: self._settled(question, done))
        try:
            return await asyncio.shield(task)
        except StorageUnavailable:
            if seen is not None and self._ticks() - seen.at < STALE_SECONDS:
                return seen.value
            raise

    async def _ask(self, question: str, ask: Callable[[], Awaitable[T]]) -> T:
        began = self._ticks()  # what is true is so since then, not since the answer
        value = await ask()
        if len(self._seen) >= MAX_KNOWN:
            self._seen.clear()
        self._seen[question] = _Seen(value, began)
        return value

    def _settled(self, question: str, task: asyncio.Task[T]) -> None:
        self._asking.pop(question, None)
        if not task.cancelled():
            task.exception()  # seen by whoever waits; nobody may be left


class Keyring:
    """Who has which key; on the event loop alone."""

    def __init__(
        self,
        store: KeyStore,
        clock: Clock = utc_now,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store.for_all_tenants()
        self._clock = clock
        self._keys: _Memory[ApiKey | None] = _Memory(ticks)
        self._any: _Memory[bool] = _Memory(ticks)
        self._required = False
        self._used: dict[str, datetime] = {}
        self._noting = Periodic("key usage", USED_SECONDS, self._note_used, self._note_used)

    def start(self) -> None:
        """Look whether there are keys, and begin to note when they were last used.

        Raises:
            StorageUnavailable: the database does not tell.
        """
        self._required = self._store.any()
        self._noting.start()

    def close(self) -> None:
        """Note it a last time."""
        self._noting.stop()

    @property
    def was_required(self) -> bool:
        """Whether a key was needed when this was last asked."""
        return self._required

    async def required(self) -> bool:
        """Whether a key is needed: as soon as one was ever made, and for good.

        Raises:
            StorageUnavailable: the database does not tell.
        """
        if not self._required:
            self._required = await self._any.get("", self._ask_any)
        return self._required

    async def identify(self, authorization: list[str]) -> Caller:
        """Whose key the `Authorization` headers hold.

        Raises:
            AuthRequired: there is no such header.
            AuthInvalid: it does not hold a valid key.
            StorageUnavailable: the database does not tell.
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
        """Whether a caller that was let in would be let in now.

        Raises:
            StorageUnavailable: the database does not tell.
        """
        if caller.key is None:
            return not await self.required()
        return await self._find(caller.key.prefix, caller.key.sha256) is not None

    async def _find(self, prefix: str, digest: str) -> ApiKey | None:
        async def ask() -> ApiKey | None:
            return await run_in_threadpool(self._store.find, prefix, digest)

        key = await self._keys.get(digest, ask)
        return key if key is not None and key.is_valid(self._clock()) else None

    async def _ask_any(self) -> bool:
        return await run_in_threadpool(self._store.any)

    def _note_used(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            self._store.mark_used(used)
        except CoreError as error:
            self._used = used | self._used
            logger.info("key usage is not noted now: %s", error, extra={"action": "key_usage"})
