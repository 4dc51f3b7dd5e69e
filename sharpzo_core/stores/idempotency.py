"""Idempotency keys: a repeated request gets the first answer and creates nothing.

A key is reserved before the work begins and completed in the transaction that stores what the
request creates, so there is never one without the other. A reservation is a short lease: a process
that died does not block its key for long, and one that lost its reservation cannot complete it.
"""

import hashlib
import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.database.engine import writing
from sharpzo_core.database.tables import idempotency_keys
from sharpzo_core.database.tenants import DEFAULT_TENANT, TenantStore, owned
from sharpzo_core.errors import IdempotencyInProgress

RESERVED_SECONDS = 15.0  # how long a request keeps its key without a renewal
_RESERVED = timedelta(seconds=RESERVED_SECONDS)


@dataclass(frozen=True)
class Reservation:
    """The right to answer a key; `token` is unique to this attempt."""

    tenant: str
    key: str
    token: str


@dataclass(frozen=True)
class StoredAnswer:
    fingerprint: str
    status: int
    body: str


def fingerprint(endpoint: str, request: Mapping[str, object]) -> str:
    """A hash that is equal for two requests with the same meaning."""
    meaning = json.dumps([endpoint, request], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(meaning.encode()).hexdigest()


class IdempotencyStore(TenantStore):
    """Idempotency keys; two tenants may use the same key."""

    def __init__(
        self,
        engine: sa.Engine,
        kept_hours: float,
        clock: Clock = utc_now,
        tenant: str | None = DEFAULT_TENANT,
    ) -> None:
        super().__init__(engine, clock, tenant)
        self._kept = timedelta(hours=kept_hours)

    def reserve(self, key: str) -> Reservation | StoredAnswer:
        """The right to answer this key, or the stored answer.

        Raises:
            IdempotencyInProgress: another request with this key is in progress.
        """
        now = self._clock()
        reservation = Reservation(self._owner, key, uuid.uuid4().hex)
        with writing(self._engine) as connection:
            connection.execute(sa.delete(idempotency_keys).where(self._is(key), _expired(now)))
            if _insert(connection, reservation, now):
                return reservation
            query = sa.select(idempotency_keys).where(self._is(key))
            row = connection.execute(query).one_or_none()
        if row is None or row.fingerprint is None:
            raise IdempotencyInProgress
        return StoredAnswer(row.fingerprint, row.status, row.body)

    def renew(self, reservations: Collection[Reservation]) -> None:
        if not reservations:
            return
        tokens = [reservation.token for reservation in reservations]
        update = sa.update(idempotency_keys).where(
            idempotency_keys.c.token.in_(tokens), idempotency_keys.c.fingerprint.is_(None)
        )
        with writing(self._engine) as connection:
            connection.execute(update.values(expires_at=self._clock() + _RESERVED))

    def complete(
        self, connection: sa.Connection, reservation: Reservation, answer: StoredAnswer
    ) -> None:
        """Store the answer, in the transaction that stores what was created.

        Raises:
            IdempotencyInProgress: the reservation expired and another request took the key.
        """
        update = (
            sa.update(idempotency_keys)
            .where(_held(reservation))
            .values(
                fingerprint=answer.fingerprint,
                status=answer.status,
                body=answer.body,
                expires_at=self._clock() + self._kept,
            )
        )
        if connection.execute(update).rowcount != 1:
            raise IdempotencyInProgress

    def release(self, reservation: Reservation) -> None:
        """Free the key of a request that failed; completed keys stay."""
        with writing(self._engine) as connection:
            connection.execute(sa.delete(idempotency_keys).where(_held(reservation)))

    def delete_expired(self) -> None:
        with writing(self._engine) as connection:
            connection.execute(sa.delete(idempotency_keys).where(_expired(self._clock())))

    def _is(self, key: str) -> sa.ColumnElement[bool]:
        return (idempotency_keys.c.key == key) & self._own(idempotency_keys)


def _expired(now: datetime) -> sa.ColumnElement[bool]:
    return idempotency_keys.c.expires_at <= now


def _held(reservation: Reservation) -> sa.ColumnElement[bool]:
    """The key's row, while this attempt has it reserved and not completed."""
    columns = idempotency_keys.c
    return (
        owned(idempotency_keys, reservation.tenant)
        & (columns.key == reservation.key)
        & (columns.token == reservation.token)
        & columns.fingerprint.is_(None)
    )


def _insert(connection: sa.Connection, reservation: Reservation, now: datetime) -> bool:
    values = {
        "tenant": reservation.tenant,
        "key": reservation.key,
        "token": reservation.token,
        "created_at": now,
        "expires_at": now + _RESERVED,
    }
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(idempotency_keys).values(values))
    except sa.exc.IntegrityError:
        return False
    return True
