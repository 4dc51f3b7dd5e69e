"""`Idempotency-Key`: a creating request that is sent again gets the first answer.

A route opens an attempt, asks it for an answer that was given before, and hands its `completion` to
the store that creates: the answer is kept in the transaction that stores the new object.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Generic, Self, TypeVar

import anyio
from fastapi import Header, Response
from starlette.concurrency import run_in_threadpool

from sharpzo_core.errors import CoreError, IdempotencyMismatch
from sharpzo_core.periodic import Periodic
from sharpzo_core.stores.idempotency import (
    RESERVED_SECONDS,
    IdempotencyStore,
    Reservation,
    StoredAnswer,
)

if TYPE_CHECKING:
    import sqlalchemy as sa
    from pydantic import BaseModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

REPLAYED_HEADER = "Idempotency-Replayed"
MAX_KEY = 255  # characters
_CLEANUP_SECONDS = 60.0

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY,
        pattern=r"^[\x20-\x7e]+$",
        description="Makes repeating the request safe: the same request with the same key is "
        "answered as the first time and creates nothing. Use a new key for every new request.",
    ),
]


class Attempt:
    """One request with a key, or without one."""

    def __init__(
        self,
        store: IdempotencyStore,
        made: Callable[[str], None],
        reservation: Reservation | None = None,
        answered: StoredAnswer | None = None,
    ) -> None:
        self._store = store
        self._made = made
        self._reservation = reservation
        self._answered = answered

    @property
    def is_new(self) -> bool:
        """Whether no request with this key was answered yet."""
        return self._answered is None

    def replay(self, fingerprint: str) -> Response | None:
        """The answer that this request was given before; None if it is new.

        Raises:
            IdempotencyMismatch: the key was used for another request.
        """
        if self._answered is None:
            return None
        if self._answered.fingerprint != fingerprint:
            raise IdempotencyMismatch
        return _response(self._answered, {REPLAYED_HEADER: "true"})

    def completion(
        self, fingerprint: str, status: int, public: Callable[[T], BaseModel]
    ) -> Completion[T]:
        """What the creating transaction is to write."""
        answer = StoredAnswer(fingerprint, status, "")
        return Completion(self._store, self._reservation, answer, public, self._made)


class Completion(Generic[T]):
    """Called inside the creating transaction with what was created; keeps its answer there."""

    def __init__(
        self,
        store: IdempotencyStore,
        reservation: Reservation | None,
        blank: StoredAnswer,
        public: Callable[[T], BaseModel],
        made: Callable[[str], None],
    ) -> None:
        self._store = store
        self._reservation = reservation
        self._blank = blank
        self._public = public
        self._made = made
        self._answer: StoredAnswer | None = None

    def __call__(self, connection: sa.Connection, created: T) -> None:
        """Write the answer.

        Raises:
            IdempotencyInProgress: another request has taken the key meanwhile.
        """
        public = self._public(created)
        self._answer = replace(self._blank, body=public.model_dump_json())
        if self._reservation is not None:
            self._store.complete(connection, self._reservation, self._answer)
        if (object_id := getattr(public, "id", None)) is not None:
            self._made(object_id)

    def response(self) -> Response:
        """The answer, once the transaction has been committed."""
        if self._answer is None:
            raise RuntimeError("nothing was created")
        return _response(self._answer, {})


def _forget(object_id: str) -> None:
    """Nobody wants to know what was created."""


def _response(answer: StoredAnswer, headers: dict[str, str]) -> Response:
    return Response(answer.body, answer.status, headers, media_type="application/json")


class Idempotency:
    """The keys that this process works on, kept alive by a small thread."""

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store
        self._made: Callable[[str], None] = _forget
        self._held: set[Reservation] = set()
        self._threads = (
            Periodic("idempotency renewal", RESERVED_SECONDS / 3, self._renew),
            Periodic("idempotency cleanup", _CLEANUP_SECONDS, store.delete_expired),
        )

    def for_tenant(self, tenant: str, made: Callable[[str], None]) -> Self:
        """The same keeper for the keys of one tenant; `made` is told the id of what is created."""
        bound = copy(self)
        bound._store = self._store.for_tenant(tenant)  # noqa: SLF001 - a copy of our own
        bound._made = made  # noqa: SLF001
        return bound

    def start(self) -> None:
        """Begin to renew and to clean up."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads."""
        for thread in self._threads:
            thread.stop()

    @asynccontextmanager
    async def attempt(self, key: str | None) -> AsyncIterator[Attempt]:
        """Hold the key while the block works; a block that fails frees it.

        Raises:
            IdempotencyInProgress: another request with this key is being worked on.
        """
        if key is None:
            yield Attempt(self._store, self._made)
            return
        found = await run_in_threadpool(self._store.reserve, key)
        if isinstance(found, StoredAnswer):
            yield Attempt(self._store, self._made, answered=found)
            return
        self._held.add(found)
        try:
            yield Attempt(self._store, self._made, found)
        except BaseException:
            # Shielded: the request may have been cancelled because its client went away.
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(self._release, found)
            raise
        finally:
            self._held.discard(found)

    def _release(self, reservation: Reservation) -> None:
        try:
            self._store.release(reservation)
        except CoreError as error:
            # Nobody renews it any more, so the key is free in a moment.
            logger.info("a key stays reserved: %s", error, extra={"action": "key_not_released"})

    def _renew(self) -> None:
        self._store.renew(self._held.copy())
