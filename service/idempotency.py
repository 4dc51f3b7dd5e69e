"""`Idempotency-Key`: a repeated creating request gets the first response again.

A route opens an attempt, replays the stored response if there is one, and otherwise passes the
attempt's `completion` to the store, which saves the response in the creating transaction.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from typing import Annotated, Generic, Self, TypeVar

import anyio
import sqlalchemy as sa
from fastapi import Header, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from sharpzo_core.errors import CoreError, IdempotencyMismatch
from sharpzo_core.periodic import Periodic
from sharpzo_core.stores.idempotency import (
    RESERVED_SECONDS,
    IdempotencyStore,
    Reservation,
    StoredAnswer,
)

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
        description="Makes the request safe to repeat: the same request with the same key returns "
        "the first response and creates nothing. Use a new key for every new request.",
    ),
]


class Attempt:
    def __init__(
        self,
        store: IdempotencyStore,
        on_created: Callable[[str], None],
        reservation: Reservation | None = None,
        answered: StoredAnswer | None = None,
    ) -> None:
        self._store = store
        self._on_created = on_created
        self._reservation = reservation
        self._answered = answered

    @property
    def is_new(self) -> bool:
        return self._answered is None

    def replay(self, fingerprint: str) -> Response | None:
        """The stored response to this request, or None if it is new.

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
        answer = StoredAnswer(fingerprint, status, "")
        return Completion(self._store, self._reservation, answer, public, self._on_created)


class Completion(Generic[T]):
    """Called with the new object inside its transaction; saves the response there."""

    def __init__(
        self,
        store: IdempotencyStore,
        reservation: Reservation | None,
        blank: StoredAnswer,
        public: Callable[[T], BaseModel],
        on_created: Callable[[str], None],
    ) -> None:
        self._store = store
        self._reservation = reservation
        self._blank = blank
        self._public = public
        self._on_created = on_created
        self._answer: StoredAnswer | None = None

    def __call__(self, connection: sa.Connection, created: T) -> None:
        """Save the response.

        Raises:
            IdempotencyInProgress: another request has taken the key meanwhile.
        """
        public = self._public(created)
        self._answer = replace(self._blank, body=public.model_dump_json())
        if self._reservation is not None:
            self._store.complete(connection, self._reservation, self._answer)
        if (object_id := getattr(public, "id", None)) is not None:
            self._on_created(object_id)

    def response(self) -> Response:
        """The response; only valid after the commit."""
        if self._answer is None:
            raise RuntimeError("nothing was created")
        return _response(self._answer, {})


def _response(answer: StoredAnswer, headers: dict[str, str]) -> Response:
    return Response(answer.body, answer.status, headers, media_type="application/json")


class Idempotency:
    """The keys that this process is working on; a thread renews their reservations."""

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store
        self._on_created: Callable[[str], None] = lambda _: None
        self._reserved: set[Reservation] = set()
        self._threads = (
            Periodic("idempotency renewal", RESERVED_SECONDS / 3, self._renew),
            Periodic("idempotency cleanup", _CLEANUP_SECONDS, store.delete_expired),
        )

    def for_tenant(self, tenant: str, on_created: Callable[[str], None]) -> Self:
        """The same object for one tenant's keys; `on_created` receives the id of a new object."""
        bound = copy(self)
        bound._store = self._store.for_tenant(tenant)  # noqa: SLF001 - a copy of our own
        bound._on_created = on_created  # noqa: SLF001
        return bound

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for thread in self._threads:
            thread.stop()

    @asynccontextmanager
    async def attempt(self, key: str | None) -> AsyncIterator[Attempt]:
        """Reserve the key for the block; a block that fails releases it.

        Raises:
            IdempotencyInProgress: another request with this key is in progress.
        """
        if key is None:
            yield Attempt(self._store, self._on_created)
            return
        found = await run_in_threadpool(self._store.reserve, key)
        if isinstance(found, StoredAnswer):
            yield Attempt(self._store, self._on_created, answered=found)
            return
        self._reserved.add(found)
        try:
            yield Attempt(self._store, self._on_created, found)
        except BaseException:
            # Shielded: the request may have been cancelled because its client disconnected.
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(self._release, found)
            raise
        finally:
            self._reserved.discard(found)

    def _release(self, reservation: Reservation) -> None:
        try:
            self._store.release(reservation)
        except CoreError as error:
            # It is no longer renewed, so the reservation expires soon.
            logger.info(
                "an idempotency key stays reserved until it expires: %s",
                error,
                extra={"action": "key_not_released"},
            )

    def _renew(self) -> None:
        self._store.renew(self._reserved.copy())
