"""`KeyStore`: API keys, and the jobs that end with them."""

import hmac
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from sharpzo_core.database.engine import make_engine, reading, record, writing
from sharpzo_core.database.pagination import Listing, newest_first
from sharpzo_core.database.tables import api_keys, jobs
from sharpzo_core.database.tenants import TenantStore
from sharpzo_core.errors import NotFound, StateConflict
from sharpzo_core.ids import Prefix, is_id, new_id
from sharpzo_core.records.jobs import REQUESTS, TERMINAL, Request
from sharpzo_core.records.keys import (
    ApiKey,
    NewKey,
    Scope,
    digest_of,
    is_prefix,
    make_key,
    prefix_of,
)
from sharpzo_core.settings import Settings
from sharpzo_core.stores.job_rows import move, read_job

#: Compared with if there is no such key, so that the check takes the same time.
_NO_DIGEST = "0" * 64


class KeyStore(TenantStore):
    def create(
        self,
        name: str,
        scopes: Collection[Scope],
        *,
        expires_at: datetime | None = None,
        rate_limit: str | None = None,
        in_transaction: Callable[[sa.Connection, NewKey], None] | None = None,
    ) -> NewKey:
        """Create a key; its text is only returned here.

        What `in_transaction` writes is committed with it.
        """
        with writing(self._engine) as connection:
            new = self._insert(connection, self._owner, name, scopes, expires_at, rate_limit)
            if in_transaction is not None:
                in_transaction(connection, new)
            return new

    def _insert(
        self,
        connection: sa.Connection,
        tenant: str,
        name: str,
        scopes: Collection[Scope],
        expires_at: datetime | None,
        rate_limit: str | None,
    ) -> NewKey:
        text = make_key()
        key = ApiKey(
            id=new_id(Prefix.KEY),
            tenant=tenant,
            name=name,
            prefix=prefix_of(text),
            sha256=digest_of(text),
            scopes=frozenset(scopes),
            rate_limit=rate_limit,
            created_at=self._clock(),
            expires_at=expires_at,
        )
        connection.execute(sa.insert(api_keys).values(vars(key) | {"scopes": sorted(key.scopes)}))
        return NewKey(key, text)

    def get(self, ref: str) -> ApiKey:
        """The key with this id or prefix.

        Raises:
            NotFound: there is none.
        """
        with reading(self._engine) as connection:
            return self._get(connection, ref)

    def list(self, limit: int = 20, after: str | None = None) -> Listing[ApiKey]:
        """A page of keys, newest first, including keys that are no longer valid.

        Raises:
            ValidationFailed: the cursor or the limit is wrong.
        """
        with reading(self._engine) as connection:
            mine = self._own(api_keys)
            return newest_first(connection, api_keys, Prefix.KEY, limit, after, _read, mine)

    def find(self, prefix: str, sha256: str) -> ApiKey | None:
        """The valid key with this prefix and this hash of its text, or None."""
        query = sa.select(api_keys).where(api_keys.c.prefix == prefix, self._own(api_keys))
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        same = hmac.compare_digest(_NO_DIGEST if row is None else row.sha256, sha256)
        if row is None or not same:
            return None
        key = _read(row)
        return key if key.is_valid(self._clock()) else None

    def any(self) -> bool:
        """Whether a key was ever created, for any tenant."""
        with reading(self._engine) as connection:
            query = sa.select(api_keys.c.id).limit(1)
            return connection.execute(query).first() is not None

    def revoke(self, ref: str) -> ApiKey:
        """Revoke a key, and cancel the jobs that it started; repeating that changes nothing.

        Raises:
            NotFound: there is no such key.
        """
        now = self._clock()
        with writing(self._engine) as connection:
            key = self._get(connection, ref, lock=True)
            if key.revoked_at is None:
                this = sa.update(api_keys).where(api_keys.c.id == key.id, self._own(api_keys))
                connection.execute(this.values(revoked_at=now))
            self._cancel_jobs(connection, key, now)
            return self._get(connection, key.id)

    def _cancel_jobs(self, connection: sa.Connection, key: ApiKey, now: datetime) -> None:
        started = (jobs.c.key_id == key.id) & jobs.c.status.not_in(TERMINAL)
        query = sa.select(jobs).where(started, jobs.c.tenant == key.tenant).order_by(jobs.c.id)
        for job in [read_job(row) for row in connection.execute(query.with_for_update())]:
            move(connection, job, REQUESTS[Request.CANCEL][job.status], now)

    def rotate(
        self,
        ref: str,
        grace: timedelta = timedelta(0),
        in_transaction: Callable[[sa.Connection, NewKey], None] | None = None,
    ) -> NewKey:
        """Create a key with the same rights, and let the old key expire after the grace time.

        The new key has the lifetime of the old one, and takes over its jobs. What `in_transaction`
        writes is committed with it.

        Raises:
            NotFound: there is no such key, or it was revoked.
            StateConflict: it has expired.
        """
        now = self._clock()
        with writing(self._engine) as connection:
            old = self._get(connection, ref, lock=True)
            if old.revoked_at is not None:
                raise NotFound("key", ref)
            if not old.is_valid(now):
                raise StateConflict("the key has expired (create a new one)")
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            until = None if lifetime is None else now + lifetime
            new = self._insert(connection, old.tenant, old.name, old.scopes, until, old.rate_limit)
            end = now + grace if old.expires_at is None else min(now + grace, old.expires_at)
            this = sa.update(api_keys).where(api_keys.c.id == old.id, self._own(api_keys))
            connection.execute(this.values(expires_at=end))
            started = (jobs.c.key_id == old.id) & (jobs.c.tenant == old.tenant)
            connection.execute(sa.update(jobs).where(started).values(key_id=new.record.id))
            if in_transaction is not None:
                in_transaction(connection, new)
            return new

    def mark_used(self, used: Mapping[str, datetime]) -> None:
        with writing(self._engine) as connection:
            for key_id, moment in sorted(used.items()):  # locked in the same order everywhere
                older = api_keys.c.last_used_at.is_(None) | (api_keys.c.last_used_at < moment)
                this = sa.update(api_keys).where(api_keys.c.id == key_id, older)
                connection.execute(this.values(last_used_at=moment))

    def _get(self, connection: sa.Connection, ref: str, *, lock: bool = False) -> ApiKey:
        row = None
        if is_id(Prefix.KEY, ref) or is_prefix(ref):
            named = sa.or_(api_keys.c.id == ref, api_keys.c.prefix == ref)
            query = sa.select(api_keys).where(named, self._own(api_keys))
            row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            raise NotFound("key", ref)
        return _read(row)


def _read(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(**record(row, scopes=frozenset(map(Scope, row.scopes))))


def keys_exist(settings: Settings) -> bool:
    """Whether a key was ever created; this does not create a missing database.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    url = make_url(settings.db_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return False
    engine = make_engine(settings)
    try:
        with reading(engine) as connection:
            made = sa.inspect(connection).has_table(api_keys.name)
        return made and KeyStore(engine).any()
    finally:
        engine.dispose()
